"""How well chances rank: the area under the ROC curve, and intervals of it by resampling users and runs.

Shapes: F impressions, R runs (seeds), U users, S bootstrap samples.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Float = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]


class Interval(NamedTuple):
    """A value with its 95 % percentile interval; NaN where there is none."""

    mean: float
    low: float
    high: float


class Ranking:
    """Impressions sorted by one model's chances once, so that every resample costs three sums.

    A signal that is a share counts as that much of a positive and the rest of a negative.
    """

    def __init__(self, chance_F: Float, signal_F: Float) -> None:
        _, self._group_F = np.unique(chance_F, return_inverse=True)
        self._num_groups = int(self._group_F.max(initial=-1)) + 1
        self._signal_F = signal_F

    def auc(self, weight_F: Float | None = None) -> float:
        """Chance that a positive ranks above a negative, ties counting half; NaN where there is only one kind."""
        weight_F = np.ones_like(self._signal_F) if weight_F is None else weight_F
        positive = np.bincount(self._group_F, weight_F * self._signal_F, self._num_groups)
        negative = np.bincount(self._group_F, weight_F * (1 - self._signal_F), self._num_groups)
        pairs = float(positive.sum() * negative.sum())
        if pairs <= 0:
            return float("nan")
        return float((positive * (np.cumsum(negative) - negative / 2)).sum() / pairs)


class Resamples:
    """The same bootstrap samples for every model: users are drawn with replacement, and runs independently of them.

    Run i of every model has the same seed, and may start from run i of another: they are drawn together.
    """

    def __init__(self, user_F: Int64, num_samples: int, seed: int) -> None:
        _, self._user_F = np.unique(user_F, return_inverse=True)
        self._num_users = int(self._user_F.max(initial=-1)) + 1
        self._num_samples = num_samples
        self._seed = seed

    def aucs(self, rankings: Sequence[Ranking]) -> Float:
        """AUC in every sample [S]: mean over the runs drawn."""
        users = np.random.default_rng(self._seed)
        runs = np.random.default_rng([self._seed, 1])
        found = np.empty(self._num_samples)
        for sample in range(self._num_samples):
            drawn = users.integers(self._num_users, size=self._num_users)
            weight_F = np.bincount(drawn, minlength=self._num_users)[self._user_F].astype(float)
            count_R = np.bincount(runs.integers(len(rankings), size=len(rankings)), minlength=len(rankings))
            aucs = [count * ranking.auc(weight_F) for ranking, count in zip(rankings, count_R, strict=True) if count]
            found[sample] = sum(aucs) / len(rankings)
        return found


def interval(mean: float, sample_S: Float) -> Interval:
    """The interval of a value, from its resamples."""
    known_S = sample_S[~np.isnan(sample_S)]
    if len(known_S) == 0:
        return Interval(mean, float("nan"), float("nan"))
    low, high = np.quantile(known_S, [0.025, 0.975])
    return Interval(mean, float(low), float(high))
