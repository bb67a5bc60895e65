"""The stage `evaluate`: every recommender on the same examples, item level and slate level.

Shapes: E examples, K length of a list, M metrics, N items, D embedding width.
"""

import dataclasses
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from model_export.data import Examples, PreparedData
from model_export.evaluate import panel
from model_export.evaluate.bootstrap import intervals, paired_tests
from model_export.evaluate.buckets import Bucket, buckets
from model_export.evaluate.config import EvaluateConfig
from model_export.evaluate.markdown import render
from model_export.evaluate.metrics import Float, item_metrics, slate_metrics
from model_export.evaluate.plots import plot
from model_export.evaluate.recommender import Items, Recommender
from model_export.evaluate.report import (
    BucketRow,
    Comparison,
    DataReport,
    Estimate,
    Level,
    RecommenderReport,
    Report,
    SplitReport,
    Verdict,
)
from model_export.evaluate.sequences import (
    Int,
    available,
    excluded_pairs,
    first_targets,
    train_counts,
)

SUBJECT = "generator"
Values = dict[str, Float]
Progress = Callable[[str], None]


def evaluate(
    config: EvaluateConfig,
    prepared: PreparedData,
    recommenders: Sequence[Recommender],
    out_dir: str | Path,
    *,
    subject: str | None = None,
    embedding_ND: npt.NDArray[np.floating] | None = None,
    progress: Progress = lambda _message: None,
) -> Report:
    """Measure `recommenders` and write `report.json`, `report.md` and plots into `out_dir`.

    `subject`: whom the verdicts are about; by default the one called `generator`, else the first. `embedding_ND`: item
    vectors for the diversity of slates; by default those of the items, if all of them bring one. `ValueError` for two
    recommenders of one name, an unknown subject, or a split without examples.
    """
    names = [recommender.name for recommender in recommenders]
    if not names or len(set(names)) < len(names):
        raise ValueError(
            f"recommenders need different names, and there must be one: {', '.join(names) or 'none given'}"
        )
    subject = subject or (SUBJECT if SUBJECT in names else names[0])
    if subject not in names:
        raise ValueError(f"subject {subject!r} is none of the recommenders {', '.join(names)}")
    bench = _Bench(config, prepared, _embeddings(prepared) if embedding_ND is None else embedding_ND)
    report = Report(
        subject=subject,
        config=dataclasses.asdict(config),
        data=_describe(prepared),
        splits=[bench.run(split, recommenders, subject, progress) for split in config.splits],
    )
    out_dir = Path(out_dir)
    report.save(out_dir)
    (out_dir / "report.md").write_text(render(report, plot(report, out_dir)), encoding="utf-8")
    return report


@dataclass(frozen=True)
class _Measured:
    """Metric values of one recommender, one per example and level, and its report."""

    values: dict[Level, Values]
    report: RecommenderReport


@dataclass(frozen=True)
class _Sample:
    """The examples of one level, and the user each belongs to."""

    examples: Examples
    user_E: Int


