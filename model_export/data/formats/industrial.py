"""Format `industrial`: the MiniOneRec split of an Amazon 2018 set.

`*.{train,valid,test}.inter` (TAB, header): user, a history of at most 10 items oldest first, target. Train rows are
sliding windows over each user's sequence, in time order; they are put together again, so that a user is one segment and
every training target is the first target of exactly one example. Each valid and test row is a segment of its own.
"""

from pathlib import Path

import polars as pl

from model_export.data.config import PrepareConfig
from model_export.data.delimited import read_delimited
from model_export.data.events import clean_events
from model_export.data.formats.item_json import read_item_json
from model_export.data.inputs import Inputs
from model_export.data.log import EventLog
from model_export.data.rejects import Rejects
from model_export.data.splits import PARTS, TRAIN

COLUMNS = ("user_id:token", "item_id_list:token_seq", "item_id:token")
WINDOW = 10
ACTION = "interact"


def read_industrial(inputs: Inputs, _config: PrepareConfig, rejects: Rejects) -> EventLog:
    """Training sequences and evaluation rows with their given parts; no times."""
    frames = []
    num_segments = 0
    for part, name in enumerate(PARTS):
        file = _find(inputs, name)
        rows = _read_rows(inputs, file, rejects)
        segments = rebuild_sequences(rows) if part == TRAIN else one_segment_a_row(rows)
        raw = segments.with_columns(part=pl.lit(part), segment_key=pl.col("segment_key") + num_segments)
        num_segments += segments["segment_key"].n_unique()
        frames.append(clean_events(raw, file, rejects, default_action=ACTION))
    item_file = inputs.optional("*.item.json")
    return EventLog(
        events=pl.concat(frames),
        items=None if item_file is None else read_item_json(inputs, item_file, rejects),
        default_action=ACTION,
        has_times=False,
    )


def _find(inputs: Inputs, name: str) -> Path:
    """The file of a part: of the same data set as the file that the user named, or the only one of the folder."""
    stem = "*" if inputs.main is None else inputs.main.name.partition(".")[0]
    return inputs.require(f"{stem}.{name}.inter")


def _read_rows(inputs: Inputs, file: Path, rejects: Rejects) -> pl.DataFrame:
    """Columns `line, row, user_id, history` (list), `target`; rows without a history are rejected."""
    rows = read_delimited(inputs, file, rejects, separator="\t", required=COLUMNS)
    rows = rows.select(
        "line",
        "row",
        pl.col(COLUMNS[0]).alias("user_id"),
        pl.col(COLUMNS[1]).str.extract_all(r"\S+").alias("history"),
        pl.col(COLUMNS[2]).alias("target"),
    )
    return rejects.sift(
        rows,
        file,
        pl.when(pl.col("history").list.len() == 0)
        .then(pl.lit("item_id_list is empty"))
        .when(pl.col("target").str.strip_chars() == "")
        .then(pl.lit("item_id is empty")),
    )


def one_segment_a_row(rows: pl.DataFrame) -> pl.DataFrame:
    """Each row as a segment: its history, then its target, the only event to predict."""
    return rows.select(
        "line",
        "row",
        "user_id",
        pl.concat_list("history", "target").alias("item_id"),
        pl.int_range(pl.len()).alias("segment_key"),
        pl.lit(True).alias("last_only"),
    ).explode("item_id")


def rebuild_sequences(rows: pl.DataFrame) -> pl.DataFrame:
    """Sliding windows put together again: one segment per user, its first history item and then every target.

    A row continues its user's segment if its history is the newest `WINDOW` events of it. A row that does not (a
    window that fits nowhere) becomes a segment of its own, of which only the target is predicted: no target is lost.
    """
    newest: dict[str, list[str]] = {}
    segment_of: dict[str, int] = {}
    num_segments = 0
    events: list[tuple[int, str, str, str, int, bool]] = []
    for line, row, user, history, target in rows.iter_rows():
        starts = user not in newest and len(history) == 1
        if starts or newest.get(user) == history:
            if starts:
                segment_of[user] = num_segments
                num_segments += 1
                events.append((line, row, user, history[0], segment_of[user], False))
            events.append((line, row, user, target, segment_of[user], False))
            newest[user] = [*history, target][-WINDOW:]
        else:
            events.extend((line, row, user, item, num_segments, True) for item in (*history, target))
            num_segments += 1
    columns = ("line", "row", "user_id", "item_id", "segment_key", "last_only")
    return pl.DataFrame(events, schema=columns, orient="row")
