"""Groups of items that must not crowd one code: what makes semantic IDs unique.

At the level being assigned, items whose other codes are equal form a group, and at most `capacity` of them may take
the same code: 1 where this level completes the sid, the number of sids below it where later levels still follow.

Shapes: N items, V codes, D width, G groups, R rows asked for.
"""

import math

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from model_export.tokenizer.balance import CHUNK_CELLS, PricedCodes, squared_distances
from model_export.tokenizer.targets import CodeArray, FloatArray, IntArray, Targets

# cells of the cost matrix up to which a group is assigned optimally; beyond it greedily
MAX_OPTIMAL_CELLS = 1_000_000


def dense_rows(codes_NM: CodeArray) -> IntArray:
    """One number per distinct row."""
    if codes_NM.shape[1] == 0:
        return np.zeros(len(codes_NM), np.int64)
    sizes = tuple(int(size) for size in codes_NM.max(axis=0) + 1)
    if math.prod(sizes) < 2**62:
        return np.asarray(np.ravel_multi_index(tuple(codes_NM.T), sizes), np.int64)
    _, dense_N = np.unique(codes_NM, axis=0, return_inverse=True)
    return dense_N.reshape(-1).astype(np.int64)


class Groups:
    """Which items form a group; groups too small to break the capacity are left out.

    `of_item_N` holds -1 for an item of such a small group: it may take any code.
    """

    def __init__(self, group_N: NDArray[np.integer], capacity: int, num_codes: int) -> None:
        _, dense_N, sizes_G = np.unique(group_N, return_inverse=True, return_counts=True)
        is_large_G = sizes_G > capacity
        new_id_G = np.where(is_large_G, np.cumsum(is_large_G) - 1, -1)
        self.capacity, self.num_codes = capacity, num_codes
        self.of_item_N = new_id_G[dense_N].astype(np.int32)
        large_N = np.flatnonzero(self.of_item_N >= 0)
        self.order = large_N[np.argsort(self.of_item_N[large_N], kind="stable")]
        self.bounds_G = np.concatenate([[0], np.cumsum(sizes_G[is_large_G])]).astype(np.int64)
        self.codes_N: CodeArray = np.zeros(len(self.of_item_N), np.int32)

    def watch(self, codes_N: CodeArray) -> None:
        """Takes this array as the assignment that counts from now on; later changes of it are seen."""
        self.codes_N = codes_N

    def members(self, group: int) -> IntArray:
        """The items of a group."""
        return self.order[self.bounds_G[group] : self.bounds_G[group + 1]]

    def forbid(self, items: IntArray, codes: IntArray, costs: FloatArray) -> None:
        """Sets costs [len(items), len(codes)] to infinity where the item's group may not take the code once more."""
        group = self.of_item_N[items]
        large = np.flatnonzero(group >= 0)
        if not len(large):
            return
        groups, of_row = np.unique(group[large], return_inverse=True)
        sizes = self.bounds_G[groups + 1] - self.bounds_G[groups]
        starts = np.cumsum(sizes) - sizes
        mates = self.order[np.arange(int(sizes.sum())) + np.repeat(self.bounds_G[groups] - starts, sizes)]
        cells = np.repeat(np.arange(len(groups)) * self.num_codes, sizes) + self.codes_N[mates]
        held = np.bincount(cells, minlength=len(groups) * self.num_codes).reshape(len(groups), self.num_codes)
        is_full = held[:, codes] >= self.capacity
        costs[large] = np.where(is_full[of_row], np.float32(np.inf), costs[large])

    def mates(self, item: int) -> IntArray:
        """The other items of the item's group; none where the group is too small to matter."""
        group = int(self.of_item_N[item])
        if group < 0:
            return np.zeros(0, np.int64)
        mates = self.members(group)
        others: IntArray = mates[mates != item]
        return others

    def crowded(self) -> IntArray:
        """Groups that hold some code more often than they may."""
        cells = self.of_item_N[self.order].astype(np.int64) * self.num_codes + self.codes_N[self.order]
        cells, counts = np.unique(cells, return_counts=True)
        return np.unique(cells[counts > self.capacity] // self.num_codes)


def legalise(
    targets: Targets, centroids_VD: FloatArray, prices_V: FloatArray, codes_N: CodeArray, groups: Groups
) -> CodeArray:
    """Codes [N] in which no group exceeds its capacity; groups that already comply stay as they are."""
    legal_N = codes_N.copy()
    groups.watch(legal_N)
    crowded = groups.crowded()
    sizes = groups.bounds_G[crowded + 1] - groups.bounds_G[crowded]
    is_pair = (sizes == 2) & (groups.capacity == 1)
    first = groups.bounds_G[crowded[is_pair]]
    part_pairs(targets, centroids_VD, prices_V, legal_N, np.stack([groups.order[first], groups.order[first + 1]]))
    # a large catalog has tens of thousands of groups of a few items each
    level = PricedCodes(centroids_VD, prices_V)
    for group in crowded[~is_pair]:
        items = groups.members(int(group))
        costs = level.distances(targets.rows(items))
        repeats = min(groups.capacity, len(items))
        if costs.size * repeats <= MAX_OPTIMAL_CELLS:
            _, columns = linear_sum_assignment(np.repeat(costs, repeats, axis=1))
            legal_N[items] = columns // repeats
        else:
            legal_N[items] = spread(costs, legal_N[items], groups.capacity)
    return legal_N


def part_pairs(
    targets: Targets, centroids_VD: FloatArray, prices_V: FloatArray, codes_N: CodeArray, pairs_2P: IntArray
) -> None:
    """Parts pairs [2, P] that share their cheapest code: the item that loses less takes its second cheapest."""
    size = max(CHUNK_CELLS // len(centroids_VD), 1)
    for start in range(0, pairs_2P.shape[1], size):
        sides = pairs_2P[:, start : start + size]
        seconds, losses = [], []
        for items in sides:
            costs = squared_distances(targets.rows(items), centroids_VD, prices_V)
            rows = np.arange(len(items))
            least = costs[rows, codes_N[items]]
            costs[rows, codes_N[items]] = np.inf
            seconds.append(costs.argmin(axis=1))
            losses.append(costs[rows, seconds[-1]] - least)
        right_moves = losses[1] <= losses[0]
        codes_N[sides[0][~right_moves]] = seconds[0][~right_moves]
        codes_N[sides[1][right_moves]] = seconds[1][right_moves]


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
