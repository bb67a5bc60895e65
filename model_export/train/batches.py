"""From examples to the tensors that the generator reads.

Legend: B batch, T history length, K slate size, L levels, X excluded rows, E events.
"""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from model_export.data.examples import Examples
from model_export.data.prepared import PreparedData
from model_export.model.config import GeneratorSpec
from model_export.model.generator import HistoryBatch
from model_export.model.history import NUM_RESERVED_CODES
from model_export.train.catalog import TrainingCatalog
from service.inference.runner import age_seconds

Int64 = npt.NDArray[np.int64]


class Collator:
    """Gathers histories and targets of a data set under one catalog."""

    def __init__(
        self, prepared: PreparedData, catalog: TrainingCatalog, spec: GeneratorSpec, device: torch.device
    ) -> None:
        self._spec = spec
        self._device = device
        self._prepared = prepared
        self._row_of_item_N = catalog.row_of_item_N
        self._rows_E = catalog.row_of_item_N[prepared.item_E]
        self._sids_NL = catalog.snapshot.sids_NL
        self._actions_E = prepared.action_E.astype(np.int32) + 1
        self._times_E = prepared.timestamp_ms_E
        self._values_E = prepared.value_E

    def history(self, examples: Examples, now_ms_B: npt.NDArray[np.int64] | None = None) -> HistoryBatch:
        """The newest T events before each target; padded to the longest of the batch.

        `now_ms_B`: when the requests come; default: the moment of the first target event, when the next item is wanted.
        """
        place_BT, inside_BT, lengths_B = self._window(examples)
        codes_BTL = self._sids_NL[self._rows_E[place_BT]] + np.int32(NUM_RESERVED_CODES)
        if now_ms_B is None:
            now_ms_B = self._times_E[np.minimum(examples.target_start, len(self._times_E) - 1)]
        return HistoryBatch(
            codes_BTL=self._tensor(codes_BTL * inside_BT[:, :, None]),
            actions_BT=self._tensor(self._actions_E[place_BT] * inside_BT),
            ages_BT=self._tensor(age_seconds(self._times_E[place_BT], now_ms_B) * inside_BT),
            values_BT=self._tensor(np.where(inside_BT, self._values_E[place_BT], np.float32(np.nan))),
            lengths_B=self._tensor(lengths_B.astype(np.int32)),
            rows_BT=self._tensor(np.where(inside_BT, self._rows_E[place_BT], np.int32(-1))),
        )

    def targets(self, examples: Examples) -> tuple[Tensor, Tensor]:
        """Rows [B, K], -1 after the target's end, and codes [B, K, L] of the targets, each item once."""
        items_BK = self._prepared.target_items(examples)
        rows_BK = np.where(items_BK >= 0, self._row_of_item_N[items_BK], -1)
        codes_BKL = self._sids_NL[np.maximum(rows_BK, 0)]
        return self._tensor(rows_BK.astype(np.int64)), self._tensor(codes_BKL.astype(np.int64))

    def history_rows(self, examples: Examples) -> Tensor:
        """Distinct rows of each whole history [B, X], padded with -1: what the repeat policy `exclude` excludes."""
        rows = [
            np.unique(self._rows_E[start:end])
            for start, end in zip(examples.history_start, examples.history_end, strict=True)
        ]
        rows_BX = np.full((len(rows), max([1, *map(len, rows)])), -1, dtype=np.int32)
        for place, distinct in enumerate(rows):
            rows_BX[place, : len(distinct)] = distinct
        return self._tensor(rows_BX)

    def _window(self, examples: Examples) -> tuple[Int64, npt.NDArray[np.bool_], Int64]:
        lengths_B = np.minimum(examples.history_end - examples.history_start, self._spec.history_length)
        place_BT = (examples.history_end - lengths_B)[:, None] + np.arange(max(1, int(lengths_B.max(initial=1))))
        inside_BT = place_BT < examples.history_end[:, None]
        return np.where(inside_BT, place_BT, 0), inside_BT, lengths_B

    def _tensor(self, array: npt.NDArray[np.generic]) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(self._device)


def training_examples(prepared: PreparedData, min_target_items: int) -> Examples:
    """The examples of `train` whose targets have so many items. `ValueError` where there are none."""
    examples = prepared.examples("train")
    if len(examples) == 0:
        raise ValueError("there are no training examples: too few events before the first split")
    is_long = examples.target_end - examples.target_start >= min_target_items
    if not is_long.any():
        raise ValueError(f"no training example has a target of {min_target_items} items (min_target_items)")
    return examples[np.flatnonzero(is_long)]


def shuffled_batches(examples: Examples, batch_size: int, rng: np.random.Generator) -> Iterator[Examples]:
    """All examples once, in random batches of similar history length, so that little is padding."""
    order = rng.permutation(len(examples))
    lengths = examples.history_end - examples.history_start
    pool = batch_size * 32
    batches = []
    for start in range(0, len(order), pool):
        part = order[start : start + pool]
        part = part[np.argsort(lengths[part], kind="stable")]
        batches += [part[place : place + batch_size] for place in range(0, len(part), batch_size)]
    for place in rng.permutation(len(batches)):
        yield examples[batches[place]]


def in_batches(examples: Examples, batch_size: int) -> Iterator[Examples]:
    """All examples in their order."""
    for start in range(0, len(examples), batch_size):
        yield examples[slice(start, start + batch_size)]
