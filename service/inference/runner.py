"""What a runner takes and gives: the arrays of the graph that turns histories into slates, and of those beside it.

Legend: B requests, T history length, L levels, W beams, K slate size, R runner-ups, X excluded rows, F filter slots,
N items.
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from service.bundle import Manifest
from service.bundle.manifest import Precision, Purpose
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
class Draws:
    """How the sampler draws."""

    temperatures_B: npt.NDArray[np.float32]
    """Positive."""
    seeds_B: npt.NDArray[np.int64]
    """In [0, 2^32)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Inputs of one run. History is oldest first, from place 0; places at and after the length are padding."""

    history_codes_BTL: npt.NDArray[np.int32]
    history_rows_BT: npt.NDArray[np.int32]
    """Row of each event's item; NO_ROW pads, and stands where the code is UNKNOWN_CODE."""
    history_actions_BT: npt.NDArray[np.int32]
    """Manifest numbers, from 1; 0 pads."""
    history_ages_BT: npt.NDArray[np.int32]
    """Whole seconds before now: `age_seconds`."""
    history_values_BT: npt.NDArray[np.float32]
    """Raw values; NaN: none."""
    history_lengths_B: npt.NDArray[np.int32]
    excluded_rows_BX: npt.NDArray[np.int32]
    """Distinct rows that must not be recommended, in any order, padded with NO_ROW."""
    filter_slots_B: npt.NDArray[np.int32]
    allowed_cumsum_FN: npt.NDArray[np.int32]
    """[F, N + 1], `CatalogSnapshot.allowed_cumsum` of each filter."""
    group_limits_B: npt.NDArray[np.int32]
    """Most items of one group in a slate; 0: any number."""
    diversities_B: npt.NDArray[np.float32]
    """What a beam's score loses for every two of its items that share their first code."""
    beam_width: int
    catalog: CatalogSnapshot
    purpose: Purpose = "generator"
    """Which of the bundle's graphs runs it."""
    forced_rows_BK: npt.NDArray[np.int32] | None = None
    """For `explain`: the slates to explain, padded with NO_ROW."""
    draws: Draws | None = None
    """For the sampler."""


def age_seconds(times_ms_BT: npt.NDArray[np.int64], now_ms_B: npt.NDArray[np.int64]) -> npt.NDArray[np.int32]:
    """Whole seconds from events to now; 0 where a clock runs ahead of ours, at most what int32 holds (68 years).

    The graph gets 32 bits because runtimes that compute int64 as int32 cut Unix milliseconds off without a word.
    """
    ages_BT = np.clip((now_ms_B[:, None] - times_ms_BT) // 1000, 0, np.iinfo(np.int32).max)
    ages_s_BT: npt.NDArray[np.int32] = ages_BT.astype(np.int32)
    return ages_s_BT


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Beams:
    """The candidate slates of one request; fields as in `Decoded`."""

    item_rows_WK: npt.NDArray[np.int32]
    item_valid_WK: npt.NDArray[np.bool_]
    level_logprobs_WKL: npt.NDArray[np.float32]
    scores_W: npt.NDArray[np.float32]
    item_rewards_WK: npt.NDArray[np.float32] | None = None
    runner_up_codes_KLR: npt.NDArray[np.int32] | None = None
    runner_up_logprobs_KLR: npt.NDArray[np.float32] | None = None
    level_log_propensities_WKL: npt.NDArray[np.float32] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Decoded:
    """Outputs of one run: for each request W candidate slates, best first."""

    item_rows_BWK: npt.NDArray[np.int32]
    """NO_ROW where the slate ends early."""
    item_valid_BWK: npt.NDArray[np.bool_]
    """False where a slate ends early (the catalog under filter, exclusions and cap is smaller) or the beam is dead."""
    level_logprobs_BWKL: npt.NDArray[np.float32]
    """Logprob of each code; zero where the item is not valid. Their sum over L is the item's score."""
    scores_BW: npt.NDArray[np.float32]
    """Sum of all logprobs of the beam less the penalty of its diversity, descending; DEAD_SCORE for beams that do not
    exist. Slates that a cap cut short come after all longer ones. Of the sampler: what orders the draws."""
    item_rewards_BWK: npt.NDArray[np.float32] | None = None
    """What the reward model expects each item to add to its slate's reward; zero where the item is not valid. None: the
    bundle has no reward model."""
    runner_up_codes_BKLR: npt.NDArray[np.int32] | None = None
    """From `explain`, along the one beam: other legal codes, most likely first; -1 where there are fewer than R."""
    runner_up_logprobs_BKLR: npt.NDArray[np.float32] | None = None
    level_log_propensities_BWKL: npt.NDArray[np.float32] | None = None
    """Log of the probability with which the sampler drew each code, given those before it; zero where the item is not
    valid. None: the slates are not sampled."""

    def of_request(self, request: int) -> Beams:
        """What was decoded for one request."""
        rewards_BWK, codes_BKLR, logprobs_BKLR, propensities_BWKL = (
            self.item_rewards_BWK,
            self.runner_up_codes_BKLR,
            self.runner_up_logprobs_BKLR,
            self.level_log_propensities_BWKL,
        )
        return Beams(
            item_rows_WK=self.item_rows_BWK[request],
            item_valid_WK=self.item_valid_BWK[request],
            level_logprobs_WKL=self.level_logprobs_BWKL[request],
            scores_W=self.scores_BW[request],
            item_rewards_WK=None if rewards_BWK is None else rewards_BWK[request],
            runner_up_codes_KLR=None if codes_BKLR is None else codes_BKLR[request],
            runner_up_logprobs_KLR=None if logprobs_BKLR is None else logprobs_BKLR[request],
            level_log_propensities_WKL=None if propensities_BWKL is None else propensities_BWKL[request],
        )


class Runner(Protocol):
    """Runs the bundle's graphs. `run` is called from one worker thread at a time; must not touch the event loop."""

    @property
    def manifest(self) -> Manifest:
        """Of the bundle that the runner serves."""
        ...

    @property
    def provider(self) -> str:
        """What computes, for `/version`: an ONNX Runtime provider's name, `OpenVINO`, or `fake`."""
        ...

    @property
    def precision(self) -> Precision:
        """Of the network: which tolerance of the manifest it is held to."""
        ...

    def load(self, purpose: Purpose) -> None:
        """Makes a graph ready to run, if it is not: the generator's always is. May be called from any thread.

        Raises:
            RunnerError: the bundle has no such graph, or it does not load.
        """
        ...

    def run(self, batch: Batch) -> Decoded:
        """Decodes one batch with the graph of its purpose, which is loaded first where it was not.

        Raises:
            RunnerError: the run failed; nothing of the batch is answered.
        """
        ...
