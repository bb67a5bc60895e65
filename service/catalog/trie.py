"""The trie of legal semantic IDs as flat arrays: a node is a range of rows, its children are a range of nodes.

Legend: N items (rows), L levels, M_d nodes at depth d (M_0 = 1, M_L = N), D vector width.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from service.errors import CatalogError

Int32Array = npt.NDArray[np.int32]
Float32Array = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Trie:
    """For each level l the children of the depth-l nodes, in row order.

    `child_begin[l][n]` to `child_begin[l][n + 1]` are the children of node n; child m carries code
    `child_code[l][m]` and holds the rows `child_row[l][m]` to `child_row[l][m + 1]`. At the last level a child is
    one item and its number is the item's row.
    """

    child_begin: tuple[Int32Array, ...]
    """Per level [M_l + 1]."""
    child_code: tuple[Int32Array, ...]
    """Per level [M_(l+1)]."""
    child_row: tuple[Int32Array, ...]
    """Per level [M_(l+1) + 1]."""

    @property
    def max_branch(self) -> tuple[int, ...]:
        """Largest number of children at each level."""
        return tuple(int(np.diff(begin).max()) for begin in self.child_begin)


def build_trie(sids_NL: Int32Array) -> Trie:
    """Builds the trie over lexicographically sorted, distinct sids; vectorised, O(N L).

    Raises:
        CatalogError: no items, unsorted rows, or two items with one sid.
    """
    num_rows, num_levels = sids_NL.shape
    if num_rows == 0:
        raise CatalogError("a catalog needs at least one item")
    # is_first[r]: row r starts a new node at the current depth. At depth 0 only row 0 does.
    is_first_N = np.zeros(num_rows, dtype=bool)
    is_first_N[0] = True
    node_row = np.zeros(1, dtype=np.int32)
    child_begin, child_code, child_row = [], [], []
    for level in range(num_levels):
        step_N = np.diff(sids_NL[:, level], prepend=sids_NL[0, level])
        if np.any((step_N < 0) & ~is_first_N):
            raise CatalogError("rows must be sorted by sid")
        is_first_N = is_first_N | (step_N != 0)
        rows = np.flatnonzero(is_first_N).astype(np.int32)
        begin = np.searchsorted(rows, node_row).astype(np.int32)
        child_begin.append(np.append(begin, np.int32(len(rows))))
        child_code.append(np.ascontiguousarray(sids_NL[rows, level]))
        child_row.append(np.append(rows, np.int32(num_rows)))
        node_row = rows
    if len(node_row) != num_rows:
        raise CatalogError(f"{num_rows - len(node_row)} item(s) share a sid with another (a collision)")
    return Trie(tuple(child_begin), tuple(child_code), tuple(child_row))


def common_values(trie: Trie, values_N: Int32Array) -> tuple[Int32Array, ...]:
    """Per level the value [M_(l+1)] that all rows below each child share; -1 where they differ."""
    levels = []
    for row in trie.child_row:
        least_M = np.minimum.reduceat(values_N, row[:-1])
        levels.append(np.where(least_M == np.maximum.reduceat(values_N, row[:-1]), least_M, np.int32(-1)))
    return tuple(levels)


def vectors_of_children(trie: Trie, vectors_ND: Float32Array) -> tuple[Float32Array, ...]:
    """Per level the normalised mean [M_(l+1), D] of the item vectors under each child; a zero mean stays zero."""
    levels = []
    for row in trie.child_row:
        sum_MD = np.add.reduceat(vectors_ND, row[:-1], axis=0, dtype=np.float32)
        length_M1 = np.linalg.norm(sum_MD, axis=1, keepdims=True)
        levels.append(np.ascontiguousarray(sum_MD / np.maximum(length_M1, np.float32(1e-12)), dtype=np.float32))
    return tuple(levels)
