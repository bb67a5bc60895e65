"""Several seeds of a recommender as one row; what slates are worth; gains and the gap to the oracle."""

from dataclasses import dataclass

import numpy as np
import pytest

from model_export.data.examples import Examples
from model_export.data.prepared import PreparedData
from model_export.evaluate.bootstrap import cluster_counts, resample, resampled_means
from model_export.evaluate.config import EvaluateConfig
from model_export.evaluate.evaluation import evaluate
from model_export.evaluate.recommender import Items, Seeds
from model_export.evaluate.recorded import RecordedLists
from model_export.evaluate.samples import draw_samples

CONFIG = EvaluateConfig(ks=(1, 3), headline_k=3, num_bootstrap_samples=300)


@dataclass
class Same:
    """The same list for everyone."""

    name: str
    items: tuple[int, ...]

    def rank(self, examples: Examples, k: int) -> Items:
        return np.tile(np.array((self.items * k)[:k], dtype=np.int32), (len(examples), 1))

    def slates(self, examples: Examples, k: int) -> Items:
        return self.rank(examples, k)


@dataclass
class Worth:
    """An item is worth its number over ten, for the users of even segments twice as much."""

    def score(self, examples: Examples, item_BWK: Items) -> np.ndarray:
        worth_BW = np.where(item_BWK >= 0, item_BWK, 0).sum(axis=2) / 10
        return (worth_BW * np.where(examples.segment % 2 == 0, 2, 1)[:, None]).astype(np.float32)


def test_runs_are_drawn_like_users_and_apart_from_them():
    rng = np.random.default_rng(0)
    value_REM, cluster_E = rng.normal(size=(3, 40, 2)), rng.integers(0, 9, size=40)
    found = resampled_means(value_REM, cluster_E, num_samples=15, seed=4, salt=2)
    user_SC, run_SR = cluster_counts(9, 15, 4), cluster_counts(3, 15, 4 + 7919 * 3)
    for sample in range(15):
        runs = np.repeat(np.arange(3), run_SR[sample].astype(int))
        rows = np.concatenate(
            [np.flatnonzero(cluster_E == user) for user in np.repeat(np.arange(9), user_SC[sample].astype(int))]
        )
        assert found[sample] == pytest.approx(value_REM[runs][:, rows].mean(axis=(0, 1)))


def test_seeds_that_disagree_widen_the_interval_and_seeds_that_agree_do_not():
    user_E = np.arange(500)
    base_E1 = np.random.default_rng(0).normal(size=(500, 1))
    alone, agreeing, apart = (
        resample(np.stack([base_E1 + shift for shift in shifts]), user_E, num_samples=800, seed=1).intervals(0.95)[0]
        for shifts in ([0.0], [0.0, 0.0, 0.0], [-1.0, 0.0, 1.0])
    )
    assert agreeing == pytest.approx(alone)
    assert apart.mean == pytest.approx(alone.mean)
    # Means of three draws out of -1, 0, 1 have a standard deviation of sqrt(2/9): 1.96 of it on either side.
    assert apart.high - apart.low == pytest.approx(2 * 1.96 * np.sqrt(2 / 9), rel=0.25)


def test_a_row_of_seeds_is_the_mean_of_its_runs(cycle, tmp_path):
    runs = [Same("a", (0, 1, 2)), Same("b", (3, 4, 5)), Same("c", (12, 12, 12))]
    alone = evaluate(CONFIG, cycle, runs, tmp_path / "alone").splits[0].recommenders
    report = evaluate(CONFIG, cycle, [Seeds("many", tuple(runs)), Same("one", (0, 1, 2))], tmp_path / "many")
    many, one = report.splits[0].recommenders
    assert (many.num_seeds, one.num_seeds, one.seed_std) == (3, 1, {})
    for level in ("item", "slate"):
        for metric, estimate in getattr(many, level).items():
            means = [getattr(row, level)[metric].mean for row in alone]
            if np.isnan(means).any():
                continue
            assert estimate.mean == pytest.approx(np.mean(means)), metric
            assert many.seed_std[level][metric] == pytest.approx(np.std(means, ddof=1)), metric
    assert many.catalog["coverage"] == pytest.approx(np.mean([row.catalog["coverage"] for row in alone]))
    text = (tmp_path / "many" / "report.md").read_text()
    assert f"± {many.seed_std['item']['recall@3']:.4f}" in text
    assert "crossed bootstrap" in text
    assert "crossed bootstrap" not in (tmp_path / "alone" / "report.md").read_text()
    with pytest.raises(ValueError, match="without a run"):
        Seeds("none", ())


