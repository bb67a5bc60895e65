"""Bootstrap intervals and paired tests over examples, seeded and vectorised.

Examples of one user are not independent (rolling windows overlap), so whole clusters are drawn with replacement
(Davison and Hinkley, "Bootstrap Methods and their Application", 1997, section 3.8), and a mean is the ratio of two
resampled sums. A NaN is a missing value and leaves both sums.

Shapes: E examples, C clusters, M metrics, S bootstrap samples.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from model_export.evaluate.metrics import Float, Int

CHUNK_CELLS = 4_000_000  # of the S x C table of draws held at once


class Interval(NamedTuple):
    """A mean with its percentile interval; all NaN where there is no value."""

    mean: float
    low: float
    high: float


class PairedTest(NamedTuple):
    """Mean difference `ours - theirs`, its interval, and the two-sided bootstrap p-value."""

    difference: Interval
    p_value: float


def cluster_counts(num_clusters: int, num_samples: int, seed: int) -> npt.NDArray[np.float32]:
    """How often each cluster is drawn in each sample, `[S, C]`; every row sums to C."""
    rng = np.random.default_rng(seed)
    draws_SC = rng.integers(num_clusters, size=(num_samples, num_clusters))
    flat = (draws_SC + np.arange(num_samples)[:, None] * num_clusters).ravel()
    counted = np.bincount(flat, minlength=num_samples * num_clusters)
    return counted.reshape(num_samples, num_clusters).astype(np.float32)


def resampled_means(value_EM: Float, cluster_E: Int, *, num_samples: int, seed: int) -> Float:
    """Means of every metric in every bootstrap sample, `[S, M]`; NaN where a sample drew no value."""
    _, dense_E = np.unique(cluster_E, return_inverse=True)
    num_clusters = int(dense_E.max(initial=-1)) + 1
    if num_clusters == 0:
        return np.full((num_samples, value_EM.shape[1]), np.nan)
    is_known_EM = ~np.isnan(value_EM)
    sums = np.stack([np.bincount(dense_E, column, num_clusters) for column in np.nan_to_num(value_EM).T], axis=1)
    sizes = np.stack([np.bincount(dense_E, column, num_clusters) for column in is_known_EM.T.astype(float)], axis=1)
    chunk = max(1, CHUNK_CELLS // num_clusters)
    means = []
    for number, start in enumerate(range(0, num_samples, chunk)):
        count_SC = cluster_counts(num_clusters, min(chunk, num_samples - start), seed + 1_000_003 * number)
        with np.errstate(invalid="ignore", divide="ignore"):
            means.append((count_SC @ sums) / (count_SC @ sizes))
    return np.concatenate(means)


def intervals(
    value_EM: Float, cluster_E: Int, *, num_samples: int, seed: int, confidence: float = 0.95
) -> list[Interval]:
    """Mean and percentile interval of every column."""
    mean_SM = resampled_means(value_EM, cluster_E, num_samples=num_samples, seed=seed)
    return [
        _interval(value_EM[:, metric], mean_SM[:, metric], confidence=confidence) for metric in range(value_EM.shape[1])
    ]


def paired_tests(
    ours_EM: Float, theirs_EM: Float, cluster_E: Int, *, num_samples: int, seed: int, confidence: float = 0.95
) -> list[PairedTest]:
    """Paired bootstrap of `ours - theirs` on the same examples (Efron and Tibshirani 1993; Koehn, EMNLP 2004).

    p = 2 min(P(d <= 0), P(d >= 0)) over the resampled differences, with one added to both counts and at most 1.
    """
    if ours_EM.shape != theirs_EM.shape:
        raise ValueError(f"paired values need one shape, not {ours_EM.shape} and {theirs_EM.shape}")
    difference_EM = ours_EM - theirs_EM
    mean_SM = resampled_means(difference_EM, cluster_E, num_samples=num_samples, seed=seed)
    tests = []
    for metric in range(difference_EM.shape[1]):
        mean_S = mean_SM[:, metric][~np.isnan(mean_SM[:, metric])]
        tail = min(int((mean_S <= 0).sum()), int((mean_S >= 0).sum()))
        p_value = min(1.0, 2.0 * (tail + 1) / (len(mean_S) + 1)) if len(mean_S) else float("nan")
        interval = _interval(difference_EM[:, metric], mean_SM[:, metric], confidence=confidence)
        tests.append(PairedTest(interval, p_value))
    return tests


def _interval(value_E: Float, mean_S: Float, *, confidence: float) -> Interval:
    known_E, known_S = value_E[~np.isnan(value_E)], mean_S[~np.isnan(mean_S)]
    if len(known_E) == 0 or len(known_S) == 0:
        return Interval(float("nan"), float("nan"), float("nan"))
    tail = (1.0 - confidence) / 2
    low, high = np.quantile(known_S, [tail, 1.0 - tail])
    return Interval(float(known_E.mean()), float(low), float(high))
