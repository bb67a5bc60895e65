"""One immutable state of the catalog: what a batch is decoded against from beginning to end.

Legend: N items (rows), L levels, F filter slots.
"""

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from threading import Lock

import numpy as np
import numpy.typing as npt

from service.catalog.filters import TagFilter
from service.catalog.trie import Trie, build_trie, vectors_of_children
from service.domain import Item, item_key
from service.errors import CatalogError

_MAX_CACHED_FILTERS = 128


@dataclass(frozen=True, eq=False)
class CatalogSnapshot:
    """Item rows sorted by sid, the trie over them, and what maps to and from rows."""

    version: str
    """Digest of ids, sids and availability: equal contents, equal version."""
    items: tuple[Item, ...]
    """By row."""
    sids_NL: npt.NDArray[np.int32]
    trie: Trie
    popularity_N: npt.NDArray[np.int64]
    """Training events per row."""
    _keys_N: npt.NDArray[np.uint64]
    """Ascending item keys ..."""
    _key_rows_N: npt.NDArray[np.int32]
    """... and the row of each."""
    _row_of_id: dict[str, int]
    _tag_rows: dict[str, npt.NDArray[np.int32]]
    child_vectors: tuple[npt.NDArray[np.float32], ...] = ()
    """Per level the vector [children, D] of each child, as `trie.child_code`; of the last level they are the items'.
    Empty where the model has no item vectors."""
    _cumsums: OrderedDict[TagFilter | None, npt.NDArray[np.int32]] = field(default_factory=OrderedDict)
    _lock: Lock = field(default_factory=Lock)

    @classmethod
    def build(
        cls,
        items: Sequence[Item],
        sids_NL: npt.NDArray[np.int32],
        popularity_N: npt.NDArray[np.int64] | None = None,
        max_branch: Sequence[int] | None = None,
        vectors_ND: npt.NDArray[np.float32] | None = None,
    ) -> "CatalogSnapshot":
        """Sorts the items by sid and builds everything a batch needs.

        Args:
            items: In any order; ids must be unique.
            sids_NL: The sid of each item, in the same order.
            popularity_N: Training events of each item; zeros if None.
            max_branch: Per level, the most children a node may have (the manifest's); None: not checked.
            vectors_ND: The model's vector of each item, of length 1, in the same order; None: it has none.

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
        sids_NL = np.ascontiguousarray(sids_NL[order_N], dtype=np.int32)
        ordered = tuple(items[index] for index in order_N)
        row_of_id = {item.item_id: row for row, item in enumerate(ordered)}
        if len(row_of_id) != len(ordered):
            raise CatalogError(f"{len(ordered) - len(row_of_id)} item id(s) stand twice in the catalog")
        trie = build_trie(sids_NL)
        for level, (found, limit) in enumerate(zip(trie.max_branch, max_branch or trie.max_branch, strict=True)):
            if found > limit:
                raise CatalogError(f"a node above level {level} has {found} children, the model allows {limit}")
        keys_N = np.array([item_key(item.item_id) for item in ordered], dtype=np.uint64)
        key_order_N = np.argsort(keys_N, kind="stable").astype(np.int32)
        sorted_keys_N = keys_N[key_order_N]
        if np.any(sorted_keys_N[1:] == sorted_keys_N[:-1]):
            raise CatalogError("two item ids share a 64-bit key; rename one of them")
        return cls(
            version=_version(ordered, sids_NL),
            items=ordered,
            sids_NL=sids_NL,
            trie=trie,
            popularity_N=np.ascontiguousarray(popularity_N[order_N]),
            _keys_N=sorted_keys_N,
            _key_rows_N=key_order_N,
            _row_of_id=row_of_id,
            _tag_rows=_rows_by_tag(ordered),
            child_vectors=() if vectors_ND is None else vectors_of_children(trie, vectors_ND[order_N]),
        )

    @property
    def num_items(self) -> int:
        """N."""
        return len(self.items)

    def row_of(self, item_id: str) -> int | None:
        """The row of an external id; None if the catalog does not hold it."""
        return self._row_of_id.get(item_id)

    def rows_of_keys(self, keys: npt.NDArray[np.uint64]) -> npt.NDArray[np.int32]:
        """The row of each 64-bit item key, -1 where the catalog does not hold it."""
        places = np.searchsorted(self._keys_N, keys)
        places[places == self.num_items] = 0
        return np.where(self._keys_N[places] == keys, self._key_rows_N[places], np.int32(-1)).astype(np.int32)

    def allowed_cumsum(self, tag_filter: TagFilter | None = None) -> npt.NDArray[np.int32]:
        """Prefix sum [N + 1] of the rows that are available and pass the filter; cached per filter.

        Rows lo to hi hold `cumsum[hi] - cumsum[lo]` allowed items.
        """
        with self._lock:
            if (cached := self._cumsums.get(tag_filter)) is not None:
                self._cumsums.move_to_end(tag_filter)
                return cached
        allowed_N = np.fromiter((item.available for item in self.items), dtype=bool, count=self.num_items)
        if tag_filter is not None:
            allowed_N &= self._passes(tag_filter)
        cumsum = np.zeros(self.num_items + 1, dtype=np.int32)
        np.cumsum(allowed_N, out=cumsum[1:])
        cumsum.setflags(write=False)
        with self._lock:
            self._cumsums[tag_filter] = cumsum
            if len(self._cumsums) > _MAX_CACHED_FILTERS:
                self._cumsums.popitem(last=False)
        return cumsum

    def _passes(self, tag_filter: TagFilter) -> npt.NDArray[np.bool_]:
        passes_N = self._carries(tag_filter.any_of) if tag_filter.any_of else np.ones(self.num_items, dtype=bool)
        for tag in tag_filter.all_of:
            passes_N &= self._carries([tag])
        return passes_N & ~self._carries(tag_filter.none_of)

    def _carries(self, tags: Iterable[str]) -> npt.NDArray[np.bool_]:
        carries_N = np.zeros(self.num_items, dtype=bool)
        for tag in tags:
            if (rows := self._tag_rows.get(tag)) is not None:
                carries_N[rows] = True
        return carries_N


def _rows_by_tag(items: Sequence[Item]) -> dict[str, npt.NDArray[np.int32]]:
    rows: dict[str, list[int]] = {}
    for row, item in enumerate(items):
        for tag in item.tags:
            rows.setdefault(tag, []).append(row)
    return {tag: np.array(tag_rows, dtype=np.int32) for tag, tag_rows in rows.items()}


def _version(items: Sequence[Item], sids_NL: npt.NDArray[np.int32]) -> str:
    digest = sha256(sids_NL.tobytes())
    for item in items:
        digest.update(f"{item.item_id}\0{item.available}\0{item.group}\0{item.tags}\n".encode())
    return digest.hexdigest()[:12]
