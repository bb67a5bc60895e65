"""A report for reading: tables with intervals, and sentences that follow from the numbers alone."""

import math
from collections.abc import Sequence

from model_export.evaluate.report import Comparison, Estimate, Level, RecommenderReport, Report, SplitReport

PANEL = ("diversity_embedding", "diversity_tags", "novelty", "popular_share", "duplicates", "legality", "fill")
ACCURACY = ("hit", "recall", "precision", "ndcg", "true_reward")
IN_SENTENCES = ("hit", "recall", "ndcg", "true_reward")
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
    parts: list[str] = []
    for verdict, word in words.items():
        rows = [row for row in comparisons if row.other == other and row.verdict == verdict and _is_headline(row)]
        if rows:
            shown = ", ".join(f"{row.level} {row.metric} ({_difference(row)})" for row in rows)
            parts.append(f"{word} {other} on {shown}")
    return f"{subject} " + "; it ".join(parts) + f" ({confidence:.0%} intervals of the paired difference)."


def _is_headline(row: Comparison) -> bool:
    return row.only == "all" and row.metric.partition("@")[0] in IN_SENTENCES


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a Markdown table, numbers right aligned."""
    alignment = ["---"] + ["---:"] * (len(header) - 1)
    return [f"| {' | '.join(cells)} |" for cells in (header, alignment, *rows)]


def cell(estimate: Estimate | None, seed_std: float = math.nan) -> str:
    """`mean [low, high]`, with ` ± std` over seeds where there are several, or a dash for what is undefined."""
    if estimate is None or math.isnan(estimate.mean):
        return DASH
    spread = "" if math.isnan(seed_std) else f" ± {seed_std:.4f}"
    return f"{estimate.mean:.4f} [{estimate.low:.4f}, {estimate.high:.4f}]{spread}"


def _difference(row: Comparison) -> str:
    return f"{row.difference.mean:+.4f} [{row.difference.low:+.4f}, {row.difference.high:+.4f}], p {row.p_value:.3f}"


def _data_lines(report: Report) -> list[str]:
    data, config = report.data, report.config
    return [
        f"Data: format `{data.format}`, {data.num_items:,} items, {data.num_train_events:,} training events; "
        f"split `{data.split}`, targets `{data.target_kind}`, slates of {data.slate_size}, "
        f"repeat policy `{data.repeat_policy}`"
        + (
            " (items of the history are masked for every recommender)."
            if data.repeat_policy == "exclude"
            else " (items of the history may be recommended again, by every recommender)."
        ),
        f"Data hash `{data.data_sha256[:16]}`.",
        "",
        f"Intervals: {config['confidence']:.0%} percentile bootstrap over users, {config['num_bootstrap_samples']} "
        f"samples, seed {config['seed']}. Item level: rank of the next item in the full catalog. Slate level: the "
        "slate against all items of the target. Seconds are wall-clock time on this machine.",
        *_seed_lines(report),
    ]


def _seed_lines(report: Report) -> list[str]:
    num_seeds = max(one.num_seeds for split in report.splits for one in split.recommenders)
    if num_seeds == 1:
        return []
    return [
        "",
        f"Up to {num_seeds} seeds a recommender: figures are means over seeds and users; intervals draw users and "
        "seeds with replacement (crossed bootstrap; a difference sees the same users on both sides, and seeds of "
        "their own); ± is the standard deviation of the seeds' means (n - 1).",
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
    if others:
        lines += [f"### {report.subject} against the others", "", *_comparison_table(split.comparisons), ""]
    lines += ["### Beyond accuracy", "", *_panel_table(split.recommenders), ""]
    for kind in ("history length", "target popularity"):
        lines += [f"### By {kind}: item recall@{k} / ndcg@{k}", "", *_bucket_table(split.recommenders, kind), ""]
    for name in plot_files:
        lines += [f"![{name.removesuffix('.png').replace('-', ' ')}]({name})", ""]
    return lines


def _item_table(recommenders: Sequence[RecommenderReport]) -> list[str]:
    metrics = list(recommenders[0].item)
    rows = [[one.name, *_cells(one, "item", metrics), f"{one.item_s:.1f}"] for one in recommenders]
    return table(["recommender", *metrics, "seconds"], rows)


def _slate_table(recommenders: Sequence[RecommenderReport]) -> list[str]:
    metrics = [metric for metric in ACCURACY if metric in recommenders[0].slate]
    rows = [[one.name, *_cells(one, "slate", metrics), f"{one.slate_s:.1f}"] for one in recommenders]
    return table(["recommender", *metrics, "seconds"], rows)


def _cells(one: RecommenderReport, level: Level, metrics: Sequence[str]) -> list[str]:
    values = one.item if level == "item" else one.slate
    stds = one.seed_std.get(level, {})
    return [cell(values[metric], stds.get(metric, math.nan)) for metric in metrics]


def _comparison_table(comparisons: Sequence[Comparison]) -> list[str]:
    """Every paired comparison; gains and shares in per cent."""
    header = ["other", "level", "metric", "difference", "p", "gain, %", "share of the gap to the oracle, %", "verdict"]
    rows = [
        [
            row.other,
            row.level if row.only == "all" else f"{row.level}, {row.only} targets",
            row.metric,
            cell(row.difference),
            DASH if math.isnan(row.p_value) else f"{row.p_value:.3f}",
            _per_cent(row.relative_gain),
            _per_cent(row.share_of_oracle_gap),
            row.verdict,
        ]
        for row in comparisons
    ]
    return table(header, rows)


def _per_cent(estimate: Estimate | None) -> str:
    if estimate is None or math.isnan(estimate.mean):
        return DASH
    return f"{100 * estimate.mean:+.1f} [{100 * estimate.low:+.1f}, {100 * estimate.high:+.1f}]"


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
