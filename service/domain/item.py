"""What can be recommended."""

from dataclasses import dataclass
from hashlib import blake2b


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """A catalog entry under its external id."""

    item_id: str
    title: str = ""
    text: str = ""
    tags: tuple[str, ...] = ()
    group: str = ""
    """The one tag that per-group caps and popularity fallbacks count by; empty: none."""
    available: bool = True
    removed: bool = False
    """Taken out of the live catalog: never recommended, but histories that hold it can still be read."""


def item_key(item_id: str) -> int:
    """64-bit key of an external item id (BLAKE2b), the same on every machine and release.

    Histories store this instead of the id: 8 bytes whatever the id's length. Two ids of one catalog with one
    key are refused when a catalog is built.
    """
    return int.from_bytes(blake2b(item_id.encode(), digest_size=8).digest(), "little")
