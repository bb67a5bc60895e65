"""What a history store does, whoever keeps the histories.

Shapes: N entries of one user, S seen items of one user.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from hashlib import blake2b
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from service.domain import Event, HistoryEntry, Impression

DAY_MS = 24 * 3600 * 1000
MAX_NUM_ACTIONS = 255
"""Names that the action registry holds; an action is one byte of an entry."""

Durability = Literal["strong", "everysec", "none", "unknown"]
"""`strong`: an acknowledged event is on disk; `everysec`: within a second; `none`: never on purpose; `unknown`: the
server does not tell."""

RefusalReason = Literal["timestamp_in_future", "timestamp_out_of_range", "value_out_of_range", "too_many_actions"]


@dataclass(frozen=True, slots=True, kw_only=True)
class HistoryLimits:
    """How much of a user is kept, and for how long."""

    num_entries: int = 256
    """Newest entries that a history keeps."""
    max_age_ms: int = 365 * DAY_MS
    """Older entries are not read any more, and are gone a sixteenth of this later at the next event."""
    num_seen: int = 1024
    """Last distinct (item, action) pairs that the list of seen items keeps at least."""
    dedupe_ms: int = 7 * DAY_MS
    """An event id is recognised for at least this long, and at most three times as long."""
    shown_bytes: int = 4096
    """Of the slates that were shown to a user the newest are kept, up to so much: 33 bytes each and 8 for each item.
    0: none."""
    shown_ms: int = 3600 * 1000
    """They are kept for so long after the last of them."""
    future_tolerance_ms: int = 5 * 60 * 1000
    """Events further ahead of the clock are refused."""
    log_rows: int = 0
    """Rows of the event log that wait to be drained at most, in all; each of its 256 streams holds its share. 0: there
    is no log."""

    def __post_init__(self) -> None:
        for field in fields(self):
            least = 0 if field.name in {"future_tolerance_ms", "shown_bytes", "log_rows"} else 1
            if getattr(self, field.name) < least:
                raise ValueError(f"{field.name} must be at least {least}, not {getattr(self, field.name)}")


@dataclass(frozen=True, slots=True)
class EventOutcome:
    """What became of one event.

    `stored`: acknowledged; the history keeps it as far as its limits go, and its item counts as seen. `duplicate`: the
    user's event of this id is stored already. `refused`: not kept, for `reason`; sending it again changes nothing.
    """

    status: Literal["stored", "duplicate", "refused"]
    reason: RefusalReason | None = None
    detail: str = ""
    """One sentence for people, when refused."""


STORED = EventOutcome("stored")
DUPLICATE = EventOutcome("duplicate")


@dataclass(frozen=True, slots=True, kw_only=True)
class ShownSlate:
    """A slate that a user was answered."""

    user_id: str
    recommendation_id: str
    """32 hexadecimal digits."""
    continued_from: str | None
    """The slate that this one is the next after."""
    item_keys: tuple[int, ...]


@dataclass(frozen=True, slots=True, eq=False)
class UserHistory:
    """One user's history as arrays; an unknown user's is empty."""

    entries_N: NDArray[Any]
    """codec.ENTRY_DTYPE (`item_key`, `timestamp_ms`, `value`, `action`), oldest first; NaN value: none."""
    seen_S: NDArray[Any]
    """codec.SEEN_DTYPE (`item_key`, `action`), oldest first, possibly with repetitions."""
    action_names: tuple[str, ...]
    """Name of each action number. The same tuple as long as no action is added: tables built from it may be kept."""
    shown: tuple[ShownSlate, ...] = ()
    """Where asked for: what the user was shown lately, oldest first."""
    stale_s: float = 0.0
    """How long ago it was read, where the store does not answer now; 0: just now."""

    @property
    def seen_keys(self) -> NDArray[np.uint64]:
        """Item keys [S] of everything seen, by whatever action."""
        return np.ascontiguousarray(self.seen_S["item_key"])

    def as_entries(self) -> tuple[HistoryEntry, ...]:
        """The entries as plain objects, oldest first: for people and JSON, not for the recommend path.

        A value has as few digits as name it among 32-bit floats: 18.2 comes back as 18.2.
        """
        return tuple(
            HistoryEntry(key, timestamp_ms, self.action_names[action], None if np.isnan(value) else float(str(value)))
            for (key, timestamp_ms, _, action), value in zip(
                self.entries_N.tolist(), self.entries_N["value"], strict=True
            )
        )


@dataclass(frozen=True, slots=True)
class Forgotten:
    """Some of those who were forgotten."""

    user_keys: Sequence[int]
    """`user_key` of each."""
    until: str
    """To be asked from next."""


def user_key(user_id: str) -> int:
    """64 bits of a user id: what is known of it where it shall not be known."""
    return int.from_bytes(blake2b(user_id.encode(), digest_size=8).digest(), "little")


class HistoryStore(Protocol):
    """Keeps user histories. Every method raises HistoryUnavailable when the store does not answer in time."""

    async def append(self, events: Sequence[Event], now_ms: int) -> list[EventOutcome]:
        """Store events; one outcome per event, in their order.

        All events of a user are stored at once or not at all. Entries land in time order, equal times in order of
        arrival. When HistoryUnavailable is raised nothing is acknowledged and some users' events may be stored:
        sending all again with the same event ids is harmless. EventLogFull says the same of a log that must be
        drained first.
        """
        ...

    async def read(self, user_id: str, now_ms: int | None = None, *, with_shown: bool = False) -> UserHistory:
        """The newest entries within the limits at `now_ms` (None: the clock), and the seen items; one round trip."""
        ...

    async def remember(self, impressions: Sequence[Impression]) -> int:
        """Keep slates that were shown, within the limits, and log them; returns how many the log had no room for.

        They are no events: nothing counts as seen by them.
        """
        ...

    async def delete(self, user_id: str) -> bool:
        """Forget everything about the user, event ids and shown slates included; False when there was nothing.

        The event log is told, and everybody who asks `forgotten`.
        """
        ...

    async def forgotten(self, since: str | None) -> Forgotten:
        """Who was forgotten since, by whichever process; None: nobody yet, from now on."""
        ...

    async def some_users(self, limit: int) -> list[str]:
        """Ids of a few users who have a history, at random: for people who look around. It may miss some."""
        ...

    async def ping(self) -> float:
        """Milliseconds that one round trip takes."""
        ...

    async def durability(self) -> Durability:
        """What an acknowledgement is worth now."""
        ...

    async def close(self) -> None:
        """Let go of connections; the store is not used again."""
        ...