class _Bench:
    """What stays the same for all recommenders: samples, counts, tags."""

    def __init__(
        self, config: EvaluateConfig, prepared: PreparedData, embedding_ND: npt.NDArray[np.floating] | None
    ) -> None:
        self.config, self.prepared, self.embedding_ND = config, prepared, embedding_ND
        self.count_N = train_counts(prepared)
        self.available_N = available(prepared)
        tags_N = prepared.items["tags"].to_list()
        self.tag_NG = panel.tag_matrix([tags or [] for tags in tags_N]) if any(tags_N) else None
        self.user_E = prepared.user_id_E.rank("dense").to_numpy().astype(np.int64)

    def run(self, split: str, recommenders: Sequence[Recommender], subject: str, progress: Progress) -> SplitReport:
        """All recommenders on one split, and the subject against the others."""
        if len(self.prepared.examples(split)) == 0:
            raise ValueError(f"split {split!r} has no example to evaluate on")
        samples: dict[Level, _Sample] = {
            "item": self._sample(split, self.config.max_item_examples),
            "slate": self._sample(split, self.config.max_slate_examples),
        }
        measured = {}
        for recommender in recommenders:
            progress(f"evaluating {recommender.name} on {split}")
            measured[recommender.name] = self._measure(recommender, samples)
        ours = measured[subject]
        comparisons = [
            comparison
            for name, theirs in measured.items()
            if name != subject
            for level in samples
            for comparison in self._compare(
                name, level, ours.values[level], theirs.values[level], samples[level].user_E
            )
        ]
        return SplitReport(
            split=split,
            num_examples=len(samples["item"].examples),
            num_slate_examples=len(samples["slate"].examples),
            recommenders=[one.report for one in measured.values()],
            comparisons=comparisons,
        )

    def _sample(self, split: str, limit: int | None) -> _Sample:
        examples = self.prepared.examples(split)
        if limit is not None and limit < len(examples):
            drawn = np.random.default_rng(self.config.seed).choice(len(examples), limit, replace=False)
            examples = examples[np.sort(drawn)]
        return _Sample(examples, self.user_E[examples.target_start])

    def _measure(self, recommender: Recommender, samples: dict[Level, _Sample]) -> _Measured:
        item, slate = samples["item"], samples["slate"]
        slate_size = self.prepared.slate_size
        started_s = time.perf_counter()
        ranked_EK = _checked(
            recommender.rank(item.examples, max(self.config.ks)), item, max(self.config.ks), recommender
        )
        item_s = time.perf_counter() - started_s
        started_s = time.perf_counter()
        slate_EK = _checked(recommender.slates(slate.examples, slate_size), slate, slate_size, recommender)
        slate_s = time.perf_counter() - started_s
        target_E = first_targets(self.prepared, item.examples)
        item_values = item_metrics(ranked_EK, target_E, self.config.ks)
        slate_values = self._slate_values(slate_EK, slate.examples)
        length_E = item.examples.history_end - item.examples.history_start
        report = RecommenderReport(
            name=recommender.name,
            item=self._estimates(item_values, item.user_E),
            slate=self._estimates(slate_values, slate.user_E),
            catalog=self._catalog(slate_EK),
            buckets=[
                self._bucket_row(bucket, item_values, item.user_E)
                for bucket in buckets(length_E, self.count_N[target_E])
            ],
            item_s=item_s,
            slate_s=slate_s,
        )
        return _Measured({"item": item_values, "slate": slate_values}, report)

    def _slate_values(self, slate_EK: Items, examples: Examples) -> Values:
        inside_EK = np.where(self._is_item(slate_EK), slate_EK, -1)
        values = slate_metrics(inside_EK, self.prepared.target_items(examples))
        if self.embedding_ND is not None:
            values["diversity_embedding"] = panel.embedding_diversity(inside_EK, self.embedding_ND)
        if self.tag_NG is not None:
            values["diversity_tags"] = panel.tag_diversity(inside_EK, self.tag_NG)
        values["novelty"] = panel.novelty(inside_EK, self.count_N)
        values["popular_share"] = panel.popular_share(inside_EK, self.count_N)
        values["duplicates"] = panel.duplicates(slate_EK)
        values["legality"] = panel.legality(slate_EK, self.available_N, excluded_pairs(self.prepared, examples))
        values["fill"] = panel.fill(slate_EK)
        return values

    def _catalog(self, slate_EK: Items) -> dict[str, float]:
        inside_EK = np.where(self._is_item(slate_EK), slate_EK, -1)
        return {
            "coverage": panel.coverage(inside_EK, self.available_N),
            "gini": panel.gini(inside_EK, self.available_N),
        }

    def _is_item(self, items_EK: Items) -> npt.NDArray[np.bool_]:
        return (items_EK >= 0) & (items_EK < self.prepared.num_items)

    def _estimates(self, values: Values, user_E: Int) -> dict[str, Estimate]:
        found = intervals(
            np.stack(list(values.values()), axis=1),
            user_E,
            num_samples=self.config.num_bootstrap_samples,
            seed=self.config.seed,
            confidence=self.config.confidence,
        )
        return {name: Estimate.of(interval) for name, interval in zip(values, found, strict=True)}

    def _bucket_row(self, bucket: Bucket, values: Values, user_E: Int) -> BucketRow:
        member_E, k = bucket.member_E, self.config.headline_k
        chosen = {name: values[f"{name}@{k}"][member_E] for name in ("recall", "ndcg")}
        estimates = self._estimates(chosen, user_E[member_E])
        return BucketRow(kind=bucket.kind, label=bucket.label, num_examples=int(member_E.sum()), **estimates)

    def _compare(self, other: str, level: Level, ours: Values, theirs: Values, user_E: Int) -> list[Comparison]:
        k = self.config.headline_k
        metrics = [f"recall@{k}", f"ndcg@{k}"] if level == "item" else ["recall", "ndcg"]
        tests = paired_tests(
            np.stack([ours[metric] for metric in metrics], axis=1),
            np.stack([theirs[metric] for metric in metrics], axis=1),
            user_E,
            num_samples=self.config.num_bootstrap_samples,
            seed=self.config.seed,
            confidence=self.config.confidence,
        )
        return [
            Comparison(
                other=other,
                level=level,
                metric=metric,
                difference=Estimate.of(test.difference),
                p_value=test.p_value,
                verdict=verdict(test.difference.low, test.difference.high),
            )
            for metric, test in zip(metrics, tests, strict=True)
        ]


def verdict(low: float, high: float) -> Verdict:
    """What an interval of `subject - other` says: `ahead` above 0, `behind` below it, else neither."""
    if low > 0:
        return "ahead"
    return "behind" if high < 0 else "no significant difference"


def _checked(items_EK: Items, sample: _Sample, k: int, recommender: Recommender) -> Items:
    expected = (len(sample.examples), k)
    if items_EK.shape != expected:
        raise ValueError(f"{recommender.name} returned lists of shape {items_EK.shape}, asked for {expected}")
    return items_EK


def _embeddings(prepared: PreparedData) -> npt.NDArray[np.floating] | None:
    column = prepared.items["embedding"]
    if column.null_count() == len(column):
        return None
    width = int(column.list.len().drop_nulls()[0])
    rows = [row if row is not None else [0.0] * width for row in column.to_list()]
    return np.array(rows, dtype=np.float64)


def _describe(prepared: PreparedData) -> DataReport:
    return DataReport(
        format=str(prepared.meta["format"]),
        split=str(prepared.meta["split"]),
        target_kind=str(prepared.meta["target_kind"]),
        repeat_policy=str(prepared.meta["repeat_policy"]),
        slate_size=prepared.slate_size,
        num_items=prepared.num_items,
        num_train_events=int(prepared.train_events().sum()),
        data_sha256=str(prepared.meta["data_sha256"]),
    )
