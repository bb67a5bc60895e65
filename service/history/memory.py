"""Histories in this process: for tests, the fake service, and a reference of what the Redis store must do."""

import random
import time
from bisect import insort
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from service.domain import Event, Impression
from service.history.admission import no_room_for_action, pack, refusal
from service.history.codec import ENTRY_BYTES, decode_entries, decode_seen
from service.history.shown import decode_shown, encode_shown, shown_of
from service.history.store import (
    DUPLICATE,
    MAX_NUM_ACTIONS,
    STORED,
    Durability,
    EventOutcome,
    Forgotten,
    HistoryLimits,
    UserHistory,
    user_key,
)


@dataclass(slots=True)
class _User:
    entries: list[tuple[int, int, bytes]] = field(default_factory=list)
    """(timestamp in ms, arrival number, packed entry), ascending."""
    seen: dict[bytes, None] = field(default_factory=dict)
    """Packed (item key, action) pairs, last seen last."""
    event_ids: dict[str, int] = field(default_factory=dict)
    """When each event id arrived, in ms."""
    shown: list[bytes] = field(default_factory=list)
    """Packed slates, newest last."""
    shown_until_s: float = 0.0
    """On the clock of `time.monotonic`."""


class MemoryHistoryStore:
    """A HistoryStore without a server; nothing survives the process."""

    def __init__(self, limits: HistoryLimits | None = None) -> None:
        self._limits = limits or HistoryLimits()
        self._users: dict[str, _User] = {}
        self._action_names: tuple[str, ...] = ()
        self._num_arrived = 0
        self._forgotten: deque[int] = deque(maxlen=1000)
        self._num_forgotten = 0

    async def append(self, events: Sequence[Event], now_ms: int) -> list[EventOutcome]:
        """See HistoryStore."""
        return [refusal(event, now_ms, self._limits) or self._append_one(event, now_ms) for event in events]

    def _append_one(self, event: Event, now_ms: int) -> EventOutcome:
        if event.action not in self._action_names:
            if len(self._action_names) == MAX_NUM_ACTIONS:
                return no_room_for_action(event)
            self._action_names = (*self._action_names, event.action)
        user = self._users.setdefault(event.user_id, _User())
        if event.event_id is not None:
            arrived_ms = user.event_ids.get(event.event_id)
            if arrived_ms is not None and now_ms - arrived_ms <= self._limits.dedupe_ms:
                return DUPLICATE
            user.event_ids[event.event_id] = now_ms
        [packed] = pack([event], {event.action: self._action_names.index(event.action)})
        self._num_arrived += 1
        insort(user.entries, (event.timestamp_ms, self._num_arrived, packed))
        pair = packed[:8] + packed[14:15]
        user.seen.pop(pair, None)
        user.seen[pair] = None
        self._cap(user, now_ms)
        return STORED

    def _cap(self, user: _User, now_ms: int) -> None:
        oldest_ms = now_ms - self._limits.max_age_ms
        user.entries = [entry for entry in user.entries[-self._limits.num_entries :] if entry[0] >= oldest_ms]
        if len(user.seen) > self._limits.num_seen:
            del user.seen[next(iter(user.seen))]
        for event_id, arrived_ms in list(user.event_ids.items()):
            if now_ms - arrived_ms > self._limits.dedupe_ms:
                del user.event_ids[event_id]

    async def remember(self, impressions: Sequence[Impression]) -> int:
        """See HistoryStore; there is no log."""
        for impression in impressions:
            user = self._users.setdefault(impression.user_id, _User())
            if user.shown_until_s <= time.monotonic():
                user.shown.clear()
            user.shown.append(encode_shown(shown_of(impression)))
            while sum(map(len, user.shown)) > self._limits.shown_bytes:
                del user.shown[0]
            user.shown_until_s = time.monotonic() + self._limits.shown_ms / 1000
        return 0

    async def read(self, user_id: str, now_ms: int | None = None, *, with_shown: bool = False) -> UserHistory:
        """See HistoryStore."""
        oldest_ms = (time.time_ns() // 1_000_000 if now_ms is None else now_ms) - self._limits.max_age_ms
        user = self._users.get(user_id, _User())
        packed = b"".join(entry for timestamp_ms, _, entry in user.entries if timestamp_ms >= oldest_ms)
        assert len(packed) <= self._limits.num_entries * ENTRY_BYTES
        is_kept = with_shown and user.shown_until_s > time.monotonic()
        shown = decode_shown(user_id, b"".join(user.shown)) if is_kept else ()
        return UserHistory(decode_entries(packed), decode_seen(b"".join(user.seen)), self._action_names, shown)

    async def delete(self, user_id: str) -> bool:
        """See HistoryStore."""
        self._forgotten.append(user_key(user_id))
        self._num_forgotten += 1
        return self._users.pop(user_id, None) is not None

    async def forgotten(self, since: str | None) -> Forgotten:
        """See HistoryStore; of many the last."""
        num_new = 0 if since is None else min(self._num_forgotten - int(since), len(self._forgotten))
        return Forgotten(list(self._forgotten)[len(self._forgotten) - num_new :], str(self._num_forgotten))

    async def some_users(self, limit: int) -> list[str]:
        """See HistoryStore."""
        users = [user_id for user_id, user in self._users.items() if user.entries]
        return random.sample(users, min(limit, len(users)))

    async def ping(self) -> float:
        """See HistoryStore."""
        return 0.0

    async def durability(self) -> Durability:
        """Always `none`."""
        return "none"

    async def close(self) -> None:
        """See HistoryStore."""
