"""Direct moves of many items at once: the coarse part of exact balance in large catalogs.

Prices leave some items in codes that hold too many. A cheapest chain each (`paths`) is the best way to move them, and
for a million items too slow: a level took from eight minutes to more than a quarter of an hour on a crowded machine.
Here they go straight to a code with room, the cheapest moves first, and only the last ones are left to the chains.
Where both ways were run (20,000 items of width 64, chains for the last 20 alone), the squared error was .1676 instead
of .1678.

Shapes: N items, V codes, D width, R items of a chunk, S items that may move, U codes with room.
"""

import numpy as np

from model_export.tokenizer.balance import PricedCodes, chunks, code_sizes
from model_export.tokenizer.groups import Groups
from model_export.tokenizer.targets import CodeArray, FloatArray, IntArray, Targets

# units of imbalance that are left to the chains; three catalogs of 3,000 to 3,700 items never had as many
FEW_UNITS = 1024


def shift_many(targets: Targets, centroids_VD: FloatArray, codes_N: CodeArray, groups: Groups) -> CodeArray:
    """Codes [N] with at most FEW_UNITS of imbalance, or as few as direct moves can leave; groups hold as before."""
    codes_N = codes_N.copy()
    groups.watch(codes_N)
    level = PricedCodes(centroids_VD)
    while True:
        surplus_V, room_V = imbalance(codes_N, len(centroids_VD))
        if min(surplus_V.sum(), room_V.sum()) <= FEW_UNITS or not shift(
            targets, level, codes_N, groups, surplus_V, room_V
        ):
            return codes_N


def imbalance(codes_N: CodeArray, num_codes: int) -> tuple[IntArray, IntArray]:
    """How many items each code [V] may give away, and how many it may take: first what is too many, then too few."""
    smallest, largest = code_sizes(len(codes_N), num_codes)
    sizes_V = np.bincount(codes_N, minlength=num_codes)
    bound = largest if (sizes_V > largest).any() else smallest
    return np.maximum(sizes_V - bound, 0), np.maximum(bound - sizes_V, 0)


def shift(
    targets: Targets, level: PricedCodes, codes_N: CodeArray, groups: Groups, surplus_V: IntArray, room_V: IntArray
) -> bool:
    """Moves items in place, each to the cheapest code with room; no code gives or takes too many. False: none moved."""
    items_S, sinks_U = np.flatnonzero(surplus_V[codes_N]), np.flatnonzero(room_V)
    best_S, loss_S = np.empty(len(items_S), np.int64), np.empty(len(items_S), np.float32)
    for chunk in chunks(len(items_S), len(sinks_U)):
        items_R = items_S[chunk]
        points_RD = targets.rows(items_R)
        extra_RU = level.distances(points_RD, sinks_U) - level.own_distances(points_RD, codes_N[items_R])[:, None]
        groups.forbid(items_R, sinks_U, extra_RU)
        place_R = extra_RU.argmin(axis=1)
        best_S[chunk], loss_S[chunk] = sinks_U[place_R], extra_RU[np.arange(len(items_R)), place_R]
    order_S = np.argsort(loss_S, kind="stable")[: np.isfinite(loss_S).sum()]
    order_S = order_S[first_of_each(codes_N[items_S[order_S]], surplus_V)]
    order_S = order_S[first_of_each(best_S[order_S], room_V)]
    # two of a group that meet in one code would break its capacity: the others wait for the next round
    group_S = groups.of_item_N[items_S[order_S]].astype(np.int64)
    pair_S = np.where(group_S < 0, -1 - np.arange(len(order_S)), group_S * len(room_V) + best_S[order_S])
    order_S = order_S[np.sort(np.unique(pair_S, return_index=True)[1])]
    codes_N[items_S[order_S]] = best_S[order_S]
    return len(order_S) > 0


def first_of_each(key_S: IntArray | CodeArray, count_V: IntArray) -> IntArray:
    """Places of the first `count_V[key]` of every key, ascending."""
    by_key = np.argsort(key_S, kind="stable")
    sorted_S = key_S[by_key]
    rank_S = np.arange(len(sorted_S)) - np.searchsorted(sorted_S, sorted_S)
    kept: IntArray = np.sort(by_key[rank_S < count_V[sorted_S]])
    return kept
