"""`item.json` of the Amazon 2018 sets: `{item: {title, description, brand}}`, one object for all items."""

import ast
import json
import re
from pathlib import Path
from typing import Any

import polars as pl

from model_export.data.errors import DataError
from model_export.data.inputs import Inputs
from model_export.data.items import clean_items
from model_export.data.rejects import Rejects


def read_json_object(inputs: Inputs, file: Path) -> dict[str, Any]:
    """The one JSON object that a file holds. `DataError` where it is none."""
    try:
        content = json.loads(inputs.read_text(file))
    except ValueError as error:
        raise DataError(f"{file}: not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise DataError(f"{file}: a JSON object is expected, not a {type(content).__name__}")
    return content


def read_item_json(inputs: Inputs, file: Path, rejects: Rejects) -> pl.DataFrame:
    """Items with title, description as text, and brand as tag and group; `line` counts the items."""
    entries = read_json_object(inputs, file)
    fields = [entry if isinstance(entry, dict) else {} for entry in entries.values()]
    brands = [str(entry.get("brand", "")).strip() for entry in fields]
    raw = pl.DataFrame(
        {
            "line": range(1, len(entries) + 1),
            "item_id": list(entries),
            "title": [str(entry.get("title", "")).strip() for entry in fields],
            "text": [_plain_text(entry.get("description", "")) for entry in fields],
            "tags": [[brand] if brand else [] for brand in brands],
            "group": brands,
        },
        schema_overrides={"line": pl.Int64, "tags": pl.List(pl.String)},
    )
    return clean_items(raw, file, rejects)


def _plain_text(description: object) -> str:
    """A description is a text, or a list of texts, or such a list as Python prints it."""
    if isinstance(description, str) and description.startswith("["):
        description = _printed_list(description)
    if isinstance(description, list):
        return " ".join(str(part).strip() for part in description)
    return str(description).strip()


def _printed_list(text: str) -> list[str]:
    try:
        return list(ast.literal_eval(text))
    except (ValueError, SyntaxError):  # quotes inside that Python's own printing would have escaped
        return re.split(r"""['"], ['"]""", text.strip("[]'\""))
