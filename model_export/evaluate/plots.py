"""A report as pictures."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from model_export.evaluate.report import Estimate, RecommenderReport, Report, SplitReport


def plot(report: Report, out_dir: Path) -> list[str]:
    """Write three PNG files per split into `out_dir`; their names."""
    out_dir.mkdir(parents=True, exist_ok=True)
    names = []
    for split in report.splits:
        figures = {
            "accuracy": _accuracy(split, report.config["headline_k"]),
            "history-length": _by_history_length(split, report.config["headline_k"]),
            "coverage-and-ndcg": _coverage_and_ndcg(split),
        }
        for title, figure in figures.items():
            figure.savefig(out_dir / f"{split.split}-{title}.png")
            names.append(f"{split.split}-{title}.png")
    return names


def _accuracy(split: SplitReport, k: int) -> Figure:
    figure = Figure(figsize=(11, 4), layout="constrained")
    panels = (
        (f"item recall@{k}", [one.item[f"recall@{k}"] for one in split.recommenders]),
        (f"item NDCG@{k}", [one.item[f"ndcg@{k}"] for one in split.recommenders]),
        ("slate NDCG", [one.slate["ndcg"] for one in split.recommenders]),
    )
    for axes, (title, estimates) in zip(figure.subplots(1, len(panels)), panels, strict=True):
        _bars(axes, [one.name for one in split.recommenders], estimates)
        axes.set_title(title)
    figure.suptitle(f"{split.split}: means and intervals")
    return figure


def _bars(axes: Axes, names: Sequence[str], estimates: Sequence[Estimate]) -> None:
    places = range(len(names))
    axes.bar(places, [estimate.mean for estimate in estimates], color=[f"C{place % 10}" for place in places])
    axes.errorbar(
        places, [estimate.mean for estimate in estimates], yerr=_errors(estimates), fmt="none", ecolor="black"
    )
    axes.set_xticks(places, names, rotation=30, ha="right")


def _by_history_length(split: SplitReport, k: int) -> Figure:
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    for number, one in enumerate(split.recommenders):
        rows = [row for row in one.buckets if row.kind == "history length"]
        places = [place + 0.06 * number for place in range(len(rows))]
        means = [row.ndcg.mean for row in rows]
        axes.errorbar(places, means, yerr=_errors([row.ndcg for row in rows]), marker="o", capsize=3, label=one.name)
    rows = [row for row in split.recommenders[0].buckets if row.kind == "history length"]
    axes.set_xticks(range(len(rows)), [f"{row.label}\nn={row.num_examples}" for row in rows])
    axes.set_xlabel("events in the history")
    axes.set_ylabel(f"item NDCG@{k}")
    axes.legend()
    return figure


def _coverage_and_ndcg(split: SplitReport) -> Figure:
    figure = Figure(figsize=(6, 4.5), layout="constrained")
    axes = figure.subplots()
    for one in split.recommenders:
        _point(axes, one)
    axes.set_xlabel("catalog coverage of the slates")
    axes.set_ylabel("slate NDCG")
    axes.legend()
    return figure


def _point(axes: Axes, one: RecommenderReport) -> None:
    ndcg = one.slate["ndcg"]
    axes.errorbar([one.catalog["coverage"]], [ndcg.mean], yerr=_errors([ndcg]), marker="o", capsize=3, label=one.name)


def _errors(estimates: Sequence[Estimate]) -> list[list[float]]:
    """Distances from mean to low and high; a percentile interval may lie off its mean, so never below 0."""
    return [
        [max(estimate.mean - estimate.low, 0.0) for estimate in estimates],
        [max(estimate.high - estimate.mean, 0.0) for estimate in estimates],
    ]
