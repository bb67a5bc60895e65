"""Draws the figures of the guides: `python docs/figures/make.py` writes the same files again, in about two minutes.

`codes`: the tokenizer on the first thousands of items of `oneslate bench tokenize`. `trie`: a model of the sample log
beside the guides, trained here with one thread. `sequence`: a drawing. `reward` and `industrial`: rows of `results/`.
Names of figures as arguments draw only these; `--out FOLDER` puts them elsewhere.
"""

import argparse
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import FancyBboxPatch

from loadtests.bench.tokenize_workload import TokenizeWorkload
from model_export.data.examples import Examples
from model_export.data.prepared import PreparedData
from model_export.pipeline import Run
from model_export.recipe import load_recipe
from model_export.search.eager import BeamSearch
from model_export.tokenizer.assignment import assign_catalog, plain_residual_kmeans
from model_export.train.batches import Collator
from model_export.train.stage import TrainedGenerator

ROOT = Path(__file__).resolve().parents[2]
INK, QUIET, FAINT = "#1b1d22", "#6b7180", "#d5d8df"
BLUE, AMBER, GREEN, RED = "#2457c5", "#c77700", "#1d7a46", "#b3261e"
STYLE: dict[Any, Any] = {
    "axes.edgecolor": QUIET,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "savefig.facecolor": "white",
    "svg.hashsalt": "oneslate",
    "text.color": INK,
}
BEAMS = 3
EXAMPLE = 0
"""Which of the test examples with a history of six to nine events the trie is drawn for."""
Prefix = tuple[int, ...]


