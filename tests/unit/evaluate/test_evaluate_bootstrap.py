"""Intervals and paired tests: coverage, agreement with scipy, determinism, clusters, missing values."""

import numpy as np
import pytest
import scipy.stats

from model_export.evaluate import bootstrap
from model_export.evaluate.bootstrap import cluster_counts, intervals, paired_tests, resampled_means


def test_interval_agrees_with_scipy():
    value_E = np.random.default_rng(0).exponential(size=300)
    (found,) = intervals(value_E[:, None], np.arange(300), num_samples=4000, seed=1)
    expected = scipy.stats.bootstrap(
        (value_E,), np.mean, n_resamples=4000, method="percentile", rng=np.random.default_rng(2)
    ).confidence_interval
    assert found.mean == pytest.approx(value_E.mean())
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=0.01)


def test_interval_covers_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(5)
    covered = 0
    for _ in range(200):
        (found,) = intervals(rng.normal(size=(60, 1)), np.arange(60), num_samples=300, seed=7, confidence=0.9)
        covered += found.low <= 0 <= found.high
    assert 0.82 <= covered / 200 <= 0.97


def test_examples_of_one_user_widen_the_interval():
    value_E = np.repeat(np.random.default_rng(0).normal(size=30), 20)
    alone, together = (
        intervals(value_E[:, None], cluster_E, num_samples=500, seed=0)[0]
        for cluster_E in (np.arange(600), np.repeat(np.arange(30), 20))
    )
    assert together.high - together.low > 3 * (alone.high - alone.low)


def test_resampled_means_equal_a_loop_and_skip_missing_values(monkeypatch):
    rng = np.random.default_rng(0)
    value_EM = rng.normal(size=(40, 3))
    value_EM[rng.random((40, 3)) < 0.3] = np.nan
    cluster_E = rng.integers(0, 9, size=40) * 10
    found = resampled_means(value_EM, cluster_E, num_samples=20, seed=4)
    count_SC = cluster_counts(9, 20, 4)
    assert (count_SC.sum(axis=1) == 9).all()
    clusters = np.unique(cluster_E)
    for sample in range(20):
        rows = np.concatenate(
            [np.flatnonzero(cluster_E == c) for c in np.repeat(clusters, count_SC[sample].astype(int))]
        )
        assert found[sample] == pytest.approx(np.nanmean(value_EM[rows], axis=0))
    monkeypatch.setattr(bootstrap, "CHUNK_CELLS", 50)
    assert resampled_means(value_EM, cluster_E, num_samples=20, seed=4).shape == (20, 3)


def test_one_seed_gives_one_interval_and_another_gives_another():
    value_EM = np.random.default_rng(0).normal(size=(50, 1))
    first, again, other = (intervals(value_EM, np.arange(50), num_samples=100, seed=seed) for seed in (1, 1, 2))
    assert first == again
    assert first != other


def test_paired_test_finds_a_small_steady_difference_that_unpaired_intervals_hide():
    rng = np.random.default_rng(0)
    theirs = rng.normal(size=(400, 1))
    ours = theirs + 0.05 + 0.1 * rng.normal(size=(400, 1))
    (test,) = paired_tests(ours, theirs, np.arange(400), num_samples=1000, seed=0)
    assert test.difference.low > 0
    assert test.p_value < 0.01
    (mine,), (their,) = (intervals(value, np.arange(400), num_samples=1000, seed=0) for value in (ours, theirs))
    assert mine.low < their.high


def test_paired_test_is_antisymmetric_and_calm_about_no_difference():
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=(200, 1)), rng.normal(size=(200, 1))
    (forward,), (back,) = (paired_tests(x, y, np.arange(200), num_samples=500, seed=0) for x, y in ((a, b), (b, a)))
    assert forward.difference.mean == pytest.approx(-back.difference.mean)
    assert forward.p_value == back.p_value
    (same,) = paired_tests(a, a, np.arange(200), num_samples=500, seed=0)
    assert same == ((0, 0, 0), 1.0)
    with pytest.raises(ValueError, match="one shape"):
        paired_tests(a, b[:10], np.arange(200), num_samples=5, seed=0)


def test_nothing_known_is_nan():
    (found,) = intervals(np.full((5, 1), np.nan), np.arange(5), num_samples=10, seed=0)
    assert np.isnan(found).all()
    assert np.isnan(intervals(np.zeros((0, 1)), np.zeros(0, int), num_samples=10, seed=0)[0]).all()
