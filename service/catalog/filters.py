"""Filters by tag, and which items carry a tag.

Legend: N items (slots, see `service.catalog.index`).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from service.domain import Item
from service.errors import FilterError

Int32Array = npt.NDArray[np.int32]
BoolArray = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class TagFilter:
    """Keeps the items that carry at least one of `any_of`, every one of `all_of` and none of `none_of`.

    An empty part asks nothing. A tag that no item carries matches no item.
    """

    any_of: frozenset[str] = frozenset()
    all_of: frozenset[str] = frozenset()
    none_of: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        if not (self.any_of or self.all_of or self.none_of):
            raise FilterError("a filter needs at least one tag in any_of, all_of or none_of")


@dataclass(frozen=True, slots=True, eq=False)
class TagIndex:
    """The slots that carry each tag."""

    num_items: int
    _slots: Mapping[str, Int32Array]

    @classmethod
    def build(cls, items: Sequence[Item]) -> "TagIndex":
        """Of items by slot."""
        return cls(len(items), _slots_by_tag(enumerate(items)))

    def passes(self, tag_filter: TagFilter) -> BoolArray:
        """Which slots pass [N]."""
        passes_N = self._carries(tag_filter.any_of) if tag_filter.any_of else np.ones(self.num_items, dtype=np.bool_)
        for tag in tag_filter.all_of:
            passes_N &= self._carries([tag])
        return passes_N & ~self._carries(tag_filter.none_of)

    def changed(
        self, before: Iterable[tuple[int, Item]], after: Iterable[tuple[int, Item]], num_items: int
    ) -> "TagIndex":
        """With other items at some slots: what stood there before and what stands there now; `num_items` in all."""
        gone, come = _slots_by_tag(before), _slots_by_tag(after)
        slots = dict(self._slots)
        for tag in gone.keys() | come.keys():
            is_gone_N = np.zeros(num_items, dtype=np.bool_)
            is_gone_N[gone.get(tag, _NONE)] = True
            old = slots.get(tag, _NONE)
            slots[tag] = np.concatenate([old[~is_gone_N[old]], come.get(tag, _NONE)])
            if not len(slots[tag]):
                del slots[tag]
        return TagIndex(num_items, slots)

    def _carries(self, tags: Iterable[str]) -> BoolArray:
        carries_N = np.zeros(self.num_items, dtype=np.bool_)
        for tag in tags:
            if (slots := self._slots.get(tag)) is not None:
                carries_N[slots] = True
        return carries_N


_NONE = np.zeros(0, dtype=np.int32)


def _slots_by_tag(items: Iterable[tuple[int, Item]]) -> dict[str, Int32Array]:
    slots: dict[str, list[int]] = {}
    for slot, item in items:
        for tag in dict.fromkeys(item.tags):
            slots.setdefault(tag, []).append(slot)
    return {tag: np.array(tag_slots, dtype=np.int32) for tag, tag_slots in slots.items()}
