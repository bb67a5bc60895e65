"""The slate that needs no model: the most popular items that the request allows, those like the last one first.

Legend: N items, S excluded keys, R ranked rows.
"""

import math
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

import numpy as np
import numpy.typing as npt

from service.catalog import CatalogSnapshot
from service.inference.features import RequestInputs

_FIRST_LOOK: Final = 256
_NUM_GROUPS: Final = 256
"""Whose rankings are kept."""


class PopularRanking:
    """The rows of a catalog by training events, most first."""

    def __init__(self, catalog: Callable[[], CatalogSnapshot]) -> None:
        self._catalog = catalog
        self._ranked: tuple[CatalogSnapshot, npt.NDArray[np.int32]] | None = None
        self._of_groups: OrderedDict[int, npt.NDArray[np.int32]] = OrderedDict()

    def slate(self, request: RequestInputs, slate_size: int) -> tuple[CatalogSnapshot, list[tuple[int, float]]]:
        """Up to `slate_size` rows that pass the filter, are not excluded and keep to the cap, each with its log share
        of all events: first those of the group that the request's last known item is of, then any.

        Shares are smoothed by one event per item, so that they are finite.
        """
        snapshot, ranked_N = self._ranking()
        cumsum = snapshot.allowed_cumsum(request.tag_filter)
        excluded_S = snapshot.rows_of_keys(request.excluded_keys_S)

        def take(ranked_R: npt.NDArray[np.int32], taken_R: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
            """Fills up what was taken from the ranking; its head nearly always suffices, but a narrow filter."""
            num_looked_at = _FIRST_LOOK + len(excluded_S)
            while True:
                head = ranked_R[:num_looked_at]
                allowed = (cumsum[head + 1] > cumsum[head]) & ~np.isin(head, excluded_S) & ~np.isin(head, taken_R)
                rows = np.concatenate([taken_R, head[allowed]])
                if request.max_per_group:
                    rows = rows[within_cap(snapshot.child_groups[-1][rows], request.max_per_group)]
                if len(rows) >= slate_size or num_looked_at >= len(ranked_R):
                    return rows[:slate_size]
                num_looked_at *= 8

        rows = take(ranked_N, take(self._of_last_group(request), ranked_N[:0]))
        total = int(snapshot.popularity_N.sum()) + snapshot.num_items
        counts = snapshot.popularity_N[rows]
        scores = [math.log((count + 1) / total) for count in counts.tolist()]
        return snapshot, list(zip(rows.tolist(), scores, strict=True))

    def _ranking(self) -> tuple[CatalogSnapshot, npt.NDArray[np.int32]]:
        snapshot = self._catalog()
        if self._ranked is None or self._ranked[0] is not snapshot:
            self._ranked = (snapshot, snapshot.ranked_rows())
            self._of_groups.clear()
        return self._ranked

    def _of_last_group(self, request: RequestInputs) -> npt.NDArray[np.int32]:
        """The ranking among items of the group of the newest event's item; empty where there is none."""
        snapshot, ranked_N = self._ranking()
        (row,) = snapshot.rows_of_keys(request.item_keys_E[-1:]) if len(request.item_keys_E) else (-1,)
        group = int(snapshot.child_groups[-1][row]) if row >= 0 else -1
        if group < 0:
            return ranked_N[:0]
        if group not in self._of_groups:
            self._of_groups[group] = ranked_N[snapshot.child_groups[-1][ranked_N] == group]
            if len(self._of_groups) > _NUM_GROUPS:
                self._of_groups.popitem(last=False)
        self._of_groups.move_to_end(group)
        return self._of_groups[group]


def within_cap(group_R: npt.NDArray[np.int32], limit: int) -> npt.NDArray[np.bool_]:
    """Which of the ranked items have fewer than `limit` of their group before them; all that are of none (-1)."""
    order_R = np.argsort(group_R, kind="stable")
    sorted_R = group_R[order_R]
    num_before_R = np.empty(len(group_R), dtype=np.int64)
    num_before_R[order_R] = np.arange(len(group_R)) - np.searchsorted(sorted_R, sorted_R)
    return (num_before_R < limit) | (group_R < 0)
