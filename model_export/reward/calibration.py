"""Calibration: chances that mean what they say.

Shapes: F impressions, S signals, Q bins.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize
from scipy.special import expit

Float = npt.NDArray[np.float64]

NUM_BINS = 15
MIN_OF_EACH = 20
"""Fewer positives or negatives than this cannot calibrate."""


class Bins(NamedTuple):
    """A reliability curve: impressions in bins of equal size, by their chance."""

    chance_Q: Float
    """Mean chance."""
    rate_Q: Float
    """Mean signal."""
    count_Q: Float


def fit_platt(logit_F: Float, signal_F: Float) -> tuple[float, float]:
    """Scale and shift of the logits with the least cross-entropy (Platt 1999); (1, 0) with too little to fit.

    The scale stays positive, so that calibration changes no order.
    """
    positives = float(signal_F.sum())
    if min(positives, len(signal_F) - positives) < MIN_OF_EACH:
        return 1.0, 0.0

    def loss(parameters: Float) -> tuple[float, Float]:
        scale, shift = float(np.exp(parameters[0])), float(parameters[1])
        calibrated_F = scale * logit_F + shift
        error_F = expit(calibrated_F) - signal_F
        value = float(np.mean(np.logaddexp(0.0, calibrated_F) - signal_F * calibrated_F))
        return value, np.array([np.mean(error_F * scale * logit_F), np.mean(error_F)])

    found = minimize(loss, np.zeros(2), jac=True, method="L-BFGS-B", bounds=[(-4.0, 4.0), (None, None)])
    return float(np.exp(found.x[0])), float(found.x[1])


def reliability(chance_F: Float, signal_F: Float, num_bins: int = NUM_BINS) -> Bins:
    """Mean chance and mean signal in bins of (nearly) equal size."""
    order = np.argsort(chance_F, kind="stable")
    parts = [part for part in np.array_split(order, num_bins) if len(part)]
    return Bins(
        chance_Q=np.array([chance_F[part].mean() for part in parts]),
        rate_Q=np.array([signal_F[part].mean() for part in parts]),
        count_Q=np.array([float(len(part)) for part in parts]),
    )


def calibration_error(chance_F: Float, signal_F: Float, num_bins: int = NUM_BINS) -> float:
    """Expected calibration error: the mean distance of chance and rate over bins of equal size (Nguyen 2015)."""
    bins = reliability(chance_F, signal_F, num_bins)
    return float(np.average(np.abs(bins.chance_Q - bins.rate_Q), weights=bins.count_Q))


def log_loss(chance_F: Float, signal_F: Float) -> float:
    """Mean cross-entropy in nats."""
    clipped_F = np.clip(chance_F, 1e-7, 1 - 1e-7)
    return float(-np.mean(signal_F * np.log(clipped_F) + (1 - signal_F) * np.log1p(-clipped_F)))
