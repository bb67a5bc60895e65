"""The streams of the event log, as the one who drains them sees them: one per bucket of users."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from service.connection import RedisConnection, ScriptCall
from service.errors import EventLogDamaged, EventLogOwned
from service.eventlog.rows import NUM_BUCKETS, Row, owner_key, row_of, stream_key
from service.eventlog.scripts import LENGTH, OWNER, READ, TAKE_OVER, TRIM

FIRST = "0-0"
"""A cursor before every entry."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows in the order of their streams, and how far they reach."""

    rows: Sequence[Row]
    cursors: Mapping[int, str]
    """Id of the last entry of each bucket that has some here."""
    is_full: bool
    """A bucket has as many rows here as may come at once: it may have more."""


class LogStreams:
    """Reads and trims; every call raises HistoryUnavailable when Redis does not answer."""

    def __init__(self, connection: RedisConnection, collector: str) -> None:
        """`collector`: name of the one who drains; no two ever drain the same streams."""
        self._connection = connection
        self._collector = collector

    async def read(self, cursors: Mapping[int, str], num_rows: int) -> Batch:
        """About `num_rows` rows behind the cursors (a bucket without one: from its first), in one round trip.

        Raises:
            EventLogOwned: another collector drains them.
            EventLogDamaged: an entry is no row.
        """
        per_bucket = max(1, num_rows // NUM_BUCKETS)
        calls = [
            ScriptCall(
                READ,
                [stream_key(bucket), owner_key(bucket)],
                [self._collector, cursors.get(bucket, FIRST), per_bucket],
            )
            for bucket in range(NUM_BUCKETS)
        ]
        rows: list[Row] = []
        reached: dict[int, str] = {}
        is_full = False
        for bucket, reply in enumerate(await self._connection.scripts(calls, may_retry=True)):
            self._refuse_other(reply)
            for entry_id, fields in reply:
                try:
                    rows.append(row_of(fields))
                except ValueError as error:
                    raise EventLogDamaged(f"{stream_key(bucket)} {entry_id.decode()}: {error}") from error
            if reply:
                reached[bucket] = reply[-1][0].decode()
                is_full = is_full or len(reply) >= per_bucket
        return Batch(rows, reached, is_full)

    async def trim(self, cursors: Mapping[int, str]) -> list[int]:
        """Takes away what the cursors have passed, but from streams that nobody has drained yet: their buckets.

        Raises:
            EventLogOwned: another collector drains them.
        """
        calls = [
            ScriptCall(TRIM, [stream_key(bucket), owner_key(bucket)], [self._collector, _next(cursor)])
            for bucket, cursor in cursors.items()
        ]
        replies = await self._connection.scripts(calls, may_retry=True) if calls else []
        for reply in replies:
            self._refuse_other(reply)
        return [bucket for bucket, reply in zip(cursors, replies, strict=True) if reply == -1]

    async def num_waiting(self) -> int:
        """Rows in all streams."""
        calls = [ScriptCall(LENGTH, [stream_key(bucket)], []) for bucket in range(NUM_BUCKETS)]
        return sum(await self._connection.scripts(calls, may_retry=True))

    async def others(self) -> list[int]:
        """Buckets of the streams that another collector drains, or nobody yet."""
        calls = [ScriptCall(OWNER, [owner_key(bucket)], []) for bucket in range(NUM_BUCKETS)]
        owners = await self._connection.scripts(calls, may_retry=True)
        return [bucket for bucket, owner in enumerate(owners) if owner != self._collector.encode()]

    async def take_over(self) -> None:
        """Takes the streams from whoever drained them until now."""
        calls = [ScriptCall(TAKE_OVER, [owner_key(bucket)], [self._collector]) for bucket in range(NUM_BUCKETS)]
        await self._connection.scripts(calls, may_retry=True)

    def _refuse_other(self, reply: object) -> None:
        if isinstance(reply, bytes):
            raise EventLogOwned(
                f"the event log is drained by another collector: {reply.decode()}; --take-over takes it from there"
            )


def _next(cursor: str) -> str:
    """The least id after one; sequence numbers of a millisecond end far beyond what arrives in it."""
    milliseconds, _, sequence = cursor.partition("-")
    return f"{milliseconds}-{int(sequence) + 1}"
