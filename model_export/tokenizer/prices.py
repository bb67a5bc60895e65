"""Prices of codes at which nearly as many items choose each code as it may hold.

The prices solve the dual of a transportation problem. Its objective has corners, where items change their minds; with
choices softened by a temperature (entropic regularisation: Cuturi and Peyre, arXiv 1503.02533) it is smooth and
concave, and damped Newton steps climb it in a few iterations (as for semi-discrete transport: Kitagawa, Merigot and
Thibert, arXiv 1603.05579), however far items have to be shifted. The temperature falls in stages.

Shapes: N items, V codes, C choices of an item (all V, or a few candidates).
"""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_factor, cho_solve

from model_export.tokenizer.balance import code_sizes
from model_export.tokenizer.targets import CodeArray, FloatArray

PriceArray = NDArray[np.float64]

# temperatures in units of the median gap between an item's cheapest and second cheapest code
FROM_NOTHING = (1.0, 0.3, 0.1, 0.03)
FROM_NEAR = (0.03, 0.01)
MAX_STEPS = 8
# share of the items too many or too few for their codes below which a stage ends
ENOUGH = 0.002
SMALLEST_STEP = 0.01
# keeps the Hessian, whose rows sum to zero, definite
RIDGE = 0.01
HESSIAN_ITEMS = 4096


class Choices(Protocol):
    """What items may choose from."""

    num_items: int
    num_codes: int

    def priced(self, prices_V: PriceArray | FloatArray) -> FloatArray:
        """Squared distances plus prices [N, C], in a new array."""

    def cheapest(self, prices_V: PriceArray | FloatArray) -> CodeArray:
        """Every item's cheapest code [N]."""

    def total(self, weights_NC: FloatArray) -> PriceArray:
        """Sum of the weights per code [V]."""

    def overlap(self, weights_NC: FloatArray, stride: int) -> PriceArray:
        """Sum over every stride-th item of the products of its weights for two codes [V, V]."""


class AllCodes:
    """Every item may choose every code: distances [N, V]."""

    def __init__(self, distances_NV: FloatArray) -> None:
        self.distances_NV = distances_NV
        self.num_items, self.num_codes = distances_NV.shape

    def priced(self, prices_V: PriceArray | FloatArray) -> FloatArray:
        """See `Choices`."""
        return self.distances_NV + prices_V.astype(np.float32)

    def cheapest(self, prices_V: PriceArray | FloatArray) -> CodeArray:
        """See `Choices`."""
        codes_N: CodeArray = self.priced(prices_V).argmin(axis=1).astype(np.int32)
        return codes_N

    def total(self, weights_NC: FloatArray) -> PriceArray:
        """See `Choices`."""
        return np.asarray(weights_NC.sum(axis=0), np.float64)

    def overlap(self, weights_NC: FloatArray, stride: int) -> PriceArray:
        """See `Choices`."""
        some_RV = weights_NC[::stride]
        return np.asarray(some_RV.T @ some_RV, np.float64)


def solve_prices(choices: Choices, prices_V: FloatArray, stages: Sequence[float]) -> FloatArray:
    """Prices [V] that even out the sizes, starting from `prices_V`; those of least excess that were met."""
    prices: PriceArray = prices_V.astype(np.float64)
    unit = typical_gap(choices.priced(prices))
    best, least = prices, excess(choices, prices)
    for stage in stages if unit > 0 else ():
        prices = climb(choices, prices, stage * unit)
        over = excess(choices, prices)
        if over < least:
            best, least = prices, over
    return best.astype(np.float32)


def typical_gap(priced_NC: FloatArray) -> float:
    """Median gap between the least and the second least of a row; the mean where most are equal."""
    rows_N = np.arange(len(priced_NC))
    first_N = priced_NC.argmin(axis=1)
    least_N = priced_NC[rows_N, first_N]
    priced_NC[rows_N, first_N] = np.inf
    gap_N = priced_NC.min(axis=1) - least_N
    return float(np.median(gap_N)) or float(gap_N.mean())


def excess(choices: Choices, prices_V: PriceArray | FloatArray) -> int:
    """Items beyond what their codes may hold when each takes its cheapest."""
    _, largest = code_sizes(choices.num_items, choices.num_codes)
    sizes_V = np.bincount(choices.cheapest(prices_V), minlength=choices.num_codes)
    return int(np.maximum(sizes_V - largest, 0).sum())


def climb(choices: Choices, prices_V: PriceArray, temperature: float) -> PriceArray:
    """Newton's steps at one temperature."""
    wanted = choices.num_items / choices.num_codes
    stride = -(-choices.num_items // HESSIAN_ITEMS)
    value, weights_NC = soften(choices, prices_V, temperature)
    for _ in range(MAX_STEPS):
        slope_V = choices.total(weights_NC) - wanted
        if np.abs(slope_V).sum() <= 2 * ENOUGH * choices.num_items:
            break
        overlap_VV = choices.overlap(weights_NC, stride)
        bend_VV = (np.diag(overlap_VV.sum(axis=1)) - overlap_VV) * (stride / temperature)
        bend_VV[np.diag_indices(choices.num_codes)] += RIDGE * wanted / temperature
        step_V = cho_solve(cho_factor(bend_VV, overwrite_a=True), slope_V)
        size = 1.0
        while True:
            moved_value, moved_NC = soften(choices, prices_V + size * step_V, temperature)
            if moved_value > value or size < SMALLEST_STEP:
                break
            size /= 2
        if moved_value <= value:
            break
        prices_V, value, weights_NC = prices_V + size * step_V, moved_value, moved_NC
    return prices_V


def soften(choices: Choices, prices_V: PriceArray, temperature: float) -> tuple[float, FloatArray]:
    """The softened dual's value, and the weight [N, C] with which each item chooses."""
    weights_NC = choices.priced(prices_V)
    least_N = weights_NC.min(axis=1)
    weights_NC -= least_N[:, None]
    weights_NC *= np.float32(-1.0 / temperature)
    np.exp(weights_NC, out=weights_NC)
    total_N = weights_NC.sum(axis=1)
    weights_NC /= total_N[:, None]
    value = float((least_N - np.float32(temperature) * np.log(total_N)).sum(dtype=np.float64))
    return value - choices.num_items / choices.num_codes * float(prices_V.sum()), weights_NC
