"""Checking raw event rows: ids, times and values, each bad row named with its reason."""

from pathlib import Path

import polars as pl

from model_export.data.log import EVENT_SCHEMA, GIVEN_SCHEMA
from model_export.data.rejects import Rejects

MAX_ID_BYTES = 512
MAX_TIMESTAMP_S = 4_102_444_800.0  # the year 2100
MAX_VALUE = 3.0e38  # float32
UNFIT_CHARACTERS = r"[\p{Cc}\u{2028}\u{2029}\u{FFFD}]"


def id_fault(column: str) -> pl.Expr:
    """Why an id cannot be used: empty, too long, or holding newlines, control or undecodable characters; else null."""
    col = pl.col(column)
    return (
        pl.when(col.is_null() | (col.str.strip_chars() == ""))
        .then(pl.lit(f"{column} is empty"))
        .when(col.str.len_bytes() > MAX_ID_BYTES)
        .then(pl.lit(f"{column} is longer than {MAX_ID_BYTES} bytes"))
        .when(col.str.contains(UNFIT_CHARACTERS))
        .then(pl.lit(f"{column} holds a control character or is not valid text"))
    )


def clean_events(raw: pl.DataFrame, file: Path, rejects: Rejects, *, default_action: str) -> pl.DataFrame:
    """Events of one file in `EVENT_SCHEMA`; bad rows go to `rejects`.

    `raw` has `line`, `user_id`, `item_id` and any of `timestamp` (Unix seconds or RFC 3339; String, numeric or
    Datetime), `action`, `value`, `session_id`, `row` and the given-split columns. Without `timestamp` all times are 0.
    """
    raw = rejects.sift(raw, file, pl.coalesce(id_fault("user_id"), id_fault("item_id")))
    raw = _with_optional_text(raw, "action", default_action)
    raw = _with_optional_text(raw, "session_id", None)
    raw = rejects.sift(
        raw,
        file,
        pl.coalesce(
            id_fault("action"),
            pl.when(pl.col("session_id").is_not_null()).then(id_fault("session_id")),
        ),
    )
    raw = _with_times(raw, file, rejects)
    raw = _with_values(raw, file, rejects)
    given = [name for name in GIVEN_SCHEMA if name in raw.columns]
    return raw.select([*EVENT_SCHEMA, *given]).cast(
        pl.Schema(EVENT_SCHEMA | {name: GIVEN_SCHEMA[name] for name in given})
    )


def _with_optional_text(raw: pl.DataFrame, column: str, default: str | None) -> pl.DataFrame:
    """An absent column or an empty field means `default`."""
    filler = pl.lit(default, dtype=pl.String)
    if column not in raw.columns:
        return raw.with_columns(filler.alias(column))
    col = pl.col(column).cast(pl.String)
    return raw.with_columns(pl.when(col.is_null() | (col == "")).then(filler).otherwise(col).alias(column))


def _with_times(raw: pl.DataFrame, file: Path, rejects: Rejects) -> pl.DataFrame:
    if "timestamp" not in raw.columns:
        return raw.with_columns(timestamp_ms=pl.lit(0, dtype=pl.Int64))
    raw = raw.with_columns(seconds_f64=_seconds(raw["timestamp"].dtype))
    seconds = pl.col("seconds_f64")
    raw = rejects.sift(
        raw,
        file,
        pl.when(pl.col("timestamp").is_null() | (pl.col("timestamp").cast(pl.String) == ""))
        .then(pl.lit("timestamp is empty"))
        .when(seconds.is_null())
        .then(pl.lit("timestamp is neither Unix seconds nor RFC 3339"))
        .when(~seconds.is_finite())
        .then(pl.lit("timestamp is not finite"))
        .when((seconds < 0) | (seconds >= MAX_TIMESTAMP_S))
        .then(pl.lit("timestamp lies outside 1970 to 2100 (Unix seconds are expected)")),
    )
    return raw.with_columns(timestamp_ms=(seconds * 1000).round().cast(pl.Int64)).drop("seconds_f64")


def _seconds(dtype: pl.DataType) -> pl.Expr:
    col = pl.col("timestamp")
    if dtype.is_numeric():
        return col.cast(pl.Float64)
    if isinstance(dtype, pl.Datetime):
        return col.dt.epoch("ms").cast(pl.Float64) / 1000
    text = col.cast(pl.String)
    moment = text.str.to_datetime("%+", time_unit="ms", time_zone="UTC", strict=False)
    return text.cast(pl.Float64, strict=False).fill_null(moment.dt.epoch("ms").cast(pl.Float64) / 1000)


def _with_values(raw: pl.DataFrame, file: Path, rejects: Rejects) -> pl.DataFrame:
    if "value" not in raw.columns:
        return raw.with_columns(value=pl.lit(None, dtype=pl.Float32))
    text = pl.col("value").cast(pl.String)
    is_absent = text.is_null() | (text == "")
    raw = raw.with_columns(value_f64=pl.col("value").cast(pl.Float64, strict=False))
    number = pl.col("value_f64")
    raw = rejects.sift(
        raw,
        file,
        pl.when(is_absent)
        .then(None)
        .when(number.is_null())
        .then(pl.lit("value is not a number"))
        .when(~number.is_finite())
        .then(pl.lit("value is not finite"))
        .when(number.abs() > MAX_VALUE)
        .then(pl.lit("value is too large for float32")),
    )
    return raw.with_columns(value=number.cast(pl.Float32)).drop("value_f64")
