"""A log's histories for a service: the newest events of its users, through `POST /v1/events`.

An event's id is made of what it says, so that what is sent again while the service remembers the id (a week at least:
`service.history`) counts once.
"""

import asyncio
import hashlib
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Final, overload

import numpy as np
import numpy.typing as npt
import polars as pl

from model_export.data.prepared import PreparedData
from oneslate_client import ApiError, AsyncOneSlate, Event

EVENTS_PER_POST: Final = 1000
"""What a service takes unless ONESLATE_LIMITS__EVENTS says less."""
_INVALID: Final = 422


@dataclass(frozen=True, eq=False)
class UserLog:
    """One user's newest events in a prepared log."""

    user_id: str
    places_H: npt.NDArray[np.int64]
    """Places of H events, oldest first."""


@dataclass(frozen=True, eq=False)
class UserLogs(Sequence[UserLog]):
    """Of U users; a slice is that of fewer users."""

    user_id_E: pl.Series
    order_E: npt.NDArray[np.int64]
    """Places of a log's events, by user and then by time."""
    starts_U: npt.NDArray[np.int64]
    """Of each user's events in `order_E`."""
    ends_U: npt.NDArray[np.int64]

    @property
    def num_events(self) -> int:
        """Of all users here."""
        return int((self.ends_U - self.starts_U).sum())

    def __len__(self) -> int:
        return len(self.ends_U)

    @overload
    def __getitem__(self, key: int) -> UserLog: ...
    @overload
    def __getitem__(self, key: slice) -> "UserLogs": ...
    def __getitem__(self, key: int | slice) -> "UserLog | UserLogs":
        if isinstance(key, slice):
            return replace(self, starts_U=self.starts_U[key], ends_U=self.ends_U[key])
        places_H = self.order_E[self.starts_U[key] : self.ends_U[key]]
        return UserLog(self.user_id_E[int(places_H[0])], places_H)


def newest_logs(prepared: PreparedData, num_events: int, *, at_least: int = 1) -> UserLogs:
    """Up to `num_events` events of each user who has `at_least` so many; who was there last comes first.

    A log may have several segments of a user.
    """
    user_E = prepared.user_id_E.rank("dense").to_numpy()
    order_E = np.lexsort((prepared.timestamp_ms_E, user_E))  # stable: equal times stay as logged
    starts_U = np.flatnonzero(np.diff(user_E[order_E], prepend=-1))
    ends_U = np.append(starts_U[1:], prepared.num_events)
    starts_U, ends_U = (places[ends_U - starts_U >= at_least] for places in (starts_U, ends_U))
    by_end_U = np.argsort(-prepared.timestamp_ms_E[order_E[ends_U - 1]], kind="stable")
    starts_U, ends_U = starts_U[by_end_U], ends_U[by_end_U]
    return UserLogs(prepared.user_id_E, order_E, np.maximum(starts_U, ends_U - num_events), ends_U)


class LogEvents:
    """Events of a prepared log as the API takes them."""

    def __init__(self, prepared: PreparedData, *, end_now: bool) -> None:
        """`end_now`: all are moved in time, by as much, so that the log ends now.

        Raises:
            ValueError: the log has no times, and is not to end now.
        """
        if not (prepared.has_times or end_now):
            raise ValueError("this log has no times, which a history needs: --end-now makes all of it happen just now")
        self._prepared = prepared
        self._item_ids = prepared.items["item_id"].to_list()
        self._actions = [action.name for action in prepared.actions]
        self._repetition_E = _repetitions(prepared)
        # A service remembers the ids of events that it was sent but does not keep, since they are too old.
        self._kind = "moved-" if end_now else "log-"
        self._shift_ms = 0
        if end_now:
            self._shift_ms = int(datetime.now(UTC).timestamp() * 1000) - int(prepared.timestamp_ms_E.max())

    def of(self, log: UserLog, *, again: bool = False) -> Iterator[Event]:
        """A user's events, oldest first. Ids differ where events are moved in time, and not in how far.

        `again`: with other ids.
        """
        prepared, kind = self._prepared, "again-" if again else self._kind
        for place in log.places_H.tolist():
            item_id, action = self._item_ids[prepared.item_E[place]], self._actions[prepared.action_E[place]]
            logged_ms, value = int(prepared.timestamp_ms_E[place]), float(prepared.value_E[place])
            said = (log.user_id, item_id, action, str(logged_ms), str(value), str(self._repetition_E[place]))
            yield Event(
                event_id=kind + hashlib.blake2b("\0".join(said).encode(), digest_size=16).hexdigest(),
                user_id=log.user_id,
                item_id=item_id,
                action=action,
                timestamp=(logged_ms + self._shift_ms) / 1000,
                value=None if np.isnan(value) else value,
            )

    def posts(
        self, logs: Iterable[UserLog], num_events: int = EVENTS_PER_POST, *, again: bool = False
    ) -> Iterator[list[Event]]:
        """All of them, up to `num_events` a post; a user's stay together where they fit. `again`: as `of`."""
        post: list[Event] = []
        for log in logs:
            if post and len(post) + len(log.places_H) > num_events:
                yield post
                post = []
            post += self.of(log, again=again)
            while len(post) > num_events:
                yield post[:num_events]
                post = post[num_events:]
        if post:
            yield post


