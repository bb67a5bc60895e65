"""Bootstrap intervals and paired tests over users and training seeds, seeded and vectorised.

Examples of one user are not independent (rolling windows overlap), so whole clusters are drawn with replacement
(Davison and Hinkley, "Bootstrap Methods and their Application", 1997, section 3.8), and a mean is the ratio of two
resampled sums. Where a recommender was trained several times, its runs are drawn with replacement too, independently of
the users (the crossed bootstrap: Owen, "The pigeonhole bootstrap", 2007), so that an interval holds for other users and
other seeds. A NaN is a missing value and leaves both sums.

Two recommenders are compared sample by sample: both see the same users in each sample, but runs of their own.

Shapes: R runs (seeds) of one recommender, E examples, C clusters, M metrics, S bootstrap samples. `[E, M]` stands for
one run.
"""

from dataclasses import dataclass
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


@dataclass(frozen=True, kw_only=True)
class Resampled:
    """Means of M metrics, and the same in every bootstrap sample."""

    mean_M: Float
    mean_SM: Float

    def minus(self, other: "Resampled") -> "Resampled":
        """The paired difference."""
        return Resampled(mean_M=self.mean_M - other.mean_M, mean_SM=self.mean_SM - other.mean_SM)

    def over(self, other: "Resampled") -> "Resampled":
        """The ratio; NaN where the other is not above 0."""
        return Resampled(mean_M=_ratio(self.mean_M, other.mean_M), mean_SM=_ratio(self.mean_SM, other.mean_SM))

    def intervals(self, confidence: float) -> list[Interval]:
        """Mean and percentile interval of every metric."""
        return [_interval(mean, mean_S, confidence) for mean, mean_S in zip(self.mean_M, self.mean_SM.T, strict=True)]

    def p_values(self) -> list[float]:
        """2 min(P(d <= 0), P(d >= 0)) over the samples, with one added to both counts, at most 1."""
        return [_p_value(mean_S[~np.isnan(mean_S)]) for mean_S in self.mean_SM.T]


def cluster_counts(num_clusters: int, num_samples: int, seed: int) -> npt.NDArray[np.float32]:
    """How often each cluster is drawn in each sample, `[S, C]`; every row sums to C."""
    rng = np.random.default_rng(seed)
    draws_SC = rng.integers(num_clusters, size=(num_samples, num_clusters))
    flat = (draws_SC + np.arange(num_samples)[:, None] * num_clusters).ravel()
    counted = np.bincount(flat, minlength=num_samples * num_clusters)
    return counted.reshape(num_samples, num_clusters).astype(np.float32)


def resample(value_REM: Float, cluster_E: Int, *, num_samples: int, seed: int, salt: int = 0) -> Resampled:
    """Draws users and runs.

    Args:
        value_REM: Values, `[E, M]` or `[R, E, M]`.
        cluster_E: The user of each example.
        num_samples: S.
        seed: Of the users' draws: equal seeds give equal users, which makes two recommenders comparable.
        salt: Of the runs' draws: different for each recommender.
    """
    value_REM = value_REM[None] if value_REM.ndim == 2 else value_REM
    known = ~np.isnan(value_REM)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean_M = np.nansum(value_REM, axis=(0, 1)) / known.sum(axis=(0, 1))
    return Resampled(
        mean_M=mean_M, mean_SM=resampled_means(value_REM, cluster_E, num_samples=num_samples, seed=seed, salt=salt)
    )


def resampled_means(value_REM: Float, cluster_E: Int, *, num_samples: int, seed: int, salt: int = 0) -> Float:
    """Means of every metric in every bootstrap sample, `[S, M]`; NaN where a sample drew no value."""
    value_REM = value_REM[None] if value_REM.ndim == 2 else value_REM
    num_runs = len(value_REM)
    _, dense_E = np.unique(cluster_E, return_inverse=True)
    num_clusters = int(dense_E.max(initial=-1)) + 1
    if num_clusters == 0:
        return np.full((num_samples, value_REM.shape[2]), np.nan)
    tables = [_cluster_sums(value_EM, dense_E, num_clusters) for value_EM in value_REM]
    weight_SR = cluster_counts(num_runs, num_samples, seed + 7919 * (salt + 1))
    chunk = max(1, CHUNK_CELLS // num_clusters)
    means = []
    for number, start in enumerate(range(0, num_samples, chunk)):
        count_SC = cluster_counts(num_clusters, min(chunk, num_samples - start), seed + 1_000_003 * number)
        drawn_SR = weight_SR[start : start + len(count_SC)]
        total = sum(drawn_SR[:, run, None] * (count_SC @ sums) for run, (sums, _) in enumerate(tables))
        size = sum(drawn_SR[:, run, None] * (count_SC @ sizes) for run, (_, sizes) in enumerate(tables))
        with np.errstate(invalid="ignore", divide="ignore"):
            means.append(np.asarray(total) / np.asarray(size))
    return np.concatenate(means)


def intervals(
    value_REM: Float, cluster_E: Int, *, num_samples: int, seed: int, confidence: float = 0.95
) -> list[Interval]:
    """Mean and percentile interval of every column."""
    return resample(value_REM, cluster_E, num_samples=num_samples, seed=seed).intervals(confidence)


def paired_tests(
    ours_REM: Float, theirs_REM: Float, cluster_E: Int, *, num_samples: int, seed: int, confidence: float = 0.95
) -> list[PairedTest]:
    """Paired bootstrap of `ours - theirs` on the same examples (Efron and Tibshirani 1993; Koehn, EMNLP 2004).

    Raises:
        ValueError: the two sides differ in examples or metrics.
    """
    if ours_REM.shape[-2:] != theirs_REM.shape[-2:]:
        raise ValueError(f"paired values need one shape, not {ours_REM.shape} and {theirs_REM.shape}")
    ours, theirs = (
        resample(value_REM, cluster_E, num_samples=num_samples, seed=seed, salt=salt)
        for salt, value_REM in enumerate((ours_REM, theirs_REM))
    )
    difference = ours.minus(theirs)
    return [
        PairedTest(interval, p_value)
        for interval, p_value in zip(difference.intervals(confidence), difference.p_values(), strict=True)
    ]


def _cluster_sums(value_EM: Float, dense_E: Int, num_clusters: int) -> tuple[Float, Float]:
    """Sums and numbers of the known values of every cluster, `[C, M]` each."""
    is_known_EM = ~np.isnan(value_EM)
    tables = [
        np.stack([np.bincount(dense_E, column, num_clusters).astype(np.float64) for column in table_EM.T], axis=1)
        for table_EM in (np.nan_to_num(value_EM), is_known_EM.astype(np.float64))
    ]
    return tables[0], tables[1]


def _ratio(top: Float, bottom: Float) -> Float:
    return np.divide(top, bottom, out=np.full_like(top, np.nan), where=bottom > 0)


def _p_value(mean_S: Float) -> float:
    if len(mean_S) == 0:
        return float("nan")
    tail = min(int((mean_S <= 0).sum()), int((mean_S >= 0).sum()))
    return min(1.0, 2.0 * (tail + 1) / (len(mean_S) + 1))


def _interval(mean: float, mean_S: Float, confidence: float) -> Interval:
    known_S = mean_S[~np.isnan(mean_S)]
    if np.isnan(mean) or len(known_S) == 0:
        return Interval(float("nan"), float("nan"), float("nan"))
    tail = (1.0 - confidence) / 2
    low, high = np.quantile(known_S, [tail, 1.0 - tail])
    return Interval(float(mean), float(low), float(high))
