"""The few codes that each item of a large catalog may come to choose when prices move a little.

A bounded sample of all distances leaves code sizes off by its own sampling noise, which at a million items means tens
of thousands of single moves. Here every item takes part, with its cheapest codes alone.

Shapes: N items, V codes, M candidates of an item, R rows of a chunk.
"""

import numpy as np
import scipy.sparse as sp

from model_export.tokenizer.balance import chunks, squared_distances
from model_export.tokenizer.prices import PriceArray
from model_export.tokenizer.targets import CodeArray, FloatArray, Targets

NUM_CANDIDATES = 16


class Candidates:
    """The codes [N, M] that cost least under some prices, with their squared distances: see `prices.Choices`."""

    def __init__(self, targets: Targets, centroids_VD: FloatArray, prices_V: FloatArray) -> None:
        self.num_items, self.num_codes = len(targets), len(centroids_VD)
        count = min(NUM_CANDIDATES, self.num_codes)
        self.codes_NM: CodeArray = np.empty((self.num_items, count), np.int32)
        self.distances_NM: FloatArray = np.empty((self.num_items, count), np.float32)
        for chunk in chunks(self.num_items, self.num_codes):
            priced_RV = squared_distances(targets.rows(chunk), centroids_VD, prices_V)
            rows_R = np.arange(len(priced_RV))
            # a few scans for the least are faster than one partition
            for place in range(count):
                code_R = priced_RV.argmin(axis=1)
                self.codes_NM[chunk, place] = code_R
                self.distances_NM[chunk, place] = priced_RV[rows_R, code_R] - prices_V[code_R]
                priced_RV[rows_R, code_R] = np.inf

    def priced(self, prices_V: PriceArray | FloatArray) -> FloatArray:
        """See `prices.Choices`."""
        return self.distances_NM + prices_V.astype(np.float32)[self.codes_NM]

    def cheapest(self, prices_V: PriceArray | FloatArray) -> CodeArray:
        """See `prices.Choices`."""
        place_N = self.priced(prices_V).argmin(axis=1)
        codes_N: CodeArray = self.codes_NM[np.arange(self.num_items), place_N]
        return codes_N

    def total(self, weights_NM: FloatArray) -> PriceArray:
        """See `prices.Choices`."""
        return np.asarray(np.bincount(self.codes_NM.reshape(-1), weights_NM.reshape(-1), self.num_codes), np.float64)

    def overlap(self, weights_NM: FloatArray, stride: int) -> PriceArray:
        """See `prices.Choices`."""
        codes_RM, weights_RM = self.codes_NM[::stride], weights_NM[::stride]
        bounds = np.arange(len(codes_RM) + 1) * codes_RM.shape[1]
        weights_RV = sp.csr_matrix(
            (weights_RM.reshape(-1), codes_RM.reshape(-1), bounds), (len(codes_RM), self.num_codes)
        )
        return np.asarray((weights_RV.T @ weights_RV).toarray(), np.float64)
