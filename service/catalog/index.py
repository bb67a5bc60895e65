"""Where an item stands: from its id, or from the 64-bit key that histories hold, to its row.

Rows move when items are added, so everything that outlives one snapshot speaks of slots: the number of an item in the
order of arrival, which never changes. One array leads from slots to rows.

Legend: N items (rows, slots), A items added, Q keys asked for.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from service.domain import Item, item_key
from service.errors import CatalogError

Int32Array = npt.NDArray[np.int32]
UInt64Array = npt.NDArray[np.uint64]


@dataclass(frozen=True, slots=True, eq=False)
class RowIndex:
    """Ids, keys, slots and rows of one snapshot's items."""

    row_of_slot_N: Int32Array
    _slot_of_id: dict[str, int]
    """Shared with the snapshots that come after: slots from N on are theirs."""
    _keys_N: UInt64Array
    """Ascending ..."""
    _slot_of_key_N: Int32Array
    """... and the slot of each."""

    @classmethod
    def build(cls, items: Sequence[Item]) -> "RowIndex":
        """Of items by row; slots begin as rows.

        Raises:
            CatalogError: a repeated id, or two ids with one key.
        """
        slot_of_id = {item.item_id: slot for slot, item in enumerate(items)}
        if len(slot_of_id) != len(items):
            raise CatalogError(f"{len(items) - len(slot_of_id)} item id(s) stand twice in the catalog")
        keys_N = _keys(items)
        order_N = np.argsort(keys_N, kind="stable").astype(np.int32)
        keys_N = keys_N[order_N]
        if np.any(keys_N[1:] == keys_N[:-1]):
            raise CatalogError("two item ids share a 64-bit key; rename one of them")
        return cls(np.arange(len(items), dtype=np.int32), slot_of_id, keys_N, order_N)

    @property
    def num_items(self) -> int:
        """N."""
        return len(self.row_of_slot_N)

    def slot_of(self, item_id: str) -> int | None:
        """None if the snapshot does not hold the item."""
        slot = self._slot_of_id.get(item_id)
        return None if slot is None or slot >= self.num_items else slot

    def slots_of(self, item_ids: Sequence[str]) -> list[int]:
        """Of those items that the snapshot holds."""
        slot_of, end = self._slot_of_id.get, self.num_items
        return [slot for item_id in item_ids if (slot := slot_of(item_id, end)) < end]

    def row_of(self, item_id: str) -> int | None:
        """None if the snapshot does not hold the item."""
        slot = self.slot_of(item_id)
        return None if slot is None else int(self.row_of_slot_N[slot])

    def rows_of_keys(self, keys_Q: UInt64Array) -> Int32Array:
        """The row of each key; -1 where the snapshot does not hold it."""
        places_Q = np.searchsorted(self._keys_N, keys_Q)
        places_Q[places_Q == self.num_items] = 0
        rows_Q = self.row_of_slot_N[self._slot_of_key_N[places_Q]]
        return np.where(self._keys_N[places_Q] == keys_Q, rows_Q, np.int32(-1))

    def extended(self, added: Sequence[Item], rows_A: Int32Array, moved_N: Int32Array) -> "RowIndex":
        """With items added.

        Args:
            added: In any order; their slots follow this order.
            rows_A: The row of each among all rows.
            moved_N: The new row of each row.

        Raises:
            CatalogError: as `build`.
        """
        slot_of_id = self._slot_of_id
        if len(slot_of_id) != self.num_items:  # somebody else has gone on from this snapshot
            slot_of_id = {item_id: slot for item_id, slot in slot_of_id.items() if slot < self.num_items}
        keys_A = _keys(added)
        order_A = np.argsort(keys_A, kind="stable")
        keys_A = keys_A[order_A]
        if len({item.item_id for item in added}) != len(added) or any(item.item_id in slot_of_id for item in added):
            raise CatalogError("an added item is in the catalog already")
        places_A = np.searchsorted(self._keys_N, keys_A)
        if np.any(keys_A[1:] == keys_A[:-1]) or np.any(self._keys_N[places_A % self.num_items] == keys_A):
            raise CatalogError("two item ids share a 64-bit key; rename one of them")
        slot_of_id.update((item.item_id, self.num_items + number) for number, item in enumerate(added))
        return RowIndex(
            np.concatenate([moved_N[self.row_of_slot_N], rows_A]),
            slot_of_id,
            np.insert(self._keys_N, places_A, keys_A),
            np.insert(self._slot_of_key_N, places_A, (self.num_items + order_A).astype(np.int32)),
        )


def _keys(items: Sequence[Item]) -> UInt64Array:
    return np.fromiter((item_key(item.item_id) for item in items), dtype=np.uint64, count=len(items))
