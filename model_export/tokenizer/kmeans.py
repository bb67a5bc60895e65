"""Plain and balanced k-means.

Balanced k-means is OneRec's Algorithm 1 (arXiv 2502.18965) with the assignment step solved by `balance` and `paths`
instead of a greedy pass: assign every item so that code sizes differ by at most one, then move centroids to the means.

Shapes: N items, V codes, D width.
"""

import warnings

import numpy as np
import scipy.sparse as sp
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning

from model_export.tokenizer.balance import CodeArray, FloatArray, cheapest_codes, squared_distances, step_prices
from model_export.tokenizer.groups import Groups, legalise
from model_export.tokenizer.paths import Rebalancer

FIRST_PRICE_STEPS = 12
PRICE_STEPS = 2
DAMPING = 0.5
MAX_PRICED_ITEMS = 1 << 16


def plain_kmeans(
    points_ND: FloatArray, num_codes: int, *, iterations: int, seed: int
) -> tuple[FloatArray, CodeArray, float]:
    """Plain k-means: centroids [V, D], codes [N] and the mean squared error.

    With fewer items than codes the spare centroids repeat used ones, so that the codebook keeps its size.
    """
    num_clusters = min(num_codes, len(points_ND))
    with warnings.catch_warnings():
        # fewer distinct points than codes is legal here: duplicates are told apart by later levels
        warnings.simplefilter("ignore", ConvergenceWarning)
        fitted = KMeans(num_clusters, n_init=1, max_iter=iterations, random_state=seed).fit(points_ND)
    centroids_VD = np.resize(fitted.cluster_centers_, (num_codes, points_ND.shape[1])).astype(np.float32)
    return centroids_VD, fitted.labels_.astype(np.int32), float(fitted.inertia_) / len(points_ND)


def means(points_ND: FloatArray, codes_N: CodeArray, centroids_VD: FloatArray) -> FloatArray:
    """Mean of each code's items [V, D]; a code without items keeps its centroid."""
    num_items, num_codes = len(points_ND), len(centroids_VD)
    sizes_V = np.bincount(codes_N, minlength=num_codes)
    takes_VN = sp.csr_matrix((np.ones(num_items, np.float32), (codes_N, np.arange(num_items))), (num_codes, num_items))
    sums_VD = takes_VN @ points_ND
    return np.where(sizes_V[:, None] > 0, sums_VD / np.maximum(sizes_V, 1)[:, None], centroids_VD).astype(np.float32)


class BalancedCodebook:
    """One level: centroids, prices and codes, improved step by step.

    `groups` limits how many items that share a group may share a code; None sets no limit.
    """

    def __init__(self, centroids_VD: FloatArray) -> None:
        self.centroids_VD = centroids_VD
        self.prices_V: FloatArray = np.zeros(len(centroids_VD), np.float32)
        self.codes_N: CodeArray = np.zeros(0, np.int32)

    def assign(self, points_ND: FloatArray, groups: Groups, *, price_steps: int, exact: bool) -> None:
        """Assigns every item: by prices (sizes nearly equal), or exactly balanced where `exact`; groups always hold."""
        if len(points_ND) > 1 and len(self.centroids_VD) > 1:
            # an even sample bounds the N x V distances; the chains make up for what its prices miss
            stride = -(-len(points_ND) // MAX_PRICED_ITEMS)
            distances_NV = squared_distances(points_ND[::stride], self.centroids_VD)
            for _ in range(price_steps):
                self.prices_V = step_prices(distances_NV, self.prices_V, DAMPING)
        codes_N = cheapest_codes(points_ND, self.centroids_VD, self.prices_V)
        codes_N = legalise(points_ND, self.centroids_VD, self.prices_V, codes_N, groups)
        if exact:
            rebalancer = Rebalancer(points_ND, self.centroids_VD, self.prices_V, codes_N, groups)
            codes_N = rebalancer.run()
            self.prices_V = rebalancer.prices_V.astype(np.float32)
        self.codes_N = codes_N

    def fit_centroids(self, points_ND: FloatArray) -> None:
        """Moves the centroids to the means of their items."""
        self.centroids_VD = means(points_ND, self.codes_N, self.centroids_VD)

    def reconstruct(self) -> FloatArray:
        """Centroid of every item [N, D]."""
        return self.centroids_VD[self.codes_N]


def balanced_kmeans(
    points_ND: FloatArray,
    num_codes: int,
    groups: Groups,
    *,
    plain_iterations: int,
    iterations: int,
    seed: int,
    exact: bool = True,
) -> BalancedCodebook:
    """Balanced k-means that starts from plain k-means.

    Code sizes end within one of each other where `exact`, else as near to that as prices bring them.
    """
    centroids_VD, _, _ = plain_kmeans(points_ND, num_codes, iterations=plain_iterations, seed=seed)
    codebook = BalancedCodebook(centroids_VD)
    for iteration in range(iterations + 1):
        steps = PRICE_STEPS if iteration else FIRST_PRICE_STEPS
        codebook.assign(points_ND, groups, price_steps=steps, exact=exact and iteration == iterations)
        codebook.fit_centroids(points_ND)
    return codebook
