"""The test figures of a trained model, in the form of every other measured run."""

from loadtests.bench.result import BenchResult, Row, new_result
from model_export.evaluate import Report
from model_export.evaluate.report import RecommenderReport, SplitReport

_SLATE_METRICS = ("ndcg", "recall", "hit")


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
        if comparison.metric in (f"recall@{report.config['headline_k']}", metric, "ndcg")
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
