"""Balanced assignment: every item to one code, code sizes within one of each other, least total cost.

OneRec's Algorithm 1 (arXiv 2502.18965) lets the clusters, one after another, take their nearest free items; whoever
comes last gets what is left, which costs far more than a tenth of the error. The same constraint is a transportation
problem, solved here in two steps:

1. *prices*: each code gets a price that is added to its cost; prices move until nearly as many items choose a code as
   it may hold (the dual of the transportation problem, by damped coordinate steps; by Newton's in `prices` for large
   catalogs);
2. *paths*: items move along cheapest chains "one of j's items goes to k, one of k's to m" from codes that hold too
   many to codes that hold too few. Such a chain keeps an optimal assignment optimal (successive shortest paths), and
   chains exist whenever a legal assignment does, so step 2 always ends in exact balance.

A *group* is a prefix of codes: at most `group_capacity` items of one group may share a code, which at the last level
(capacity 1) is what makes semantic IDs unique (see `groups`). Distances are computed in chunks of `CHUNK_CELLS`, and
prices from a bounded sample, so that memory never grows with N x V.

Shapes: N items, V codes, D width.
"""

from collections.abc import Iterator

import numpy as np

from model_export.tokenizer.targets import CodeArray, FloatArray, IntArray, Targets

# 16 MiB of distances: few enough to stay in a processor's cache, enough rows to keep a matrix product busy
CHUNK_CELLS = 1 << 22


class PricedCodes:
    """Squared distances to the centroids of one level, plus prices, for any number of calls."""

    def __init__(self, centroids_VD: FloatArray, prices_V: FloatArray | None = None) -> None:
        self._offset_V: FloatArray = np.einsum("vd,vd->v", centroids_VD, centroids_VD)
        if prices_V is not None:
            self._offset_V = self._offset_V + prices_V.astype(np.float32)
        self._factor_VD = np.float32(-2.0) * centroids_VD

    def distances(self, points_ND: FloatArray, codes: IntArray | slice = slice(None)) -> FloatArray:
        """Distances plus prices [N, V], less each point's own squared norm, which no choice of code depends on.

        `codes`: only of these codes.
        """
        distances_NV: FloatArray = points_ND @ self._factor_VD[codes].T
        distances_NV += self._offset_V[codes]
        return distances_NV

    def own_distances(self, points_ND: FloatArray, codes_N: CodeArray) -> FloatArray:
        """The same to one code [N] for each point."""
        own_N: FloatArray = np.einsum("nd,nd->n", points_ND, self._factor_VD[codes_N])
        return own_N + self._offset_V[codes_N]


def squared_distances(
    points_ND: FloatArray, centroids_VD: FloatArray, prices_V: FloatArray | None = None
) -> FloatArray:
    """`PricedCodes.distances` of points that are asked for once."""
    return PricedCodes(centroids_VD, prices_V).distances(points_ND)


def chunks(num_items: int, num_codes: int) -> Iterator[slice]:
    """Slices that cover `num_items`, each of at most CHUNK_CELLS items times codes."""
    size = max(CHUNK_CELLS // num_codes, 1)
    for start in range(0, num_items, size):
        yield slice(start, min(start + size, num_items))


def code_sizes(num_items: int, num_codes: int) -> tuple[int, int]:
    """Smallest and largest size that a balanced code may have: floor and ceiling of num_items / num_codes."""
    return num_items // num_codes, -(-num_items // num_codes)


def step_prices(distances_NV: FloatArray, prices_V: FloatArray, damping: float) -> FloatArray:
    """One damped coordinate step of all prices towards the ones at which every code is chosen by N / V items.

    A code is chosen by an item while its price stays below the item's margin, the price at which the item would turn
    to its next best code; the N / V-th largest margin is therefore the price that leaves N / V takers.
    """
    num_items, num_codes = distances_NV.shape
    rows_N = np.arange(num_items)
    priced_NV = distances_NV + prices_V
    first_N = priced_NV.argmin(axis=1)
    best_N = priced_NV[rows_N, first_N]
    priced_NV[rows_N, first_N] = np.inf
    second_N = priced_NV.min(axis=1)
    margins_NV = np.subtract(best_N[:, None], distances_NV, out=priced_NV)
    margins_NV[rows_N, first_N] = second_N - distances_NV[rows_N, first_N]
    rank = min(max(num_items - num_items // num_codes, 0), num_items - 1)
    # code by code on contiguous rows: several times faster than along the first axis
    target_V = np.array([np.partition(margins_NV[:, code], rank)[rank] for code in range(num_codes)], np.float32)
    return np.asarray(prices_V + np.float32(damping) * (target_V - prices_V), np.float32)


def cheapest_codes(targets: Targets, centroids_VD: FloatArray, prices_V: FloatArray) -> CodeArray:
    """Code of least distance plus price for every item; ties go to the lowest code."""
    codes_N = np.empty(len(targets), np.int32)
    for chunk in chunks(len(targets), len(centroids_VD)):
        codes_N[chunk] = squared_distances(targets.rows(chunk), centroids_VD, prices_V).argmin(axis=1)
    return codes_N
