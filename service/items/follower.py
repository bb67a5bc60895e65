"""Keeps the catalog in service at the end of its log."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

from service.catalog import CatalogLog, ItemChange, LiveCatalog, LoggedChange
from service.catalog.live import Applied
from service.catalog.log import START
from service.errors import CatalogError, CatalogUnavailable
from service.metrics import Metrics

_log = logging.getLogger(__name__)
_MERGE_SHARE: Final = 0.2
"""Of a core's time, at most that much goes into new snapshots of a large catalog ..."""
_MAX_PAUSE_S: Final = 0.6
"""... as long as changes are still seen within a second."""
_RETRY_S: Final = 1.0
_COMPLETE_S: Final = 30.0
"""Until items that found no place are tried again."""
_MAX_CHANGES: Final = 20_000
"""Applied at once, at most; the rest follows with the next snapshot."""

Adopt = Callable[[Sequence[ItemChange]], Awaitable[int]]


class CatalogFollower:
    """Reads the log and applies what it says, several changes at a time."""

    def __init__(
        self,
        log: CatalogLog,
        live: LiveCatalog,
        metrics: Metrics,
        *,
        poll_s: float = 0.1,
        merge_s: float = 0.25,
    ) -> None:
        """Does nothing yet.

        Args:
            log: The log.
            live: What is kept at its end.
            metrics: Counts.
            poll_s: How long nothing is asked after nothing was found.
            merge_s: From one snapshot to the next, at least.
        """
        self.adopt: Adopt | None = None
        """Called with items that came while another model was served, and have no place under this one yet; returns how
        many of them say too little to be placed."""
        self._log = log
        self._live = live
        self._metrics = metrics
        self._poll_s, self._merge_s = poll_s, merge_s
        self._position: str | None = None
        self._turn, self._looking = asyncio.Lock(), asyncio.Lock()
        self._is_lost = False
        self.num_begun = 0
        """Readings to the end that have begun ..."""
        self.last_ended = 0
        """... and the number of the last that ended well: what was in the log before it began is in service."""
        self._is_incomplete, self._complete_at_s = False, 0.0
        self._adoptions: set[asyncio.Task[None]] = set()
        self.is_observed = True
        """Whether it sets gauges: of several followers in a process one does."""

    async def catch_up(self) -> bool:
        """Reads the log to its end and applies it; whether there was anything.

        Raises:
            CatalogUnavailable: the log did not answer.
            CatalogError: it holds what cannot be read.
        """
        found, _ = await self._catch_up()
        return found

    async def look(self) -> None:
        """Returns when a reading that began after the call has ended: one for all who call at once.

        Raises as `catch_up`.
        """
        number = self.num_begun
        async with self._looking:
            if self.last_ended <= number:
                await self.catch_up()

    async def reach(self, position: str) -> None:
        """Returns when what stands in the log up to a position is in service. Raises as `catch_up`."""
        while self._position is None or _order(self._position) < _order(position):
            if not await self.catch_up():
                return  # somebody has emptied the log

    async def _catch_up(self) -> tuple[bool, float]:
        """Whether there was anything, and the processor time that applying it took: when the machine is crowded far
        less than what passed."""
        async with self._turn:
            self.num_begun += 1
            changes: list[LoggedChange] = []
            position, oldest_s = self._position, None
            if self._is_incomplete and time.monotonic() >= self._complete_at_s:
                position = None
            while position is not None:
                tail = await self._log.since(position)
                if tail is None:
                    if position != START:
                        _log.warning("the catalog's log no longer holds %s: reading the whole catalog", position)
                    position = None
                    break
                position = tail.position
                if not tail.changes:
                    break
                changes += tail.changes
                oldest_s = oldest_s or tail.oldest_s
                if not tail.has_more or len(changes) >= _MAX_CHANGES:
                    break  # under a steady stream an empty reading may never come
            if position is None:
                return await self._start_over()
            spent_s = 0.0
            if changes:
                spent_s = await self._apply(self._live.apply, changes, position, is_whole=False)
                if oldest_s is not None:
                    self._metrics.catalog_visible_seconds.observe(max(0.0, time.time() - oldest_s))
            self._seen(position, is_the_end=len(changes) < _MAX_CHANGES)
            return bool(changes), spent_s

    async def run(self) -> None:
        """Follows the log until cancelled; while it does not answer, the catalog stays as it is."""
        while True:
            started_s = time.monotonic()
            try:
                found, spent_s = await self._catch_up()
            except Exception as error:  # noqa: BLE001 - whatever it is, the next reading may go well
                self._metrics.catalog_errors.labels("follow").inc()
                if not self._is_lost:
                    is_known = isinstance(error, CatalogUnavailable | CatalogError)
                    _log.warning("the catalog stays as it is: %s", error, exc_info=None if is_known else error)
                self._is_lost = True
                await asyncio.sleep(_RETRY_S)
                continue
            if self._is_lost:
                _log.info("the catalog is followed again")
                self._is_lost = False
            left_s = self._merge_s - (time.monotonic() - started_s)
            pause_s = max(left_s, spent_s * (1 / _MERGE_SHARE - 1)) if found else self._poll_s
            await asyncio.sleep(min(pause_s, _MAX_PAUSE_S))

    async def _start_over(self) -> tuple[bool, float]:
        state = await self._log.state()
        spent_s = await self._apply(self._live.reset, state.changes, state.position, is_whole=True)
        self._is_incomplete = False  # now that the whole has come: what has no place was met again
        self._seen(state.position)
        return bool(state.changes), spent_s

    async def _apply(
        self,
        put: Callable[[Sequence[LoggedChange], str], Applied],
        changes: Sequence[LoggedChange],
        position: str,
        *,
        is_whole: bool,
    ) -> float:
        """`is_whole`: the changes say all that the log knows of their items. Returns the processor time spent."""

        def timed() -> tuple[Applied, float]:
            started_s = time.thread_time()
            return put(changes, position), time.thread_time() - started_s

        with self._metrics.catalog_merge_seconds.time():
            applied, spent_s = await asyncio.to_thread(timed)
        self._metrics.catalog_applied.inc(applied.num_applied)
        self._metrics.catalog_left_out.inc(applied.num_without_room)
        if applied.unplaced and self.adopt is not None:
            # Not here: it waits for its turn among those who place items, and they wait for ours.
            task = asyncio.create_task(self._adopt(self.adopt, applied.unplaced, is_whole=is_whole))
            self._adoptions.add(task)
            task.add_done_callback(self._adoptions.discard)
        return spent_s

    async def _adopt(self, adopt: Adopt, changes: Sequence[ItemChange], *, is_whole: bool) -> None:
        try:
            if await adopt(changes) and not is_whole:
                # What the others are stands in the log: they are met again when the whole of it is read.
                self._is_incomplete, self._complete_at_s = True, time.monotonic()
        except Exception as error:  # noqa: BLE001 - of a task that nobody waits for
            self._metrics.catalog_errors.labels("adopt").inc()
            _log.warning("%d item(s) of another model have no place yet: %s", len(changes), error)
            self._is_incomplete, self._complete_at_s = True, time.monotonic() + _COMPLETE_S

    async def adopted(self) -> None:
        """Returns when items of another model that were met so far have their places in the log."""
        await asyncio.gather(*self._adoptions)

    async def close(self) -> None:
        """Ends what it had begun for items of another model."""
        for task in self._adoptions:
            task.cancel()
        await asyncio.gather(*self._adoptions, return_exceptions=True)

    def _seen(self, position: str, *, is_the_end: bool = True) -> None:
        self._position = position
        if is_the_end:
            self.last_ended = self.num_begun
        if self.is_observed:
            self._metrics.catalog_followed.set_to_current_time()
            self._metrics.catalog_items.set(self._live.snapshot.num_items)


def _order(position: str) -> tuple[int, int]:
    first, _, second = position.partition("-")
    return int(first), int(second)
