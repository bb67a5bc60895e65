"""Groups of items that must not crowd one code: what makes semantic IDs unique.

At the level being assigned, items whose other codes are equal form a group, and at most `capacity` of them may take
the same code: 1 where this level completes the sid, the number of sids below it where later levels still follow.

Shapes: N items, V codes, D width, G groups.
"""

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from model_export.tokenizer.balance import CodeArray, FloatArray, squared_distances

IntArray = NDArray[np.int64]

# cells of the cost matrix up to which a group is assigned optimally; beyond it greedily
MAX_OPTIMAL_CELLS = 1_000_000


class Groups:
    """How many items of each group hold each code; groups too small to break the capacity are left out.

    `of_item_N` holds -1 for an item of such a small group: it may take any code.
    """

    def __init__(self, group_N: NDArray[np.integer], capacity: int, num_codes: int) -> None:
        _, dense_N, sizes_G = np.unique(group_N, return_inverse=True, return_counts=True)
        is_large_G = sizes_G > capacity
        new_id_G = np.where(is_large_G, np.cumsum(is_large_G) - 1, -1)
        self.capacity = capacity
        self.of_item_N: IntArray = new_id_G[dense_N].astype(np.int64)
        large_N = np.flatnonzero(self.of_item_N >= 0)
        order = large_N[np.argsort(self.of_item_N[large_N], kind="stable")]
        self.items_G: list[IntArray] = np.split(order, np.cumsum(sizes_G[is_large_G])[:-1]) if len(order) else []
        self.held_GV = np.zeros((len(self.items_G), num_codes), np.int32)

    def count(self, codes_N: CodeArray) -> None:
        """Recounts from a whole assignment."""
        large_N = self.of_item_N >= 0
        self.held_GV[:] = 0
        np.add.at(self.held_GV, (self.of_item_N[large_N], codes_N[large_N]), 1)

    def forbid(self, items: IntArray, codes: IntArray, costs: FloatArray) -> None:
        """Sets costs [len(items), len(codes)] to infinity where the item's group may not take the code once more."""
        if not self.items_G:
            return
        group = self.of_item_N[items]
        large = np.flatnonzero(group >= 0)
        if len(large):
            full = self.held_GV[group[large, None], codes] >= self.capacity
            costs[large] = np.where(full, np.float32(np.inf), costs[large])

    def mates(self, item: int) -> IntArray:
        """The other items of the item's group; none where the group is too small to matter."""
        group = self.of_item_N[item]
        if group < 0:
            return np.zeros(0, np.int64)
        mates = self.items_G[group]
        others: IntArray = mates[mates != item]
        return others

    def move(self, item: int, source: int, target: int) -> None:
        """Notes that one item changed its code."""
        group = self.of_item_N[item]
        if group >= 0:
            self.held_GV[group, source] -= 1
            self.held_GV[group, target] += 1

    def crowded(self) -> IntArray:
        """Groups that hold some code more often than they may."""
        return np.flatnonzero((self.held_GV > self.capacity).any(axis=1))


def legalise(
    points_ND: FloatArray, centroids_VD: FloatArray, prices_V: FloatArray, codes_N: CodeArray, groups: Groups
) -> CodeArray:
    """Codes [N] in which no group exceeds its capacity; groups that already comply stay as they are."""
    groups.count(codes_N)
    legal_N = codes_N.copy()
    for group in groups.crowded():
        items = groups.items_G[group]
        costs = squared_distances(points_ND[items], centroids_VD) + prices_V
        repeats = min(groups.capacity, len(items))
        if costs.size * repeats <= MAX_OPTIMAL_CELLS:
            _, columns = linear_sum_assignment(np.repeat(costs, repeats, axis=1))
            legal_N[items] = columns // repeats
        else:
            legal_N[items] = spread(costs, legal_N[items], groups.capacity)
    groups.count(legal_N)
    return legal_N


def spread(costs_MV: FloatArray, codes_M: CodeArray, capacity: int) -> CodeArray:
    """Moves the items that lose least out of crowded codes, one after another, to their cheapest code with room."""
    num_items, num_codes = costs_MV.shape
    spread_M = codes_M.copy()
    held_V = np.bincount(spread_M, minlength=num_codes)
    loss_M = np.partition(costs_MV, 1, axis=1)[:, 1] - costs_MV[np.arange(num_items), spread_M]
    for item in np.argsort(loss_M, kind="stable"):
        if held_V[spread_M[item]] <= capacity:
            continue
        target = int(np.where(held_V < capacity, costs_MV[item], np.inf).argmin())
        held_V[spread_M[item]] -= 1
        held_V[target] += 1
        spread_M[item] = target
    return spread_M
