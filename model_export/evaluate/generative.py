"""The generator as one of the recommenders under evaluation.

Legend: E examples, B batch, W beams, K length of a list.
"""

from collections.abc import Callable

import numpy as np
import torch

from model_export.data import Examples, PreparedData
from model_export.evaluate.recommender import Items
from model_export.search import BeamSearch, Slates
from model_export.train import TrainedGenerator
from model_export.train.batches import Collator, in_batches

_BATCH = 64
MIN_ITEM_BEAM = 50
"""Item-level metrics decode the first item alone with at least this beam."""


class GenerativeRecommender:
    """Ranks items by decoding the first item alone, and writes slates with the beam that the service uses."""

    def __init__(
        self, trained: TrainedGenerator, prepared: PreparedData, *, beam_width: int, name: str = "generator"
    ) -> None:
        self.name = name
        self._trained = trained
        self._search = BeamSearch(trained.generator, trained.catalog.snapshot)
        self._collator = Collator(prepared, trained.catalog, trained.generator.spec, torch.device("cpu"))
        self._excludes = prepared.meta["repeat_policy"] == "exclude"
        self._beam_width = beam_width

    def rank(self, examples: Examples, k: int) -> Items:
        """The k best first items `[E, K]` of a beam of at least 50."""

        def first_items(slates: Slates) -> torch.Tensor:
            return slates.item_rows_BWK[:, :k, 0]

        return self._decode(examples, max(MIN_ITEM_BEAM, k), 1, k, first_items)

    def slates(self, examples: Examples, k: int) -> Items:
        """The best slate `[E, K]` by the sum of its logprobs."""
        slate_size = self._trained.generator.spec.slate_size
        if k > slate_size:
            raise ValueError(f"the generator writes slates of {slate_size} items, not {k}")

        def best_slate(slates: Slates) -> torch.Tensor:
            return slates.item_rows_BWK[:, 0]

        return self._decode(examples, self._beam_width, k, k, best_slate)

    def _decode(
        self, examples: Examples, beam_width: int, num_items: int, k: int, pick: Callable[[Slates], torch.Tensor]
    ) -> Items:
        picked = np.full((len(examples), k), -1, dtype=np.int32)
        place = 0
        for batch in in_batches(examples, _BATCH):
            slates = self._search.decode(
                self._collator.history(batch),
                beam_width=beam_width,
                num_items=num_items,
                excluded_rows_BX=self._collator.history_rows(batch) if self._excludes else None,
            )
            rows = pick(slates).numpy()
            items = np.where(rows >= 0, self._trained.catalog.item_of_row_N[rows], -1)
            picked[place : place + len(batch), : items.shape[1]] = items
            place += len(batch)
        return picked
