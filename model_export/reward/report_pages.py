"""The reward report for people: `report.md`, reliability curves, and the differences as a picture.

Shapes: F impressions, S signals, R runs (seeds) of one model.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from matplotlib.figure import Figure

from model_export.reward.calibration import reliability
from model_export.reward.loop import METRICS

if TYPE_CHECKING:
    from model_export.reward.report import HeldOut, RewardReport, Scored


def write_pages(
    report: "RewardReport", subject: "Scored", held_out: "HeldOut", signals: tuple[str, ...], out: Path
) -> None:
    """Write `report.md`, `reliability.png` and `differences.png`."""
    (out / "report.md").write_text(_markdown(report))
    _reliability(subject, held_out, signals).savefig(out / "reliability.png", dpi=120)
    _differences(report).savefig(out / "differences.png", dpi=120)


def plot_curves(folders: Mapping[str, Path], picture: Path) -> None:
    """Draw training and validation loss by epoch of the runs in `folders`."""
    figure = Figure(figsize=(6, 3.6), layout="constrained")
    axes = figure.subplots()
    for place, (name, folder) in enumerate(folders.items()):
        rows = [json.loads(line) for line in (folder / METRICS).read_text().splitlines()]
        epochs = [row["epoch"] + 1 for row in rows]
        axes.plot(epochs, [row["loss"] for row in rows], color=f"C{place}", linestyle=":", label=f"{name}, train")
        if "valid_loss" in rows[0]:
            axes.plot(epochs, [row["valid_loss"] for row in rows], color=f"C{place}", label=f"{name}, valid")
    axes.set(xlabel="epoch", ylabel="cross-entropy, summed over signals")
    axes.legend(fontsize=7)
    figure.savefig(picture, dpi=120)


def _markdown(report: "RewardReport") -> str:
    counts = report.counts
    lines = [
        "# Reward model",
        "",
        f"Part `{report.part}`: {counts['impressions']:,} impressions of {counts['users']:,} users in "
        f"{counts['visits']:,} visits, {counts['impressions_of_two_or_more']:,} of them in visits of two or more. "
        "Runs: "
        + ", ".join(f"{name} {num}" for name, num in report.runs.items())
        + ". Intervals: 95 %, users and runs resampled. ECE: 15 bins of equal size; chances are calibrated on the "
        "validation part. The plots are of the first run.",
        "",
        f"## AUC of {report.subject} minus others",
        "",
        "| visits | signal | minus | difference | interval |",
        "|---|---|---|---|---|",
    ]
    for row in report.differences:
        found = row["auc_difference"]
        lines.append(
            f"| {row['subset']} | {row['signal']} | {row['other']} | {_signed(found['mean'])} | "
            f"{_signed(found['low'])} to {_signed(found['high'])} |"
        )
    lines += [
        "",
        "## Figures",
        "",
        "| visits | signal | model | AUC | interval | log-loss | ECE before | ECE after |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in report.figures:
        auc = row["auc"]
        lines.append(
            f"| {row['subset']} | {row['signal']} | {row['model']} | {_number(auc['mean'])} | {_number(auc['low'])} to "
            f"{_number(auc['high'])} | {row['log_loss']:.4f} | {row['ece_uncalibrated']:.4f} | {row['ece']:.4f} |"
        )
    lines += ["", "![reliability](reliability.png)", "", "![differences](differences.png)", ""]
    return "\n".join(lines)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _signed(value: float | None) -> str:
    return "-" if value is None else f"{value:+.4f}"


def _reliability(subject: "Scored", held_out: "HeldOut", signals: tuple[str, ...]) -> Figure:
    figure = Figure(figsize=(3.6 * len(signals), 3.6), layout="constrained")
    panels = figure.subplots(1, len(signals), squeeze=False)[0]
    for place, (axes, signal) in enumerate(zip(panels, signals, strict=True)):
        for label, chance_RFS in (("before", subject.raw_RFS), ("after", subject.chance_RFS)):
            bins = reliability(chance_RFS[0, :, place], held_out.signal_FS[:, place])
            axes.plot(bins.chance_Q, bins.rate_Q, marker="o", markersize=3, label=label)
        end = float(axes.get_xlim()[1])
        axes.plot([0, end], [0, end], color="grey", linewidth=0.8)
        axes.set(title=signal, xlabel="mean chance", ylabel="rate")
        axes.legend()
    return figure


def _differences(report: "RewardReport") -> Figure:
    rows: list[dict[str, Any]] = [row for row in report.differences if row["auc_difference"]["low"] is not None]
    figure = Figure(figsize=(8, 1 + 0.3 * max(1, len(rows))), layout="constrained")
    axes = figure.subplots()
    for place, row in enumerate(rows):
        found = row["auc_difference"]
        axes.plot([found["low"], found["high"]], [place, place], color="C0")
        axes.plot([found["mean"]], [place], marker="o", color="C0")
    names = [f"{row['signal']}, {row['subset']}: {row['other']}" for row in rows]
    axes.set_yticks(range(len(rows)), names, fontsize=7)
    axes.axvline(0, color="grey", linewidth=0.8)
    axes.set_xlabel(f"AUC of {report.subject} minus AUC of ...")
    axes.invert_yaxis()
    return figure
