"""The tokenizer's report: figures, tables in Markdown, plots.

Shapes: N items, L levels, V codes, D width.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import polars as pl
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from model_export.tokenizer.assignment import Assignment, reconstruction_errors
from model_export.tokenizer.balance import chunks
from model_export.tokenizer.groups import dense_rows
from model_export.tokenizer.neighbours import NUM_NEIGHBOURS, neighbour_figures
from model_export.tokenizer.targets import CodeArray, FloatArray
from model_export.tokenizer.tokenization import max_branch

NUM_EXAMPLES = 5
TITLES_PER_EXAMPLE = 6


def build_report(
    points_ND: FloatArray,
    assignment: Assignment,
    plain: Assignment,
    items: pl.DataFrame,
    *,
    seed: int,
    parts: Mapping[str, FloatArray] | None = None,
) -> dict[str, Any]:
    """All figures of the report, ready for JSON; `parts` are the embeddings that the one of the sids was made from."""
    variance = total_variance(points_ND)
    errors, plain_errors = reconstruction_errors(points_ND, assignment), reconstruction_errors(points_ND, plain)
    sids_NL = assignment.sids_NL
    levels = [
        level_figures(sids_NL[:, level], len(codebook_VD)) for level, codebook_VD in enumerate(assignment.codebooks)
    ]
    for level, figures in enumerate(levels):
        figures["plain"] = level_figures(plain.sids_NL[:, level], len(plain.codebooks[level]))
        figures["relative_error"] = errors[level] / variance if variance > 0 else 0.0
        figures["plain_relative_error"] = plain_errors[level] / variance if variance > 0 else 0.0
    return {
        "num_items": len(points_ND),
        "width": points_ND.shape[1],
        "codebook_sizes": [len(codebook_VD) for codebook_VD in assignment.codebooks],
        "collisions": count_collisions(sids_NL),
        "plain_collisions": count_collisions(plain.sids_NL),
        "error": errors[-1],
        "plain_error": plain_errors[-1],
        "error_ratio": errors[-1] / plain_errors[-1] if plain_errors[-1] > 0 else None,
        "max_branch": list(max_branch(sids_NL)),
        "levels": levels,
        "neighbours": neighbour_figures(points_ND, sids_NL, seed),
        "neighbours_of_parts": {
            name: neighbour_figures(part_ND, sids_NL, seed) for name, part_ND in (parts or {}).items()
        },
        "examples": example_prefixes(sids_NL, items),
    }


def total_variance(points_ND: FloatArray) -> float:
    """Mean squared distance of the points from their mean."""
    mean_D = points_ND.mean(axis=0, dtype=np.float64).astype(np.float32)
    total = sum(
        float(np.square(points_ND[chunk] - mean_D, dtype=np.float64).sum())
        for chunk in chunks(len(points_ND), points_ND.shape[1])
    )
    return total / len(points_ND)


def count_collisions(sids_NL: CodeArray) -> int:
    """Items beyond the first of each sid."""
    return len(sids_NL) - len(np.unique(dense_rows(sids_NL)))


def level_figures(codes_N: CodeArray, num_codes: int) -> dict[str, Any]:
    """Utilisation, sizes and entropy of one level."""
    sizes_V = np.bincount(codes_N, minlength=num_codes)
    shares = sizes_V[sizes_V > 0] / len(codes_N)
    entropy_bits = float(-(shares * np.log2(shares)).sum()) + 0.0
    return {
        "utilisation": float((sizes_V > 0).mean()),
        "min_size": int(sizes_V.min()),
        "max_size": int(sizes_V.max()),
        "std_size": float(sizes_V.std()),
        "entropy_bits": entropy_bits,
        "entropy_share": entropy_bits / np.log2(num_codes) if num_codes > 1 else 1.0,
        "sorted_sizes": np.sort(sizes_V)[::-1].tolist(),
    }


def example_prefixes(sids_NL: CodeArray, items: pl.DataFrame) -> list[dict[str, Any]]:
    """Titles under the prefixes of two codes (one, in one-level sids) that hold most items."""
    depth = min(2, sids_NL.shape[1])
    _, first, of_item_N, sizes = np.unique(
        dense_rows(sids_NL[:, :depth]), return_index=True, return_inverse=True, return_counts=True
    )
    titles, ids = items.get_column("title"), items.get_column("item_id")
    return [
        {
            "prefix": sids_NL[first[index], :depth].tolist(),
            "num_items": int(sizes[index]),
            "titles": [
                titles[int(row)] or ids[int(row)] for row in np.flatnonzero(of_item_N == index)[:TITLES_PER_EXAMPLE]
            ],
        }
        for index in np.argsort(-sizes, kind="stable")[:NUM_EXAMPLES]
    ]


def write_report(report: dict[str, Any], out_dir: Path) -> None:
    """Writes report.md and the two plots it shows."""
    plot_sizes(report["levels"], out_dir / "code_sizes.png")
    plot_errors(report["levels"], out_dir / "reconstruction.png")
    (out_dir / "report.md").write_text(render(report), encoding="utf-8")


def render(report: dict[str, Any]) -> str:
    """The report in Markdown."""
    ratio = report["error_ratio"]
    sizes = " x ".join(map(str, report["codebook_sizes"]))
    lines = [
        "# Tokenizer report",
        "",
        f"{report['num_items']} items, {report['width']} dimensions ({report['embeddings']['source']}), {sizes} codes, "
        f"{report['took_s']['embed_and_assign']:.1f} s for embeddings and sids.",
        "",
        f"- Collisions: {report['collisions']} (plain residual k-means: {report['plain_collisions']})",
        f"- Squared error: {report['error']:.5f}; plain residual k-means {report['plain_error']:.5f}; "
        f"ratio {'undefined' if ratio is None else format(ratio, '.3f')}",
        f"- Largest number of children per prefix, by level: {', '.join(map(str, report['max_branch']))}",
        f"- Items without text: {report['embeddings']['items_without_text']}; without neighbours in train events: "
        f"{report['embeddings']['items_without_neighbours']}",
    ]
    if quality := report["embeddings"].get("text_projection"):
        lines.append(
            f"- New items are projected from text: R2 {quality['held_out_r2']:.3f}, cosine "
            f"{quality['held_out_cosine']:.3f} on {quality['held_out']} held-out items"
        )
    header = ["level", "utilisation", "sizes", "std", "entropy, bits", "of maximum", "error / variance"]
    rows = [
        [
            str(number),
            f"{level['utilisation']:.3f} ({level['plain']['utilisation']:.3f})",
            f"{level['min_size']}-{level['max_size']} ({level['plain']['min_size']}-{level['plain']['max_size']})",
            f"{level['std_size']:.2f} ({level['plain']['std_size']:.2f})",
            f"{level['entropy_bits']:.3f} ({level['plain']['entropy_bits']:.3f})",
            f"{level['entropy_share']:.4f} ({level['plain']['entropy_share']:.4f})",
            f"{level['relative_error']:.4f} ({level['plain_relative_error']:.4f})",
        ]
        for number, level in enumerate(report["levels"], start=1)
    ]
    lines += ["", "## Levels (plain residual k-means in brackets)", "", *table(header, rows)]
    lines += ["", f"## Prefixes shared with the {NUM_NEIGHBOURS} nearest neighbours, share of pairs", ""]
    lines += neighbour_table(report)
    lines += ["", "## Largest prefixes", ""]
    for example in report["examples"]:
        titles = "; ".join(title.replace("\n", " ")[:80] for title in example["titles"])
        lines.append(f"- {tuple(example['prefix'])}, {example['num_items']} items: {titles}")
    lines += ["", "![code sizes](code_sizes.png)", "", "![reconstruction](reconstruction.png)", ""]
    return "\n".join(lines)


def neighbour_table(report: dict[str, Any]) -> list[str]:
    """Shares by number of codes, for neighbours in the embedding and in each of its parts."""
    spaces = {report["embeddings"]["source"]: report["neighbours"], **report["neighbours_of_parts"]}
    spaces = {name: figures for name, figures in spaces.items() if figures}
    rows = [
        [
            str(row["codes"]),
            *(f"{figures[place]['shared']:.4f}" for figures in spaces.values()),
            f"{row['shuffled']:.4f}",
        ]
        for place, row in enumerate(report["neighbours"])
    ]
    return table(["codes", *(f"neighbours by {name}" for name in spaces), "shuffled sids"], rows)


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Markdown lines of a table."""
    return [f"| {' | '.join(cells)} |" for cells in (header, ["---"] * len(header), *rows)]


