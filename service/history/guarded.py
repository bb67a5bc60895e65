"""A history store behind a circuit breaker, with a copy of what was read lately for when it does not answer.

A failing store costs the first few requests their timeout, then none. Who can do with an older history gets the copy
that this process read last, if it is young enough; it says how old it is (`UserHistory.stale_s`).
"""

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from service.domain import Event, Impression
from service.errors import EventLogFull, HistoryDamaged, HistoryUnavailable
from service.history.breaker import CircuitBreaker, State
from service.history.store import Durability, EventOutcome, Forgotten, HistoryStore, UserHistory, user_key

_log = logging.getLogger(__name__)
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True, kw_only=True)
class CopyLimits:
    """Which copies are kept."""

    max_age_s: float = 60.0
    """Older ones are of no use."""
    max_bytes: int = 64_000_000
    """Of all together."""


FOLLOWED_EVERY_S = 0.5
"""How often it is asked whom others forgot."""
_TELLING_S = 0.005
"""A store that did not answer in less may be quite well."""
_OVERHEAD_BYTES = 600
_SHOWN_BYTES, _SHOWN_ITEM_BYTES = 400, 50
"""Of a slate that was shown, and of each of its items, as objects."""


@dataclass(frozen=True, slots=True)
class _Copy:
    history: UserHistory
    read_s: float
    num_bytes: int


