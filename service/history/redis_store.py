"""Histories in Redis: a single server, a TLS one, a unix socket or a cluster.

Keys of a user share the hash tag `{b<crc32(user) mod 256>}`, so that one script sees them all on one node:

    {b17}h1:<user>          packed entries, time ascending (codec.py; 1 is its format version)
    {b17}s1:<user>          packed seen items, last seen last, with repetitions until they are cut
    {b17}r1:<user>          packed slates that were shown, newest last (shown.py)
    {b17}d1:<user>:0..2     digests of event ids of the period (in turn), as integer sets
    {b17}p1:<user>          what the user is called in the event log, while there is one
    {b17}l1                 the bucket's stream of the event log (service/eventlog)
    {oneslate}:forgotten:1  a stream of digests of users who were forgotten lately, for copies in other processes

History and seen items are strings, not lists: one MGET reads both, at half the CPU time (docs/decisions/0003).
Event ids as integer sets of 64-bit digests measured 8 to 10 bytes an event up to 512 a period, where one key per
event took 133 and could not be found again when the user is forgotten, and a sorted set 18 to 113.
"""

import time
from collections.abc import Sequence
from hashlib import blake2b
from typing import Any

import orjson

from service.connection import ConnectionLimits, RedisConnection, ScriptCall
from service.domain import Event, Impression
from service.errors import EventLogFull, HistoryDamaged, HistoryUnavailable
from service.eventlog.rows import (
    NUM_BUCKETS,
    bucket_of,
    bucket_tag,
    event_data,
    impression_data,
    pseudonym_key,
    stream_key,
)
from service.history.actions import ActionRegistry
from service.history.admission import no_room_for_action, pack, refusal
from service.history.codec import ENTRY_BYTES, FORMAT_VERSION, SEEN_BYTES, decode_entries, decode_seen
from service.history.scripts import APPEND, FORGET, REMEMBER, SOME_USERS, TELL
from service.history.shown import decode_shown, encode_shown, shown_of
from service.history.store import (
    DUPLICATE,
    STORED,
    Durability,
    EventOutcome,
    Forgotten,
    HistoryLimits,
    UserHistory,
    user_key,
)
from service.randomness import random_hex

_NUM_PERIODS = 3
_FULL = b"F"
_PSEUDONYM_BYTES = 16
_FORGOTTEN = "{oneslate}:forgotten:1"
_TOLD_MS = 10 * 60 * 1000
"""Longer than any copy lives."""
_MAX_FORGOTTEN = 1000


