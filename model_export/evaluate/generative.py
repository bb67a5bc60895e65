"""The generator as one of the recommenders under evaluation.

Legend: E examples, B batch, W beams, K length of a list, N items, D width of an embedding.
"""

from collections.abc import Callable
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt
import torch

from model_export.data.examples import Examples
from model_export.data.prepared import PreparedData
from model_export.evaluate.mmr import mmr, relevance
from model_export.evaluate.recommender import Items
from model_export.search.eager import BeamSearch, Slates
from model_export.train.batches import Collator, in_batches
from model_export.train.stage import TrainedGenerator

_BATCH = 64
MIN_ITEM_BEAM = 50
"""Item-level metrics decode the first item alone with at least this beam."""

SlateMode = Literal["session", "items", "mmr"]


class GenerativeRecommender:
    """Ranks items by decoding the first item alone, and fills slates as its `slate_mode` says.

    `session`: the best slate that the generator writes, with the beam that the service uses. `items`: the K best first
    items of one beam. `mmr`: that beam re-ranked for items unlike each other (`model_export.evaluate.mmr`); relevance
    is the logprob of the item, min-max over the beam, similarity the cosine of the items' embeddings.
    """

    def __init__(
        self,
        trained: TrainedGenerator,
        prepared: PreparedData,
        *,
        beam_width: int,
        name: str = "generator",
        slate_mode: SlateMode | None = None,
        embedding_ND: npt.NDArray[np.floating] | None = None,
        mmr_lambda: float | None = None,
    ) -> None:
        """Prepares the search.

        Args:
            trained: The generator and its catalog.
            prepared: The data set that examples belong to.
            beam_width: Of slates; lists of first items come from a beam of at least 50.
            name: In reports.
            slate_mode: Default: `session`, or `items` where the generator writes no more than one item.
            embedding_ND: The tokenizer's embedding of every item, in the order of the item index; for `mmr`.
            mmr_lambda: Weight of relevance against dissimilarity, 0 to 1; for `mmr`. A choice for validation.

        Raises:
            ValueError: an unknown mode, or `mmr` without its two arguments or with unfit ones.
        """
        self.name = name
        self._trained = trained
        self._search = BeamSearch(trained.generator, trained.catalog.snapshot)
        self._collator = Collator(prepared, trained.catalog, trained.generator.spec, torch.device("cpu"))
        self._excludes = prepared.meta["repeat_policy"] == "exclude"
        self._beam_width = beam_width
        self._slate_mode = slate_mode or ("session" if trained.generator.spec.slate_size > 1 else "items")
        if self._slate_mode not in get_args(SlateMode):
            raise ValueError(f"slate_mode must be one of {', '.join(get_args(SlateMode))}, not {slate_mode!r}")
        if self._slate_mode == "mmr":
            if embedding_ND is None or mmr_lambda is None:
                raise ValueError("slate_mode mmr needs embedding_ND and mmr_lambda")
            if len(embedding_ND) != prepared.num_items:
                raise ValueError(f"embedding_ND has {len(embedding_ND)} rows for {prepared.num_items} items")
            if not 0 <= mmr_lambda <= 1:
                raise ValueError(f"mmr_lambda must lie in [0, 1], not {mmr_lambda}")
            self._embedding_ND, self._mmr_lambda = embedding_ND, mmr_lambda

    def rank(self, examples: Examples, k: int) -> Items:
        """The k best first items `[E, K]` of a beam of at least 50."""

        def first_items(slates: Slates) -> Items:
            return self._items(slates.item_rows_BWK[:, :k, 0])

        return self._decode(examples, max(MIN_ITEM_BEAM, k), 1, k, first_items)

    def slates(self, examples: Examples, k: int) -> Items:
        """One slate `[E, K]`, as the mode says.

        Raises:
            ValueError: in mode `session`, a k beyond the slates that the generator writes.
        """
        if self._slate_mode == "session":
            slate_size = self._trained.generator.spec.slate_size
            if k > slate_size:
                raise ValueError(f"the generator writes slates of {slate_size} items, not {k}")
            return self._decode(
                examples, self._beam_width, k, k, lambda slates: self._items(slates.item_rows_BWK[:, 0])
            )
        width = max(MIN_ITEM_BEAM, self._beam_width, k)

        def picked_items(slates: Slates) -> Items:
            items_BW = self._items(slates.item_rows_BWK[:, :, 0])
            if self._slate_mode == "items":
                return items_BW[:, :k]
            is_live_BW = items_BW >= 0
            relevance_BW = relevance(slates.scores_BW.numpy(), is_live_BW)
            vectors_BWD = self._embedding_ND[np.maximum(items_BW, 0)]
            place_BK = mmr(relevance_BW, is_live_BW, vectors_BWD, k, self._mmr_lambda)
            return np.where(place_BK >= 0, np.take_along_axis(items_BW, np.maximum(place_BK, 0), 1), -1)

        return self._decode(examples, width, 1, k, picked_items)

    def _items(self, rows: torch.Tensor) -> Items:
        """Item indexes of catalog rows; -1 stays."""
        found = rows.numpy()
        return np.where(found >= 0, self._trained.catalog.item_of_row_N[found], -1)

    def _decode(
        self, examples: Examples, beam_width: int, num_items: int, k: int, pick: Callable[[Slates], Items]
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
            items = pick(slates)
            picked[place : place + len(batch), : items.shape[1]] = items
            place += len(batch)
        return picked
