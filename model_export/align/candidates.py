"""Candidate slates of examples: what the policy would write.

Legend: B examples of a batch, W candidates of each, K slate size.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from model_export.align.config import CandidateKind
from model_export.align.sampling import SlateSampler
from model_export.data.examples import Examples
from model_export.data.prepared import PreparedData
from model_export.search.eager import BeamSearch
from model_export.train.batches import Collator, in_batches
from model_export.train.stage import TrainedGenerator


@dataclass(frozen=True, kw_only=True)
class Candidates:
    """Slates of one batch of examples; -1 pads slates that the catalog could not fill."""

    row_BWK: npt.NDArray[np.int32]
    """Item rows."""
    item_BWK: npt.NDArray[np.int32]
    """Item indexes."""
    score_BW: npt.NDArray[np.float32]
    """Sum of logprobs. The beam's come best first, sampled ones in no order."""


class CandidateSearch:
    """Writes candidates under the data set's repeat policy."""

    def __init__(
        self,
        trained: TrainedGenerator,
        prepared: PreparedData,
        *,
        kind: CandidateKind = "beam",
        temperature: float = 1.0,
        batch_size: int = 32,
    ) -> None:
        generator, snapshot = trained.generator, trained.catalog.snapshot
        self._sampler = SlateSampler(generator, snapshot, temperature=temperature) if kind == "sampled" else None
        self._search: BeamSearch = self._sampler or BeamSearch(generator, snapshot)
        self._collator = Collator(prepared, trained.catalog, generator.spec, generator.start_D.device)
        self._item_of_row_N = trained.catalog.item_of_row_N
        self._excludes = prepared.meta["repeat_policy"] == "exclude"
        self._batch_size = batch_size

    def batches(
        self, examples: Examples, num_candidates: int, *, num_items: int | None = None, seed: int = 0
    ) -> Iterator[tuple[Examples, Candidates]]:
        """The examples in their order, batch by batch, each with its candidates.

        Args:
            examples: Whom to write for.
            num_candidates: W.
            num_items: Items of a slate; default: the generator's slate size.
            seed: Of sampled candidates.
        """
        if self._sampler:
            self._sampler.reseed(seed)
        for batch in in_batches(examples, self._batch_size):
            slates = self._search.decode(
                self._collator.history(batch),
                beam_width=num_candidates,
                num_items=num_items,
                excluded_rows_BX=self._collator.history_rows(batch) if self._excludes else None,
            )
            row_BWK = _numpy(slates.item_rows_BWK).astype(np.int32)
            item_BWK = np.where(row_BWK >= 0, self._item_of_row_N[row_BWK], np.int32(-1))
            yield batch, Candidates(row_BWK=row_BWK, item_BWK=item_BWK, score_BW=_numpy(slates.scores_BW))


def _numpy(tensor: torch.Tensor) -> npt.NDArray[np.float32]:
    array: npt.NDArray[np.float32] = tensor.cpu().numpy()
    return array
