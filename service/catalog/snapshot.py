"""One immutable state of the catalog: what a batch is decoded against from beginning to end.

A snapshot is built whole once, and from then on the next one is made from the last by what changed: array copies, no
walk over the items.

Legend: N items (rows), L levels, A items added, R items replaced, D vector width, E embedding width.
"""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from hashlib import sha256
from threading import Lock

import numpy as np
import numpy.typing as npt

from service.catalog.filters import TagFilter, TagIndex
from service.catalog.index import RowIndex
from service.catalog.trie import Trie, build_trie, common_values, vectors_of_children
from service.domain import Item
from service.errors import CatalogError

_MAX_CACHED_FILTERS = 128

Int32Array = npt.NDArray[np.int32]
FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class NewItems:
    """Items that come into a catalog, each with its place in it."""

    items: Sequence[Item]
    sids_AL: Int32Array
    vectors_AD: FloatArray | None = None
    """The model's vectors, of length 1, where it has any."""
    embeddings_AE: FloatArray | None = None
    """The tokenizer's embeddings, where the model has rewards."""


@dataclass(frozen=True, eq=False, kw_only=True)
class CatalogSnapshot:
    """Item rows sorted by sid, the trie over them, and what maps to and from rows."""

    version: str
    """Equal contents, equal version."""
    items: tuple[Item, ...]
    """By row. A removed item keeps its row, so that histories stay readable."""
    sids_NL: Int32Array
    trie: Trie
    popularity_N: npt.NDArray[np.int64]
    """Training events per row."""
    shown_N: npt.NDArray[np.bool_]
    """Which rows may be recommended: available and not removed."""
    vectors_ND: FloatArray | None
    child_vectors: tuple[FloatArray, ...]
    """Per level the vector [children, D] of each child, as `trie.child_code`; of the last level they are the items'.
    Empty where the model has no item vectors."""
    embeddings_NE: FloatArray | None
    """The tokenizer's embedding per row, where the model has rewards."""
    max_branch: tuple[int, ...] | None
    """Per level, the most children a node may have; None: as many as it likes."""
    groups_N: Int32Array
    """Number of each row's group; -1: it has none."""
    _group_numbers: dict[str, int]
    """Of every group that there ever was: one for all snapshots of a catalog, and only ever added to."""
    _index: RowIndex
    _tags: TagIndex
    _ranked_slots_N: Int32Array
    """Slots by training events, most first."""
    _cumsums: OrderedDict[TagFilter | None, Int32Array] = field(default_factory=OrderedDict)
    _lock: Lock = field(default_factory=Lock)

    @classmethod
    def build(
        cls,
        items: Sequence[Item],
        sids_NL: Int32Array,
        popularity_N: npt.NDArray[np.int64] | None = None,
        max_branch: Sequence[int] | None = None,
        vectors_ND: FloatArray | None = None,
        embeddings_NE: FloatArray | None = None,
    ) -> "CatalogSnapshot":
        """Sorts the items by sid and builds everything a batch needs.

        Args:
            items: In any order; ids must be unique.
            sids_NL: The sid of each item, in the same order.
            popularity_N: Training events of each item; zeros if None.
            max_branch: Per level, the most children a node may have (the manifest's); None: not checked.
            vectors_ND: The model's vector of each item, of length 1, in the same order; None: it has none.
            embeddings_NE: The tokenizer's embedding of each item, in the same order; None: nobody reads them.

        Raises:
            CatalogError: no items, a repeated id, a collision, or more children than `max_branch` allows.
        """
        if len(items) != len(sids_NL):
            raise CatalogError(f"{len(items)} items, but {len(sids_NL)} sids")
        if vectors_ND is not None and len(vectors_ND) != len(items):
            raise CatalogError(f"{len(items)} items, but {len(vectors_ND)} item vectors")
        if popularity_N is None:
            popularity_N = np.zeros(len(items), dtype=np.int64)
        order_N = np.lexsort(sids_NL.T[::-1])
        group_numbers = {"": -1}
        sids_NL = np.ascontiguousarray(sids_NL[order_N], dtype=np.int32)
        ordered = tuple(items[index] for index in order_N)
        popularity_N = np.ascontiguousarray(popularity_N[order_N])
        index = RowIndex.build(ordered)
        trie = _trie(sids_NL, max_branch)
        if vectors_ND is not None:
            vectors_ND = np.ascontiguousarray(vectors_ND[order_N])
        return cls(
            version=_version(ordered, sids_NL),
            items=ordered,
            sids_NL=sids_NL,
            trie=trie,
            popularity_N=popularity_N,
            shown_N=_shown(ordered),
            vectors_ND=vectors_ND,
            child_vectors=() if vectors_ND is None else vectors_of_children(trie, vectors_ND),
            embeddings_NE=None if embeddings_NE is None else np.ascontiguousarray(embeddings_NE[order_N]),
            max_branch=None if max_branch is None else tuple(max_branch),
            groups_N=_numbered(ordered, group_numbers),
            _group_numbers=group_numbers,
            _index=index,
            _tags=TagIndex.build(ordered),
            _ranked_slots_N=np.argsort(-popularity_N, kind="stable").astype(np.int32),
        )

    def changed(self, version: str, replaced: Sequence[Item], added: NewItems | None = None) -> "CatalogSnapshot":
        """The next snapshot; this one stays as it is.

        Args:
            version: Of the next one.
            replaced: Items that the catalog holds, as they are from now on, each once; their sids stay.
            added: Items that it does not hold; None: none.

        Raises:
            CatalogError: an added item is there already, shares a sid, or finds its node full.
        """
        base = self if added is None or not added.items else self._grown(added)
        come = [*replaced, *(added.items if added is not None else ())]
        slots = [_known(base._index.slot_of(item.item_id)) for item in come]
        rows = base._index.row_of_slot_N[slots]
        items, shown_N, groups_N = list(base.items), base.shown_N.copy(), base.groups_N.copy()
        before = [(slot, items[row]) for slot, row in zip(slots, rows.tolist(), strict=True) if slot < self.num_items]
        for row, item in zip(rows.tolist(), come, strict=True):
            items[row] = item
        shown_N[rows] = _shown(come)
        groups_N[rows] = _numbered(come, self._group_numbers)
        following = replace(
            base,
            version=version,
            items=tuple(items),
            shown_N=shown_N,
            groups_N=groups_N,
            _tags=self._tags.changed(before, zip(slots, come, strict=True), base.num_items),
            _cumsums=OrderedDict(),
            _lock=Lock(),
        )
        # Every batch asks for these: none shall wait.
        following.allowed_cumsum()
        _ = following.child_groups
        return following

    def _grown(self, added: NewItems) -> "CatalogSnapshot":
        """With rows for the added items; tags and the visibility of the new ones are still to be set."""
        order_A = np.lexsort(added.sids_AL.T[::-1])
        sids_AL = added.sids_AL[order_A].astype(np.int32)
        places_A = np.searchsorted(sortable(self.sids_NL), sortable(sids_AL))
        moved_N = np.arange(self.num_items, dtype=np.int32)
        moved_N += np.cumsum(np.bincount(places_A, minlength=self.num_items + 1))[: self.num_items].astype(np.int32)
        rows_A = np.empty(len(order_A), dtype=np.int32)
        rows_A[order_A] = places_A + np.arange(len(order_A))
        sids_NL = np.insert(self.sids_NL, places_A, sids_AL, axis=0)
        trie = _trie(sids_NL, self.max_branch)
        vectors_ND = _inserted(self.vectors_ND, places_A, added.vectors_AD, order_A)
        newest = np.arange(self.num_items, self.num_items + len(order_A), dtype=np.int32)
        return replace(
            self,
            items=_spread(self.items, [added.items[number] for number in order_A], places_A.tolist()),
            sids_NL=sids_NL,
            trie=trie,
            popularity_N=np.insert(self.popularity_N, places_A, 0),
            shown_N=np.insert(self.shown_N, places_A, False),
            groups_N=np.insert(self.groups_N, places_A, -1),
            vectors_ND=vectors_ND,
            child_vectors=() if vectors_ND is None else vectors_of_children(trie, vectors_ND),
            embeddings_NE=_inserted(self.embeddings_NE, places_A, added.embeddings_AE, order_A),
            _index=self._index.extended(added.items, rows_A, moved_N),
            _ranked_slots_N=np.concatenate([self._ranked_slots_N, newest]),
        )

    @property
    def num_items(self) -> int:
        """N."""
        return len(self.items)

    @cached_property
    def child_groups(self) -> tuple[Int32Array, ...]:
        """Per level, as `trie.child_code`, the one group that all items below a child are of; -1: none, or several."""
        return common_values(self.trie, self.groups_N)

    def row_of(self, item_id: str) -> int | None:
        """The row of an external id; None if the catalog does not hold it."""
        return self._index.row_of(item_id)

    def slots_of(self, item_ids: Sequence[str]) -> list[int]:
        """Numbers of items in the order of arrival, which no later snapshot changes; of those that it holds."""
        return self._index.slots_of(item_ids)

    def popularity_of_slots(self) -> npt.NDArray[np.int64]:
        """Training events by slot [N]."""
        return self.popularity_N[self._index.row_of_slot_N]

    @property
    def popular_from(self) -> int:
        """Training events that make an item a popular one: as many as the last of the tenth with most, one at least."""
        slot = self._ranked_slots_N[max(self.num_items // 10, 1) - 1]
        return max(1, int(self.popularity_N[self._index.row_of_slot_N[slot]]))

    @property
    def num_available(self) -> int:
        """Items that may be recommended."""
        return int(self.allowed_cumsum()[-1])

    def rows_of_keys(self, keys: npt.NDArray[np.uint64]) -> Int32Array:
        """The row of each 64-bit item key, -1 where the catalog does not hold it."""
        return self._index.rows_of_keys(keys)

    def ranked_rows(self) -> Int32Array:
        """All rows by training events, most first [N]."""
        return self._index.row_of_slot_N[self._ranked_slots_N]

    def ranked_slots(self) -> Int32Array:
        """The same by slot."""
        return self._ranked_slots_N

    def rows_of_slots(self, slots_R: Int32Array) -> Int32Array:
        """The rows, in their order, of those slots that it holds."""
        return self._index.row_of_slot_N[slots_R[slots_R < self.num_items]]

    def allowed_cumsum(self, tag_filter: TagFilter | None = None) -> Int32Array:
        """Prefix sum [N + 1] of the rows that may be shown and pass the filter; cached per filter.

        Rows lo to hi hold `cumsum[hi] - cumsum[lo]` allowed items.
        """
        with self._lock:
            if (cached := self._cumsums.get(tag_filter)) is not None:
                self._cumsums.move_to_end(tag_filter)
                return cached
        allowed_N = self.shown_N
        if tag_filter is not None:
            passes_N = np.empty(self.num_items, dtype=np.bool_)
            passes_N[self._index.row_of_slot_N] = self._tags.passes(tag_filter)
            allowed_N = allowed_N & passes_N
        cumsum = np.zeros(self.num_items + 1, dtype=np.int32)
        np.cumsum(allowed_N, out=cumsum[1:])
        cumsum.setflags(write=False)
        with self._lock:
            self._cumsums[tag_filter] = cumsum
            if len(self._cumsums) > _MAX_CACHED_FILTERS:
                self._cumsums.popitem(last=False)
        return cumsum


def _trie(sids_NL: Int32Array, max_branch: Sequence[int] | None) -> Trie:
    trie = build_trie(sids_NL)
    for level, (found, limit) in enumerate(zip(trie.max_branch, max_branch or trie.max_branch, strict=True)):
        if found > limit:
            raise CatalogError(f"a node above level {level} has {found} children, the model allows {limit}")
    return trie


def sortable(sids_NL: Int32Array) -> npt.NDArray[np.bytes_]:
    """One value per sid, in the order of sids: big-endian bytes compare like the numbers that they hold."""
    big_endian_NL = np.ascontiguousarray(sids_NL, dtype=">u4")
    return big_endian_NL.view(f"S{4 * sids_NL.shape[1]}")[:, 0]


def _inserted(
    before: FloatArray | None, places_A: npt.NDArray[np.int64], added: FloatArray | None, order_A: npt.NDArray[np.int64]
) -> FloatArray | None:
    if before is None:
        return None
    assert added is not None, "new items bring what the others have"
    return np.insert(before, places_A, added[order_A], axis=0)


def _spread(items: Sequence[Item], added: Sequence[Item], places: Sequence[int]) -> tuple[Item, ...]:
    """What `np.insert` does, for a tuple: `added[i]` comes before `items[places[i]]`."""
    spread: list[Item] = []
    done = 0
    for item, place in zip(added, places, strict=True):
        spread += items[done:place]
        spread.append(item)
        done = place
    return (*spread, *items[done:])


def _known(slot: int | None) -> int:
    assert slot is not None, "a replaced item is in the catalog"
    return slot


def _shown(items: Sequence[Item]) -> npt.NDArray[np.bool_]:
    shown = (item.available and not item.removed for item in items)
    return np.fromiter(shown, dtype=np.bool_, count=len(items))


def _numbered(items: Sequence[Item], numbers: dict[str, int]) -> Int32Array:
    """The number of each item's group; new groups are added to `numbers`."""
    for item in items:
        numbers.setdefault(item.group, len(numbers) - 1)
    return np.fromiter((numbers[item.group] for item in items), dtype=np.int32, count=len(items))


def _version(items: Sequence[Item], sids_NL: Int32Array) -> str:
    digest = sha256(sids_NL.tobytes())
    for item in items:
        digest.update(f"{item.item_id}\0{item.available}\0{item.group}\0{item.tags}\n".encode())
    return digest.hexdigest()[:12]
