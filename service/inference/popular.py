"""The slate that needs no model: the most popular items that the request allows.

Legend: N items, S excluded keys, R ranked rows.
"""

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from service.catalog import CatalogSnapshot
from service.inference.features import RequestInputs

_FIRST_LOOK = 256


class PopularRanking:
    """The rows of a catalog by training events, most first."""

    def __init__(self, catalog: Callable[[], CatalogSnapshot]) -> None:
        self._catalog = catalog
        self._ranked: tuple[CatalogSnapshot, npt.NDArray[np.int32]] | None = None

    def slate(self, request: RequestInputs, slate_size: int) -> tuple[CatalogSnapshot, list[tuple[int, float]]]:
        """Up to `slate_size` rows that pass the filter, are not excluded and keep to the cap, each with its log share
        of all events.

        Shares are smoothed by one event per item, so that they are finite.
        """
        snapshot, ranked_N = self._ranking()
        cumsum = snapshot.allowed_cumsum(request.tag_filter)
        excluded_S = snapshot.rows_of_keys(request.excluded_keys_S)
        rows = ranked_N[:0]
        num_looked_at = _FIRST_LOOK + len(excluded_S)
        # The head of the ranking nearly always suffices; a narrow filter makes us look further.
        while True:
            head = ranked_N[:num_looked_at]
            allowed = (cumsum[head + 1] > cumsum[head]) & ~np.isin(head, excluded_S)
            rows = head[allowed]
            if request.max_per_group:
                rows = rows[within_cap(snapshot.child_groups[-1][rows], request.max_per_group)]
            rows = rows[:slate_size]
            if len(rows) == slate_size or num_looked_at >= len(ranked_N):
                break
            num_looked_at *= 8
        total = int(snapshot.popularity_N.sum()) + snapshot.num_items
        counts = snapshot.popularity_N[rows]
        scores = [math.log((count + 1) / total) for count in counts.tolist()]
        return snapshot, list(zip(rows.tolist(), scores, strict=True))

    def _ranking(self) -> tuple[CatalogSnapshot, npt.NDArray[np.int32]]:
        snapshot = self._catalog()
        if self._ranked is None or self._ranked[0] is not snapshot:
            self._ranked = (snapshot, snapshot.ranked_rows())
        return self._ranked


def within_cap(group_R: npt.NDArray[np.int32], limit: int) -> npt.NDArray[np.bool_]:
    """Which of the ranked items have fewer than `limit` of their group before them; all that are of none (-1)."""
    order_R = np.argsort(group_R, kind="stable")
    sorted_R = group_R[order_R]
    num_before_R = np.empty(len(group_R), dtype=np.int64)
    num_before_R[order_R] = np.arange(len(group_R)) - np.searchsorted(sorted_R, sorted_R)
    return (num_before_R < limit) | (group_R < 0)
