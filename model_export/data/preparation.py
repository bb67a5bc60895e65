"""The stage `prepare`: from files of events to a prepared data set.

Shapes: E events, grouped by segment and in time order inside it.
"""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import polars as pl

from model_export.data.actions import Action, name_actions, value_edges
from model_export.data.config import PrepareConfig
from model_export.data.core import filter_events
from model_export.data.errors import DataError
from model_export.data.examples import Examples, Timeline, build_examples
from model_export.data.feedback import Feedback, build_feedback
from model_export.data.formats import READERS
from model_export.data.inputs import Inputs
from model_export.data.items import build_catalog
from model_export.data.log import EventLog
from model_export.data.prepared import FORMAT_VERSION, PreparedData
from model_export.data.protocol import (
    SplitName,
    assign_parts,
    choose_repeat_policy,
    choose_split,
    choose_target_kind,
    repeat_share,
)
from model_export.data.rejects import Rejects
from model_export.data.sessions import Int, number_sessions
from model_export.data.splits import PARTS, TRAIN


def prepare(
    config: PrepareConfig,
    data_path: str | Path,
    out_dir: str | Path,
    progress: Callable[[str], None] = lambda _message: None,
) -> PreparedData:
    """Read `data_path` (a folder or a file) in `config.format`, write `out_dir`, and return what was written.

    `progress` receives a line per step. `DataError` (one line that names file and column) where a file is missing or
    unreadable, a column is missing, or nothing is left to train on; rows that cannot be used are in `rejects`.
    `ValueError` where the configuration asks for what these data cannot give.
    """
    if config.format not in READERS:
        raise ValueError(f"format must be one of {', '.join(sorted(READERS))}, not {config.format!r}")
    inputs, rejects = Inputs(data_path), Rejects()
    if Path(out_dir).resolve() == inputs.folder.resolve():
        raise ValueError(f"{out_dir}: the prepared data must not be written among the data that they are made from")
    progress(f"reading {data_path} as {config.format}")
    log = READERS[config.format](inputs, config, rejects)
    if log.events.height == 0:
        raise DataError(f"{data_path}: no usable event: {_first_reject(rejects)}")
    events = _filter(log, config, data_path)
    keeps_unseen = log.owns_catalog if config.unseen_items == "auto" else config.unseen_items == "keep"
    items = build_catalog(events, log.items, keep_unseen=keeps_unseen)
    progress(f"splitting {events.height:,} events of {items.height:,} items")
    events = _order(events, items, is_given=log.is_given)
    data = _assemble(log, events, items, rejects=rejects.frame(), config=config, data_sha256=inputs.sha256())
    data.save(out_dir)
    progress(data.summary())
    return data


def _first_reject(rejects: Rejects) -> str:
    frame = rejects.frame()
    if frame.height == 0:
        return "the files hold none"
    first = frame.row(0, named=True)
    return f"all {frame.height:,} rows are bad, the first in {first['file']}, line {first['line']}: {first['reason']}"


def _filter(log: EventLog, config: PrepareConfig, data_path: str | Path) -> pl.DataFrame:
    events = filter_events(log.events, config)
    if log.is_given and events.height < log.events.height:
        raise ValueError(f"format {config.format!r} brings its own split here: its events cannot be filtered")
    if events.height == 0:
        raise DataError(
            f"{data_path}: keep_actions, min_value and the k-core leave none of {log.events.height:,} events"
        )
    return events


def _order(events: pl.DataFrame, items: pl.DataFrame, *, is_given: bool) -> pl.DataFrame:
    """Events with `segment` (by first appearance) and `item`, by segment and time; ties keep the files' order."""
    key = "segment_key" if is_given else "user_id"
    segments = events.select(key).unique(maintain_order=True).with_row_index("segment")
    indexes = items.select("item_id").with_row_index("item")
    joined = events.join(segments, on=key, maintain_order="left").join(indexes, on="item_id", maintain_order="left")
    return joined.sort("segment", "timestamp_ms", maintain_order=True)


@dataclass(frozen=True, kw_only=True)
class _Layout:
    """Sessions, parts and examples of ordered events, and the choices that led to them."""

    split: SplitName
    split_cuts_ms: list[int]
    target_kind: Literal["session", "next_items"]
    timeline: Timeline
    splits: dict[str, Examples]

    def choices(self) -> dict[str, Any]:
        """As they stand in `meta.json`."""
        return {"split": self.split, "split_cuts_ms": self.split_cuts_ms, "target_kind": self.target_kind}


