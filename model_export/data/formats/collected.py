"""Format `collected`: what `oneslate collect` drained from a service. So a model learns from what it showed.

A slate's every item is one impression; its signals are the actions that a model knows of: 1 where the user did that to
the item and the event named the slate, else 0. Items come from the file that `prepare.items` names, as in `table`.
"""

from pathlib import Path

import polars as pl

from model_export.data.config import PrepareConfig
from model_export.data.delimited import require_columns
from model_export.data.errors import DataError
from model_export.data.events import clean_events
from model_export.data.formats.impressions import clean_numbered
from model_export.data.formats.parquet import read_parquet
from model_export.data.formats.table import read_items_of
from model_export.data.inputs import Inputs
from model_export.data.log import IMPRESSION_SCHEMA, EventLog
from model_export.data.rejects import Rejects

EVENTS = ("user_id", "item_id", "action", "timestamp", "value", "recommendation_id")
IMPRESSIONS = ("recommendation_id", "user_id", "timestamp", "item_ids")
ACTION = "view"
_PLACE = ["recommendation_id", "user_id", "item_id"]
_TAKEN = frozenset({"line", "row", *IMPRESSION_SCHEMA, "timestamp", "recommendation_id"})
"""Names of columns that an action cannot have as a signal."""


def read_collected(inputs: Inputs, config: PrepareConfig, rejects: Rejects) -> EventLog:
    """The folders `events` and, where slates were logged, `impressions`."""
    done = [(file, _columns(inputs, file, EVENTS)) for file in _files(inputs, "events")]
    if not done:
        raise DataError(f"{inputs.folder}: no file events/*.parquet: is this a folder of `oneslate collect`?")
    events = pl.concat([clean_events(raw, file, rejects, default_action=ACTION) for file, raw in done])
    actions = tuple(sorted(events["action"].unique()))
    acts = pl.concat([raw.select([*_PLACE, "action"]) for _, raw in done]).drop_nulls().unique()
    signals = {f"did_{action}" if action in _TAKEN else action: action for action in actions}
    shown = [
        _impressions(_columns(inputs, file, IMPRESSIONS), acts, signals, file, rejects)
        for file in _files(inputs, "impressions")
    ]
    return EventLog(
        events=events,
        items=read_items_of(inputs, config, rejects),
        impressions=pl.concat(shown) if shown else None,
        signals=tuple(signals) if shown else (),
        default_action=ACTION,
        units=dict.fromkeys(actions, config.value_unit),
        owns_catalog=True,
    )


def _files(inputs: Inputs, kind: str) -> list[Path]:
    if inputs.main is not None:
        raise DataError(f"{inputs.main}: the format collected reads a folder of `oneslate collect`, not one file")
    return sorted(file for file in (inputs.folder / kind).glob("*.parquet") if not file.name.startswith("."))


def _columns(inputs: Inputs, file: Path, names: tuple[str, ...]) -> pl.DataFrame:
    raw = read_parquet(inputs, file)
    require_columns(file, raw.columns, names)
    return raw.select("line", *names)


def _impressions(
    slates: pl.DataFrame, acts: pl.DataFrame, signals: dict[str, str], file: Path, rejects: Rejects
) -> pl.DataFrame:
    """A row for each item of each slate; `line`, by which a bad one is told, counts these rows."""
    places = pl.int_ranges(pl.col("item_ids").list.len(), dtype=pl.Int32)
    raw = slates.with_columns(position=places).explode("item_ids", "position").drop_nulls("item_ids")
    raw = raw.rename({"item_ids": "item_id"})
    for signal, action in signals.items():
        did = acts.filter(pl.col("action") == action).select(_PLACE).with_columns(pl.lit(1.0).alias(signal))
        raw = raw.join(did, on=_PLACE, how="left", maintain_order="left").with_columns(pl.col(signal).fill_null(0))
    raw = raw.with_columns(session_id=pl.col("recommendation_id"), line=pl.int_range(1, pl.len() + 1, dtype=pl.Int64))
    kept, line = clean_numbered(raw.drop("position", *signals), file, rejects, default_action="shown")
    found = kept.with_columns(line).join(raw.select("line", "position", *signals), on="line", maintain_order="left")
    return found.select([*IMPRESSION_SCHEMA, *signals]).cast(
        pl.Schema({**IMPRESSION_SCHEMA, **dict.fromkeys(signals, pl.Float32())})
    )
