"""The report says what the numbers say, whoever is ahead."""

import json
from dataclasses import dataclass

import numpy as np
import pytest

from model_export.data.examples import Examples
from model_export.data.prepared import PreparedData
from model_export.evaluate.baselines.popularity import Popularity
from model_export.evaluate.buckets import buckets
from model_export.evaluate.config import EvaluateConfig
from model_export.evaluate.evaluation import evaluate
from model_export.evaluate.recommender import Items
from model_export.evaluate.report import Report
from model_export.evaluate.sequences import first_targets

CONFIG = EvaluateConfig(ks=(1, 3), headline_k=3, num_bootstrap_samples=200)


@dataclass
class Fixed:
    """Puts the true next item first for a share of the examples, and item 0 otherwise."""

    name: str
    prepared: PreparedData
    share: float
    broken: int | None = None

    def rank(self, examples: Examples, k: int) -> Items:
        target_E = first_targets(self.prepared, examples)
        is_right_E = (examples.segment % 10) < 10 * self.share
        rows = np.full((len(examples), k), -1, dtype=np.int32)
        rows[:, 0] = np.where(is_right_E, target_E, 12)
        if self.broken is not None and k > 1:
            rows[:, 1] = self.broken
        return rows

    def slates(self, examples: Examples, k: int) -> Items:
        return self.rank(examples, k)


def verdicts(report: Report) -> set[str]:
    """On accuracy alone."""
    return {row.verdict for row in report.splits[0].comparisons if row.metric.startswith(("recall", "ndcg"))}


@pytest.mark.parametrize(
    ("ours", "theirs", "expected", "words"),
    [
        (0.9, 0.2, "ahead", "generator beats rival on item recall@3"),
        (0.2, 0.9, "behind", "generator is behind rival on item recall@3"),
        (
            0.5,
            0.5,
            "no significant difference",
            "generator shows no significant difference from rival on item recall@3",
        ),
    ],
)
def test_verdicts_follow_the_numbers_both_ways(cycle, tmp_path, ours, theirs, expected, words):
    recommenders = [Fixed("rival", cycle, theirs), Fixed("generator", cycle, ours)]
    report = evaluate(CONFIG, cycle, recommenders, tmp_path)
    assert report.subject == "generator"
    assert verdicts(report) == {expected}
    (text,) = [line for line in (tmp_path / "report.md").read_text().splitlines() if line.startswith("- generator")]
    assert words in text
    others = {"beats", "is behind", "no significant difference"} - {word for word in words.split(" rival")[:1] if word}
    assert sum(word in text for word in others if word not in words) == 0


def test_figures_are_those_of_the_lists(cycle, tmp_path):
    report = evaluate(CONFIG, cycle, [Fixed("a", cycle, 0.5), Popularity(cycle)], tmp_path)
    (split,) = report.splits
    first = split.recommenders[0]
    assert split.num_examples == split.num_slate_examples == 60
    assert first.item["recall@1"].mean == first.item["ndcg@3"].mean == first.slate["hit"].mean == pytest.approx(0.5)
    assert first.item["recall@1"].low < 0.5 < first.item["recall@1"].high
    assert first.slate["fill"].mean == pytest.approx(0.5)
    assert first.slate["legality"].mean == 1.0
    assert first.item_s >= 0
    by_length = [row for row in first.buckets if row.kind == "history length"]
    assert [(row.label, row.num_examples) for row in by_length] == [("6-10", 60)]
    assert report.data.num_train_events == int(cycle.train_events().sum())


def test_illegal_lists_are_reported_not_hidden(make_prepared, tmp_path):
    prepared = make_prepared([[*range(s, s + 5), 12, 11, 10] for s in range(5)] * 4, 13, repeat_policy="exclude")
    outside = Fixed("outside", prepared, 1.0, broken=99)
    repeated = Fixed("repeated", prepared, 1.0, broken=10)  # the target itself a second time
    in_history = Fixed("in-history", prepared, 1.0, broken=12)
    report = evaluate(CONFIG, prepared, [outside, repeated, in_history], tmp_path)
    found = {one.name: one.slate for one in report.splits[0].recommenders}
    assert found["outside"]["legality"].mean == 0.5
    assert found["in-history"]["legality"].mean == 0.5
    assert found["repeated"]["legality"].mean == 1.0
    assert found["repeated"]["duplicates"].mean == 0.5
    assert found["repeated"]["recall"].mean == 1.0


def test_report_round_trips_and_is_the_same_for_one_seed(cycle, tmp_path):
    recommenders = [Fixed("generator", cycle, 0.4), Popularity(cycle)]
    first = evaluate(CONFIG, cycle, recommenders, tmp_path / "a")
    second = evaluate(CONFIG, cycle, recommenders, tmp_path / "b")
    loaded = Report.load(tmp_path / "a")
    assert (
        loaded.model_dump_json() == first.model_dump_json() == Report.load(tmp_path / "a/report.json").model_dump_json()
    )
    timeless = [json.loads(one.model_dump_json()) for one in (first, second)]
    for one in timeless:
        for row in one["splits"][0]["recommenders"]:
            del row["item_s"], row["slate_s"]
    assert timeless[0] == timeless[1]
    plots = sorted(path.name for path in (tmp_path / "a").glob("*.png"))
    assert plots == ["test-accuracy.png", "test-coverage-and-ndcg.png", "test-history-length.png"]
    for name in plots:
        assert (tmp_path / "a" / name).read_bytes().startswith(b"\x89PNG")
        assert f"({name})" in (tmp_path / "a/report.md").read_text()


