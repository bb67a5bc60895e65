"""Which items occur near each other in train histories: counts, PPMI, embedding.

Shapes: E events, N items, D width.
"""

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray
from sklearn.decomposition import TruncatedSVD

from service.bundle.item_encoder import FloatArray, unit_rows


def cooccurrence(
    item_E: NDArray[np.integer], segment_E: NDArray[np.integer], num_items: int, window: int
) -> sp.csr_matrix:
    """Symmetric counts [N, N] of items at most `window` events apart in one segment, weighted by 1 / distance."""
    rows, columns, weights = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)], [np.zeros(0, np.float32)]
    for distance in range(1, min(window, len(item_E) - 1) + 1):
        together = (segment_E[distance:] == segment_E[:-distance]) & (item_E[distance:] != item_E[:-distance])
        rows.append(item_E[:-distance][together].astype(np.int64))
        columns.append(item_E[distance:][together].astype(np.int64))
        weights.append(np.full(len(rows[-1]), 1.0 / distance, np.float32))
    ahead, behind, weight = np.concatenate(rows), np.concatenate(columns), np.concatenate(weights)
    pairs = (np.concatenate([ahead, behind]), np.concatenate([behind, ahead]))
    return sp.coo_matrix((np.concatenate([weight, weight]), pairs), (num_items, num_items)).tocsr()


def positive_pmi(counts_NN: sp.csr_matrix) -> sp.csr_matrix:
    """Positive pointwise mutual information, max(0, log p(a, b) / (p(a) p(b))) (Levy & Goldberg 2014)."""
    sums_N = np.asarray(counts_NN.sum(axis=1)).reshape(-1)
    entries = counts_NN.tocoo()
    expected = sums_N[entries.row] * sums_N[entries.col]
    values = np.maximum(np.log(entries.data * sums_N.sum() / expected), 0.0).astype(np.float32)
    return sp.csr_matrix((values, (entries.row, entries.col)), counts_NN.shape)


def collaborative_vectors(counts_NN: sp.csr_matrix, width: int, seed: int) -> FloatArray:
    """Unit vectors [N, D] from truncated SVD of PPMI; zero for items without a neighbour."""
    num_items = counts_NN.shape[0]
    ppmi_NN = positive_pmi(counts_NN)
    if ppmi_NN.nnz == 0:
        return np.zeros((num_items, 1), np.float32)
    svd = TruncatedSVD(min(width, num_items), random_state=seed)
    vectors_ND = unit_rows(np.asarray(svd.fit_transform(ppmi_NN)))
    vectors_ND[np.diff(ppmi_NN.indptr) == 0] = 0.0
    return vectors_ND
