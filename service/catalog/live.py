"""The catalog in service: one snapshot at a time, the next one made beside it and put in its place whole.

Legend: A items added, E embedding width.
"""

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np

from service.catalog.change import Before, ItemChange, LoggedChange, Sid
from service.catalog.encoding import NewItemEncoder
from service.catalog.log import START
from service.catalog.snapshot import CatalogSnapshot, NewItems
from service.domain import Item
from service.errors import CatalogError

_log = logging.getLogger(__name__)
_POSITION: Final = re.compile(r"\d{1,19}-\d{1,19}", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class Applied:
    """What became of changes."""

    num_applied: int
    unplaced: Sequence[ItemChange]
    """Changes of items that this catalog does not hold and that brought no sid for its model."""
    num_without_room: int
    """New items that two replicas put into one node at once, beyond what the model's graph holds."""


class LiveCatalog:
    """Holds the snapshot in service. Read from any thread; changed by one at a time."""

    def __init__(self, base: CatalogSnapshot, encoder: NewItemEncoder | None) -> None:
        """Begins with the bundle's own items.

        Args:
            base: What is left when nothing was ever changed.
            encoder: Of the bundle; None: no new items.
        """
        self.encoder = encoder
        self._base = base
        self._snapshot = base

    @property
    def snapshot(self) -> CatalogSnapshot:
        """The one in service now."""
        return self._snapshot

    def reset(self, changes: Sequence[LoggedChange], position: str) -> Applied:
        """The bundle's items with these changes and none from before."""
        return self._put(self._base, changes, position)

    def apply(self, changes: Sequence[LoggedChange], position: str) -> Applied:
        """The catalog in service with these changes, in order.

        `position` in the log is part of the version: replicas of one bundle at one position hold the same.
        """
        return self._put(self._snapshot, changes, position)

    @property
    def base_version(self) -> str:
        """Of the bundle's own items."""
        return self._base.version

    def version_at(self, position: str) -> str:
        """Of the catalog that a position of the log makes of this bundle."""
        return f"{self._base.version}.{position}"

    def position_of(self, version: str) -> str | None:
        """The other way round; the bundle's own version begins the log. None: no version of this bundle's catalog."""
        if version == self._base.version:
            return START
        base, _, position = version.rpartition(".")
        return position if base == self._base.version and _POSITION.fullmatch(position) else None

    def as_before(self, before: Before) -> ItemChange:
        """The change that undoes another: what the log did not know was as in the bundle, and else not there."""
        item_id = before.change.item_id
        row = self._base.row_of(item_id)
        if row is None and before.is_new:
            return ItemChange(item_id=item_id, removed=True)
        item = Item(item_id=item_id) if row is None else self._base.items[row]
        members: dict[str, Any] = {name: () if name == "embedding" else getattr(item, name) for name in before.unset}
        return ItemChange(item_id=item_id, **members | before.change.members())

    def _put(self, start: CatalogSnapshot, changes: Sequence[LoggedChange], position: str) -> Applied:
        version = self.version_at(position)
        merged = _Merged(start, changes)
        new = [_New(item, merged.embedding_of.get(item.item_id), merged.sids[item.item_id]) for item in merged.added]
        num_without_room = 0
        try:
            snapshot = start.changed(version, merged.replaced, self._new_items(new))
        except CatalogError:
            snapshot, num_without_room = self._one_by_one(start.changed(version, merged.replaced), new)
        self._snapshot = snapshot
        return Applied(
            num_applied=len(changes) - len(merged.unplaced),
            unplaced=merged.unplaced,
            num_without_room=num_without_room,
        )

    def _one_by_one(self, snapshot: CatalogSnapshot, new: Sequence["_New"]) -> tuple[CatalogSnapshot, int]:
        """Adds what can be added: halves it until those without room stand alone."""
        try:
            return snapshot.changed(snapshot.version, (), self._new_items(new)), 0
        except CatalogError as error:
            if len(new) == 1:
                _log.error("a new item is left out of catalog %s: %s", snapshot.version, error)
                return snapshot, 1
        snapshot, num_first = self._one_by_one(snapshot, new[: len(new) // 2])
        snapshot, num_second = self._one_by_one(snapshot, new[len(new) // 2 :])
        return snapshot, num_first + num_second

    def _new_items(self, new: Sequence["_New"]) -> NewItems | None:
        if not new:
            return None
        assert self.encoder is not None, "without an encoder nothing gets a sid"
        vectors_AD = embeddings_AE = None
        if self._base.vectors_ND is not None or self._base.embeddings_NE is not None:
            embeddings_AE = self.encoder.embeddings([(one.item, one.embedding) for one in new])
            vectors_AD = self.encoder.vectors(embeddings_AE)
        return NewItems(
            items=[one.item for one in new],
            sids_AL=np.array([one.sid for one in new], dtype=np.int32),
            vectors_AD=vectors_AD,
            embeddings_AE=embeddings_AE,
        )


class _New(NamedTuple):
    item: Item
    embedding: tuple[float, ...] | None
    sid: Sid


class _Merged:
    """Changes in order, summed up to one item each."""

    def __init__(self, start: CatalogSnapshot, changes: Sequence[LoggedChange]) -> None:
        now: dict[str, Item] = {}
        self.sids: dict[str, Sid] = {}
        self.embedding_of: dict[str, tuple[float, ...]] = {}
        self.unplaced: list[ItemChange] = []
        known = {}
        for logged in changes:
            change = logged.change
            item_id = change.item_id
            if item_id not in known:
                row = start.row_of(item_id)
                known[item_id] = row is not None
                if row is not None:
                    now[item_id] = start.items[row]
            if not known[item_id]:
                if logged.sid is not None:
                    self.sids[item_id] = logged.sid
                elif item_id not in self.sids:
                    self.unplaced.append(change)
                    continue
                if change.embedding is not None:
                    self.embedding_of[item_id] = change.embedding
            now[item_id] = change.applied_to(now.get(item_id))
        self.replaced = [item for item_id, item in now.items() if known[item_id]]
        self.added = [item for item_id, item in now.items() if not known[item_id]]
