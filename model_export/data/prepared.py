"""A prepared data set: the directory that `prepare` writes and every later stage reads.

Shapes: E events, N examples, K slate size.
"""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from model_export.data.actions import Action
from model_export.data.errors import DataError
from model_export.data.examples import Examples, target_items
from model_export.data.feedback import Feedback
from model_export.data.refitting import refitted
from model_export.data.rejects import SCHEMA as REJECT_SCHEMA
from model_export.data.splits import PARTS, TRAIN, VALID

FORMAT_VERSION = 1
FILES = ("meta.json", "events.parquet", "items.parquet", "examples.parquet", "rejects.jsonl")
FEEDBACK_FILE = "feedback.parquet"
"""Only where the log tells what was shown."""
EXAMPLE_COLUMNS = ("segment", "history_start", "history_end", "target_start", "target_end")


@dataclass(frozen=True, kw_only=True, eq=False)
class PreparedData:
    """Events grouped into segments (a user's events, oldest first), items, and examples per split.

    Every array over events has length E; offsets in `Examples` point into them.
    """

    user_id_E: pl.Series
    item_E: npt.NDArray[np.int32]
    """Item index: row of `items`."""
    action_E: npt.NDArray[np.int16]
    """Place in `actions`, from 0."""
    timestamp_ms_E: npt.NDArray[np.int64]
    """Unix milliseconds; all 0 where `has_times` is false."""
    value_E: npt.NDArray[np.float32]
    """Raw value; NaN: none."""
    session_E: npt.NDArray[np.int32]
    """Session number, ascending, unique across segments."""
    segment_E: npt.NDArray[np.int32]
    """Segment number, ascending from 0."""
    part_E: npt.NDArray[np.int8]
    """0 train, 1 valid, 2 test."""
    items: pl.DataFrame
    """Columns `item_id, title, text, tags, group, available, embedding`; its order defines the item index."""
    splits: dict[str, Examples]
    rejects: pl.DataFrame
    """Bad rows: `file, line, reason, row`."""
    meta: dict[str, Any]
    """As in `meta.json`."""
    feedback: Feedback | None = None
    """What was shown and what came of it; None where the log does not tell."""

    @property
    def num_items(self) -> int:
        return self.items.height

    @property
    def num_events(self) -> int:
        return len(self.item_E)

    @property
    def slate_size(self) -> int:
        """K: the most events of a target."""
        return int(self.meta["slate_size"])

    @property
    def has_times(self) -> bool:
        return bool(self.meta["has_times"])

    @property
    def actions(self) -> list[Action]:
        """Actions in the order of `action_E`."""
        return [
            Action(name=action["name"], unit=action["unit"], value_edges=tuple(action["value_edges"]))
            for action in self.meta["actions"]
        ]

    def examples(self, split: str) -> Examples:
        """Examples of `train`, `valid` or `test`."""
        if split not in PARTS:
            raise ValueError(f"split must be one of {', '.join(PARTS)}, not {split!r}")
        return self.splits[split]

    def train_events(self) -> npt.NDArray[np.bool_]:
        """Mask over the events that training may see."""
        return np.equal(self.part_E, TRAIN)

    def target_items(self, examples: Examples) -> npt.NDArray[np.int64]:
        """Item indexes of the targets `[N, K]`, each item once in its first place; -1 pads."""
        return target_items(self.item_E.astype(np.int64), examples, self.slate_size)

    def refit(self) -> "PreparedData":
        """Train and validation together: for the fit behind a test figure, once validation has chosen everything.

        The examples of `valid` join those of `train`, and their events `train_events()`; `valid` is empty and `test`
        the same. Value edges of actions stay those of the training events.
        """
        found = refitted(
            user_id_E=self.user_id_E,
            item_E=self.item_E,
            segment_E=self.segment_E,
            session_E=self.session_E,
            part_E=self.part_E,
            splits=self.splits,
        )
        # A format with given rows has no impressions, whose offsets would move.
        assert self.feedback is None or len(found.event_G) == self.num_events
        return dataclasses.replace(
            self,
            **{
                name: getattr(self, name)[found.event_G] for name in ("item_E", "action_E", "timestamp_ms_E", "value_E")
            },
            user_id_E=self.user_id_E.gather(found.event_G),
            session_E=found.session_G,
            segment_E=found.segment_G,
            part_E=found.part_G,
            splits=found.splits,
            feedback=self.feedback and dataclasses.replace(self.feedback, part_M=_valid_as_train(self.feedback.part_M)),
            meta=self.meta | {"refit": True},
        )

    def save(self, path: str | Path) -> None:
        """Write the directory. `meta.json` goes last, so a directory that was cut short does not load."""
        path = Path(path)
        path.mkdir(parents=True, exist_ok=True)
        (path / "meta.json").unlink(missing_ok=True)
        self._events_frame().write_parquet(path / "events.parquet")
        self.items.write_parquet(path / "items.parquet")
        pl.concat([self._examples_frame(name) for name in PARTS]).write_parquet(path / "examples.parquet")
        self.rejects.write_ndjson(path / "rejects.jsonl")
        (path / FEEDBACK_FILE).unlink(missing_ok=True)
        if self.feedback is not None:
            self.feedback.save(path / FEEDBACK_FILE)
        (path / "meta.json").write_text(json.dumps(self.meta, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> "PreparedData":
        """Read a directory that `prepare` wrote. `DataError` where it is none or is damaged."""
        path = Path(path)
        for name in FILES:
            if not (path / name).is_file():
                raise DataError(f"{path}: not a prepared data set: no file {name}")
        try:
            meta = json.loads((path / "meta.json").read_text(encoding="utf-8"))
            events = pl.read_parquet(path / "events.parquet")
            items = pl.read_parquet(path / "items.parquet")
            examples = pl.read_parquet(path / "examples.parquet")
            rejects = _read_rejects(path / "rejects.jsonl")
            feedback = Feedback.load(path / FEEDBACK_FILE) if (path / FEEDBACK_FILE).exists() else None
        except (OSError, ValueError, pl.exceptions.PolarsError) as error:
            raise DataError(f"{path}: damaged prepared data set: {error}") from error
        if meta.get("format_version") != FORMAT_VERSION:
            raise DataError(f"{path}: prepared by another version of OneSlate; prepare it again")
        splits = {}
        for name in PARTS:
            rows = examples.filter(pl.col("split") == name)
            splits[name] = Examples(**{column: rows[column].to_numpy(writable=True) for column in EXAMPLE_COLUMNS})
        return cls(
            user_id_E=events["user_id"],
            item_E=events["item"].to_numpy(writable=True),
            action_E=events["action"].to_numpy(writable=True),
            timestamp_ms_E=events["timestamp_ms"].to_numpy(writable=True),
            value_E=events["value"].fill_null(float("nan")).to_numpy(writable=True),
            session_E=events["session"].to_numpy(writable=True),
            segment_E=events["segment"].to_numpy(writable=True),
            part_E=events["part"].to_numpy(writable=True),
            items=items,
            splits=splits,
            rejects=rejects,
            meta=meta,
            feedback=feedback,
        )

    def summary(self) -> str:
        """What was read and what came out, for people."""
        meta, counts = self.meta, self.meta["counts"]
        repeats = f"{100 * meta['repeat_share']:.1f} % of the training events repeat an earlier item"
        lines = [
            f"{meta['format']}: {counts['users']:,} users, {counts['items']:,} items, {counts['events']:,} events, "
            f"{counts['sessions']:,} sessions in {counts['segments']:,} segments",
            f"actions: {', '.join(action.name for action in self.actions)}; "
            f"times: {'yes' if self.has_times else 'no'}; {repeats}: {meta['repeat_policy']}",
            f"split {meta['split']}, targets {meta['target_kind']} of up to {self.slate_size}: "
            + ", ".join(f"{len(self.splits[name]):,} {name}" for name in PARTS),
            f"bad rows: {counts['rejects']:,}" + (" (see rejects.jsonl)" if counts["rejects"] else ""),
        ]
        if self.feedback is not None:
            left_out = counts["impressions_left_out"]
            note = f"; {left_out:,} of unused items or users left out" if left_out else ""
            lines.insert(3, f"feedback: {self.feedback.summary()}{note}")
        return "\n".join(lines)

    def _events_frame(self) -> pl.DataFrame:
        return pl.DataFrame(
            {
                "segment": self.segment_E,
                "user_id": self.user_id_E,
                "item": self.item_E,
                "action": self.action_E,
                "timestamp_ms": self.timestamp_ms_E,
                "value": pl.Series(self.value_E).fill_nan(None),
                "session": self.session_E,
                "part": self.part_E,
            }
        )

    def _examples_frame(self, name: str) -> pl.DataFrame:
        examples = self.splits[name]
        columns = {column: getattr(examples, column) for column in EXAMPLE_COLUMNS}
        return pl.DataFrame({"split": [name] * len(examples), **columns}, schema_overrides={"split": pl.String})


def _valid_as_train(part_M: npt.NDArray[np.int8]) -> npt.NDArray[np.int8]:
    return np.where(part_M == VALID, TRAIN, part_M).astype(np.int8)


def _read_rejects(file: Path) -> pl.DataFrame:
    if file.stat().st_size == 0:
        return pl.DataFrame(schema=REJECT_SCHEMA)
    return pl.read_ndjson(file, schema=REJECT_SCHEMA)
