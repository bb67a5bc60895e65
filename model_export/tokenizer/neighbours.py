"""How much of a space survives in the sids: the share of nearest neighbours whose sids begin alike.

Shapes: N items, Q queries, K neighbours, L levels, D width.
"""

import numpy as np

from model_export.tokenizer.balance import chunks
from model_export.tokenizer.groups import dense_rows
from model_export.tokenizer.targets import CodeArray, FloatArray, IntArray

NUM_QUERIES = 2000
NUM_NEIGHBOURS = 5
# distances that are computed at most: a larger catalog gets fewer queries
MAX_DISTANCES = 1 << 29
# rows of a chunk hold more than this many items, so that most chunks hold none of a query's nearest
CHUNK_QUERIES = 512


def neighbour_figures(points_ND: FloatArray, sids_NL: CodeArray, seed: int) -> list[dict[str, float]]:
    """Per number of codes 1..L: the share of (item, near neighbour) pairs whose sids begin with the same codes.

    Beside it, as `shuffled`, what sids dealt out at random would share. Items are sampled; one whose vector is zero
    is not in this space and takes no part.
    """
    known = np.flatnonzero(points_ND.any(axis=1))
    count = min(NUM_NEIGHBOURS, len(known) - 1)
    if count < 1:
        return []
    rng = np.random.default_rng(seed)
    queries = known[rng.permutation(len(known))[: min(NUM_QUERIES, max(MAX_DISTANCES // len(known), 1))]]
    nearest_QK = np.concatenate(
        [
            nearest(points_ND, known, queries[start : start + CHUNK_QUERIES], count)
            for start in range(0, len(queries), CHUNK_QUERIES)
        ]
    )
    shuffled_NL = sids_NL[rng.permutation(len(sids_NL))]
    return [
        {
            "codes": level + 1,
            "shared": shared_share(sids_NL[:, : level + 1], queries, nearest_QK),
            "shuffled": shared_share(shuffled_NL[:, : level + 1], queries, nearest_QK),
        }
        for level in range(sids_NL.shape[1])
    ]


def nearest(points_ND: FloatArray, known: IntArray, queries: IntArray, count: int) -> IntArray:
    """The `count` nearest of the items `known` [Q, count] to each item of `queries`, itself left out; in no order."""
    query_QD = np.asarray(points_ND[queries], np.float32)
    best_QK: IntArray = np.full((len(queries), count), -1, np.int64)
    least_QK = np.full((len(queries), count), np.inf, np.float32)
    for chunk in chunks(len(known), len(queries)):
        items = known[chunk]
        points_RD = np.asarray(points_ND[items], np.float32)
        distances_QR = np.einsum("rd,rd->r", points_RD, points_RD) - np.float32(2.0) * (query_QD @ points_RD.T)
        distances_QR[queries[:, None] == items] = np.inf
        nearer = np.flatnonzero(distances_QR.min(axis=1) < least_QK.max(axis=1))
        distances = np.concatenate([least_QK[nearer], distances_QR[nearer]], axis=1)
        of_place = np.concatenate([best_QK[nearer], np.broadcast_to(items, (len(nearer), len(items)))], axis=1)
        kept = np.argpartition(distances, count - 1, axis=1)[:, :count]
        least_QK[nearer] = np.take_along_axis(distances, kept, axis=1)
        best_QK[nearer] = np.take_along_axis(of_place, kept, axis=1)
    return best_QK


def shared_share(prefix_NM: CodeArray, queries: IntArray, nearest_QK: IntArray) -> float:
    """Share of (query, neighbour) pairs with equal prefixes."""
    dense_N = dense_rows(prefix_NM)
    return float((dense_N[queries][:, None] == dense_N[nearest_QK]).mean())
