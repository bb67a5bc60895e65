"""One recommender on one split: its lists, its values for every example, its row of the report.

Shapes: R runs (seeds), E examples, K length of a list, M metrics, N items, D embedding width.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from model_export.data.examples import Examples
from model_export.data.prepared import PreparedData
from model_export.evaluate import panel
from model_export.evaluate.bootstrap import Resampled, resample
from model_export.evaluate.buckets import Bucket, buckets
from model_export.evaluate.config import EvaluateConfig
from model_export.evaluate.metrics import Float, item_metrics, slate_metrics
from model_export.evaluate.recommender import Competitor, Items, Recommender, runs_of
from model_export.evaluate.recorded import RecordedLists
from model_export.evaluate.report import BucketRow, Estimate, Level, RecommenderReport
from model_export.evaluate.samples import Sample
from model_export.evaluate.sequences import Bool, Int, available, excluded_pairs, first_targets, train_counts
from model_export.reward.scorer import SlateScorer

TRUE_REWARD = "true_reward"
SCORED_AT_ONCE = 4096
Values = dict[str, Float]
"""Metric name to values `[R, E]`."""
Samples = dict[Level, Sample]


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One recommender: values of every example and level, and its row of the report."""

    values: dict[Level, Values]
    salt: int
    """Its place among the recommenders: its runs are drawn apart from the others'."""
    report: RecommenderReport


class Bench:
    """What stays the same for all recommenders: counts, tags, embeddings, the truth."""

    def __init__(
        self,
        config: EvaluateConfig,
        prepared: PreparedData,
        embedding_ND: npt.NDArray[np.floating] | None = None,
        slate_value: SlateScorer | None = None,
    ) -> None:
        self.config, self.prepared, self.embedding_ND, self.slate_value = config, prepared, embedding_ND, slate_value
        self.available_N = available(prepared)
        self.count_N = train_counts(prepared)
        tags_N = prepared.items["tags"].to_list()
        self.tag_NG = panel.tag_matrix([tags or [] for tags in tags_N]) if any(tags_N) else None

    def measure(self, competitor: Competitor, samples: Samples, salt: int) -> Measured:
        """Asks every run for its lists and measures them."""
        item, slate = samples["item"], samples["slate"]
        runs = runs_of(competitor)
        ranked = [self._lists(run, "item", item) for run in runs]
        slates = [self._lists(run, "slate", slate) for run in runs]
        target_E = first_targets(self.prepared, item.examples)
        values: dict[Level, Values] = {
            "item": _stacked([item_metrics(lists_EK, target_E, self.config.ks) for lists_EK, _ in ranked]),
            "slate": _stacked([self._slate_values(slate_EK, slate.examples) for slate_EK, _ in slates]),
        }
        report = RecommenderReport(
            name=competitor.name,
            item=self._estimates(values["item"], item.user_E, salt),
            slate=self._estimates(values["slate"], slate.user_E, salt),
            catalog=_mean_of([self._catalog(slate_EK) for slate_EK, _ in slates]),
            buckets=[
                self._bucket_row(bucket, values["item"], item.user_E, salt) for bucket in self.buckets(item.examples)
            ],
            item_s=sum(seconds for _, seconds in ranked),
            slate_s=sum(seconds for _, seconds in slates),
            num_seeds=len(runs),
            seed_std=_seed_std(values) if len(runs) > 1 else {},
        )
        return Measured(values=values, salt=salt, report=report)

    def buckets(self, examples: Examples) -> list[Bucket]:
        """Kinds of examples by history length and by training events of the target."""
        length_E = examples.history_end - examples.history_start
        return buckets(length_E, self.count_N[first_targets(self.prepared, examples)])

    def unseen(self, examples: Examples) -> Bool:
        """Which examples have a target without a training event."""
        return np.asarray(self.count_N[first_targets(self.prepared, examples)] == 0)

    def resample(self, values: Values, metrics: Sequence[str], user_E: Int, salt: int) -> Resampled:
        """Bootstrap means of some metrics."""
        return resample(
            np.stack([values[metric] for metric in metrics], axis=2),
            user_E,
            num_samples=self.config.num_bootstrap_samples,
            seed=self.config.seed,
            salt=salt,
        )

    def _lists(self, run: Recommender, level: Level, sample: Sample) -> tuple[Items, float]:
        k = max(self.config.ks) if level == "item" else self.prepared.slate_size
        started_s = time.perf_counter()
        lists_EK = run.rank(sample.examples, k) if level == "item" else run.slates(sample.examples, k)
        seconds = time.perf_counter() - started_s
        if lists_EK.shape != (len(sample.examples), k):
            expected = (len(sample.examples), k)
            raise ValueError(f"{run.name} returned lists of shape {lists_EK.shape}, asked for {expected}")
        return lists_EK, run.seconds[level] if isinstance(run, RecordedLists) else seconds

    def _slate_values(self, slate_EK: Items, examples: Examples) -> Values:
        inside_EK = np.where(self._is_item(slate_EK), slate_EK, -1)
        values = slate_metrics(inside_EK, self.prepared.target_items(examples))
        if self.slate_value is not None:
            values[TRUE_REWARD] = slate_rewards(self.slate_value, examples, inside_EK)
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

    def _estimates(self, values: Values, user_E: Int, salt: int) -> dict[str, Estimate]:
        found = self.resample(values, list(values), user_E, salt).intervals(self.config.confidence)
        return {name: Estimate.of(interval) for name, interval in zip(values, found, strict=True)}

    def _bucket_row(self, bucket: Bucket, values: Values, user_E: Int, salt: int) -> BucketRow:
        member_E, k = bucket.member_E, self.config.headline_k
        chosen = {name: values[f"{name}@{k}"][:, member_E] for name in ("recall", "ndcg")}
        estimates = self._estimates(chosen, user_E[member_E], salt)
        return BucketRow(kind=bucket.kind, label=bucket.label, num_examples=int(member_E.sum()), **estimates)


def slate_rewards(scorer: SlateScorer, examples: Examples, slate_EK: Items) -> Float:
    """What each slate is worth `[E]`. `ValueError` where the scorer gives a value that is not finite."""
    parts = [
        scorer.score(examples[start : start + SCORED_AT_ONCE], slate_EK[start : start + SCORED_AT_ONCE, None, :])[:, 0]
        for start in range(0, len(examples), SCORED_AT_ONCE)
    ]
    value_E = np.concatenate(parts).astype(np.float64)
    if not np.isfinite(value_E).all():
        raise ValueError("the slate scorer gave a reward that is not finite")
    return value_E


def _stacked(runs: Sequence[dict[str, Float]]) -> Values:
    return {name: np.stack([run[name] for run in runs]) for name in runs[0]}


def _mean_of(runs: Sequence[dict[str, float]]) -> dict[str, float]:
    return {name: float(np.mean([run[name] for run in runs])) for name in runs[0]}


def _seed_std(values: dict[Level, Values]) -> dict[Level, dict[str, float]]:
    return {level: {name: _std(value_RE) for name, value_RE in found.items()} for level, found in values.items()}


def _std(value_RE: Float) -> float:
    known_RE = ~np.isnan(value_RE)
    if not known_RE.any(axis=1).all():
        return float("nan")
    return float(np.std(np.nansum(value_RE, axis=1) / known_RE.sum(axis=1), ddof=1))
