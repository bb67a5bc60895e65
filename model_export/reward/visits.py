"""From visits to the tensors that the reward model reads.

Legend: B batch, W slates of each example, K slate size, L levels, S signals, M visits.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from model_export.data import Examples, PreparedData
from model_export.data.feedback import Feedback
from model_export.model import GeneratorSpec, HistoryBatch
from model_export.model.history import NUM_RESERVED_CODES
from model_export.train.batches import Collator
from model_export.train.catalog import TrainingCatalog

Int64 = npt.NDArray[np.int64]
_POOL_BATCHES = 32


@dataclass(frozen=True, kw_only=True)
class VisitBatch:
    """Visits with what came of them; each is one slate (W = 1)."""

    history: HistoryBatch
    codes_BWKL: Tensor
    signal_BWKS: Tensor
    """NaN where the slate has ended."""


class VisitCollator:
    """Gathers histories, slates and signals of a data set."""

    def __init__(
        self, prepared: PreparedData, sids_NL: npt.NDArray[np.int32], spec: GeneratorSpec, device: torch.device
    ) -> None:
        self._collator = Collator(prepared, TrainingCatalog.build(prepared, sids_NL), spec, device)
        self._slate_size = spec.slate_size
        self._device = device
        # A last row of zeros, so that item -1 becomes padding.
        self._codes_NL = np.zeros((len(sids_NL) + 1, sids_NL.shape[1]), dtype=np.int32)
        self._codes_NL[:-1] = sids_NL + NUM_RESERVED_CODES

    def history(self, examples: Examples) -> HistoryBatch:
        """Histories of examples; now is when their target starts."""
        return self._collator.history(examples)

    def slates(self, item_BWK: npt.NDArray[np.int32]) -> Tensor:
        """Codes [B, W, K, L] of slates of item indexes, -1 after the end of a slate."""
        return torch.from_numpy(self._codes_NL[item_BWK]).to(self._device)

    def visit_history(self, feedback: Feedback, visits: Int64) -> HistoryBatch:
        """Histories of visits; now is when their first item is shown."""
        now_B = torch.from_numpy(feedback.timestamp_ms_M[visits]).to(self._device)
        return replace(self._collator.history(feedback.examples(visits)), now_B=now_B)

    def batch(self, feedback: Feedback, visits: Int64, signals: Int64) -> VisitBatch:
        """Visits with the signals of the given places."""
        item_MK, signal_MKS = feedback.slates(visits, self._slate_size)
        return VisitBatch(
            history=self.visit_history(feedback, visits),
            codes_BWKL=self.slates(item_MK[:, None]),
            signal_BWKS=torch.from_numpy(signal_MKS[:, None][..., signals]).to(self._device),
        )


def shuffled_visits(feedback: Feedback, visits: Int64, batch_size: int, rng: np.random.Generator) -> Iterator[Int64]:
    """All visits once, in random batches of similar history length, so that little is padding."""
    order = rng.permutation(visits)
    length_M = feedback.history_end_M - feedback.history_start_M
    batches = []
    for start in range(0, len(order), batch_size * _POOL_BATCHES):
        pool = order[start : start + batch_size * _POOL_BATCHES]
        pool = pool[np.argsort(length_M[pool], kind="stable")]
        batches += [pool[place : place + batch_size] for place in range(0, len(pool), batch_size)]
    for place in rng.permutation(len(batches)):
        yield batches[place]