def _lay_out(log: EventLog, events: pl.DataFrame, config: PrepareConfig) -> _Layout:
    split = choose_split(log, config)
    segment_E, timestamp_ms_E = _int64(events["segment"]), _int64(events["timestamp_ms"])
    session_E = _number_sessions(log, events, segment_E, timestamp_ms_E, config)
    part_E, cuts = assign_parts(
        split,
        segment_E=segment_E,
        session_E=session_E,
        timestamp_ms_E=timestamp_ms_E,
        given_part_E=_int64(events["part"]) if log.is_given else None,
        config=config,
    )
    target_kind = choose_target_kind(log, segment_E, timestamp_ms_E, session_E, config)
    last_only_E = events["last_only"].to_numpy() if log.is_given else np.zeros(events.height, dtype=np.bool_)
    timeline = Timeline(segment_E=segment_E, session_E=session_E, part_E=part_E, last_only_E=last_only_E)
    splits = build_examples(
        timeline, target_kind=target_kind, item_protocol=split in ("given", "leave_one_out"), config=config
    )
    if len(splits["train"]) == 0:
        raise DataError(
            f"split {split} and targets {target_kind} leave no training example among {events.height:,} events"
        )
    return _Layout(split=split, split_cuts_ms=cuts, target_kind=target_kind, timeline=timeline, splits=splits)


def _assemble(
    log: EventLog,
    events: pl.DataFrame,
    items: pl.DataFrame,
    *,
    rejects: pl.DataFrame,
    config: PrepareConfig,
    data_sha256: str,
) -> PreparedData:
    layout = _lay_out(log, events, config)
    timeline = layout.timeline
    actions, action_E = _number_actions(log, events, timeline.part_E, config)
    feedback = build_feedback(log, events, items, layout.split_cuts_ms, config)
    share = repeat_share(timeline.segment_E, _int64(events["item"]), timeline.part_E == TRAIN)
    return PreparedData(
        user_id_E=events["user_id"],
        item_E=events["item"].cast(pl.Int32).to_numpy(writable=True),
        action_E=action_E.astype(np.int16),
        timestamp_ms_E=_int64(events["timestamp_ms"]),
        value_E=_values(events),
        session_E=timeline.session_E.astype(np.int32),
        segment_E=timeline.segment_E.astype(np.int32),
        part_E=timeline.part_E.astype(np.int8),
        items=items,
        splits=layout.splits,
        rejects=rejects,
        feedback=feedback,
        meta=_plain_json(
            {
                "format_version": FORMAT_VERSION,
                "format": config.format,
                "actions": [asdict(action) for action in actions],
                "default_action": log.default_action if log.default_action in events["action"] else actions[0].name,
                "has_times": log.has_times,
                "slate_size": config.slate_size,
                **layout.choices(),
                "repeat_policy": choose_repeat_policy(share, config),
                "repeat_share": share,
                "counts": _count(events, items, rejects, timeline.session_E, layout.splits)
                | _count_feedback(log, feedback),
                "data_sha256": data_sha256,
                "config": asdict(config),
            }
        ),
    )


def _plain_json(meta: dict[str, Any]) -> dict[str, Any]:
    """The same as a saved and loaded `meta.json` gives it (lists for tuples)."""
    plain: dict[str, Any] = json.loads(json.dumps(meta))
    return plain


def _values(events: pl.DataFrame) -> npt.NDArray[np.float32]:
    return events["value"].fill_null(float("nan")).to_numpy(writable=True)


def _int64(series: pl.Series) -> Int:
    return series.cast(pl.Int64).to_numpy(writable=True)


def _number_sessions(
    log: EventLog, events: pl.DataFrame, segment_E: Int, timestamp_ms_E: Int, config: PrepareConfig
) -> Int:
    visit_E = _int64(events["session_id"].rank("dense").cast(pl.Int64).fill_null(0)) - 1
    has_pauses = log.has_times and not log.anonymous
    return number_sessions(
        segment_E, timestamp_ms_E, visit_E, has_pauses=has_pauses, session_gap_s=config.session_gap_s
    )


def _number_actions(
    log: EventLog, events: pl.DataFrame, part_E: Int, config: PrepareConfig
) -> tuple[list[Action], Int]:
    """The actions with value edges from the training events, and each event's place among them."""
    names = name_actions(events)
    action_E = _int64(events["action"].replace_strict(names, list(range(len(names))), return_dtype=pl.Int64))
    value_E = _values(events)
    actions = [
        Action(
            name=name,
            unit=log.units.get(name, ""),
            value_edges=value_edges(value_E[(action_E == place) & (part_E == TRAIN)], config.value_buckets),
        )
        for place, name in enumerate(names)
    ]
    return actions, action_E


def _count(
    events: pl.DataFrame, items: pl.DataFrame, rejects: pl.DataFrame, session_E: Int, splits: dict[str, Examples]
) -> dict[str, int]:
    return {
        "users": events["user_id"].n_unique(),
        "items": items.height,
        "items_with_events": events["item"].n_unique(),
        "events": events.height,
        "segments": events["segment"].n_unique(),
        "sessions": int(session_E[-1]) + 1,
        "rejects": rejects.height,
    } | {f"{name}_examples": len(splits[name]) for name in PARTS}


def _count_feedback(log: EventLog, feedback: Feedback | None) -> dict[str, int]:
    """Counts of what was shown; none where the log does not tell."""
    if log.impressions is None:
        return {}
    used = 0 if feedback is None else feedback.num_impressions
    return {
        "impressions": used,
        "impressions_left_out": log.impressions.height - used,
        "visits": 0 if feedback is None else feedback.num_visits,
    }
