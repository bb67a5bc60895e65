"""Format `sequences`: one user a line, items oldest first; no times.

`user item item ...` (`amazon14`), `user<TAB>item item ...` (`ml-1m`) and the JSON form `{user: [item, ...]}` of
`office-text`. Texts come from the files beside it, where they are there.
"""

from pathlib import Path

import polars as pl

from model_export.data.config import PrepareConfig
from model_export.data.delimited import read_lines
from model_export.data.errors import DataError
from model_export.data.events import clean_events
from model_export.data.formats.item_json import read_item_json, read_json_object
from model_export.data.formats.movielens import read_movies_dat
from model_export.data.inputs import Inputs, plain_name
from model_export.data.items import clean_items
from model_export.data.log import EventLog
from model_export.data.rejects import Rejects

ACTION = "interact"


def read_sequences(inputs: Inputs, _config: PrepareConfig, rejects: Rejects) -> EventLog:
    """Each user's items as events without times; titles, texts and tags from neighbour files."""
    file = inputs.main or _only_sequence_file(inputs)
    name = plain_name(file)
    raw = _read_json(inputs, file) if name.endswith(".json") else _read_text(inputs, file, rejects)
    return EventLog(
        events=clean_events(raw, file, rejects, default_action=ACTION),
        items=_read_items(inputs, name, rejects),
        default_action=ACTION,
        has_times=False,
    )


def _only_sequence_file(inputs: Inputs) -> Path:
    files = [file for file in inputs.find("*.txt", "*.tsv", "*.inter.json") if "generative_indexing" not in file.name]
    if len(files) != 1:
        found = ", ".join(plain_name(file) for file in files) or "none"
        raise DataError(
            f"{inputs.folder}: name one sequence file (*.txt, *.tsv or *.inter.json) as data; here: {found}"
        )
    return files[0]


def _read_text(inputs: Inputs, file: Path, rejects: Rejects) -> pl.DataFrame:
    lines = read_lines(inputs, file).with_columns(words=pl.col("row").str.extract_all(r"\S+"))
    num_words = pl.col("words").list.len()
    lines = rejects.sift(lines, file, pl.when(num_words < 2).then(pl.lit("a user without items")))
    user, items = pl.col("words").list.first(), pl.col("words").list.slice(1)
    lines = lines.select("line", "row", user.alias("user_id"), items.alias("item_id"))
    return _one_line_a_user(lines, file, rejects).explode("item_id")


def _one_line_a_user(lines: pl.DataFrame, file: Path, rejects: Rejects) -> pl.DataFrame:
    first_line = pl.col("line").first().over("user_id")
    reason = pl.when(pl.col("line") != first_line).then(pl.format("user_id repeats line {}", first_line))
    return rejects.sift(lines, file, reason)


def _read_json(inputs: Inputs, file: Path) -> pl.DataFrame:
    """`{user: [item, ...]}`; `line` counts the users."""
    sequences = read_json_object(inputs, file)
    for user, items in sequences.items():
        if not isinstance(items, list) or not all(isinstance(item, str | int) for item in items):
            raise DataError(f"{file}: user {user!r} is not followed by a list of item ids")
    return pl.DataFrame(
        {
            "line": range(1, len(sequences) + 1),
            "user_id": list(sequences),
            "item_id": [[str(item) for item in items] for items in sequences.values()],
        },
        schema={"line": pl.Int64, "user_id": pl.String, "item_id": pl.List(pl.String)},
    ).explode("item_id")


def _read_items(inputs: Inputs, name: str, rejects: Rejects) -> pl.DataFrame | None:
    if name.endswith(".inter.json"):
        file = inputs.optional(name.replace(".inter.json", ".item.json"))
        return None if file is None else read_item_json(inputs, file, rejects)
    if name.endswith(".tsv"):
        file = inputs.optional("movies.dat")
        return None if file is None else read_movies_dat(inputs, file, rejects)
    return _read_amazon14_items(inputs, name.removesuffix(".txt"), rejects)


def _read_amazon14_items(inputs: Inputs, stem: str, rejects: Rejects) -> pl.DataFrame | None:
    """Key words of the title (through the ASIN of `datamaps`) as title, attributes as tags."""
    short = stem.partition("_")[0]
    maps_file = inputs.optional(f"{short.lower()}.datamaps.json")
    if maps_file is None:
        return None
    asin_of: dict[str, str] = read_json_object(inputs, maps_file).get("id2item", {})
    words_file = inputs.optional(f"{short}.item_generative_indexing_phase_0.txt")
    words: dict[str, str] = {}
    if words_file is not None:
        words = {row.partition(" ")[0]: row.partition(" ")[2] for row in read_lines(inputs, words_file)["row"]}
    tags_file = inputs.optional(f"{stem}_item2attributes.json")
    tags: dict[str, list[int]] = {} if tags_file is None else read_json_object(inputs, tags_file)
    raw = pl.DataFrame(
        {
            "line": range(1, len(asin_of) + 1),
            "item_id": list(asin_of),
            "title": [words.get(asin, "") for asin in asin_of.values()],
            "tags": [[str(tag) for tag in tags.get(item, [])] for item in asin_of],
        },
        schema={"line": pl.Int64, "item_id": pl.String, "title": pl.String, "tags": pl.List(pl.String)},
    )
    return clean_items(raw, maps_file, rejects)
