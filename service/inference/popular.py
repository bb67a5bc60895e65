"""The slate that needs no model: the most popular items that the request allows, those like the last one first.

Legend: N items, S excluded keys, R ranked rows.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from service.catalog import CatalogSnapshot
from service.inference.features import RequestInputs

_FIRST_LOOK: Final = 256
_LAST_EVENTS: Final = 16
"""Of which the newest known item is looked for."""


@dataclass(frozen=True, slots=True, eq=False)
class _Ranking:
    snapshot: CatalogSnapshot
    row_N: npt.NDArray[np.int32]
    """Most events first."""
    row_of_groups_N: npt.NDArray[np.int32]
    """The same by group, and in a group most events first."""
    group_N: npt.NDArray[np.int32]
    """Of each of those, ascending."""

    @classmethod
    def of(cls, snapshot: CatalogSnapshot) -> "_Ranking":
        row_N = snapshot.ranked_rows()
        group_N = snapshot.child_groups[-1][row_N]
        order_N = np.argsort(group_N, kind="stable")
        return cls(snapshot, row_N, row_N[order_N], group_N[order_N])

    def of_group(self, group: int) -> npt.NDArray[np.int32]:
        begin, end = np.searchsorted(self.group_N, [group, group + 1])
        return self.row_of_groups_N[begin:end]


class PopularRanking:
    """The rows of a catalog by training events, most first."""

    def __init__(self, catalog: Callable[[], CatalogSnapshot]) -> None:
        self._catalog = catalog
        self._ranking: _Ranking | None = None

    @property
    def is_ranked(self) -> bool:
        """Whether a slate is at hand: the catalog in service now has been ranked."""
        return self._ranking is not None and self._ranking.snapshot is self._catalog()

    def rank(self) -> None:
        """Ranks the catalog in service now; any thread may."""
        self._ranking = _Ranking.of(self._catalog())

    def slate(self, request: RequestInputs, slate_size: int) -> tuple[CatalogSnapshot, list[tuple[int, float]]]:
        """Up to `slate_size` rows that pass the filter, are not excluded and keep to the cap, each with its log share
        of all events: first those of the group that the request's last known item is of, then any.

        Of the catalog that was ranked last. Shares are smoothed by one event per item, so that they are finite.
        """
        if self._ranking is None:
            self.rank()
        ranking = self._ranking
        assert ranking is not None
        snapshot = ranking.snapshot
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

        rows = take(ranking.row_N, take(_of_last_group(ranking, request), ranking.row_N[:0]))
        total = int(snapshot.popularity_N.sum()) + snapshot.num_items
        counts = snapshot.popularity_N[rows]
        scores = [math.log((count + 1) / total) for count in counts.tolist()]
        return snapshot, list(zip(rows.tolist(), scores, strict=True))


def _of_last_group(ranking: _Ranking, request: RequestInputs) -> npt.NDArray[np.int32]:
    """The ranking among items of the group of the newest event's item that the catalog knows; else empty."""
    rows = ranking.snapshot.rows_of_keys(request.item_keys_E[-_LAST_EVENTS:])
    known = rows[rows >= 0]
    group = int(ranking.snapshot.child_groups[-1][known[-1]]) if len(known) else -1
    return ranking.of_group(group) if group >= 0 else ranking.row_N[:0]


def within_cap(group_R: npt.NDArray[np.int32], limit: int) -> npt.NDArray[np.bool_]:
    """Which of the ranked items have fewer than `limit` of their group before them; all that are of none (-1)."""
    order_R = np.argsort(group_R, kind="stable")
    sorted_R = group_R[order_R]
    num_before_R = np.empty(len(group_R), dtype=np.int64)
    num_before_R[order_R] = np.arange(len(group_R)) - np.searchsorted(sorted_R, sorted_R)
    return (num_before_R < limit) | (group_R < 0)
