"""The catalog's log: every change in one order, the same for all replicas and after a restart.

A sid belongs to (model version, item). Whoever brings a new item names the place that it found; the log gives it away
once. What a log holds beside its order is the sum of all changes, so that a reader that starts, or has fallen too far
behind, need not read from the beginning; and of each change what was before it, so that a catalog can be taken back.
"""

import time
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Final, NamedTuple, Protocol

from service.catalog.change import Before, ItemChange, LoggedChange, Sid
from service.errors import CatalogMoved

START: Final = "0-0"
"""Position before the first change."""


@dataclass(frozen=True, slots=True)
class Submitted:
    """What became of one change."""

    stored: bool
    """False: the sid is another item's; nothing was written."""
    sid: Sid | None = None
    """The item's sid, where the change named one: its own earlier one if it had one already."""


@dataclass(frozen=True, slots=True)
class LogState:
    """The sum of all changes up to a position (and perhaps some after it: reading them again does no harm)."""

    changes: Sequence[LoggedChange]
    """One per item, with every member that was ever changed; the sid is of the reader's model."""
    position: str


@dataclass(frozen=True, slots=True)
class LogTail:
    """What came after a position."""

    changes: Sequence[LoggedChange]
    position: str
    """Of the last change; the one asked for when there was none."""
    oldest_s: float | None = None
    """Unix time at which the first of them was written; None: there was none."""
    has_more: bool = False
    """Whether there was more to read already."""


@dataclass(frozen=True, slots=True)
class Undo:
    """What takes the catalog back to a position."""

    befores: Sequence[Before]
    """One per item that was changed since."""
    position: str
    """Of the last change that this undoes."""


@dataclass(frozen=True, slots=True)
class LogEntry:
    """Changes that came at once."""

    position: str
    written_s: float
    """Unix time."""
    num_changes: int


class CatalogLog(Protocol):
    """Where changes are put in order. CatalogUnavailable from any method: it did not answer."""

    async def submit(self, changes: Sequence[LoggedChange]) -> list[Submitted]:
        """Appends the changes at once, but for those whose sid is taken."""
        ...

    async def append(self, changes: Sequence[ItemChange], *, after: str) -> str:
        """Appends changes of items that the log knows, right after a position; the position that they have.

        Raises:
            CatalogMoved: the last change is another one; nothing was written.
        """
        ...

    async def state(self) -> LogState:
        """The sum of all changes."""
        ...

    async def since(self, position: str) -> LogTail | None:
        """What came after a position that this log gave; None: it is too long ago, ask for the state."""
        ...

    async def undo(self, position: str) -> Undo | None:
        """What undoes everything after a position; None: what came after it is no longer there."""
        ...

    async def newest(self, count: int) -> list[LogEntry]:
        """The newest entries, newest first."""
        ...

    async def close(self) -> None:
        """Lets go of connections."""
        ...


class _Entry(NamedTuple):
    number: int
    written_s: float
    changes: Sequence[LoggedChange]
    befores: Sequence[Before]

    @property
    def position(self) -> str:
        return f"{self.number}-0"


class MemoryCatalogLog:
    """A log that ends with the process."""

    def __init__(self, max_entries: int = 10_000) -> None:
        self._entries: deque[_Entry] = deque(maxlen=max_entries)
        self._state: dict[str, ItemChange] = {}
        self._sid_of: dict[str, Sid] = {}
        self._owner_of: dict[Sid, str] = {}
        self._num_entries = 0

    async def submit(self, changes: Sequence[LoggedChange]) -> list[Submitted]:
        """See CatalogLog."""
        outcomes, kept, befores = [], [], []
        for logged in changes:
            item_id, sid = logged.change.item_id, logged.sid
            if sid is not None:
                sid = self._sid_of.get(item_id, sid)
                if self._owner_of.setdefault(sid, item_id) != item_id:
                    outcomes.append(Submitted(stored=False))
                    continue
                self._sid_of[item_id] = sid
            before = self._state.get(item_id)
            befores.append(_before(before, logged.change))
            after = logged.change if before is None else replace(before, **logged.change.members())
            self._state[item_id] = after
            kept.append(LoggedChange(logged.change if sid is None else after, sid))
            outcomes.append(Submitted(stored=True, sid=sid))
        if kept:
            self._num_entries += 1
            self._entries.append(_Entry(self._num_entries, time.time(), kept, befores))
        return outcomes

    async def append(self, changes: Sequence[ItemChange], *, after: str) -> str:
        """See CatalogLog."""
        if after != self._position():
            raise CatalogMoved(f"the catalog's log does not end at {after}")
        await self.submit([LoggedChange(change) for change in changes])
        return self._position()

    async def state(self) -> LogState:
        """See CatalogLog."""
        changes = [LoggedChange(change, self._sid_of.get(item_id)) for item_id, change in self._state.items()]
        return LogState(changes, self._position())

    async def since(self, position: str) -> LogTail | None:
        """See CatalogLog."""
        if (missed := self._after(position)) is None:
            return None
        changes = [change for entry in missed for change in entry.changes]
        return LogTail(changes, self._position(), missed[0].written_s if missed else None)

    async def undo(self, position: str) -> Undo | None:
        """See CatalogLog."""
        if position == START:
            return undo_everything(await self.state())
        if (missed := self._after(position)) is None:
            return None
        found: dict[str, Before] = {}
        sum_up(found, (before for entry in missed for before in entry.befores))
        return Undo(list(found.values()), self._position())

    async def newest(self, count: int) -> list[LogEntry]:
        """See CatalogLog."""
        newest = list(self._entries)[-count:][::-1]
        return [LogEntry(entry.position, entry.written_s, len(entry.changes)) for entry in newest]

    async def close(self) -> None:
        """See CatalogLog."""

    def _position(self) -> str:
        return f"{self._num_entries}-0"

    def _after(self, position: str) -> list[_Entry] | None:
        number, _, rest = position.partition("-")
        if rest != "0" or not self._num_entries - len(self._entries) <= int(number) <= self._num_entries:
            return None
        return [entry for entry in self._entries if entry.number > int(number)]


def sum_up(found: dict[str, Before], befores: Iterable[Before]) -> None:
    """Adds what was before later changes to what was before earlier ones, by item."""
    for before in befores:
        item_id = before.change.item_id
        found[item_id] = before.and_earlier(found[item_id]) if item_id in found else before


def undo_everything(state: LogState) -> Undo:
    """What takes the catalog back to the bundle's own items."""
    return Undo([_before(None, logged.change) for logged in state.changes], state.position)


def _before(state: ItemChange | None, change: ItemChange) -> Before:
    known = {} if state is None else state.members()
    known = {name: value for name, value in known.items() if name in change.members()}
    unset = frozenset(change.members().keys() - known.keys())
    return Before(ItemChange(item_id=change.item_id, **known), unset, is_new=state is None)
