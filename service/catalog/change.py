"""What a change says of one item, and the form in which the catalog's log holds it."""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Final

import orjson

from service.domain import Item
from service.errors import CatalogError

Sid = tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ItemChange:
    """One item's new members; None: as it was."""

    item_id: str
    title: str | None = None
    text: str | None = None
    tags: tuple[str, ...] | None = None
    group: str | None = None
    available: bool | None = None
    removed: bool | None = None
    """True takes the item out, False brings it back."""
    embedding: tuple[float, ...] | None = None
    """What the item's place is found by, instead of its text: a vector in the space of the codebooks. Empty: none."""

    @property
    def says_what_it_is(self) -> bool:
        """Whether a place can be found for the item if it is new."""
        return bool(self.title or self.text or self.tags or self.embedding)

    def applied_to(self, item: Item | None) -> Item:
        """The item afterwards; None: a new one."""
        members = self.members()
        members.pop("embedding", None)
        return replace(item, **members) if item is not None else Item(item_id=self.item_id, **members)

    def members(self) -> dict[str, Any]:
        """What the change says, by name."""
        return {name: value for name in MEMBERS if (value := getattr(self, name)) is not None}

    def encoded(self) -> dict[str, bytes]:
        """Each member as JSON."""
        return {name: orjson.dumps(value) for name, value in self.members().items()}

    @classmethod
    def decode(cls, item_id: str, members: bytes) -> "ItemChange":
        """From one JSON object of members.

        Raises:
            CatalogError: it is none; the log was written by something else.
        """
        return cls.of(item_id, _object(item_id, members))

    @classmethod
    def of(cls, item_id: str, members: Mapping[str, Any]) -> "ItemChange":
        """From members as JSON gives them.

        Raises:
            CatalogError: there are no such members.
        """
        try:
            tuples = {name: tuple(members[name]) for name in ("tags", "embedding") if name in members}
            return cls(item_id=item_id, **{**members, **tuples})
        except TypeError as error:
            raise _unreadable(item_id, error) from error


def _object(item_id: str, text: bytes) -> dict[str, Any]:
    try:
        found = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise _unreadable(item_id, error) from error
    if not isinstance(found, dict):
        raise _unreadable(item_id, f"{type(found).__name__} instead of an object")
    return found


def _unreadable(item_id: str, why: object) -> CatalogError:
    return CatalogError(f"the catalog's log says of {item_id!r} what cannot be read: {why}")


_NEW: Final = b"new"
MEMBERS: Final = tuple(field.name for field in fields(ItemChange) if field.name != "item_id")
"""Names of what a change may say."""


@dataclass(frozen=True, slots=True)
class Before:
    """What the log said of an item before a change: how the change is undone."""

    change: ItemChange
    """Those members that the change set and that the log knew, as they were."""
    unset: frozenset[str] = frozenset()
    """Those that it set and that the log knew nothing of: they were as in the bundle."""
    is_new: bool = False
    """The log knew nothing of the item at all: it was as in the bundle, or was not there."""

    @classmethod
    def decode(cls, item_id: str, members: bytes) -> "Before":
        """From one JSON object of the members that were set, null where the log knew nothing of one.

        `new` stands before it where the log knew nothing of the item.

        Raises:
            CatalogError: it is none; the log was written by something else.
        """
        is_new = members.startswith(_NEW)
        found = _object(item_id, members.removeprefix(_NEW))
        known = {name: value for name, value in found.items() if value is not None}
        return cls(ItemChange.of(item_id, known), frozenset(found.keys() - known.keys()), is_new)

    def and_earlier(self, earlier: "Before") -> "Before":
        """What was before two changes of one item."""
        mine, before = self.change.members(), earlier.change.members()
        if earlier.is_new:
            return replace(earlier, unset=earlier.unset | self.unset | mine.keys())
        members = {name: value for name, value in mine.items() if name not in earlier.unset} | before
        unset = earlier.unset | (self.unset - before.keys())
        return Before(ItemChange(item_id=self.change.item_id, **members), unset)


@dataclass(frozen=True, slots=True)
class LoggedChange:
    """A change in the order of the log."""

    change: ItemChange
    sid: Sid | None = None
    """The item's place under the model that reads the log, where the change gave it one."""
