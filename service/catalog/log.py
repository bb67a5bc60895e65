"""The catalog's log: every change in one order, the same for all replicas and after a restart.

A sid belongs to (model version, item). Whoever brings a new item names the place that it found; the log gives it away
once. What a log holds beside its order is the sum of all changes, so that a reader that starts, or has fallen too far
behind, need not read from the beginning.
"""

import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final, Protocol

from service.catalog.change import ItemChange, LoggedChange, Sid

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


class CatalogLog(Protocol):
    """Where changes are put in order. CatalogUnavailable from any method: it did not answer."""

    async def submit(self, changes: Sequence[LoggedChange]) -> list[Submitted]:
        """Appends the changes at once, but for those whose sid is taken."""
        ...

    async def state(self) -> LogState:
        """The sum of all changes."""
        ...

    async def since(self, position: str) -> LogTail | None:
        """What came after a position that this log gave; None: it is too long ago, ask for the state."""
        ...

    async def close(self) -> None:
        """Lets go of connections."""
        ...


class MemoryCatalogLog:
    """A log that ends with the process."""

    def __init__(self, max_entries: int = 10_000) -> None:
        self._entries: deque[tuple[int, float, Sequence[LoggedChange]]] = deque(maxlen=max_entries)
        self._state: dict[str, ItemChange] = {}
        self._sid_of: dict[str, Sid] = {}
        self._owner_of: dict[Sid, str] = {}
        self._num_entries = 0

    async def submit(self, changes: Sequence[LoggedChange]) -> list[Submitted]:
        """See CatalogLog."""
        outcomes, kept = [], []
        for logged in changes:
            item_id, sid = logged.change.item_id, logged.sid
            if sid is not None:
                sid = self._sid_of.get(item_id, sid)
                if self._owner_of.setdefault(sid, item_id) != item_id:
                    outcomes.append(Submitted(stored=False))
                    continue
                self._sid_of[item_id] = sid
            before = self._state.get(item_id)
            after = logged.change if before is None else replace(before, **logged.change.members())
            self._state[item_id] = after
            kept.append(LoggedChange(logged.change if sid is None else after, sid))
            outcomes.append(Submitted(stored=True, sid=sid))
        if kept:
            self._num_entries += 1
            self._entries.append((self._num_entries, time.time(), kept))
        return outcomes

    async def state(self) -> LogState:
        """See CatalogLog."""
        changes = [LoggedChange(change, self._sid_of.get(item_id)) for item_id, change in self._state.items()]
        return LogState(changes, f"{self._num_entries}-0")

    async def since(self, position: str) -> LogTail | None:
        """See CatalogLog."""
        seen = int(position.partition("-")[0])
        if not self._num_entries - len(self._entries) <= seen <= self._num_entries:
            return None
        missed = [(at_s, changes) for number, at_s, changes in self._entries if number > seen]
        changes = [change for _, changes in missed for change in changes]
        return LogTail(changes, f"{self._num_entries}-0", missed[0][0] if missed else None)

    async def close(self) -> None:
        """See CatalogLog."""