def test_true_reward_and_the_gap_to_the_oracle(cycle, tmp_path):
    poor, good, best = Same("poor", (1, 2)), Same("good", (3, 6)), Same("oracle", (12, 11))
    report = evaluate(CONFIG, cycle, [poor, good], tmp_path, subject="good", slate_value=Worth(), oracle=best)
    rows = {row.name: row.slate["true_reward"] for row in report.splits[0].recommenders}
    users = np.where(cycle.examples("test").segment % 2 == 0, 2, 1).mean()
    assert [rows[name].mean for name in ("poor", "good", "oracle")] == pytest.approx(
        [0.3 * users, 0.9 * users, 2.3 * users], rel=1e-5
    )
    against = {row.other: row for row in report.splits[0].comparisons if row.metric == "true_reward"}
    # Gain and share do not depend on who is drawn, so their intervals are points.
    gain, share = against["poor"].relative_gain, against["poor"].share_of_oracle_gap
    assert [gain.mean, gain.low, gain.high] == pytest.approx([2.0] * 3, rel=1e-4)
    assert [share.mean, share.low, share.high] == pytest.approx([0.6 / 2.0] * 3, rel=1e-4)
    assert against["poor"].verdict == "ahead"
    assert against["oracle"].verdict == "behind"
    assert against["oracle"].share_of_oracle_gap is None
    assert "+200.0 [+200.0, +200.0]" in (tmp_path / "report.md").read_text()


def test_a_reward_that_is_no_number_is_refused(cycle, tmp_path):
    class Broken(Worth):
        def score(self, examples: Examples, item_BWK: Items) -> np.ndarray:
            return super().score(examples, item_BWK) * np.nan

    with pytest.raises(ValueError, match="not finite"):
        evaluate(CONFIG, cycle, [Same("one", (1, 2))], tmp_path, slate_value=Broken())
    with pytest.raises(ValueError, match="oracle needs slate_value"):
        evaluate(CONFIG, cycle, [Same("one", (1, 2))], tmp_path, oracle=Same("oracle", (1, 2)))


def test_unseen_targets_are_compared_apart(make_prepared, tmp_path):
    # Segments of users whose test target 9 never occurs before; the others' is 0.
    prepared: PreparedData = make_prepared([[0, 1, 2, 0, 1, 9 if user % 3 == 0 else 0] for user in range(30)], 10)
    report = evaluate(CONFIG, prepared, [Same("new", (9, 1)), Same("old", (0, 1))], tmp_path, subject="new")
    found = {(row.only, row.metric): row for row in report.splits[0].comparisons if row.level == "item"}
    assert found["unseen", "recall@3"].difference.mean == 1.0
    assert found["unseen", "recall@3"].verdict == "ahead"
    assert found["all", "recall@3"].difference.mean == pytest.approx(10 / 30 - 20 / 30)
    (row,) = [row for row in report.splits[0].recommenders[0].buckets if row.label == "unseen"]
    assert (row.num_examples, row.recall.mean) == (10, 1.0)
    assert "| old | item, unseen targets | recall@3 |" in (tmp_path / "report.md").read_text()


def test_recorded_lists_are_given_again_and_no_others(cycle, tmp_path):
    rng = np.random.default_rng(0)

    class Random(Same):
        def rank(self, examples: Examples, k: int) -> Items:
            return rng.integers(0, 13, size=(len(examples), k)).astype(np.int32)

    config = EvaluateConfig(ks=(1, 3), headline_k=3, max_slate_examples=20, num_bootstrap_samples=50)
    samples = draw_samples(config, cycle, "test")
    made = RecordedLists.record(Random("random", ()), samples, num_ranked=5, slate_size=2)
    made.save(tmp_path / "lists.npz")
    lists = RecordedLists.load(tmp_path / "lists.npz")
    assert (lists.name, lists.seconds) == ("random", made.seconds)
    examples = samples["item"].examples
    order = rng.permutation(len(examples))
    assert (lists.rank(examples[order], 3) == made.rank(examples, 5)[order, :3]).all()
    report = evaluate(config, cycle, [lists], tmp_path)
    assert report.splits[0].recommenders[0].item_s == made.seconds["item"]
    for refused in (
        lambda: lists.rank(examples, 6),
        lambda: lists.slates(examples, 2),
        lambda: lists.rank(cycle.examples("valid"), 3),
    ):
        with pytest.raises(ValueError, match="were not recorded"):
            refused()
    (tmp_path / "lists.npz").write_bytes((tmp_path / "lists.npz").read_bytes()[:200])
    with pytest.raises(ValueError, match="not recorded lists"):
        RecordedLists.load(tmp_path / "lists.npz")
