"""What a runner takes and gives: the arrays of the one graph that turns histories into slates.

Legend: B requests, T history length, L levels, W beams, K slate size, X excluded rows, F filter slots, N items.
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from service.bundle import Manifest
from service.catalog import CatalogSnapshot

PAD_CODE = 0
"""In `history_codes`: no event here."""
UNKNOWN_CODE = 1
"""In `history_codes`: an event with an item that the catalog does not hold."""
FIRST_CODE = 2
"""In `history_codes`: code c of a sid stands as c + FIRST_CODE."""
NO_ROW = -1
"""Pads `excluded_rows`, and stands in `item_rows` where there is no item."""
DEAD_SCORE = np.float32(-1e30)
"""Score of a beam that does not exist: fewer legal slates than beams."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Inputs of one run. History is oldest first, from place 0; places at and after the length are padding."""

    history_codes_BTL: npt.NDArray[np.int32]
    history_rows_BT: npt.NDArray[np.int32]
    """Row of each event's item; NO_ROW pads, and stands where the code is UNKNOWN_CODE."""
    history_actions_BT: npt.NDArray[np.int32]
    """Manifest numbers, from 1; 0 pads."""
    history_times_BT: npt.NDArray[np.int64]
    """Unix milliseconds."""
    history_values_BT: npt.NDArray[np.float32]
    """Raw values; NaN: none."""
    history_lengths_B: npt.NDArray[np.int32]
    now_B: npt.NDArray[np.int64]
    """Unix milliseconds."""
    excluded_rows_BX: npt.NDArray[np.int32]
    """Distinct rows that must not be recommended, in any order, padded with NO_ROW."""
    filter_slots_B: npt.NDArray[np.int32]
    allowed_cumsum_FN: npt.NDArray[np.int32]
    """[F, N + 1], `CatalogSnapshot.allowed_cumsum` of each filter."""
    beam_width: int
    catalog: CatalogSnapshot


@dataclass(frozen=True, slots=True, kw_only=True)
class Decoded:
    """Outputs of one run: for each request W candidate slates, best first."""

    item_rows_BWK: npt.NDArray[np.int32]
    """NO_ROW where the slate ends early."""
    item_valid_BWK: npt.NDArray[np.bool_]
    """False where a slate ends early (the catalog under filter and exclusions is smaller) or the beam is dead."""
    level_logprobs_BWKL: npt.NDArray[np.float32]
    """Logprob of each code; zero where the item is not valid. Their sum over L is the item's score."""
    scores_BW: npt.NDArray[np.float32]
    """Sum of all logprobs of the beam, descending; DEAD_SCORE for beams that do not exist."""


class Runner(Protocol):
    """Runs the graph. Called from one worker thread at a time; must not touch the event loop."""

    @property
    def manifest(self) -> Manifest:
        """Of the bundle that the runner serves."""
        ...

    @property
    def provider(self) -> str:
        """What computes, for `/version`: an ONNX Runtime provider's name, or `fake`."""
        ...

    def run(self, batch: Batch) -> Decoded:
        """Decodes one batch.

        Raises:
            RunnerError: the run failed; nothing of the batch is answered.
        """
        ...
