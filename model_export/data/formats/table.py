"""Format `table`: a user's own log as CSV, Parquet or JSON Lines, gzip or not.

Events: `user_id, item_id, timestamp` and optionally `action, value, session_id`. Items: `item_id` and optionally
`title, text, tags, group, embedding, available`. Impressions, where there is such a file: see
`model_export.data.formats.impressions`. Other columns are ignored. `timestamp` is Unix seconds or RFC 3339. In
CSV, `tags` are separated by `|` and `embedding` by spaces or `|`; `available` is true or false.
"""

from pathlib import Path

import polars as pl

from model_export.data.config import PrepareConfig
from model_export.data.delimited import guess_separator, read_delimited, require_columns
from model_export.data.errors import DataError
from model_export.data.events import clean_events
from model_export.data.formats.impressions import read_impressions
from model_export.data.formats.json_lines import read_json_lines
from model_export.data.formats.parquet import read_parquet
from model_export.data.inputs import Inputs, plain_name
from model_export.data.items import clean_items
from model_export.data.log import ITEM_SCHEMA, EventLog
from model_export.data.rejects import Rejects

TEXT_ENDINGS = ("csv", "tsv", "txt")
JSON_ENDINGS = ("jsonl", "ndjson")
ENDINGS = (*TEXT_ENDINGS, *JSON_ENDINGS, "parquet")
EVENT_COLUMNS = ("user_id", "item_id", "timestamp", "action", "value", "session_id")
REQUIRED = ("user_id", "item_id", "timestamp")
TRUTHS = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
ACTION = "view"


def read_table(inputs: Inputs, config: PrepareConfig, rejects: Rejects) -> EventLog:
    """`events.*`, `items.*` and `impressions.*` of a folder, or one events file.

    `config.items` names the items file otherwise.
    """
    file = inputs.main or inputs.require(*(f"events.{ending}" for ending in ENDINGS))
    raw = _read_columns(inputs, file, rejects, EVENT_COLUMNS, REQUIRED)
    events = clean_events(raw, file, rejects, default_action=ACTION)
    items = read_items_of(inputs, config, rejects)
    shown_file = None if inputs.main else inputs.optional(*(f"impressions.{ending}" for ending in ENDINGS))
    impressions, signals = (None, ()) if shown_file is None else read_impressions(inputs, shown_file, rejects)
    return EventLog(
        events=events,
        items=items,
        impressions=impressions,
        signals=signals,
        default_action=ACTION,
        units=dict.fromkeys(events["action"].unique().to_list(), config.value_unit),
        owns_catalog=True,
    )


def read_items_of(inputs: Inputs, config: PrepareConfig, rejects: Rejects) -> pl.DataFrame | None:
    """The items that `config.items` names, or else `items.*` of the folder; None where there are none."""
    file = _items_file(inputs, config)
    return None if file is None else _read_items(inputs, file, rejects)


def _items_file(inputs: Inputs, config: PrepareConfig) -> Path | None:
    if config.items:
        path = Path(config.items)
        file = path if path.is_file() else path.with_name(path.name + ".gz")
        if not file.is_file():
            raise DataError(f"{path}: no such file")
        return file
    return None if inputs.main else inputs.optional(*(f"items.{ending}" for ending in ENDINGS))


def _read_columns(
    inputs: Inputs, file: Path, rejects: Rejects, columns: tuple[str, ...], required: tuple[str, ...]
) -> pl.DataFrame:
    """The known columns of a file of any kind, with `line`, and `row` where the file is text."""
    ending = plain_name(file).rpartition(".")[2].lower()
    if ending == "parquet":
        raw = read_parquet(inputs, file)
        require_columns(file, [name for name in raw.columns if name != "line"], required)
    elif ending in JSON_ENDINGS:
        raw = read_json_lines(inputs, file, rejects, columns, required)
    elif ending in TEXT_ENDINGS:
        raw = read_delimited(inputs, file, rejects, separator=guess_separator(inputs, file), required=required)
    else:
        raise DataError(f"{file}: unknown kind of file; known are {', '.join(ENDINGS)}, with or without .gz")
    raw = raw.select([name for name in ("line", "row", *columns) if name in raw.columns])
    ids = [name for name in ("user_id", "item_id", "action", "session_id") if name in raw.columns]
    return raw.with_columns(pl.col(ids).cast(pl.String))


def _read_items(inputs: Inputs, file: Path, rejects: Rejects) -> pl.DataFrame:
    raw = _read_columns(inputs, file, rejects, tuple(ITEM_SCHEMA), ("item_id",))
    for column, parse in (("tags", _parse_tags), ("embedding", _parse_embedding), ("available", _parse_available)):
        if column in raw.columns:
            raw = parse(raw, file, rejects)
    return clean_items(raw, file, rejects)


def _parse_tags(raw: pl.DataFrame, _file: Path, _rejects: Rejects) -> pl.DataFrame:
    tags = pl.col("tags")
    if raw["tags"].dtype == pl.String:
        tags = tags.str.split("|")
    tags = tags.cast(ITEM_SCHEMA["tags"])
    return raw.with_columns(
        tags=tags.list.eval(pl.element().str.strip_chars().filter(pl.element().str.strip_chars() != ""))
    )


def _parse_embedding(raw: pl.DataFrame, file: Path, rejects: Rejects) -> pl.DataFrame:
    if raw["embedding"].dtype != pl.String:
        return raw.with_columns(pl.col("embedding").cast(ITEM_SCHEMA["embedding"]))
    text = pl.col("embedding").str.strip_chars()
    words = pl.when(text != "").then(text.str.extract_all(r"[^\s|,\[\]]+"))
    numbers = words.list.eval(pl.element().cast(pl.Float32, strict=False))
    raw = raw.with_columns(numbers_f32=numbers)
    is_bad = pl.col("numbers_f32").list.eval(pl.element().is_null()).list.any()
    raw = rejects.sift(raw, file, pl.when(is_bad).then(pl.lit("embedding holds what is not a number")))
    return raw.with_columns(embedding=pl.col("numbers_f32")).drop("numbers_f32")


def _parse_available(raw: pl.DataFrame, file: Path, rejects: Rejects) -> pl.DataFrame:
    if raw["available"].dtype == pl.Boolean:
        return raw
    text = pl.col("available").cast(pl.String).str.strip_chars().str.to_lowercase()
    raw = raw.with_columns(available=pl.when(text != "").then(text))
    is_bad = pl.col("available").is_not_null() & ~pl.col("available").is_in(list(TRUTHS))
    raw = rejects.sift(raw, file, pl.when(is_bad).then(pl.lit("available is neither true nor false")))
    return raw.with_columns(pl.col("available").replace_strict(TRUTHS, return_dtype=pl.Boolean))
