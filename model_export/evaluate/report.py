"""The report: what was measured, as data. `markdown` and `plots` render it.

Undefined numbers (no pair of items with tags, say) are null in JSON and NaN here.
"""

import math
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic
from pydantic import BaseModel, BeforeValidator, ConfigDict, PlainSerializer

from model_export.evaluate.bootstrap import Interval

FORMAT_VERSION = 1
Level = Literal["item", "slate"]
Verdict = Literal["ahead", "behind", "no significant difference"]
Only = Literal["all", "unseen"]


def _nan_if_null(value: Any) -> Any:
    return float("nan") if value is None else value


def _null_if_nan(value: float) -> float | None:
    return None if math.isnan(value) else value


Number = Annotated[float, BeforeValidator(_nan_if_null), PlainSerializer(_null_if_nan, return_type=float | None)]


class _Row(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Estimate(_Row):
    """A mean over examples with its bootstrap interval."""

    mean: Number
    low: Number
    high: Number

    @classmethod
    def of(cls, interval: Interval) -> "Estimate":
        return cls(mean=interval.mean, low=interval.low, high=interval.high)


class BucketRow(_Row):
    """Headline item metrics of the examples of one kind."""

    kind: Literal["history length", "target popularity"]
    label: str
    num_examples: int
    recall: Estimate
    ndcg: Estimate


class RecommenderReport(_Row):
    """Everything measured about one recommender on one split."""

    name: str
    item: dict[str, Estimate]
    """`recall@k`, `ndcg@k`, `mrr@k` of the next item."""
    slate: dict[str, Estimate]
    """Accuracy of slates, `true_reward` where a truth was given, and the beyond-accuracy panel, per slate."""
    catalog: dict[str, Number]
    """`coverage` and `gini` over all slates together; they have no interval."""
    buckets: list[BucketRow]
    item_s: float
    """Wall-clock seconds of `rank` over all item-level examples."""
    slate_s: float
    """Wall-clock seconds of `slates` over all slate-level examples."""
    num_seeds: int = 1
    """Trainings behind the figures; seconds are of all of them together."""
    seed_std: dict[Level, dict[str, Number]] = {}
    """Standard deviation (n - 1) of the runs' means; empty for one run."""


class Comparison(_Row):
    """The subject against one other recommender on one metric, on the same examples."""

    other: str
    level: Level
    metric: str
    only: Only = "all"
    """`unseen`: on the examples whose target has no training event."""
    difference: Estimate
    """subject - other."""
    p_value: Number
    verdict: Verdict
    """Whether the subject is ahead: from the interval alone."""
    relative_gain: Estimate | None = None
    """(subject - other) / other, where the other is above 0."""
    share_of_oracle_gap: Estimate | None = None
    """`true_reward` with an oracle: (subject - other) / (oracle - other), where the oracle is above the other."""


class SplitReport(_Row):
    """All recommenders on one split."""

    split: str
    num_examples: int
    num_slate_examples: int
    recommenders: list[RecommenderReport]
    comparisons: list[Comparison]


class DataReport(_Row):
    """What was evaluated on."""

    format: str
    split: str
    target_kind: str
    repeat_policy: str
    slate_size: int
    num_items: int
    num_train_events: int
    data_sha256: str


class Report(_Row):
    """The content of `report.json`."""

    format_version: int = FORMAT_VERSION
    subject: str
    """The recommender that the verdicts are about."""
    config: dict[str, Any]
    data: DataReport
    splits: list[SplitReport]

    def save(self, out_dir: Path) -> None:
        """Write `report.json`."""
        out_dir.mkdir(parents=True, exist_ok=True)
        (out_dir / "report.json").write_text(self.model_dump_json(indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> "Report":
        """Read a report from its folder or its `report.json`. `ValueError` with one line where it is none."""
        path = Path(path)
        path = path / "report.json" if path.is_dir() else path
        try:
            report = cls.model_validate_json(path.read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise ValueError(f"{path}: no such report") from error
        except (pydantic.ValidationError, UnicodeDecodeError) as error:
            raise ValueError(f"{path}: not a report of evaluate: {str(error).splitlines()[0]}") from error
        if report.format_version != FORMAT_VERSION:
            raise ValueError(f"{path}: report format {report.format_version}, this version reads {FORMAT_VERSION}")
        return report