class GuardedHistoryStore:
    """A HistoryStore around another one."""

    def __init__(
        self,
        store: HistoryStore,
        *,
        limits: CopyLimits | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`clock`: in seconds."""
        self._store = store
        # A store that takes no writes (full, or a replica) may still be read.
        self._reads, self._writes = CircuitBreaker(clock=clock), CircuitBreaker(clock=clock)
        self._limits = limits or CopyLimits()
        self._clock = clock
        self._copies: OrderedDict[int, _Copy] = OrderedDict()
        """By `user_key`, because that is how others tell who was forgotten."""
        self._num_bytes = 0
        self._num_forgotten = 0

    @property
    def is_asked(self) -> bool:
        """False while the circuit of reads or of writes is not closed."""
        return self._reads.state is self._writes.state is State.CLOSED

    @property
    def num_copies(self) -> int:
        """Histories of which there is a copy."""
        return len(self._copies)

    async def append(self, events: Sequence[Event], now_ms: int) -> list[EventOutcome]:
        """See HistoryStore."""
        return await self._ask(self._writes, lambda: self._store.append(events, now_ms))

    async def remember(self, impressions: Sequence[Impression]) -> int:
        """See HistoryStore."""
        return await self._ask(self._writes, lambda: self._store.remember(impressions))

    async def read(self, user_id: str, now_ms: int | None = None, *, with_shown: bool = False) -> UserHistory:
        """See HistoryStore; what was read is kept as a copy."""
        num_forgotten = self._num_forgotten
        history = await self._ask(self._reads, lambda: self._store.read(user_id, now_ms, with_shown=with_shown))
        if num_forgotten == self._num_forgotten:  # else it may be somebody's who was forgotten meanwhile
            self._keep(user_id, history, with_shown=with_shown)
        return history

    async def read_or_copy(
        self, user_id: str, now_ms: int | None = None, *, with_shown: bool = False, timeout_s: float
    ) -> UserHistory:
        """As `read`; where the store does not answer in so much time, the copy that was read last, if it is young.

        A request without time says nothing of the store: else anybody could have it left alone for all.
        """
        try:
            return await self._read_within(timeout_s, user_id, now_ms, with_shown=with_shown)
        except HistoryUnavailable:
            if (copy := self._copy(user_id)) is None:
                raise
            return copy

    async def _read_within(
        self, timeout_s: float, user_id: str, now_ms: int | None, *, with_shown: bool
    ) -> UserHistory:
        if timeout_s <= 0:
            raise HistoryUnavailable("there is no time to ask the history store")
        try:
            async with asyncio.timeout(timeout_s):
                return await self.read(user_id, now_ms, with_shown=with_shown)
        except TimeoutError as error:
            if timeout_s >= _TELLING_S:
                self._reads.failed()
            raise HistoryUnavailable(f"the history store did not answer in {timeout_s * 1000:.1f} ms") from error

    async def delete(self, user_id: str) -> bool:
        """See HistoryStore. The copy goes first, whatever the store says, and once more afterwards.

        Always asked: a store too full to be written to can still forget.
        """
        self._num_forgotten += 1
        self._drop(user_key(user_id))
        try:
            return await self._store.delete(user_id)
        finally:
            self._num_forgotten += 1
            self._drop(user_key(user_id))

    async def forgotten(self, since: str | None) -> Forgotten:
        """See HistoryStore."""
        return await self._ask(self._reads, lambda: self._store.forgotten(since))

    async def follow_forgotten(self, every_s: float = FOLLOWED_EVERY_S) -> None:
        """Drops the copies of users whom other processes forget, until it is cancelled."""
        since: str | None = None
        while True:
            try:
                told = await self.forgotten(since)
            except HistoryUnavailable:
                pass  # who cannot be asked tells nothing; copies end by themselves
            except Exception:  # noqa: BLE001 - of a task that nobody waits for; the next look may go well
                _log.exception("it is not known now whom other processes forget")
            else:
                since = told.until
                if told.user_keys:
                    self._num_forgotten += 1
                    for key in told.user_keys:
                        self._drop(key)
                    continue  # there may be more
            await asyncio.sleep(every_s)

    async def some_users(self, limit: int) -> list[str]:
        """See HistoryStore."""
        return await self._ask(self._reads, lambda: self._store.some_users(limit))

    async def ping(self) -> float:
        """See HistoryStore."""
        return await self._ask(self._reads, self._store.ping)

    async def durability(self) -> Durability:
        """See HistoryStore."""
        return await self._ask(self._reads, self._store.durability)

    async def close(self) -> None:
        """See HistoryStore."""
        self._copies.clear()
        self._num_bytes = 0
        await self._store.close()

    @staticmethod
    async def _ask(breaker: CircuitBreaker, call: Callable[[], Awaitable[Result]]) -> Result:
        if not breaker.may_ask():
            raise HistoryUnavailable("the history store is not asked: it did not answer just now")
        try:
            result = await call()
        except (HistoryDamaged, EventLogFull):
            breaker.succeeded()
            raise
        except HistoryUnavailable:
            breaker.failed()
            raise
        breaker.succeeded()
        return result

    def _copy(self, user_id: str) -> UserHistory | None:
        copy = self._copies.get(key := user_key(user_id))
        if copy is None:
            return None
        age_s = self._clock() - copy.read_s
        if age_s >= self._limits.max_age_s:
            self._drop(key)
            return None
        return replace(copy.history, stale_s=age_s)

    def _keep(self, user_id: str, history: UserHistory, *, with_shown: bool) -> None:
        key = user_key(user_id)
        if not with_shown and (known := self._copies.get(key)) is not None:
            history = replace(history, shown=known.history.shown)
        self._drop(key)
        shown_bytes = sum(_SHOWN_BYTES + _SHOWN_ITEM_BYTES * len(slate.item_keys) for slate in history.shown)
        num_bytes = _OVERHEAD_BYTES + history.entries_N.nbytes + history.seen_S.nbytes + shown_bytes
        self._copies[key] = _Copy(history, self._clock(), num_bytes)
        self._num_bytes += num_bytes
        oldest_s = self._clock() - self._limits.max_age_s
        while self._copies:
            oldest, copy = next(iter(self._copies.items()))
            if self._num_bytes <= self._limits.max_bytes and copy.read_s >= oldest_s:
                break
            self._drop(oldest)

    def _drop(self, key: int) -> None:
        if (copy := self._copies.pop(key, None)) is not None:
            self._num_bytes -= copy.num_bytes