def test_json_is_strict_and_undefined_figures_are_null(cycle, tmp_path):
    class Empty(Fixed):
        def rank(self, examples: Examples, k: int) -> Items:
            return np.full((len(examples), k), -1, dtype=np.int32)

    evaluate(CONFIG, cycle, [Empty("empty", cycle, 0.0)], tmp_path)
    content = json.loads((tmp_path / "report.json").read_text(), parse_constant=pytest.fail)
    assert content["splits"][0]["recommenders"][0]["slate"]["novelty"]["mean"] is None
    assert "nan" not in (tmp_path / "report.md").read_text()
    assert np.isnan(Report.load(tmp_path).splits[0].recommenders[0].catalog["gini"])


def test_sampling_is_seeded_and_both_splits_are_reported(cycle, tmp_path):
    seen: list[tuple[int, ...]] = []

    class Spy(Fixed):
        def slates(self, examples: Examples, k: int) -> Items:
            seen.append(tuple(examples.target_start))
            return super().slates(examples, k)

    for seed, splits in ((0, ("valid", "test")), (0, ("test",)), (1, ("test",))):
        config = EvaluateConfig(splits=splits, max_slate_examples=7, max_item_examples=9, seed=seed,
                                num_bootstrap_samples=10)  # fmt: skip
        report = evaluate(config, cycle, [Spy("spy", cycle, 0.5)], tmp_path)
        assert [(split.split, split.num_examples, split.num_slate_examples) for split in report.splits] == [
            (split, 9, 7) for split in splits
        ]
    assert seen[1] == seen[2]
    assert seen[1] != seen[3]


def test_diversity_uses_embeddings_and_tags_of_the_items(make_prepared, tmp_path):
    prepared = make_prepared(
        [[0, 1, 2, 0, 1], [1, 2, 0, 1, 0]], 3, tags=[["a"], ["a"], ["b"]], embeddings=[[1.0, 0.0], [1.0, 0.0], None]
    )
    report = evaluate(CONFIG, prepared, [Popularity(prepared)], tmp_path)
    slate = report.splits[0].recommenders[0].slate
    assert set(slate) >= {"diversity_embedding", "diversity_tags"}
    given = evaluate(
        CONFIG, prepared, [Popularity(prepared)], tmp_path, embedding_ND=np.array([[1, 0], [-1, 0], [-1, 0]])
    )
    (top,) = {tuple(row) for row in Popularity(prepared).slates(prepared.examples("test"), 2).tolist()}
    assert given.splits[0].recommenders[0].slate["diversity_embedding"].mean == (2.0 if 0 in top else 0.0)


def test_buckets_part_the_examples():
    found = buckets(np.array([0, 1, 2, 5, 10, 500]), np.array([0, 0, 4, 5, 19, 100]))
    for kind in ("history length", "target popularity"):
        assert (sum(bucket.member_E.astype(int) for bucket in found if bucket.kind == kind) == 1).all()
    labels = {bucket.label: bucket.member_E.tolist() for bucket in found}
    assert labels["unseen"] == [True, True, False, False, False, False]
    assert labels["5-19"] == [False, False, False, True, True, False]
    assert labels["51+"] == [False, False, False, False, False, True]


def test_callers_mistakes_are_named(cycle, tmp_path):
    one = Fixed("one", cycle, 0.5)
    with pytest.raises(ValueError, match="different names"):
        evaluate(CONFIG, cycle, [one, one], tmp_path)
    with pytest.raises(ValueError, match="none given"):
        evaluate(CONFIG, cycle, [], tmp_path)
    with pytest.raises(ValueError, match="subject 'two'"):
        evaluate(CONFIG, cycle, [one], tmp_path, subject="two")

    class Short(Fixed):
        def rank(self, examples: Examples, k: int) -> Items:
            return super().rank(examples, k)[:, :1]

    with pytest.raises(ValueError, match=r"short returned lists of shape \(60, 1\), asked for \(60, 3\)"):
        evaluate(CONFIG, cycle, [Short("short", cycle, 0.5)], tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"splits": ("train",)}, "splits"),
        ({"splits": ()}, "splits"),
        ({"ks": (10, 5)}, "ks"),
        ({"headline_k": 7}, "headline_k"),
        ({"max_slate_examples": 0}, "max_slate_examples"),
        ({"num_bootstrap_samples": 0}, "num_bootstrap_samples"),
        ({"confidence": 1.0}, "confidence"),
    ],
)
def test_settings_are_checked(options, message):
    with pytest.raises(ValueError, match=message):
        EvaluateConfig(**options)


def test_a_file_that_is_no_report_is_refused_in_one_line(tmp_path):
    with pytest.raises(ValueError, match="no such report"):
        Report.load(tmp_path)
    (tmp_path / "report.json").write_text("{}")
    with pytest.raises(ValueError, match="not a report of evaluate") as caught:
        Report.load(tmp_path)
    assert "\n" not in str(caught.value)
