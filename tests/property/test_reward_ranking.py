"""Ranking, calibration and bootstrap against brute force."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from model_export.reward.calibration import calibration_error, fit_platt, log_loss, reliability
from model_export.reward.ranking import Ranking, Resamples

Impressions = st.lists(
    st.tuples(st.integers(0, 6), st.sampled_from([0.0, 0.25, 1.0]), st.integers(0, 3)), min_size=1, max_size=30
)


def pairs_auc(chances: list[float], signals: list[float], weights: list[float]) -> float:
    won = total = 0.0
    for chance, signal, weight in zip(chances, signals, weights, strict=True):
        for other, other_signal, other_weight in zip(chances, signals, weights, strict=True):
            pair = weight * signal * other_weight * (1 - other_signal)
            total += pair
            won += pair * (1.0 if chance > other else 0.5 if chance == other else 0.0)
    return won / total if total > 0 else float("nan")


@given(Impressions)
def test_auc_is_the_share_of_pairs_in_order(rows: list[tuple[int, float, int]]) -> None:
    chances, signals, weights = (list(column) for column in zip(*rows, strict=True))
    found = Ranking(np.array(chances, float), np.array(signals)).auc(np.array(weights, float))
    np.testing.assert_allclose(found, pairs_auc(chances, signals, weights), rtol=1e-9)  # type: ignore[arg-type]


def test_auc_is_that_of_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    chance, signal = np.round(rng.random(500), 2), (rng.random(500) < 0.3).astype(float)
    assert np.isclose(Ranking(chance, signal).auc(), roc_auc_score(signal, chance))


@settings(max_examples=20)
@given(Impressions, st.integers(0, 5))
def test_two_models_see_the_same_users_in_each_sample(rows: list[tuple[int, float, int]], seed: int) -> None:
    """A model against itself differs by nothing, in every sample; so does one whose order is the same."""
    chances, signals, users = (np.array(column, float) for column in zip(*rows, strict=True))
    resamples = Resamples(users.astype(np.int64), 20, seed)
    mine = resamples.aucs([Ranking(chances, signals)])
    assert len(mine) == 20
    np.testing.assert_array_equal(mine, resamples.aucs([Ranking(2 * chances + 1, signals)]))


def test_users_are_drawn_whole() -> None:
    """With one user every sample is the data themselves; with many the samples differ."""
    rng = np.random.default_rng(1)
    chance, signal = rng.random(60), (rng.random(60) < 0.5).astype(float)
    ranking = Ranking(chance, signal)
    np.testing.assert_allclose(Resamples(np.zeros(60, np.int64), 10, 0).aucs([ranking]), ranking.auc())
    spread = Resamples(np.arange(60) // 3, 200, 0).aucs([ranking])
    assert spread.std() > 0.02
    assert abs(spread.mean() - ranking.auc()) < 0.03


@settings(max_examples=20)
@given(st.floats(0.2, 5.0), st.floats(-3.0, 3.0), st.integers(0, 100))
def test_platt_finds_the_scale_and_shift_that_made_the_signals(scale: float, shift: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    logit = rng.normal(size=20_000)
    truth = scale * logit + shift
    signal = (rng.random(20_000) < 1 / (1 + np.exp(-truth))).astype(float)
    found_scale, found_shift = fit_platt(logit, signal)
    fitted = 1 / (1 + np.exp(-(found_scale * logit + found_shift)))
    before = 1 / (1 + np.exp(-logit))
    assert abs(np.log(found_scale / scale)) < 0.35
    assert log_loss(fitted, signal) <= log_loss(before, signal) + 1e-6
    assert calibration_error(fitted, signal) < 0.02


def test_too_little_to_calibrate_changes_nothing() -> None:
    assert fit_platt(np.linspace(-1, 1, 50), (np.arange(50) < 3).astype(float)) == (1.0, 0.0)
    assert fit_platt(np.zeros(0), np.zeros(0)) == (1.0, 0.0)


def test_reliability_bins_hold_everything_once_in_order() -> None:
    rng = np.random.default_rng(2)
    chance, signal = rng.random(101), (rng.random(101) < 0.5).astype(float)
    bins = reliability(chance, signal, 15)
    assert bins.count_Q.sum() == 101
    assert bins.count_Q.max() - bins.count_Q.min() <= 1
    assert (np.diff(bins.chance_Q) > 0).all()
    assert np.isclose((bins.rate_Q * bins.count_Q).sum(), signal.sum())
    assert calibration_error(np.full(100, 0.5), np.zeros(100)) == 0.5
