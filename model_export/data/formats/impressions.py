"""What was shown, and what came of it: the impressions file of the format `table`, and the checks of any impressions.

Columns `user_id, item_id, timestamp` and optionally `session_id, position` (a whole number: the place on the screen,
which orders what was shown at one moment). Every other numeric or true/false column is a signal: 0, 1 or a share. In
text files a column counts as numeric if most of its fields are; the others are then rejected by line.
"""

import json
from pathlib import Path
from typing import Any

import polars as pl

from model_export.data.delimited import guess_separator, read_delimited, read_lines, require_columns
from model_export.data.errors import DataError
from model_export.data.events import clean_events
from model_export.data.formats.parquet import read_parquet
from model_export.data.inputs import Inputs, plain_name
from model_export.data.log import IMPRESSION_SCHEMA
from model_export.data.rejects import Rejects

REQUIRED = ("user_id", "item_id", "timestamp")
OPTIONAL = ("session_id", "position")
NO_SIGNALS = {"line", "row", *REQUIRED, *OPTIONAL}
FLAGS = {"true": 1.0, "false": 0.0}


def read_impressions(inputs: Inputs, file: Path, rejects: Rejects) -> tuple[pl.DataFrame, tuple[str, ...]]:
    """The impressions of one file (`EventLog.impressions`) and the names of their signals, in the file's order.

    `DataError` where a required column is missing, none is a signal, or no row can be used.
    """
    raw = _read(inputs, file, rejects)
    signals = tuple(name for name in raw.columns if name not in NO_SIGNALS and _is_numeric(raw[name]))
    if not signals:
        raise DataError(f"{file}: no signal: a numeric column beside {', '.join((*REQUIRED, *OPTIONAL))}")
    raw = raw.select([name for name in raw.columns if name in NO_SIGNALS or name in signals])
    raw = _with_position(raw, file, rejects)
    for name in signals:
        raw = _with_signal(raw, name, file, rejects)
    kept, line = clean_numbered(raw.drop("position"), file, rejects, default_action="shown")
    if kept.height == 0:
        raise DataError(f"{file}: no usable impression: all {raw.height or 'of its'} rows are bad")
    found = kept.with_columns(line).join(raw.select("line", "position", *signals), on="line", maintain_order="left")
    return found.select([*IMPRESSION_SCHEMA, *signals]).cast(pl.Schema(IMPRESSION_SCHEMA)), signals


def clean_numbered(
    raw: pl.DataFrame, file: Path, rejects: Rejects, *, default_action: str
) -> tuple[pl.DataFrame, pl.Series]:
    """`clean_events`, and the `line` of each row that it kept."""
    # A column of given splits carries the number through.
    cleaned = clean_events(raw.with_columns(segment_key=pl.col("line")), file, rejects, default_action=default_action)
    return cleaned.drop("segment_key"), cleaned["segment_key"].alias("line")


def _read(inputs: Inputs, file: Path, rejects: Rejects) -> pl.DataFrame:
    """All columns with `line`, and `row` where the file is text."""
    ending = plain_name(file).rpartition(".")[2].lower()
    if ending == "parquet":
        raw = read_parquet(inputs, file)
        require_columns(file, [name for name in raw.columns if name != "line"], REQUIRED)
        raw = raw.drop("row", strict=False)
    elif ending in ("jsonl", "ndjson"):
        raw = _read_json(inputs, file, rejects)
    else:
        raw = read_delimited(inputs, file, rejects, separator=guess_separator(inputs, file), required=REQUIRED)
    ids = [name for name in ("user_id", "item_id", "session_id") if name in raw.columns]
    return raw.with_columns(pl.col(ids).cast(pl.String))


def _read_json(inputs: Inputs, file: Path, rejects: Rejects) -> pl.DataFrame:
    lines = read_lines(inputs, file)
    entries, reasons = [], []
    for row in lines["row"]:
        try:
            entry = json.loads(row)
        except (ValueError, RecursionError):
            entry = None
        reasons.append(None if isinstance(entry, dict) else "not a JSON object")
        entries.append(entry if isinstance(entry, dict) else {})
    names = list(dict.fromkeys(name for entry in entries for name in entry if name not in ("line", "row")))
    if names:
        require_columns(file, names, REQUIRED)
    fields = [pl.Series(name, [_plain(entry.get(name)) for entry in entries], dtype=pl.String) for name in names]
    frame = lines.with_columns(pl.Series("why_bad", reasons, dtype=pl.String), *fields)
    return rejects.sift(frame, file, pl.col("why_bad")).drop("why_bad")


def _plain(value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return None if value is None else value.encode("utf-8", "replace").decode()
    return json.dumps(value)


def _is_numeric(column: pl.Series) -> bool:
    if column.dtype != pl.String:
        return column.dtype.is_numeric() or column.dtype == pl.Boolean
    filled = column.drop_nulls().filter(column.drop_nulls() != "")
    numbers = pl.select(_number(filled)).to_series()
    return len(filled) > 0 and int(numbers.is_not_null().sum()) * 2 > len(filled)


def _number(column: pl.Series | pl.Expr) -> pl.Expr:
    """Numbers of text, numeric or boolean fields; null for anything else."""
    expression = pl.lit(column) if isinstance(column, pl.Series) else column
    text = expression.cast(pl.String).str.strip_chars().str.to_lowercase()
    flag = text.replace_strict(FLAGS, default=None, return_dtype=pl.Float64)
    return pl.coalesce(flag, text.cast(pl.Float64, strict=False))


def _with_signal(raw: pl.DataFrame, name: str, file: Path, rejects: Rejects) -> pl.DataFrame:
    raw = raw.with_columns(number_f64=_number(pl.col(name)))
    number = pl.col("number_f64")
    reason = (
        pl.when(pl.col(name).is_null() | (pl.col(name).cast(pl.String) == ""))
        .then(pl.lit(f"{name} is empty"))
        .when(number.is_null())
        .then(pl.lit(f"{name} is not a number"))
        .when(~number.is_between(0, 1) | number.is_nan())
        .then(pl.lit(f"{name} lies outside 0 to 1"))
    )
    raw = rejects.sift(raw, file, reason)
    return raw.with_columns(number.cast(pl.Float32).alias(name)).drop("number_f64")


def _with_position(raw: pl.DataFrame, file: Path, rejects: Rejects) -> pl.DataFrame:
    if "position" not in raw.columns:
        return raw.with_columns(position=pl.lit(None, dtype=pl.Int32))
    text = pl.col("position").cast(pl.String)
    text = pl.when(text.str.strip_chars() != "").then(text.str.strip_chars())
    raw = raw.with_columns(place_f64=text.cast(pl.Float64, strict=False))
    place = pl.col("place_f64")
    is_bad = text.is_not_null() & (place.is_null() | ~place.is_between(0, 2**31 - 1) | (place != place.floor()))
    raw = rejects.sift(raw, file, pl.when(is_bad).then(pl.lit("position is not a whole number from 0")))
    return raw.with_columns(position=place.cast(pl.Int32)).drop("place_f64")