def main() -> None:
    """Draws what the arguments name, or everything."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help=f"of {', '.join(FIGURES)}")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    arguments = parser.parse_args()
    mpl.use("svg")
    mpl.rcParams.update(STYLE)
    for name in arguments.names or FIGURES:
        # Without a date the same figure is the same file.
        FIGURES[name]().savefig(arguments.out / f"{name}.svg", metadata={"Date": None})


def newest(bench: str) -> dict[str, Any]:
    """The last recorded run of a bench."""
    rows: dict[str, Any] = json.loads((ROOT / "results" / f"{bench}.jsonl").read_text().splitlines()[-1])
    return rows


def values(result: dict[str, Any], workload: str, unit: str) -> dict[str, tuple[float, float, float]]:
    """Value and interval of every system that has them."""
    found = {
        (row["system"], row["unit"].removeprefix(unit).strip()): row["value"]
        for row in result["rows"]
        if row["workload"] == workload and row["unit"].startswith(unit)
    }
    return {
        system: (value, found[system, "low"], found[system, "high"])
        for (system, part), value in found.items()
        if not part
    }


def codes() -> Figure:
    """How many items each code has, balanced and plain, on the same embeddings."""
    num_items, sizes = 6000, (64, 64, 64)
    workload = TokenizeWorkload.load()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "embeddings.npy"
        TokenizeWorkload(**{**vars(workload), "width": 32}).write_embeddings(path, num_items)
        points_ND = np.load(path)
    torch.set_num_threads(1)
    figure, axes = plt(1, 2, figsize=(9.5, 3.6), sharey=True)
    made = {
        "plain residual k-means": plain_residual_kmeans(points_ND, sizes, seed=0),
        "balanced, as OneSlate does it": assign_catalog(points_ND, sizes, seed=0),
    }
    for one, (name, assignment), colour in zip(axes, made.items(), (AMBER, BLUE), strict=True):
        counts_V = np.sort(np.bincount(assignment.sids_NL[:, 0], minlength=sizes[0]))[::-1]
        shared = num_items - len(np.unique(assignment.sids_NL, axis=0))
        one.bar(np.arange(sizes[0]), counts_V, color=colour, width=0.9)
        one.set_title(name, loc="left", fontweight="bold")
        one.set_xlabel(f"the {sizes[0]} codes of the first level, largest first")
        one.annotate(
            f"items of a code: {counts_V.min()} to {counts_V.max()}\n"
            f"items left without an ID of their own: {shared:,}",
            (0.97, 0.95), xycoords="axes fraction", ha="right", va="top", fontsize=10.5,
        )  # fmt: skip
        one.margins(x=0.01)
    axes[0].set_ylabel(f"items (of {num_items:,})")
    return figure


def plt(rows: int, columns: int, **options: Any) -> tuple[Figure, npt.NDArray[Any]]:
    """A figure and its axes, without the state of pyplot."""
    share = {name: options.pop(name) for name in ("sharey",) if name in options}
    figure = Figure(layout="constrained", **options)
    axes = figure.subplots(rows, columns, squeeze=False, **share)
    return figure, axes.ravel()


def trie() -> Figure:
    """The trie of the sample's 72 books, and the beam that looks for one reader's next book."""
    with tempfile.TemporaryDirectory() as folder:
        trained, prepared = sample_model(Path(folder))
    example, seen, chance = first_item(trained, prepared)
    beam: list[Prefix] = [()]
    kept: list[list[Prefix]] = []
    for level in range(1, trained.generator.spec.num_levels + 1):
        below = [prefix for prefix in chance if len(prefix) == level and prefix[:-1] in beam]
        beam = sorted(below, key=lambda prefix: -chance[prefix])[:BEAMS]
        kept.append(beam)
    snapshot = trained.catalog.snapshot
    titles = {
        tuple(sid): prepared.items["title"][int(item)]
        for sid, item in zip(snapshot.sids_NL.tolist(), trained.catalog.item_of_row_N, strict=True)
    }
    figure, (axes,) = plt(1, 1, figsize=(10.5, 7.2))
    draw_trie(axes, titles, chance, kept, seen)
    user = prepared.user_id_E[int(example.history_start[0])]
    axes.set_title(
        f"The next book of {user}: a beam of {BEAMS} walks the trie of {len(titles)} books",
        loc="left", fontweight="bold", pad=14,
    )  # fmt: skip
    return figure


def sample_model(folder: Path) -> tuple[TrainedGenerator, PreparedData]:
    """Prepared, tokenized and trained, with the recipe `default` but six codes a level."""
    torch.set_num_threads(1)
    settings = ["prepare.repeat_policy=exclude", "tokenize.codebook_size=6"]
    run = Run(load_recipe("default", settings, format="table"), folder)
    run.prepare(ROOT / "docs" / "guides" / "sample")
    run.tokenize()
    run.train()
    return run.generator(), run.prepared()


def first_item(trained: TrainedGenerator, prepared: PreparedData) -> tuple[Examples, set[Prefix], dict[Prefix, float]]:
    """One example; the sids that its user has seen; how likely the next item's sid begins with each prefix.

    A beam as wide as the catalog leaves nothing out.
    """
    tests = prepared.examples("test")
    lengths = tests.history_end - tests.history_start
    example = tests[np.flatnonzero((lengths >= 6) & (lengths <= 9))[EXAMPLE : EXAMPLE + 1]]
    collator = Collator(prepared, trained.catalog, trained.generator.spec, torch.device("cpu"))
    seen_rows = collator.history_rows(example)
    sids_NL = trained.catalog.snapshot.sids_NL
    found = BeamSearch(trained.generator, trained.catalog.snapshot).decode(
        collator.history(example), beam_width=len(sids_NL), num_items=1, excluded_rows_BX=seen_rows
    )
    chance: dict[Prefix, float] = {}
    for row, valid, logprobs_L in zip(
        found.item_rows_BWK[0, :, 0].tolist(), found.item_valid_BWK[0, :, 0].tolist(),
        found.level_logprobs_BWKL[0, :, 0].numpy(), strict=True,
    ):  # fmt: skip
        for level in range(1, len(logprobs_L) + 1 if valid else 1):
            chance[tuple(sids_NL[row, :level].tolist())] = float(np.exp(logprobs_L[:level].sum()))
    return example, {tuple(sids_NL[row].tolist()) for row in seen_rows[0].tolist() if row >= 0}, chance


def draw_trie(
    axes: Axes, titles: dict[Prefix, str], chance: dict[Prefix, float], kept: list[list[Prefix]], seen: set[Prefix]
) -> None:
    """Every prefix a dot, from the root on the left to the books on the right."""
    num_levels = len(kept)
    height = {sid: -float(place) for place, sid in enumerate(sorted(titles))}
    for level in range(num_levels - 1, -1, -1):
        for prefix in {sid[:level] for sid in titles}:
            children = {sid[: level + 1] for sid in titles if sid[:level] == prefix}
            height[prefix] = float(np.mean([height[child] for child in children]))
    alive = {prefix for beam in kept for prefix in beam}
    weighed = {prefix for prefix in chance if prefix[:-1] in {(), *alive} and prefix not in alive}
    for prefix, y in height.items():
        if not prefix:
            continue
        colour, width = (BLUE, 2.2) if prefix in alive else (AMBER, 1.0) if prefix in weighed else (FAINT, 0.6)
        ends = [len(prefix) - 1, len(prefix)], [height[prefix[:-1]], y]
        axes.plot(*ends, color=colour, linewidth=width, zorder=3 if prefix in alive else 2 if prefix in weighed else 1)
        size = 34 if prefix in alive else 12 if prefix in weighed else 5
        axes.scatter([len(prefix)], [y], s=size, color=colour, zorder=4)
        if prefix in alive and len(prefix) < num_levels:
            axes.annotate(f"{chance[prefix]:.0%}", (len(prefix), y), (0, 7), textcoords="offset points", ha="center",
                          color=BLUE, fontweight="bold", fontsize=10, zorder=6,
                          bbox={"boxstyle": "round,pad=.12", "fc": "white", "ec": "none", "alpha": 0.85})  # fmt: skip
    for sid in seen:
        axes.scatter([num_levels], [height[sid]], s=26, marker="x", color=RED, zorder=5)
    axes.scatter([0], [height[()]], s=46, color=BLUE, zorder=5)
    label_books(axes, titles, chance, kept[-1], height)
    axes.set(xlim=(-0.25, num_levels + 1.6), xticks=[])
    axes.set_axis_off()
    top = max(height.values()) + 2.5
    for level, text in enumerate(["[BOS]", "first code", "second code", "third code: a book"]):
        axes.text(level, top, text, ha="center", color=QUIET)
    handles = [
        Line2D([], [], color=BLUE, linewidth=2.2, marker="o", label="kept: the most likely prefixes so far"),
        Line2D([], [], color=AMBER, marker="o", markersize=4, label="looked at and dropped"),
        Line2D([], [], color=FAINT, marker="o", markersize=3, label="never looked at"),
        Line2D([], [], color=RED, marker="x", linestyle="none", label="seen before: not legal"),
    ]
    axes.legend(handles=handles, loc="lower right", frameon=False)


def label_books(
    axes: Axes, titles: dict[Prefix, str], chance: dict[Prefix, float], books: list[Prefix], height: dict[Prefix, float]
) -> None:
    """Titles of the books kept, far enough from each other to be read."""
    num_levels, last = len(books[0]), float("inf")
    for sid in sorted(books, key=lambda sid: -height[sid]):
        y = last = min(height[sid] + 1, last - 2.6)
        axes.annotate(
            f"{chance[sid]:.0%}  {titles[sid]}  ({'-'.join(map(str, sid))})", (num_levels, height[sid]),
            (num_levels + 0.12, y), va="center", fontsize=9.5, color=INK,
            arrowprops={"arrowstyle": "-", "color": QUIET, "linewidth": 0.6},
        )  # fmt: skip


def sequence() -> Figure:
    """What goes into the encoder and what the decoder writes."""
    figure, (axes,) = plt(1, 1, figsize=(10.5, 4.1))

    def box(
        x: float, y: float, width: float, text: str, colour: str, *, fill: bool = False, high: float = 0.62
    ) -> None:
        axes.add_patch(
            FancyBboxPatch((x, y), width, high, boxstyle="round,pad=0,rounding_size=.08", ec=colour, lw=1.3,
                           fc=colour if fill else "white")
        )  # fmt: skip
        axes.text(x + width / 2, y + high / 2, text, ha="center", va="center", color="white" if fill else INK,
                  fontsize=9.5)  # fmt: skip

    for place, text in enumerate(["view\n2-0-1", "view\n2-3-1", "buy\n5-1-0", "..."]):
        box(0.2 + place * 0.95, 0.2, 0.8, text, QUIET)
    axes.text(0.2, -0.2, "history: one vector an event\n(codes, action, value, age)", color=QUIET, va="center")
    box(0.2, 1.4, 3.65, "encoder: reads all events at once", BLUE, fill=True)
    for place in range(4):
        arrow(axes, (0.6 + place * 0.95, 0.86), (0.6 + place * 0.95, 1.36))
    box(4.7, 1.4, 9.7, "decoder: reads the encoder's output, and what it has written so far", BLUE, fill=True)
    arrow(axes, (3.9, 1.71), (4.66, 1.71))
    written = ["[BOS]", "2", "4", "0", "[BOS]", "2", "4", "1", "[BOS]", "5", "0"]
    following = ["2", "4", "0", "", "2", "4", "1", "", "5", "0", "3"]
    for place, (text, code) in enumerate(zip(written, following, strict=True)):
        x = 4.75 + place * 0.88
        box(x, 0.2, 0.74, text, AMBER if text == "[BOS]" else QUIET)
        arrow(axes, (x + 0.37, 0.86), (x + 0.37, 1.36))
        if code:
            box(x, 2.6, 0.74, code, GREEN)
            arrow(axes, (x + 0.37, 2.06), (x + 0.37, 2.56))
    for item, begin in enumerate((0, 4, 8)):
        left = 4.75 + begin * 0.88
        axes.plot([left, left + 2.5], [3.42, 3.42], color=GREEN, linewidth=2)
        axes.text(left + 1.25, 3.55, f"item {item + 1}", ha="center", color=GREEN, fontweight="bold")
    axes.text(
        4.75,
        -0.2,
        "one code a step; before every item a [BOS], which carries\nthe item before it",
        color=QUIET,
        va="center",
    )
    axes.text(4.75, 4.05, "the slate: the target in training, the answer in service", color=INK, fontweight="bold")
    axes.set(xlim=(0, 14.6), ylim=(-0.6, 4.4))
    axes.set_axis_off()
    return figure


def arrow(axes: Axes, begin: tuple[float, float], end: tuple[float, float]) -> None:
    """A thin one."""
    axes.annotate("", end, begin, arrowprops={"arrowstyle": "-|>", "color": QUIET, "linewidth": 0.9})


def reward() -> Figure:
    """What slates are truly worth in the simulator, before and after alignment, beside other ways to better them."""
    result = newest("trials-alignment")
    worth = values(result, "slate", "true_reward")
    names = {
        "session-wise": "session-wise: the start",
        "supervised": "as many supervised steps more",
        "item-wise": "item-wise",
        "best-of-n": "best of 32 by the reward model",
        "session-wise-mmr": "session-wise, first items by MMR",
        "item-wise-mmr": "item-wise, re-ranked by MMR",
        "ecpo": "aligned by ECPO",
        "grpo": "aligned by GRPO",
        "aligned": "aligned by IPA (the default)",
    }
    figure, (axes,) = plt(1, 1, figsize=(9.5, 3.9))
    order = sorted(names, key=lambda name: worth[name][0])
    intervals(axes, [names[name] for name in order], [worth[name] for name in order], strong=order.index("aligned"))
    axes.set_xlabel("true reward of the slate, mean and 95 % interval over users and seeds")
    oracle = worth["oracle"]
    axes.text(0.01, 0.9, f"the oracle, which knows the truth: {oracle[0]:.2f}",
              transform=axes.transAxes, color=QUIET)  # fmt: skip
    return figure


def intervals(
    axes: Axes, names: list[str], found: list[tuple[float, float, float]], *, strong: int, digits: int = 2
) -> None:
    """One line a system, lowest first: a dot, its interval, and the figure beside it."""
    for place, (value, low, high) in enumerate(found):
        colour = BLUE if place == strong else QUIET
        axes.plot([low, high], [place, place], color=colour, linewidth=2.4, solid_capstyle="round")
        axes.scatter([value], [place], color=colour, s=42, zorder=3)
        axes.annotate(f"{value:.{digits}f}", (high, place), (7, 0), textcoords="offset points", va="center",
                      color=colour, fontsize=9.5)  # fmt: skip
    axes.set_yticks(range(len(names)), names)
    axes.grid(axis="x", color=FAINT, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.margins(x=0.16, y=0.08)


def industrial() -> Figure:
    """The next item on a public data set, against the baselines; from `results/trials-industrial.jsonl`."""
    result = newest("trials-industrial")
    figure, axes = plt(1, 2, figsize=(10.5, 3.1), sharey=True)
    names = {
        "sasrec": "SASRec, ids",
        "cooccurrence": "co-occurrence",
        "sasrec-text": "SASRec, text",
        "item-wise": "generator, item-wise",
        "generator": "generator, session-wise",
    }
    for one, (unit, label) in zip(axes, {"recall@10": "HR@10", "ndcg@10": "NDCG@10"}.items(), strict=True):
        found = values(result, "next item", unit)
        intervals(one, list(names.values()), [found[name] for name in names], strong=len(names) - 1, digits=3)
        one.set_xlabel(f"{label}, 95 % interval over users and seeds")
    return figure


FIGURES: dict[str, Callable[[], Figure]] = {
    "codes": codes,
    "trie": trie,
    "sequence": sequence,
    "reward": reward,
    "industrial": industrial,
}

if __name__ == "__main__":
    main()