class RedisHistoryStore:
    """A HistoryStore in Redis 6.2 or later.

    `url`: `redis://`, `rediss://`, `unix://`, `redis+cluster://` or `rediss+cluster://`. Construct it inside a running
    event loop. ValueError for a wrong URL, HistoryUnavailable when hiredis is missing; nothing is connected yet.
    """

    def __init__(
        self, url: str, limits: HistoryLimits | None = None, connection_limits: ConnectionLimits | None = None
    ) -> None:
        self._limits = limits or HistoryLimits()
        self._log_rows = -(-self._limits.log_rows // NUM_BUCKETS)
        """Of one stream."""
        self._connection = RedisConnection(url, connection_limits or ConnectionLimits())
        self._actions = ActionRegistry(self._connection)

    async def append(self, events: Sequence[Event], now_ms: int) -> list[EventOutcome]:
        """See HistoryStore: one round trip, and one before it when an action is new.

        A lost connection is retried only when every event has an id; an event that the lost attempt had stored is
        then called a duplicate.
        """
        outcomes = [refusal(event, now_ms, self._limits) for event in events]
        numbers = await self._actions.numbers(
            event.action for event, out in zip(events, outcomes, strict=True) if not out
        )
        admitted: dict[str, list[int]] = {}
        for i, event in enumerate(events):
            if outcomes[i] is None:
                if event.action in numbers:
                    admitted.setdefault(event.user_id, []).append(i)
                else:
                    outcomes[i] = no_room_for_action(event)
        if admitted:
            calls = [
                self._append_call(user_id, [events[i] for i in places], numbers, now_ms)
                for user_id, places in admitted.items()
            ]
            may_retry = all(events[i].event_id is not None for places in admitted.values() for i in places)
            replies = await self._connection.scripts(calls, may_retry=may_retry)
            if _FULL in replies:
                raise EventLogFull("the event log is full: it must be drained, or its limit raised")
            for places, reply in zip(admitted.values(), replies, strict=True):
                for i, flag in zip(places, reply, strict=True):
                    outcomes[i] = STORED if flag == ord("1") else DUPLICATE
        assert all(outcome is not None for outcome in outcomes)
        return [outcome for outcome in outcomes if outcome is not None]

    def _append_call(self, user_id: str, events: Sequence[Event], numbers: dict[str, int], now_ms: int) -> ScriptCall:
        limits = self._limits
        keys = _Keys(user_id)
        oldest_ms = now_ms - limits.max_age_ms
        period = now_ms // limits.dedupe_ms
        event_ids = [keys.event_ids[(period + offset) % _NUM_PERIODS] for offset in (-1, 0, 1)]
        return ScriptCall(
            APPEND,
            [keys.history, keys.seen, *event_ids, *self._log_keys(keys)],
            [
                oldest_ms,
                oldest_ms - limits.max_age_ms // 16,
                limits.num_entries,
                (limits.num_entries + limits.num_entries // 4) * ENTRY_BYTES,
                limits.num_seen,
                (limits.num_seen + limits.num_seen // 4) * SEEN_BYTES,
                limits.dedupe_ms,
                limits.max_age_ms,
                b"".join(pack(events, numbers)),
                self._log_rows,
                random_hex(_PSEUDONYM_BYTES),
                *(b"" if event.event_id is None else _digest(event.event_id) for event in events),
                *(event_data(event, now_ms) for event in events if self._log_rows),
            ],
        )

    def _log_keys(self, keys: "_Keys") -> list[str]:
        return [keys.pseudonym, keys.log] if self._log_rows else []

    async def remember(self, impressions: Sequence[Impression]) -> int:
        """See HistoryStore: one round trip. Not retried: what is logged is logged once."""
        limits = self._limits
        calls = []
        for impression in impressions:
            keys = _Keys(impression.user_id)
            arguments: list[str | bytes | int] = [
                encode_shown(shown_of(impression)) if limits.shown_bytes else b"",
                limits.shown_bytes,
                limits.shown_ms,
            ]
            if self._log_rows:
                arguments += [self._log_rows, random_hex(_PSEUDONYM_BYTES), impression_data(impression)]
            calls.append(ScriptCall(REMEMBER, [keys.shown, *self._log_keys(keys)], arguments))
        return (await self._connection.scripts(calls, may_retry=False)).count(0)

    async def read(self, user_id: str, now_ms: int | None = None, *, with_shown: bool = False) -> UserHistory:
        """See HistoryStore: one round trip (one more when another replica has just added an action)."""
        keys = _Keys(user_id)
        names = (keys.history, keys.seen, keys.shown) if with_shown else (keys.history, keys.seen)
        packed, packed_seen, *packed_shown = await self._connection.command("MGET", *names)
        oldest_ms = (time.time_ns() // 1_000_000 if now_ms is None else now_ms) - self._limits.max_age_ms
        try:
            entries_N = decode_entries((packed or b"")[-self._limits.num_entries * ENTRY_BYTES :])
            seen_S = decode_seen(packed_seen or b"")
            shown = decode_shown(user_id, packed_shown[0] or b"") if with_shown else ()
        except ValueError as error:
            raise HistoryDamaged(f"history at {self._connection.target} is damaged: {error}") from error
        entries_N = entries_N[entries_N["timestamp_ms"].searchsorted(oldest_ms) :]
        await self._know_actions(entries_N, seen_S)
        return UserHistory(entries_N, seen_S, self._actions.names, shown)

    async def _know_actions(self, *arrays: Any) -> None:
        largest = max((int(array["action"].max()) for array in arrays if array.size), default=-1)
        if largest >= len(self._actions.names):
            await self._actions.refresh()
            if largest >= len(self._actions.names):
                raise HistoryDamaged(f"history at {self._connection.target} names action {largest}, never registered")

    async def delete(self, user_id: str) -> bool:
        """See HistoryStore: one round trip to forget, one to tell the other processes."""
        keys = _Keys(user_id)
        row = orjson.dumps({"timestamp": time.time_ns() // 1_000_000})
        call = ScriptCall(
            FORGET, [keys.pseudonym, keys.log, keys.history, keys.seen, keys.shown, *keys.event_ids], [row]
        )
        [num_keys] = await self._connection.scripts([call], may_retry=True)
        await self._connection.scripts([ScriptCall(TELL, [_FORGOTTEN], [user_key(user_id), _TOLD_MS])], may_retry=True)
        return bool(num_keys)

    async def forgotten(self, since: str | None) -> Forgotten:
        """See HistoryStore: one round trip."""
        if since is None:
            newest = await self._connection.command("XREVRANGE", _FORGOTTEN, "+", "-", "COUNT", 1)
            return Forgotten((), newest[0][0].decode() if newest else "0-0")
        entries = await self._connection.command("XRANGE", _FORGOTTEN, f"({since}", "+", "COUNT", _MAX_FORGOTTEN)
        keys = [int(fields[b"u"]) for _, fields in entries]
        return Forgotten(keys, entries[-1][0].decode() if entries else since)

    async def some_users(self, limit: int) -> list[str]:
        """See HistoryStore: one round trip, to a few nodes of a cluster."""
        pattern = f"^{{b%d+}}h{FORMAT_VERSION}:(.*)$"
        # A history is one of about four keys of a user.
        calls = [
            ScriptCall(SOME_USERS, [f"{bucket_tag(bucket)}any"], [pattern, limit, 16 * limit])
            for bucket in (range(0, NUM_BUCKETS, 37) if self._connection.is_cluster else [0])
        ]
        found = {user for users in await self._connection.scripts(calls, may_retry=True) for user in users}
        return [user.decode() for user in sorted(found)[:limit]]

    async def ping(self) -> float:
        """See HistoryStore. Reads the action registry, which keeps the local copy true."""
        start_ns = time.perf_counter_ns()
        await self._actions.refresh()
        return (time.perf_counter_ns() - start_ns) / 1e6

    async def durability(self) -> Durability:
        """See HistoryStore; in a cluster the weakest primary's. `unknown` where CONFIG is not allowed."""
        try:
            configurations = await self._connection.configuration("append*")
        except HistoryUnavailable as error:
            if "permission" in str(error).lower() or "unknown command" in str(error).lower():
                return "unknown"
            raise
        levels = [_durability(configuration) for configuration in configurations]
        return min(levels, key=("none", "everysec", "strong").index)

    async def close(self) -> None:
        """See HistoryStore."""
        await self._connection.close()


class _Keys:
    """Every key of one user."""

    __slots__ = ("event_ids", "history", "log", "pseudonym", "seen", "shown")

    def __init__(self, user_id: str) -> None:
        bucket = bucket_of(user_id)
        tag = bucket_tag(bucket)
        self.history = f"{tag}h{FORMAT_VERSION}:{user_id}"
        self.seen = f"{tag}s{FORMAT_VERSION}:{user_id}"
        self.shown = f"{tag}r{FORMAT_VERSION}:{user_id}"
        self.pseudonym = pseudonym_key(user_id)
        self.log = stream_key(bucket)
        self.event_ids = [f"{tag}d{FORMAT_VERSION}:{user_id}:{period}" for period in range(_NUM_PERIODS)]


def _digest(event_id: str) -> bytes:
    # Signed decimal, because that is what an integer set holds.
    number = int.from_bytes(blake2b(event_id.encode(), digest_size=8).digest(), "little", signed=True)
    return b"%d" % number


def _durability(configuration: dict[str, str]) -> Durability:
    if configuration.get("appendonly") != "yes":
        return "none"
    fsync = configuration.get("appendfsync")
    return "strong" if fsync == "always" else "everysec" if fsync == "everysec" else "none"
