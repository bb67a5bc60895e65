"""The stage `evaluate`: every recommender on the same examples, item level and slate level.

Shapes: N items, D embedding width.
"""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from model_export.data.prepared import PreparedData
from model_export.evaluate.comparing import compare
from model_export.evaluate.config import EvaluateConfig
from model_export.evaluate.markdown import render
from model_export.evaluate.measuring import Bench
from model_export.evaluate.plots import plot
from model_export.evaluate.recommender import Competitor, Recommender
from model_export.evaluate.report import DataReport, Report, SplitReport
from model_export.evaluate.samples import draw_samples
from model_export.reward.scorer import SlateScorer

SUBJECT = "generator"
Progress = Callable[[str], None]


def evaluate(
    config: EvaluateConfig,
    prepared: PreparedData,
    recommenders: Sequence[Competitor],
    out_dir: str | Path,
    *,
    subject: str | None = None,
    embedding_ND: npt.NDArray[np.floating] | None = None,
    slate_value: SlateScorer | None = None,
    oracle: Recommender | None = None,
    progress: Progress = lambda _message: None,
) -> Report:
    """Measures `recommenders` and writes `report.json`, `report.md` and plots into `out_dir`.

    Args:
        config: What to measure.
        prepared: The data set.
        recommenders: Each alone, or several trainings of one as `Seeds`.
        out_dir: Folder of the report.
        subject: Whom the verdicts are about; by default the one called `generator`, else the first.
        embedding_ND: Item vectors for the diversity of slates; by default those of the items, if all bring one.
        slate_value: Says what a slate is worth: adds the slate metric `true_reward`.
        oracle: The best there is under `slate_value`: a row of its own, and gains as shares of the gap to it.
        progress: Told what is measured.

    Raises:
        ValueError: two recommenders of one name, an unknown subject, an oracle without `slate_value`, or a split
            without examples.
    """
    if oracle and slate_value is None:
        raise ValueError("an oracle needs slate_value, which says what its slates are worth")
    rows = [*recommenders, *([oracle] if oracle else [])]
    subject = _subject([one.name for one in rows], subject)
    bench = Bench(config, prepared, _embeddings(prepared) if embedding_ND is None else embedding_ND, slate_value)
    report = Report(
        subject=subject,
        config=dataclasses.asdict(config),
        data=_describe(prepared),
        splits=[_split_report(bench, split, rows, subject, oracle, progress) for split in config.splits],
    )
    out_dir = Path(out_dir)
    report.save(out_dir)
    (out_dir / "report.md").write_text(render(report, plot(report, out_dir)), encoding="utf-8")
    return report


def _subject(names: Sequence[str], subject: str | None) -> str:
    """Whom the verdicts are about."""
    if not names or len(set(names)) < len(names):
        raise ValueError(
            f"recommenders need different names, and there must be one: {', '.join(names) or 'none given'}"
        )
    chosen = subject or (SUBJECT if SUBJECT in names else names[0])
    if chosen not in names:
        raise ValueError(f"subject {subject!r} is none of the recommenders {', '.join(names)}")
    return chosen


def _split_report(
    bench: Bench, split: str, rows: Sequence[Competitor], subject: str, oracle: Recommender | None, progress: Progress
) -> SplitReport:
    """All recommenders on one split, and the subject against the others."""
    samples = draw_samples(bench.config, bench.prepared, split)
    measured = {}
    for place, row in enumerate(rows):
        progress(f"evaluating {row.name} on {split}")
        measured[row.name] = bench.measure(row, samples, place)
    best = measured[oracle.name] if oracle else None
    comparisons = [
        comparison
        for name, theirs in measured.items()
        if name != subject
        for comparison in compare(bench, measured[subject], theirs, samples, None if theirs is best else best)
    ]
    return SplitReport(
        split=split,
        num_examples=len(samples["item"].examples),
        num_slate_examples=len(samples["slate"].examples),
        recommenders=[one.report for one in measured.values()],
        comparisons=comparisons,
    )


def _embeddings(prepared: PreparedData) -> npt.NDArray[np.floating] | None:
    column = prepared.items["embedding"]
    if column.null_count() == len(column):
        return None
    width = int(column.list.len().drop_nulls()[0])
    rows = [row if row is not None else [0.0] * width for row in column.to_list()]
    return np.array(rows, dtype=np.float64)


def _describe(prepared: PreparedData) -> DataReport:
    return DataReport(
        format=str(prepared.meta["format"]),
        split=str(prepared.meta["split"]),
        target_kind=str(prepared.meta["target_kind"]),
        repeat_policy=str(prepared.meta["repeat_policy"]),
        slate_size=prepared.slate_size,
        num_items=prepared.num_items,
        num_train_events=int(prepared.train_events().sum()),
        data_sha256=str(prepared.meta["data_sha256"]),
    )
