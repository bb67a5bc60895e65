"""Which items are like one: by the codes that their sids share, then by the model's vectors.

Legend: N items, L levels, D vector width, M candidates.
"""

import numpy as np

from service.catalog import CatalogSnapshot
from service.inference.explain import rows_below

_MOST_COMPARED = 20_000
"""Vectors that are compared with the item's; of a larger set only those whose rows are nearest."""


def similar_rows(snapshot: CatalogSnapshot, row: int, count: int) -> list[tuple[int, int, float | None]]:
    """Up to `count` other rows that may be shown, most similar first, with the codes shared and the cosine.

    A longer shared beginning of the sid comes first, then the larger cosine of the model's item vectors (None where it
    has none), then the nearer row.
    """
    sid = tuple(snapshot.sids_NL[row].tolist())
    cumsum = snapshot.allowed_cumsum()
    vectors_ND = snapshot.vectors_ND
    found: list[tuple[int, int, float | None]] = []
    inner = (row, row + 1)
    for shared in range(len(sid) - 1, -1, -1):
        if len(found) >= count:
            break
        low, high = rows_below(snapshot, sid[:shared])
        low, high = max(low, row - _MOST_COMPARED // 2), min(high, row + _MOST_COMPARED // 2)
        rows_M = np.concatenate([np.arange(low, inner[0]), np.arange(inner[1], high)])
        rows_M = rows_M[cumsum[rows_M + 1] > cumsum[rows_M]]
        inner = (min(low, inner[0]), max(high, inner[1]))
        if vectors_ND is None:
            order_M = np.argsort(np.abs(rows_M - row), kind="stable")
            cosines: list[float | None] = [None] * len(rows_M)
        else:
            cosine_M = vectors_ND[rows_M] @ vectors_ND[row]
            order_M = np.lexsort((np.abs(rows_M - row), -cosine_M))
            cosines = cosine_M.tolist()
        found += [(int(rows_M[place]), shared, cosines[place]) for place in order_M[: count - len(found)].tolist()]
    return found
