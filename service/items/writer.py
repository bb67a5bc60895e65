"""The use case: from what a client says of items to entries in the catalog's log.

A new item is encoded, gets the nearest free place, and claims it in the log; if another replica was faster, one of the
next nearest.

Legend: E embedding width.
"""

import asyncio
import logging
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal

import numpy as np

from service.catalog import CatalogLog, CatalogSnapshot, ItemChange, LiveCatalog, LoggedChange
from service.catalog.change import Sid
from service.catalog.log import LogEntry
from service.catalog.sids import FreeSids
from service.errors import CatalogMoved, CatalogUnavailable
from service.items.follower import CatalogFollower
from service.metrics import Metrics

_log = logging.getLogger(__name__)

Status = Literal["added", "changed", "removed", "refused"]
RefusalKind = Literal["", "unknown_item", "cannot_be_placed"]

_WAIT_S: Final = 0.01
_MAX_WAIT_S: Final = 1.0
_NUM_TRIES: Final = 20
_MOST_PASSED: Final = 64
"""Places that are passed over, in all, by those who lost theirs again and again."""
_MAX_AT_ONCE: Final = 1000
"""Changes of one entry: Redis' scripts can name a few thousand values in one command."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ItemOutcome:
    """What became of one change."""

    status: Status
    sid: Sid | None = None
    """Of the item, where it is known here."""
    refusal: RefusalKind = ""
    detail: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class RolledBack:
    """What a rollback did."""

    num_changes: int
    """Items that it wrote."""
    position: str
    """Of the log, where the catalog is as it was."""


class ItemWriter:
    """Puts changes into the log. They are in service when a follower has read them, within a second."""

    def __init__(
        self,
        log: CatalogLog,
        live: LiveCatalog,
        follower: CatalogFollower,
        max_branch: Sequence[int],
        metrics: Metrics,
    ) -> None:
        self._log = log
        self._live = live
        self._follower = follower
        self._metrics = metrics
        self._free = None if live.encoder is None else FreeSids(live.encoder.codebooks, max_branch)
        self._placed: dict[str, Sid] = {}
        """Items that have a place, but are not in the snapshot in service yet."""
        self._denied: dict[Sid, None] = {}
        """Places that the log has given to others, and that the snapshot in service does not show either."""
        self._unseen: dict[str, int] = {}
        """Items changed here -> readings of the log that had begun by then: a later one sees the change."""
        # Places are given away by one at a time; changes of known items need none and do not wait.
        self._placing = asyncio.Lock()

    async def write(self, changes: Sequence[ItemChange]) -> list[ItemOutcome]:
        """Stores changes, each by itself; one outcome each, in order. An item may stand in several.

        Raises:
            CatalogUnavailable: the log did not answer; send all again, which does no harm.
        """
        if any(not change.says_what_it_is and self._sid_of(change.item_id) is None for change in changes):
            # Perhaps another replica has just added it.
            await self._follower.catch_up()
        outcomes: list[ItemOutcome] = []
        for start in range(0, len(changes), _MAX_AT_ONCE):
            outcomes += await self._write_some(changes[start : start + _MAX_AT_ONCE])
        for outcome in outcomes:
            self._metrics.item_changes.labels(outcome.status).inc()
        self._unseen = {item_id: number for item_id, number in self._unseen.items() if not self._is_seen(number)}
        self._unseen.update((change.item_id, self._follower.num_begun) for change in changes)
        return outcomes

    async def roll_back(self, position: str) -> RolledBack | None:
        """Takes the catalog back to a position of its log.

        A rollback is a change like any other: it stands in the log after those that it undoes, every replica follows
        it, and it can be undone. Items added since are removed. None: the log does not hold what came since.

        Raises:
            CatalogUnavailable: the log did not answer, or others changed the catalog all the time. Ask again: what was
                written of it stays, and is undone with the rest.
            CatalogError: the log holds what cannot be read.
        """
        for _ in range(_NUM_TRIES):
            undo = await self._log.undo(position)
            if undo is None:
                return None
            changes = await asyncio.to_thread(lambda befores: [*map(self._live.as_before, befores)], undo.befores)
            end = undo.position
            try:
                for start in range(0, len(changes), _MAX_AT_ONCE):
                    # Each right after the one before: what another writes in between begins it anew.
                    end = await self._log.append(changes[start : start + _MAX_AT_ONCE], after=end)
            except CatalogMoved:
                continue
            await self._follower.reach(end)
            self._metrics.item_changes.labels("rolled_back").inc(len(changes))
            return RolledBack(num_changes=len(changes), position=end)
        raise CatalogUnavailable(f"the catalog was changed {_NUM_TRIES} times while it was to be rolled back")

    async def newest(self, count: int) -> list[LogEntry]:
        """The newest entries of the log, newest first.

        Raises:
            CatalogUnavailable: it did not answer.
        """
        return await self._log.newest(count)

    async def settle(self, item_id: str) -> None:
        """Returns when this replica's own changes of the item are in service here.

        Raises:
            CatalogUnavailable: they are not yet, and the log did not answer.
        """
        if (number := self._unseen.get(item_id)) is None:
            return
        # The next snapshot is on its way: one made for each reader would be many more than four a second.
        until_s = time.monotonic() + _MAX_WAIT_S
        while not self._is_seen(number) and time.monotonic() < until_s:  # noqa: ASYNC110 - several readings may pass
            await asyncio.sleep(_WAIT_S)
        if not self._is_seen(number):
            await self._follower.catch_up()

    def _is_seen(self, number: int) -> bool:
        return self._follower.last_ended > number

    async def adopt(self, changes: Sequence[ItemChange]) -> int:
        """Finds places for items that came while another model was served. They come back through the log.

        How many say too little of themselves to be placed: one that is brought back says nothing else.
        """
        ready, num_refused = [], 0
        for change in changes:
            if not change.removed:
                # Another model's embedding means nothing here: the text does.
                readable = change if self._unfit(change) is None else replace(change, embedding=())
                if self._refusal(readable):
                    num_refused += 1
                    _log.warning("an item of another model says nothing to be placed by: %r", change.item_id)
                else:
                    ready.append(readable)
        for start in range(0, len(ready), _MAX_AT_ONCE):
            async with self._placing:
                # What they are stands in the log already, and may have changed since it was read.
                sids = await self._place(ready[start : start + _MAX_AT_ONCE], says_what_they_are=False)
            _log.info("%d item(s) of another model have a place now", len(sids) - sids.count(None))
            if num_left := sids.count(None):
                _log.error("no semantic ID is free for %d item(s) of another model", num_left)
        return num_refused

    async def _write_some(self, changes: Sequence[ItemChange]) -> list[ItemOutcome]:
        snapshot = self._live.snapshot
        known = [snapshot.row_of(change.item_id) is not None or change.item_id in self._placed for change in changes]
        outcomes = [self._unfit(change) for change in changes]
        if not all(known):
            async with self._placing:
                await self._add(
                    changes,
                    [place for place, is_known in enumerate(known) if not is_known and outcomes[place] is None],
                    outcomes,
                )
        rest = [place for place, outcome in enumerate(outcomes) if outcome is None]
        if rest:
            await self._log.submit([LoggedChange(changes[place]) for place in rest])
        for place in rest:
            status: Status = "removed" if changes[place].removed else "changed"
            outcomes[place] = ItemOutcome(status=status, sid=self._sid_of(changes[place].item_id))
        return [outcome for outcome in outcomes if outcome is not None]

    async def _add(
        self, changes: Sequence[ItemChange], places: Sequence[int], outcomes: list[ItemOutcome | None]
    ) -> None:
        """Adds those that are new; a second change of one of them, or of one that came meanwhile, is left to do."""
        first: dict[str, int] = {}
        for place in places:
            change = changes[place]
            if change.item_id in first or self._sid_of(change.item_id) is not None:
                continue  # not new any more: changed after the others are added
            if change.removed:
                detail = f"the catalog does not hold {change.item_id!r}"
                outcomes[place] = ItemOutcome(status="refused", refusal="unknown_item", detail=detail)
            elif detail := self._refusal(change):
                is_put = change.says_what_it_is or change.removed is not None
                kind: RefusalKind = "cannot_be_placed" if is_put else "unknown_item"
                outcomes[place] = ItemOutcome(status="refused", refusal=kind, detail=detail)
            else:
                first[change.item_id] = place
        sids = await self._place([changes[place] for place in first.values()])
        for (item_id, place), sid in zip(first.items(), sids, strict=True):
            if sid is not None:
                outcomes[place] = ItemOutcome(status="added", sid=sid)
                continue
            detail = f"no semantic ID is free for {item_id!r}"
            for other in places:
                if changes[other].item_id == item_id:
                    outcomes[other] = ItemOutcome(status="refused", refusal="cannot_be_placed", detail=detail)

    async def _place(self, changes: Sequence[ItemChange], *, says_what_they_are: bool = True) -> list[Sid | None]:
        """Finds and claims a place for each; None where none is left.

        Raises:
            CatalogUnavailable: other replicas were faster every time.
        """
        logged = changes if says_what_they_are else [ItemChange(item_id=change.item_id) for change in changes]
        sids: dict[int, Sid | None] = {}
        left = list(range(len(changes)))
        for number in range(_NUM_TRIES):
            if not left:
                break
            # A replica that adds one item after another like this one takes the nearest place each time, and may always
            # be the faster one: who has lost leaves it some of them, at random and more from time to time.
            most = min(2**number, max(1, _MOST_PASSED // len(left)))
            found = await asyncio.to_thread(
                self._find, self._live.snapshot, [changes[place] for place in left], random.randrange(most)
            )
            asked = [(place, sid) for place, sid in zip(left, found, strict=True) if sid is not None]
            sids.update(dict.fromkeys(left))
            answers = await self._log.submit([LoggedChange(logged[place], sid) for place, sid in asked])
            left = []
            for (place, sid), answer in zip(asked, answers, strict=True):
                if answer.stored:
                    # Its own earlier place, where another replica had given it one.
                    sids[place] = self._placed[changes[place].item_id] = answer.sid or sid
                else:
                    self._denied[sid] = None
                    left.append(place)
            if left:
                await self._follower.catch_up()  # whoever took one place may have taken those around it
        if left:
            raise CatalogUnavailable(f"other replicas took the places of {len(left)} new item(s) {_NUM_TRIES} times")
        return [sids[place] for place in range(len(changes))]

    def _find(self, snapshot: CatalogSnapshot, changes: Sequence[ItemChange], num_passed: int) -> list[Sid | None]:
        """The nearest free place of each but for so many that are nearer; None where none is free."""
        encoder = self._live.encoder
        assert encoder is not None
        assert self._free is not None
        self._placed = {item_id: sid for item_id, sid in self._placed.items() if snapshot.row_of(item_id) is None}
        # Only what was claimed is taken: a place that was found, but never came into the log, is free again.
        self._free.begin(snapshot, [*self._placed.values(), *self._denied])
        items = [(change.applied_to(None), change.embedding) for change in changes]
        found = self._free.find(snapshot, np.tile(encoder.embeddings(items), (num_passed + 1, 1)))
        rounds = [found[start : start + len(items)] for start in range(0, len(found), len(items))]
        return [next((sid for sid in reversed(sids) if sid is not None), None) for sids in zip(*rounds, strict=True)]

    def _sid_of(self, item_id: str) -> Sid | None:
        snapshot = self._live.snapshot
        row = snapshot.row_of(item_id)
        return self._placed.get(item_id) if row is None else tuple(snapshot.sids_NL[row].tolist())

    def _unfit(self, change: ItemChange) -> ItemOutcome | None:
        """A refusal of what would do harm in the log, whether the item is new or not."""
        encoder = self._live.encoder
        if not change.embedding or (encoder is not None and len(change.embedding) == encoder.encoder.width):
            return None
        detail = "this bundle takes no embeddings" if encoder is None else encoder.refusal(change)
        return ItemOutcome(status="refused", refusal="cannot_be_placed", detail=detail)

    def _refusal(self, change: ItemChange) -> str:
        encoder = self._live.encoder
        if encoder is None:
            return f"the catalog does not hold {change.item_id!r}, and this bundle has no encoder for new items"
        return encoder.refusal(change)