def plot_sizes(levels: list[dict[str, Any]], path: Path) -> None:
    """Code sizes per level, largest first, beside plain k-means."""
    figure = Figure(figsize=(3.6 * len(levels), 3.0), layout="constrained")
    for number, (level, axes) in enumerate(zip(levels, np.ravel(figure.subplots(1, len(levels))), strict=True), 1):
        axes.plot(level["plain"]["sorted_sizes"], label="plain")
        axes.plot(level["sorted_sizes"], label="balanced")
        axes.set(title=f"level {number}", xlabel="code, by size", ylabel="items")
        axes.legend()
    save_figure(figure, path)


def plot_errors(levels: list[dict[str, Any]], path: Path) -> None:
    """Reconstruction error after each level, beside plain k-means."""
    figure = Figure(figsize=(5.0, 3.2), layout="constrained")
    axes = figure.subplots()
    numbers = range(1, len(levels) + 1)
    axes.plot(numbers, [level["plain_relative_error"] for level in levels], "o-", label="plain")
    axes.plot(numbers, [level["relative_error"] for level in levels], "o-", label="balanced")
    axes.set(xlabel="codes", ylabel="squared error / variance", xticks=list(numbers), ylim=(0, None))
    axes.legend()
    save_figure(figure, path)


def save_figure(figure: Figure, path: Path) -> None:
    """Renders without a display."""
    with mpl.rc_context({"savefig.dpi": 110}):
        FigureCanvasAgg(figure)
        figure.savefig(path)
