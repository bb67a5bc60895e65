"""The test figures of trained models, in the form of every other measured run."""

from collections.abc import Mapping
from math import isfinite

from loadtests.bench.result import BenchResult, Row, new_result
from model_export.evaluate.report import Level, RecommenderReport, Report, SplitReport
from model_export.reward.report import RewardReport
from model_export.trials.markdown import setting_text
from model_export.trials.report import TrialsReport

_SLATE_METRICS = ("ndcg", "recall", "hit")
_TRIALS_SLATE_METRICS = (*_SLATE_METRICS, "true_reward", "diversity_embedding", "legality")
_COMPARED = ("ndcg@10", "recall@10", "ndcg", "true_reward", "diversity_embedding")


def evaluation_result(name: str, report: Report) -> BenchResult:
    """Item-level recall and NDCG and the slate's own, for every recommender of the last split, means alone.

    Args:
        name: Of the recipe.
        report: Of `evaluate`.
    """
    split = report.splits[-1]
    rows = [row for recommender in split.recommenders for row in _rows(split, recommender)]
    metric = f"ndcg@{report.config['headline_k']}"
    ours = next(one for one in split.recommenders if one.name == report.subject).item[metric].mean
    ratios = {
        f"{metric}_over_{one.name}": ours / one.item[metric].mean
        for one in split.recommenders
        if one.name != report.subject and one.item[metric].mean > 0
    }
    verdicts = "; ".join(
        f"{comparison.level} {comparison.metric} against {comparison.other}: {comparison.verdict}"
        for comparison in split.comparisons
        if comparison.metric in (f"recall@{report.config['headline_k']}", metric, "ndcg") and comparison.only == "all"
    )
    caveat = (
        f"one seed; {report.data.num_items:,} items, {split.num_examples:,} examples, {split.num_slate_examples:,} of "
        f"them for slates; repeats of history items: {report.data.repeat_policy}. "
        f"The generator, from paired intervals: {verdicts}"
    )
    return new_result(f"evaluate-{name}", rows, ratios=ratios, caveat=caveat)


def _rows(split: SplitReport, recommender: RecommenderReport) -> list[Row]:
    rows = [
        Row(workload=f"{split.split}, next item", system=recommender.name, value=estimate.mean, unit=metric)
        for metric, estimate in recommender.item.items()
        if metric.startswith(("recall", "ndcg"))
    ]
    slate = {metric: recommender.slate[metric].mean for metric in _SLATE_METRICS if metric in recommender.slate}
    slate["coverage"] = recommender.catalog["coverage"]
    rows += [
        Row(workload=f"{split.split}, slate", system=recommender.name, value=value, unit=metric)
        for metric, value in slate.items()
    ]
    return rows


def reward_result(name: str, report: RewardReport) -> BenchResult:
    """AUC of the reward model, its rivals and itself on shuffled sessions, and its differences from them.

    Args:
        name: Of the recipe.
        report: Of `oneslate reward`.
    """
    rows = []
    for figure in report.figures:
        workload = f"{report.part}, visits {figure['subset']}"
        rows += _interval_rows(workload, figure["model"], f"AUC, {figure['signal']}", figure["auc"])
        ece = Row(workload=workload, system=figure["model"], value=figure["ece"], unit=f"ECE, {figure['signal']}")
        rows.append(ece)
    for difference in report.differences:
        workload = f"{report.part}, visits {difference['subset']}: AUC of {difference['subject']} minus"
        rows += _interval_rows(workload, difference["other"], difference["signal"], difference["auc_difference"])
    counts = ", ".join(f"{count:,} {what.replace('_', ' ')}" for what, count in report.counts.items())
    seeds = ", ".join(f"{model} {count}" for model, count in report.runs.items())
    caveat = f"{counts}; seeds: {seeds}; intervals over users and, of several, seeds"
    return new_result(f"reward-{name}", rows, caveat=caveat)


def _interval_rows(workload: str, system: str, unit: str, interval: Mapping[str, float | None]) -> list[Row]:
    """A mean and its ends; nothing where there is no AUC."""
    named = {"": interval["mean"], " low": interval["low"], " high": interval["high"]}
    return [
        Row(workload=workload, system=system, value=value, unit=unit + part)
        for part, value in named.items()
        if value is not None
    ]


