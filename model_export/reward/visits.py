"""From visits to the tensors that the reward model reads.

Legend: B batch, T history length, W slates of each example, K slate size, L levels, S signals, M visits, N items,
E width of an item embedding.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from model_export.data.examples import Examples
from model_export.data.feedback import Feedback
from model_export.data.prepared import PreparedData
from model_export.model.config import GeneratorSpec
from model_export.model.generator import HistoryBatch
from model_export.model.history import NUM_RESERVED_CODES
from model_export.reward.model import RewardBatch
from model_export.tokenizer.tokenization import Tokenization
from model_export.train.batches import Collator
from model_export.train.catalog import TrainingCatalog

Int64 = npt.NDArray[np.int64]
_POOL_BATCHES = 32


@dataclass(frozen=True, kw_only=True, eq=False)
class RewardItems:
    """What the reward model is told of every prepared item."""

    sids_NL: npt.NDArray[np.int32]
    codebook_sizes: tuple[int, ...]
    """Codes per level."""
    embedding_NE: npt.NDArray[np.float32]

    @classmethod
    def of(cls, tokenization: Tokenization) -> "RewardItems":
        """As the tokenizer made them."""
        return cls(
            sids_NL=tokenization.sids_NL,
            codebook_sizes=tokenization.codebook_sizes,
            embedding_NE=tokenization.embeddings_ND,
        )


@dataclass(frozen=True, kw_only=True)
class VisitBatch:
    """Visits with what came of them; each is one slate (W = 1)."""

    inputs: RewardBatch
    signal_BWKS: Tensor
    """NaN where the slate has ended."""


class VisitCollator:
    """Gathers histories, slates and signals of a data set."""

    def __init__(self, prepared: PreparedData, items: RewardItems, spec: GeneratorSpec, device: torch.device) -> None:
        catalog = TrainingCatalog.build(prepared, items.sids_NL)
        self._collator = Collator(prepared, catalog, spec, device)
        self._slate_size = spec.slate_size
        self._device = device
        # A last row of zeros, so that item -1 becomes padding.
        num_items = len(items.sids_NL)
        codes_NL = np.zeros((num_items + 1, items.sids_NL.shape[1]), dtype=np.int32)
        codes_NL[:-1] = items.sids_NL + NUM_RESERVED_CODES
        embedding_NE = np.zeros((num_items + 1, items.embedding_NE.shape[1]), dtype=np.float32)
        embedding_NE[:-1] = items.embedding_NE
        self._codes_NL = torch.from_numpy(codes_NL).to(device)
        self._embedding_NE = torch.from_numpy(embedding_NE).to(device)
        item_of_row_N = np.append(catalog.item_of_row_N, num_items)  # row -1 is padding
        self._item_of_row_N = torch.from_numpy(item_of_row_N.astype(np.int64)).to(device)

    def batch(self, examples: Examples, item_BWK: npt.NDArray[np.int32]) -> RewardBatch:
        """Slates of item indexes, -1 after the end of a slate, for examples; now is when their target starts."""
        return self._batch(self._collator.history(examples), item_BWK)

    def visit_batch(self, feedback: Feedback, visits: Int64, item_MWK: npt.NDArray[np.int32]) -> RewardBatch:
        """Slates shown in place of visits; now is when the visit's first item is shown."""
        history = self._collator.history(feedback.examples(visits), feedback.timestamp_ms_M[visits])
        return self._batch(history, item_MWK)

    def visits(self, feedback: Feedback, visits: Int64, signals: Int64) -> VisitBatch:
        """Visits with the signals of the given places."""
        item_MK, signal_MKS = feedback.slates(visits, self._slate_size)
        return VisitBatch(
            inputs=self.visit_batch(feedback, visits, item_MK[:, None]),
            signal_BWKS=torch.from_numpy(signal_MKS[:, None][..., signals]).to(self._device),
        )

    def _batch(self, history: HistoryBatch, item_BWK: npt.NDArray[np.int32]) -> RewardBatch:
        assert history.rows_BT is not None
        items_BWK = torch.from_numpy(item_BWK.astype(np.int64)).to(self._device)
        return RewardBatch(
            history=history,
            history_embeddings_BTE=self._embedding_NE[self._item_of_row_N[history.rows_BT.long()]],
            codes_BWKL=self._codes_NL[items_BWK],
            embeddings_BWKE=self._embedding_NE[items_BWK],
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
