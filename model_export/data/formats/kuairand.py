"""Format `kuairand`: feed logs of KuaiRand, pure (csv) and the k-core cut of 27K (TAB).

A row is one impression with several signals. It becomes one event: its action is the strongest signal, its value the
watch time in seconds. The impressions beside the events keep every signal.
"""

from pathlib import Path

import polars as pl

from model_export.data.config import PrepareConfig
from model_export.data.delimited import guess_separator, read_delimited
from model_export.data.errors import DataError
from model_export.data.formats.impressions import clean_numbered
from model_export.data.inputs import Inputs
from model_export.data.items import clean_items
from model_export.data.log import IMPRESSION_SCHEMA, EventLog
from model_export.data.rejects import Rejects

LOG_FILES = ("log_standard*.csv", "processed_standard*.csv")
REQUIRED = ("user_id", "video_id", "time_ms", "is_click", "long_view", "play_time_ms")
IMPRESSION = "view"
SIGNALS = {
    "is_hate": "hate",
    "is_follow": "follow",
    "is_forward": "forward",
    "is_comment": "comment",
    "is_like": "like",
    "long_view": "long_view",
    "is_click": "click",
}
"""Flag column -> action, strongest first; an impression without any of them is a `view`."""
SHOWN = ("click", "long_view", "like", "follow", "comment", "forward", "hate")
"""Signals of an impression, in the order in which they are reported."""


def read_kuairand(inputs: Inputs, _config: PrepareConfig, rejects: Rejects) -> EventLog:
    """Impressions as events; repeated (user, video, time) rows are rejected. The first tag is the group."""
    files = [inputs.main] if inputs.main is not None else inputs.find(*LOG_FILES)
    if not files:
        raise DataError(f"{inputs.folder}: no file {' or '.join(LOG_FILES)} (or the same with .gz)")
    logs = [_read_log(inputs, file, rejects) for file in files]
    signals = tuple(name for name in SHOWN if all(name in impressions.columns for _, impressions in logs))
    video_file = inputs.optional("video_features_basic*.csv")
    return EventLog(
        events=pl.concat([events for events, _ in logs]),
        items=None if video_file is None else _read_videos(inputs, video_file, rejects),
        impressions=pl.concat([impressions.select([*IMPRESSION_SCHEMA, *signals]) for _, impressions in logs]),
        signals=signals,
        default_action=IMPRESSION,
        units=dict.fromkeys((IMPRESSION, *SIGNALS.values()), "s"),
    )


def _read_log(inputs: Inputs, file: Path, rejects: Rejects) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Events and impressions of one file, a row of each per usable row."""
    raw = read_delimited(inputs, file, rejects, separator=guess_separator(inputs, file), required=REQUIRED)
    flags = {column: action for column, action in SIGNALS.items() if column in raw.columns}
    for column in flags:
        reason = pl.when(~pl.col(column).is_in(["0", "1"])).then(pl.lit(f"{column} is neither 0 nor 1"))
        raw = rejects.sift(raw, file, reason)
    for column in ("time_ms", "play_time_ms"):
        is_number = pl.col(column).cast(pl.Int64, strict=False).is_not_null()
        raw = rejects.sift(raw, file, pl.when(~is_number).then(pl.lit(f"{column} is not a whole number")))
    raw = _drop_repeats(raw, file, rejects)
    action = pl.coalesce(
        *(pl.when(pl.col(column) == "1").then(pl.lit(name)) for column, name in flags.items()), pl.lit(IMPRESSION)
    )
    signals = raw.select("line", *(pl.col(column).cast(pl.Float32).alias(name) for column, name in flags.items()))
    raw = raw.select(
        "line",
        "row",
        "user_id",
        pl.col("video_id").alias("item_id"),
        (pl.col("time_ms").cast(pl.Int64) / 1000).alias("timestamp"),
        action.alias("action"),
        (pl.col("play_time_ms").cast(pl.Int64) / 1000).alias("value"),
    )
    events, line = clean_numbered(raw, file, rejects, default_action=IMPRESSION)
    impressions = events.with_columns(line, position=pl.lit(None)).join(signals, on="line", maintain_order="left")
    return events, impressions.select([*IMPRESSION_SCHEMA, *flags.values()]).cast(pl.Schema(IMPRESSION_SCHEMA))


def _drop_repeats(raw: pl.DataFrame, file: Path, rejects: Rejects) -> pl.DataFrame:
    first_line = pl.col("line").first().over("user_id", "video_id", "time_ms")
    reason = pl.format("repeats user_id, video_id and time_ms of line {}", first_line)
    return rejects.sift(raw, file, pl.when(pl.col("line") != first_line).then(reason))


def _read_videos(inputs: Inputs, file: Path, rejects: Rejects) -> pl.DataFrame:
    raw = read_delimited(inputs, file, rejects, separator=",", required=("video_id", "tag"))
    tags = pl.col("tag").str.split(",").list.eval(pl.element().filter(pl.element() != ""))
    raw = raw.select("line", "row", pl.col("video_id").alias("item_id"), tags.alias("tags"))
    return clean_items(raw.with_columns(group=pl.col("tags").list.first()), file, rejects)