def trials_result(report: TrialsReport) -> BenchResult:
    """Test figures of every model of a plan, with interval and spread over seeds, and what each cost.

    Units name what a figure is: `ndcg@10` is a mean, `ndcg@10 low` and `ndcg@10 high` its interval, `ndcg@10 std` the
    standard deviation over seeds; `results_page` puts them into one cell.
    """
    test = report.test.splits[-1]
    k = report.test.config["headline_k"]
    rows = []
    for recommender in test.recommenders:
        rows += _figures("next item", recommender, "item", [f"recall@{k}", f"ndcg@{k}"])
        rows += _figures("slate", recommender, "slate", list(_TRIALS_SLATE_METRICS))
        rows += _unseen_rows(recommender)
        coverage = recommender.catalog["coverage"]
        rows.append(Row(workload="slates of all", system=recommender.name, value=coverage, unit="coverage"))
    rows += _gain_rows(report.test.subject, test)
    for model in report.models:
        costs = {
            "trials": len(model.trials),
            "CPU-s of trials": model.search_cpu_s,
            "CPU-s of final fits": model.refit_cpu_s,
            "parameters": model.num_parameters,
            "seeds": model.num_seeds,
        }
        rows += [Row(workload="cost", system=model.name, value=value, unit=unit) for unit, value in costs.items()]
    return new_result(f"trials-{report.name}", rows, caveat=_trials_caveat(report))


def _figures(workload: str, recommender: RecommenderReport, level: Level, metrics: list[str]) -> list[Row]:
    values = recommender.item if level == "item" else recommender.slate
    stds = recommender.seed_std.get(level, {})
    rows = []
    for metric in metrics:
        if metric not in values or not isfinite(values[metric].mean):
            continue
        one = values[metric]
        figures = {metric: one.mean, f"{metric} low": one.low, f"{metric} high": one.high}
        if metric in stds:
            figures[f"{metric} std"] = stds[metric]
        rows += [
            Row(workload=workload, system=recommender.name, value=value, unit=unit) for unit, value in figures.items()
        ]
    return rows


def _unseen_rows(recommender: RecommenderReport) -> list[Row]:
    """The examples whose target has no training event."""
    workload = "next item, unseen targets"
    return [
        Row(workload=workload, system=recommender.name, value=value, unit=unit)
        for bucket in recommender.buckets
        if bucket.label == "unseen"
        for unit, value in (
            ("examples", bucket.num_examples),
            ("recall", bucket.recall.mean),
            ("recall low", bucket.recall.low),
            ("recall high", bucket.recall.high),
        )
    ]


def _gain_rows(subject: str, split: SplitReport) -> list[Row]:
    """Relative paired gains over every other recommender, in per cent, and the share of the gap to the oracle."""
    rows = []
    for comparison in split.comparisons:
        shares = (("gain, %", comparison.relative_gain), ("share of the oracle gap, %", comparison.share_of_oracle_gap))
        for name, one in shares:
            if one is None or not isfinite(one.mean) or comparison.metric not in _COMPARED:
                continue
            unit = f"{comparison.level} {comparison.metric} {name}"
            if comparison.only != "all":
                unit = f"{comparison.only} {unit}"
            for part, value in (("", one.mean), (" low", one.low), (" high", one.high)):
                rows.append(
                    Row(workload=f"{subject} over", system=comparison.other, value=100 * value, unit=unit + part)
                )
    return rows


def _trials_caveat(report: TrialsReport) -> str:
    plan, data, test = report.plan, report.test.data, report.test.splits[-1]
    chosen = "; ".join(
        f"{model.name}: {setting_text(model.trials[model.chosen])}"
        for model in report.models
        if model.chosen is not None and len(model.trials) > 1
    )
    stopped = ", ".join(model.name for model in report.models if model.is_stopped)
    return (
        f"plan {report.plan_digest}: {plan['num_trials']} trials a model on valid by {plan['measure']}, at most "
        f"{plan['max_cpu_hours']:g} CPU-hours; "
        f"{'refitted on train and valid' if plan['refit'] else 'fitted on train'}, "
        f"seeds {plan['seeds']}; "
        f"{test.num_examples:,} examples, {test.num_slate_examples:,} for slates, {data.num_items:,} items; repeats of "
        f"history items: {data.repeat_policy}; intervals over users and, of several, seeds. "
        f"{f'Simulated log {report.log_sha256}. ' if report.log_sha256 else ''}"
        f"{f'Stopped at the cap: {stopped}. ' if stopped else ''}"
        f"Chosen: {chosen or 'nothing to choose'}"
    )
