"""Plain and balanced k-means.

Balanced k-means is OneRec's Algorithm 1 (arXiv 2502.18965) with the assignment step solved by `balance` and `paths`
instead of a greedy pass: assign every item so that code sizes differ by at most one, then move centroids to the means.

Shapes: N items, V codes, D width.
"""

import warnings

import numpy as np
import scipy.sparse as sp
from sklearn.cluster import KMeans, kmeans_plusplus
from sklearn.exceptions import ConvergenceWarning

from model_export.tokenizer.balance import cheapest_codes, chunks, squared_distances, step_prices
from model_export.tokenizer.candidates import Candidates
from model_export.tokenizer.groups import Groups, legalise
from model_export.tokenizer.paths import Rebalancer
from model_export.tokenizer.prices import FROM_NEAR, FROM_NOTHING, AllCodes, excess, solve_prices
from model_export.tokenizer.shifts import shift_many
from model_export.tokenizer.targets import CodeArray, FloatArray, IntArray, Targets

# a few coarse steps a pass: where balance gives way to moving centroids and tightens again, the error ends lower
PRICE_STEPS = 2
DAMPING = 0.5
# share of the items in excess of what their codes may hold beyond which chains of single moves would take too long
MUCH_EXCESS = 0.05
# the sample of distances that prices are found with: 64 MiB
MAX_PRICED_CELLS = 1 << 24
# in larger catalogs, how often all items mend the prices where balance must be exact
NUM_TABLES = 2
# codebooks of larger catalogs are learnt from as many items, drawn without replacement
MAX_TRAIN_ITEMS = 1 << 17
# above this number of items, k-means++ looks at so many a code
MIN_FIRST_ITEMS = 1 << 16
FIRST_ITEMS_PER_CODE = 16


def train_rows(num_items: int, seed: int) -> IntArray:
    """The items [at most MAX_TRAIN_ITEMS] that codebooks are learnt from, ascending."""
    if num_items <= MAX_TRAIN_ITEMS:
        return np.arange(num_items)
    chosen: IntArray = np.random.default_rng(seed).choice(num_items, MAX_TRAIN_ITEMS, replace=False)
    return np.sort(chosen)


def plain_kmeans(targets: Targets, num_codes: int, *, iterations: int, seed: int) -> tuple[FloatArray, CodeArray]:
    """Plain k-means: centroids [V, D] and codes [N].

    With fewer items than codes the spare centroids repeat used ones, so that the codebook keeps its size. A catalog
    of more than MAX_TRAIN_ITEMS is clustered from a sample, then assigned, averaged and assigned again as a whole.
    """
    points_RD = targets.rows(train_rows(len(targets), seed))
    num_clusters = min(num_codes, len(points_RD))
    first: FloatArray | str = "k-means++"
    if len(points_RD) > MIN_FIRST_ITEMS:
        rows = np.random.default_rng(seed).permutation(len(points_RD))[: FIRST_ITEMS_PER_CODE * num_clusters]
        first, _ = kmeans_plusplus(points_RD[rows], num_clusters, random_state=seed)
    with warnings.catch_warnings():
        # fewer distinct points than codes is legal here: duplicates are told apart by later levels
        warnings.simplefilter("ignore", ConvergenceWarning)
        fitted = KMeans(num_clusters, init=first, n_init=1, max_iter=iterations, random_state=seed).fit(points_RD)
    centroids_VD = np.resize(fitted.cluster_centers_, (num_codes, points_RD.shape[1])).astype(np.float32)
    if len(points_RD) == len(targets):
        return centroids_VD, fitted.labels_.astype(np.int32)
    free_V = np.zeros(num_codes, np.float32)
    centroids_VD = means(targets, cheapest_codes(targets, centroids_VD, free_V), centroids_VD)
    return centroids_VD, cheapest_codes(targets, centroids_VD, free_V)


