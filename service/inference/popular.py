"""The slate that needs no model: the most popular items that the request allows, those like the last one first.

The order of a whole catalog by events comes with its snapshot; that of every group is made aside, by one ranking at a
time that all requests share. A slate is of the catalog in service now, whichever catalog was ranked last: a ranking
speaks of slots and says only which items are tried first.

Legend: N items, S excluded keys, R ranked slots.
"""

import asyncio
import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from service.catalog import CatalogSnapshot
from service.inference.features import RequestInputs

_log = logging.getLogger(__name__)
_FIRST_LOOK: Final = 256
_LAST_EVENTS: Final = 16
"""Of which the newest known item is looked for."""


@dataclass(frozen=True, slots=True, eq=False)
class _Ranking:
    """Of one catalog, which it does not keep in memory."""

    catalog_version: str
    num_events: int
    """Of all items: what comes later has none."""
    slot_of_groups_N: npt.NDArray[np.int32]
    """By group, and in a group most events first."""
    group_N: npt.NDArray[np.int32]
    """Of each of those, ascending."""

    @classmethod
    def of(cls, snapshot: CatalogSnapshot) -> "_Ranking":
        group_N = snapshot.child_groups[-1][snapshot.ranked_rows()]
        order_N = np.argsort(group_N, kind="stable")
        num_events = int(snapshot.popularity_N.sum())
        return cls(snapshot.version, num_events, snapshot.ranked_slots()[order_N], group_N[order_N])

    def of_group(self, group: int) -> npt.NDArray[np.int32]:
        begin, end = np.searchsorted(self.group_N, [group, group + 1])
        return self.slot_of_groups_N[begin:end]


class PopularRanking:
    """The items of a catalog by training events, most first."""

    def __init__(self, catalog: Callable[[], CatalogSnapshot]) -> None:
        self._catalog = catalog
        self._ranking: _Ranking | None = None
        self._task: asyncio.Task[None] | None = None
        """Of the ranking that is being made."""

    @property
    def is_ranked(self) -> bool:
        """Whether the catalog in service now has been ranked."""
        return self._ranking is not None and self._ranking.catalog_version == self._catalog().version

    def rank(self) -> None:
        """Ranks the catalog in service now; any thread may."""
        self._ranking = _Ranking.of(self._catalog())

    async def ready(self) -> None:
        """Waits until there is a ranking, and lets a new one be made where the catalog has changed since the last.

        A large catalog takes a while to rank, and changes several times a second: only who finds no ranking at all
        waits for one.

        Raises:
            Exception: whatever made that ranking fail; the next one who asks lets it be tried again.
        """
        if self.is_ranked:
            return
        if self._task is None:
            self._task = asyncio.create_task(asyncio.to_thread(self.rank), name="popular ranking")
            self._task.add_done_callback(self._ended)
        if self._ranking is None:
            await asyncio.shield(self._task)  # who leaves does not end it for the others

    def slate(self, request: RequestInputs, slate_size: int) -> tuple[CatalogSnapshot, list[tuple[int, float]]]:
        """Up to `slate_size` rows that pass the filter, are not excluded and keep to the cap, each with its log share
        of all events: first those of the group that the request's last known item is of, then any.

        Of the catalog in service now. Shares are smoothed by one event per item, so that they are finite.
        """
        snapshot = self._catalog()
        if self._ranking is None:
            self._ranking = _Ranking.of(snapshot)
        ranking = self._ranking
        cumsum = snapshot.allowed_cumsum(request.tag_filter)
        excluded_S = snapshot.rows_of_keys(request.excluded_keys_S)

        def take(slots_R: npt.NDArray[np.int32], taken: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
            """Fills up what was taken from the ranking; its head nearly always suffices, but a narrow filter."""
            num_looked_at = _FIRST_LOOK + len(excluded_S)
            while True:
                head = snapshot.rows_of_slots(slots_R[:num_looked_at])
                allowed = (cumsum[head + 1] > cumsum[head]) & ~np.isin(head, excluded_S) & ~np.isin(head, taken)
                rows = np.concatenate([taken, head[allowed]])
                if request.max_per_group:
                    rows = rows[within_cap(snapshot.child_groups[-1][rows], request.max_per_group)]
                if len(rows) >= slate_size or num_looked_at >= len(slots_R):
                    return rows[:slate_size]
                num_looked_at *= 8

        slots_R = snapshot.ranked_slots()
        rows = take(slots_R, take(_of_last_group(ranking, snapshot, request), slots_R[:0]))
        total = ranking.num_events + snapshot.num_items
        counts = snapshot.popularity_N[rows]
        scores = [math.log((count + 1) / total) for count in counts.tolist()]
        return snapshot, list(zip(rows.tolist(), scores, strict=True))

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._task = None
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("the catalog could not be ranked", exc_info=error)


def _of_last_group(ranking: _Ranking, snapshot: CatalogSnapshot, request: RequestInputs) -> npt.NDArray[np.int32]:
    """The ranking among items of the group of the newest event's item that the catalog knows; else empty."""
    rows = snapshot.rows_of_keys(request.item_keys_E[-_LAST_EVENTS:])
    known = rows[rows >= 0]
    group = int(snapshot.child_groups[-1][known[-1]]) if len(known) else -1
    return ranking.of_group(group) if group >= 0 else ranking.slot_of_groups_N[:0]


def within_cap(group_R: npt.NDArray[np.int32], limit: int) -> npt.NDArray[np.bool_]:
    """Which of the ranked items have fewer than `limit` of their group before them; all that are of none (-1)."""
    order_R = np.argsort(group_R, kind="stable")
    sorted_R = group_R[order_R]
    num_before_R = np.empty(len(group_R), dtype=np.int64)
    num_before_R[order_R] = np.arange(len(group_R)) - np.searchsorted(sorted_R, sorted_R)
    return (num_before_R < limit) | (group_R < 0)
