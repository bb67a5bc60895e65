"""From scores over the catalog to ranked lists, the same way for every baseline.

Shapes: E examples, N items, K length of a list; items are item indexes, -1 pads.
"""

from abc import ABC, abstractmethod

import numpy as np
import numpy.typing as npt

from model_export.data.examples import Examples
from model_export.data.prepared import PreparedData
from model_export.evaluate.recommender import Items
from model_export.evaluate.sequences import available, excluded_pairs

CHUNK_CELLS = 8_000_000  # scores held at once
Scores = npt.NDArray[np.floating]


def best(score_EN: Scores, k: int) -> Items:
    """The k best items of every row, best first, ties to the lower item index; -1 where a score is -inf.

    `ValueError` on NaN, which has no order.
    """
    if np.isnan(score_EN).any():
        raise ValueError("scores must not be NaN")
    num_rows, num_items = score_EN.shape
    width = min(k, num_items)
    if width == 0:
        return np.full((num_rows, k), -1, dtype=np.int32)
    threshold_E = -np.partition(-score_EN, width - 1, axis=1)[:, width - 1]
    # Everything above the threshold stays; of those at it, the lowest indexes fill up the list.
    is_tied_EN = score_EN == threshold_E[:, None]
    room_E = width - (score_EN > threshold_E[:, None]).sum(axis=1)
    is_kept_EN = (score_EN > threshold_E[:, None]) | (is_tied_EN & (np.cumsum(is_tied_EN, axis=1) <= room_E[:, None]))
    item_EK = np.nonzero(is_kept_EN)[1].reshape(num_rows, width)
    kept_EK = np.take_along_axis(score_EN, item_EK, axis=1)
    order_EK = np.argsort(-kept_EK, axis=1, kind="stable")
    ranked_EK = np.take_along_axis(item_EK, order_EK, axis=1)
    ranked_EK[np.isneginf(np.take_along_axis(kept_EK, order_EK, axis=1))] = -1
    return np.pad(ranked_EK, ((0, 0), (0, k - width)), constant_values=-1).astype(np.int32)


class ScoringRecommender(ABC):
    """A recommender that scores every item alone. Its slate is the list of its k best items."""

    name: str

    def __init__(self, prepared: PreparedData) -> None:
        self.prepared = prepared
        self._available_N = available(prepared)

    @abstractmethod
    def scores(self, examples: Examples) -> Scores:
        """Scores `[E, N]`, higher is better, before availability and exclusions."""

    def rank(self, examples: Examples, k: int) -> Items:
        """The k best legal items `[E, K]`."""
        chunk = max(1, CHUNK_CELLS // max(self.prepared.num_items, 1))
        parts = [self._rank(examples[start : start + chunk], k) for start in range(0, len(examples), chunk)]
        return np.concatenate(parts) if parts else np.zeros((0, k), dtype=np.int32)

    def slates(self, examples: Examples, k: int) -> Items:
        """The k best legal items `[E, K]`, as a slate."""
        return self.rank(examples, k)

    def _rank(self, examples: Examples, k: int) -> Items:
        score_EN = np.where(self._available_N, self.scores(examples), -np.inf)
        score_EN[excluded_pairs(self.prepared, examples)] = -np.inf
        return best(score_EN, k)
