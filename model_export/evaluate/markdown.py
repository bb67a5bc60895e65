"""A report for reading: tables with intervals, and sentences that follow from the numbers alone."""

import math
from collections.abc import Sequence

from model_export.evaluate.report import Comparison, Estimate, RecommenderReport, Report, SplitReport

PANEL = ("diversity_embedding", "diversity_tags", "novelty", "popular_share", "duplicates", "legality", "fill")
ACCURACY = ("hit", "recall", "precision", "ndcg")
DASH = "-"


def render(report: Report, plot_files: Sequence[str] = ()) -> str:
    """The whole report as Markdown; `plot_files` are names of images beside it."""
    lines = ["# Evaluation", "", *_data_lines(report), ""]
    for split in report.splits:
        lines += _split_lines(report, split, [name for name in plot_files if name.startswith(f"{split.split}-")])
    return "\n".join(lines).rstrip() + "\n"


def sentence(subject: str, other: str, comparisons: Sequence[Comparison], confidence: float) -> str:
    """Where the subject stands against one other recommender."""
    words = {
        "ahead": "beats",
        "behind": "is behind",
        "no significant difference": "shows no significant difference from",
    }
    parts = []
    for verdict, word in words.items():
        rows = [row for row in comparisons if row.other == other and row.verdict == verdict]
        if rows:
            shown = ", ".join(f"{row.level} {row.metric} ({_difference(row)})" for row in rows)
            parts.append(f"{word} {other} on {shown}")
    return f"{subject} " + "; it ".join(parts) + f" ({confidence:.0%} intervals of the paired difference)."


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a Markdown table, numbers right aligned."""
    alignment = ["---"] + ["---:"] * (len(header) - 1)
    return [f"| {' | '.join(cells)} |" for cells in (header, alignment, *rows)]


def cell(estimate: Estimate | None) -> str:
    """`mean [low, high]`, or a dash for what is undefined."""
    if estimate is None or math.isnan(estimate.mean):
        return DASH
    return f"{estimate.mean:.4f} [{estimate.low:.4f}, {estimate.high:.4f}]"


def _difference(row: Comparison) -> str:
    return f"{row.difference.mean:+.4f} [{row.difference.low:+.4f}, {row.difference.high:+.4f}], p {row.p_value:.3f}"


def _data_lines(report: Report) -> list[str]:
    data, config = report.data, report.config
    return [
        f"Data: format `{data.format}`, {data.num_items:,} items, {data.num_train_events:,} training events; "
        f"split `{data.split}`, targets `{data.target_kind}`, slates of {data.slate_size}, "
        f"repeat policy `{data.repeat_policy}`"
        + (" (items of the history are masked for every recommender)." if data.repeat_policy == "exclude" else "."),
        f"Data hash `{data.data_sha256[:16]}`.",
        "",
        f"Intervals: {config['confidence']:.0%} percentile bootstrap over users, {config['num_bootstrap_samples']} "
        f"samples, seed {config['seed']}. Item level: rank of the next item in the full catalog. Slate level: the "
        "slate against all items of the target. Seconds are wall-clock time on this machine.",
    ]


def _split_lines(report: Report, split: SplitReport, plot_files: Sequence[str]) -> list[str]:
    others = [one.name for one in split.recommenders if one.name != report.subject]
    k = report.config["headline_k"]
    lines = [f"## Split `{split.split}`", ""]
    lines += [
        f"- {sentence(report.subject, other, split.comparisons, report.config['confidence'])}" for other in others
    ]
    lines += ["", f"### Item level ({split.num_examples:,} examples)", "", *_item_table(split.recommenders), ""]
    lines += [f"### Slate level ({split.num_slate_examples:,} examples)", "", *_slate_table(split.recommenders), ""]
    lines += ["### Beyond accuracy", "", *_panel_table(split.recommenders), ""]
    for kind in ("history length", "target popularity"):
        lines += [f"### By {kind}: item recall@{k} / ndcg@{k}", "", *_bucket_table(split.recommenders, kind), ""]
    for name in plot_files:
        lines += [f"![{name.removesuffix('.png').replace('-', ' ')}]({name})", ""]
    return lines


def _item_table(recommenders: Sequence[RecommenderReport]) -> list[str]:
    metrics = list(recommenders[0].item)
    rows = [[one.name, *(cell(one.item[metric]) for metric in metrics), f"{one.item_s:.1f}"] for one in recommenders]
    return table(["recommender", *metrics, "seconds"], rows)


def _slate_table(recommenders: Sequence[RecommenderReport]) -> list[str]:
    rows = [[one.name, *(cell(one.slate[metric]) for metric in ACCURACY), f"{one.slate_s:.1f}"] for one in recommenders]
    return table(["recommender", *ACCURACY, "seconds"], rows)


def _panel_table(recommenders: Sequence[RecommenderReport]) -> list[str]:
    metrics = [metric for metric in PANEL if metric in recommenders[0].slate]
    catalog = list(recommenders[0].catalog)
    rows = [
        [
            one.name,
            *(cell(one.slate[metric]) for metric in metrics),
            *(DASH if math.isnan(one.catalog[name]) else f"{one.catalog[name]:.4f}" for name in catalog),
        ]
        for one in recommenders
    ]
    return table(["recommender", *metrics, *catalog], rows)


def _bucket_table(recommenders: Sequence[RecommenderReport], kind: str) -> list[str]:
    first = [row for row in recommenders[0].buckets if row.kind == kind]
    rows = []
    for place, bucket in enumerate(first):
        of_each = [[row for row in one.buckets if row.kind == kind][place] for one in recommenders]
        figures = [f"{row.recall.mean:.4f} ± {_half(row.recall)} / {row.ndcg.mean:.4f}" for row in of_each]
        rows.append([bucket.label, f"{bucket.num_examples:,}", *figures])
    return table([kind, "examples", *(one.name for one in recommenders)], rows)


def _half(estimate: Estimate) -> str:
    return f"{(estimate.high - estimate.low) / 2:.4f}"
