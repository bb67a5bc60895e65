"""Catalogs of millions of items as bare arrays: what a graph is given of a catalog, without ids, titles or tags.

Legend: N items, L levels, V codes of a level.
"""

from dataclasses import dataclass
from typing import cast

import numpy as np
import numpy.typing as npt

from service.catalog import CatalogSnapshot, Trie, build_trie
from service.inference.feeds import trie_feeds


def planted_sids(num_items: int, codebook_size: int, num_levels: int, seed: int) -> npt.NDArray[np.int32]:
    """Distinct random sids [N, L] in random order, among which some node of every level has all V children.

    So tries of all sizes are of one `max_branch`, and one graph takes them all.

    Raises:
        ValueError: too few items for that, or more than there are sids.
    """
    space = codebook_size**num_levels
    # All sids that are zero but for one place: the nodes (), (0), (0, 0), ... are full.
    planted = np.unique(np.outer(codebook_size ** np.arange(num_levels), np.arange(codebook_size)))
    if not len(planted) <= num_items <= space:
        raise ValueError(f"{num_items} items: with {num_levels} x {codebook_size} codes {len(planted)} to {space} fit")
    rng = np.random.default_rng([seed, num_items])
    others = rng.choice(space, num_items, replace=False)
    others = others[~np.isin(others, planted)][: num_items - len(planted)]
    numbers = rng.permutation(np.concatenate([planted, others]))
    return np.stack(np.unravel_index(numbers, (codebook_size,) * num_levels), 1).astype(np.int32)


def sorted_sids(sids_NL: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
    """Rows in the order in which a trie wants them."""
    return np.ascontiguousarray(sids_NL[np.lexsort(sids_NL.T[::-1])])


@dataclass(frozen=True, eq=False)
class BareCatalog:
    """The part of a `CatalogSnapshot` that a batch reads; ten million `Item`s would take gigabytes and minutes."""

    sids_NL: npt.NDArray[np.int32]
    trie: Trie
    child_groups: tuple[npt.NDArray[np.int32], ...]
    """No item is of a group."""
    child_vectors: tuple[npt.NDArray[np.float32], ...] = ()
    embeddings_NE: None = None

    @classmethod
    def snapshot(cls, sids_NL: npt.NDArray[np.int32]) -> CatalogSnapshot:
        """Sorts and builds; typed as what it stands in for."""
        rows_NL = sorted_sids(sids_NL)
        trie = build_trie(rows_NL)
        groups = tuple(np.full(code.shape, -1, dtype=np.int32) for code in trie.child_code)
        return cast(CatalogSnapshot, cls(rows_NL, trie, groups))

    @property
    def num_items(self) -> int:
        """N."""
        return len(self.sids_NL)

    def allowed_cumsum(self) -> npt.NDArray[np.int32]:
        """All items are available."""
        return np.arange(self.num_items + 1, dtype=np.int32)


def num_bytes(catalog: CatalogSnapshot) -> int:
    """Of the arrays that a run is given."""
    return sum(array.nbytes for array in (catalog.allowed_cumsum(), *trie_feeds(catalog).values()))
