"""What a change says of one item, and the form in which the catalog's log holds it."""

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
        try:
            found = orjson.loads(members)
            for name in ("tags", "embedding"):
                if found.get(name) is not None:
                    found[name] = tuple(found[name])
            return cls(item_id=item_id, **found)
        except (orjson.JSONDecodeError, TypeError) as error:
            raise CatalogError(f"the catalog's log says of {item_id!r} what cannot be read: {error}") from error


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
    def decode(cls, item_id: str, members: bytes | None) -> "Before":
        """From one JSON object of members, null where the log knew nothing of one; None: it knew nothing of the item.

        Raises:
            CatalogError: it is none; the log was written by something else.
        """
        if members is None:
            return cls(ItemChange(item_id=item_id), is_new=True)
        change = ItemChange.decode(item_id, members)
        return cls(change, frozenset(orjson.loads(members).keys() - change.members().keys()))

    def and_earlier(self, earlier: "Before") -> "Before":
        """What was before two changes of one item."""
        if earlier.is_new:
            return earlier
        known = earlier.change.members()
        members = {name: value for name, value in self.change.members().items() if name not in earlier.unset} | known
        change = ItemChange(item_id=self.change.item_id, **members)
        return Before(change, earlier.unset | (self.unset - known.keys()))


@dataclass(frozen=True, slots=True)
class LoggedChange:
    """A change in the order of the log."""

    change: ItemChange
    sid: Sid | None = None
    """The item's place under the model that reads the log, where the change gave it one."""
