"""The subject against every other recommender, on the same examples.

Shapes: E examples.
"""

from collections.abc import Sequence

from model_export.evaluate.bootstrap import Resampled
from model_export.evaluate.measuring import TRUE_REWARD, Bench, Measured, Samples, Values
from model_export.evaluate.report import Comparison, Estimate, Level, Only, Verdict
from model_export.evaluate.sequences import Bool, Int

COMPARED_ON_SLATES = ("recall", "ndcg", TRUE_REWARD, "diversity_embedding", "diversity_tags", "legality")


def compare(
    bench: Bench, ours: Measured, theirs: Measured, samples: Samples, oracle: Measured | None
) -> list[Comparison]:
    """Recall and NDCG of items, of all and of unseen targets; accuracy, reward, diversity and legality of slates."""
    k = bench.config.headline_k
    of_items = (f"recall@{k}", f"ndcg@{k}")
    of_slates = tuple(metric for metric in COMPARED_ON_SLATES if metric in ours.values["slate"])
    user_E, unseen_E = samples["item"].user_E, bench.unseen(samples["item"].examples)
    found = _rows(bench, ours, theirs, "item", of_items, user_E)
    if unseen_E.any():
        known = [_only(one, unseen_E) for one in (ours, theirs)]
        found += _rows(bench, known[0], known[1], "item", of_items, user_E[unseen_E], only="unseen")
    return found + _rows(bench, ours, theirs, "slate", of_slates, samples["slate"].user_E, oracle=oracle)


def verdict(low: float, high: float) -> Verdict:
    """What an interval of `subject - other` says: `ahead` above 0, `behind` below it, else neither."""
    if low > 0:
        return "ahead"
    return "behind" if high < 0 else "no significant difference"


def _only(measured: Measured, member_E: Bool) -> Measured:
    item: Values = {name: value_RE[:, member_E] for name, value_RE in measured.values["item"].items()}
    return Measured(values={"item": item}, salt=measured.salt, report=measured.report)


def _rows(
    bench: Bench,
    ours: Measured,
    theirs: Measured,
    level: Level,
    metrics: Sequence[str],
    user_E: Int,
    *,
    only: Only = "all",
    oracle: Measured | None = None,
) -> list[Comparison]:
    confidence = bench.config.confidence

    def drawn(one: Measured) -> Resampled:
        return bench.resample(one.values[level], metrics, user_E, one.salt)

    base = drawn(theirs)
    difference = drawn(ours).minus(base)
    gains = difference.over(base).intervals(confidence)
    shares = difference.over(drawn(oracle).minus(base)).intervals(confidence) if oracle else [None] * len(metrics)
    rows = zip(metrics, difference.intervals(confidence), difference.p_values(), gains, shares, strict=True)
    return [
        Comparison(
            other=theirs.report.name,
            level=level,
            metric=metric,
            only=only,
            difference=Estimate.of(interval),
            p_value=p_value,
            verdict=verdict(interval.low, interval.high),
            relative_gain=Estimate.of(gain),
            share_of_oracle_gap=Estimate.of(share) if share and metric == TRUE_REWARD else None,
        )
        for metric, interval, p_value, gain, share in rows
    ]