def _repetitions(prepared: PreparedData) -> npt.NDArray[np.uint32]:
    """Of how many events before it each says the same `[E]`: somebody may view an item twice in a second."""
    said = pl.DataFrame(
        {
            "user": prepared.user_id_E,
            "item": prepared.item_E,
            "action": prepared.action_E,
            "at": prepared.timestamp_ms_E,
            "value": prepared.value_E,
        }
    )
    return said.select(pl.int_range(pl.len(), dtype=pl.UInt32).over(said.columns)).to_series().to_numpy()


@dataclass(frozen=True)
class Sent:
    """What became of the events."""

    num_stored: int
    num_duplicate: int
    refusals: Sequence[tuple[str, int]]
    """Why, and how many; the most frequent first."""

    def __add__(self, other: "Sent") -> "Sent":
        reasons = Counter(dict(self.refusals)) + Counter(dict(other.refusals))
        return Sent(self.num_stored + other.num_stored, self.num_duplicate + other.num_duplicate, reasons.most_common())


class Sender:
    """Sends posts, and counts what becomes of their events."""

    def __init__(self, connect: Callable[[], AsyncOneSlate], num_in_flight: int) -> None:
        """Nothing is connected yet.

        Args:
            connect: Makes a client of the service; how patient it is decides when this gives up.
            num_in_flight: Posts at once.
        """
        self._connect = connect
        self._num_in_flight = num_in_flight
        self._statuses: Counter[str] = Counter()
        self._reasons: Counter[str] = Counter()

    @property
    def sent(self) -> Sent:
        """Until now."""
        return Sent(self._statuses["stored"], self._statuses["duplicate"], self._reasons.most_common())

    def send(self, posts: Iterable[list[Event]], told: Callable[[int], None] = lambda _: None) -> None:
        """Sends all of them.

        Args:
            posts: Events of one request each.
            told: Hears how many events were answered just now.

        Raises:
            oneslate_client.OneSlateError: of the client. What was sent by then is stored.
        """
        try:
            asyncio.run(self._send(iter(posts), told))
        except ExceptionGroup as errors:  # one that fails cancels the others
            raise errors.exceptions[0] from None

    async def _send(self, posts: Iterator[list[Event]], told: Callable[[int], None]) -> None:
        async with self._connect() as client, asyncio.TaskGroup() as group:
            for _ in range(self._num_in_flight):
                group.create_task(self._one_after_another(client, posts, told))

    async def _one_after_another(
        self, client: AsyncOneSlate, posts: Iterator[list[Event]], told: Callable[[int], None]
    ) -> None:
        for post in posts:
            todo = [post]
            while todo:
                events = todo.pop(0)
                try:
                    results = await client.send_events(events)
                except ApiError as error:
                    if error.status != _INVALID:
                        raise
                    if len(events) > 1:  # more than this service takes at once, or one of them is not as it should be
                        todo[:0] = [events[: len(events) // 2], events[len(events) // 2 :]]
                        continue
                    reasons = [f"{one.pointer.rpartition('/')[2]}: {one.detail}" for one in error.errors]
                    self._reasons["; ".join(reasons) or error.title] += 1
                else:
                    self._statuses.update(result.status for result in results)
                    for result in results:
                        if result.status == "refused":
                            self._reasons["no reason given" if result.problem is None else result.problem.title] += 1
                told(len(events))


def backfill(
    events: LogEvents,
    logs: UserLogs,
    sender: Callable[[], Sender],
    has_history: Callable[[str], bool],
    told: Callable[[int], None] = lambda _: None,
) -> tuple[Sent, int]:
    """Sends the events of all users; what became of them, and of how many users all are too old for their histories.

    A service stores an event that is older than its histories go (it counts as seen, and stands in the event log), so
    its histories are asked. The first user's before the others are sent: who was there last is too old, then all are.

    Args:
        events: Of the log.
        logs: Of those users; who was there last comes first.
        sender: Makes one.
        has_history: Whether the service's history of a user holds anything.
        told: Hears how many events were answered just now.

    Raises:
        ValueError: the first user's are too old; no other user's were sent.
        oneslate_client.OneSlateError: of the client. What was sent by then is stored.
    """
    first = sender()
    first.send(events.posts(logs[:1]), told)
    if not first.sent.refusals and not has_history(logs[0].user_id):
        if not first.sent.num_stored:
            # It knows them from a time when its histories did not go so far back, and would not take them for days.
            first = sender()
            first.send(events.posts(logs[:1], again=True))
        if not has_history(logs[0].user_id):
            *_, last = events.of(logs[0])
            raise ValueError(
                "the service does not keep events of this log: the newest is of "
                f"{datetime.fromtimestamp(last.timestamp, UTC):%Y-%m-%d}, and ONESLATE_HISTORY__MAX_AGE_DAYS says "
                "how old an event may be; --end-now moves all of them in time"
            )
    rest = sender()
    rest.send(events.posts(logs[1:]), told)
    sent = first.sent + rest.sent
    if sent.refusals or has_history(logs[len(logs) - 1].user_id):
        return sent, 0
    num_with_history = bisect_left(range(len(logs)), True, key=lambda place: not has_history(logs[place].user_id))
    return sent, len(logs) - num_with_history
