"""JSON Lines: one object a line; bad lines are rejected by number."""

import json
from pathlib import Path
from typing import Any

import polars as pl

from model_export.data.delimited import read_lines, require_columns
from model_export.data.events import MAX_VALUE
from model_export.data.inputs import Inputs
from model_export.data.log import ITEM_SCHEMA
from model_export.data.rejects import Rejects

LISTS = ("tags", "embedding")


def read_json_lines(
    inputs: Inputs, file: Path, rejects: Rejects, columns: tuple[str, ...], required: tuple[str, ...]
) -> pl.DataFrame:
    """Columns `line`, `row` and those of `columns` that occur, as String (lists as lists).

    A line that is no JSON object, or holds a field of another kind than its column, is rejected. `DataError` where a
    `required` column occurs in no line.
    """
    lines = read_lines(inputs, file)
    parsed: dict[str, list[Any]] = {name: [] for name in columns}
    reasons: list[str | None] = []
    found: set[str] = set()
    for row in lines["row"]:
        entry, reason = _parse(row)
        found.update(entry)
        fields = {name: entry.get(name) for name in columns}
        reason = reason or next((why for name, value in fields.items() if (why := _fault(name, value))), None)
        reasons.append(reason)
        for name, value in fields.items():
            parsed[name].append(None if reason else _plain(name, value))
    if found:
        require_columns(file, sorted(found), required)
    schema = {name: ITEM_SCHEMA[name] if name in LISTS else pl.String for name in columns}
    frame = lines.with_columns(
        pl.Series("reason", reasons, dtype=pl.String),
        *(pl.Series(name, values, dtype=schema[name]) for name, values in parsed.items()),
    )
    frame = rejects.sift(frame, file, pl.col("reason")).drop("reason")
    return frame.drop([name for name in columns if name not in found and name not in required])


def _parse(row: str) -> tuple[dict[str, Any], str | None]:
    try:
        entry = json.loads(row)
    except (ValueError, RecursionError):
        return {}, "not valid JSON"
    return (entry, None) if isinstance(entry, dict) else ({}, "not a JSON object")


def _fault(name: str, value: object) -> str | None:
    """Why a field cannot be used, or None."""
    if isinstance(value, bool):
        return None if name == "available" else f"{name} is true or false"
    if name == "tags":
        return None if _is_list_of(value, (str,)) else "tags is not a list of texts"
    if name == "embedding":
        return _embedding_fault(value)
    if isinstance(value, str):
        return None if _is_text(value) else f"{name} is not valid text"
    return None if value is None or isinstance(value, int | float) else f"{name} is a list or an object"


def _embedding_fault(value: object) -> str | None:
    if value is None:
        return None
    if not isinstance(value, list) or not _is_list_of(value, (int, float)):
        return "embedding is not a list of numbers"
    is_finite = all(abs(number) <= MAX_VALUE for number in value)
    return None if is_finite else "embedding holds a number that is not finite"


def _is_list_of(value: object, kinds: tuple[type, ...]) -> bool:
    if value is None:
        return True
    return isinstance(value, list) and all(
        isinstance(part, kinds) and not isinstance(part, bool) and (not isinstance(part, str) or _is_text(part))
        for part in value
    )


def _is_text(value: str) -> bool:
    """False for lone surrogates, which JSON can escape and UTF-8 cannot hold."""
    return value.isascii() or not any("\ud800" <= character <= "\udfff" for character in value)


def _plain(name: str, value: Any) -> Any:
    if value is None or isinstance(value, str) or name in LISTS:
        return value
    return repr(value).lower() if isinstance(value, bool) else repr(value)
