"""What one level has to approximate: the embeddings less what the other levels' centroids say of them.

The difference is computed for the rows asked for and never held for the whole catalog, so a level costs no second copy
of the embeddings, and those may be a memory map.

Shapes: N items, R rows asked for, V codes, D width.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float32]
CodeArray = NDArray[np.int32]
IntArray = NDArray[np.int64]


class Targets:
    """Rows of `points_ND` less one centroid per pair of (centroids [V, D], codes [N]) in `others`."""

    def __init__(self, points_ND: FloatArray, others: Sequence[tuple[FloatArray, CodeArray]] = ()) -> None:
        self.points_ND = points_ND
        self.others = tuple(others)

    def __len__(self) -> int:
        return len(self.points_ND)

    def rows(self, rows: slice | IntArray) -> FloatArray:
        """The targets [R, D] of some items; to be read only."""
        rows_RD: FloatArray = np.asarray(self.points_ND[rows], np.float32)
        for centroids_VD, codes_N in self.others:
            rows_RD = rows_RD - centroids_VD[codes_N[rows]]
        return rows_RD