def means(targets: Targets, codes_N: CodeArray, centroids_VD: FloatArray) -> FloatArray:
    """Mean of each code's items [V, D]; a code without items keeps its centroid."""
    num_codes, width = centroids_VD.shape
    sizes_V = np.bincount(codes_N, minlength=num_codes)
    sums_VD = np.zeros((num_codes, width), np.float64)
    for chunk in chunks(len(codes_N), width):
        codes_R = codes_N[chunk]
        ones_R = np.ones(len(codes_R), np.float32)
        takes_VR = sp.csr_matrix((ones_R, (codes_R, np.arange(len(codes_R)))), (num_codes, len(codes_R)))
        sums_VD += takes_VR @ targets.rows(chunk)
    return np.where(sizes_V[:, None] > 0, sums_VD / np.maximum(sizes_V, 1)[:, None], centroids_VD).astype(np.float32)


def squared_error(targets: Targets, codes_N: CodeArray, centroids_VD: FloatArray) -> float:
    """Sum over all items of the squared distance to their centroid."""
    left = Targets(targets.points_ND, (*targets.others, (centroids_VD, codes_N)))
    return sum(
        float(np.square(left.rows(chunk), dtype=np.float64).sum())
        for chunk in chunks(len(codes_N), centroids_VD.shape[1])
    )


class BalancedCodebook:
    """One level: centroids, prices and codes, improved step by step.

    `groups` limits how many items that share a group may share a code; None sets no limit.
    """

    def __init__(self, centroids_VD: FloatArray) -> None:
        self.centroids_VD = centroids_VD
        self.prices_V: FloatArray = np.zeros(len(centroids_VD), np.float32)
        self.codes_N: CodeArray = np.zeros(0, np.int32)

    def assign(self, targets: Targets, groups: Groups, *, exact: bool, from_nothing: bool = False) -> None:
        """Assigns every item: by prices (sizes nearly equal), or exactly balanced where `exact`; groups always hold.

        The prices of the pass before are moved a little, or found `from_nothing`.
        """
        codes_N = self.cheapest(targets, exact=exact, from_nothing=from_nothing)
        codes_N = legalise(targets, self.centroids_VD, self.prices_V, codes_N, groups)
        if exact:
            codes_N = shift_many(targets, self.centroids_VD, codes_N, groups)
            rebalancer = Rebalancer(targets, self.centroids_VD, self.prices_V, codes_N, groups)
            codes_N = rebalancer.run()
            self.prices_V = rebalancer.prices_V.astype(np.float32)
        self.codes_N = codes_N

    def cheapest(self, targets: Targets, *, exact: bool, from_nothing: bool) -> CodeArray:
        """Moves the prices, and gives every item's cheapest code [N]."""
        num_items, num_codes = len(targets), len(self.centroids_VD)
        if num_items > 1 and num_codes > 1:
            # an even sample bounds the N x V distances; the chains, or a table of all items, make up for what it misses
            stride = -(-num_items // max(MAX_PRICED_CELLS // num_codes, 1))
            every = AllCodes(squared_distances(targets.rows(slice(None, None, stride)), self.centroids_VD))
            for _ in range(0 if from_nothing else PRICE_STEPS):
                self.prices_V = step_prices(every.distances_NV, self.prices_V, DAMPING)
            if from_nothing or (exact and excess(every, self.prices_V) > MUCH_EXCESS * every.num_items):
                self.prices_V = solve_prices(every, self.prices_V, FROM_NOTHING)
            del every
            for _ in range(NUM_TABLES if exact and stride > 1 else 0):
                table = Candidates(targets, self.centroids_VD, self.prices_V)
                self.prices_V = solve_prices(table, self.prices_V, FROM_NEAR)
        return cheapest_codes(targets, self.centroids_VD, self.prices_V)

    def fit_centroids(self, targets: Targets) -> None:
        """Moves the centroids to the means of their items."""
        self.centroids_VD = means(targets, self.codes_N, self.centroids_VD)


def balanced_kmeans(
    targets: Targets,
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
    centroids_VD, _ = plain_kmeans(targets, num_codes, iterations=plain_iterations, seed=seed)
    codebook = BalancedCodebook(centroids_VD)
    for iteration in range(iterations + 1):
        codebook.assign(targets, groups, exact=exact and iteration == iterations, from_nothing=iteration == 0)
        codebook.fit_centroids(targets)
    return codebook
