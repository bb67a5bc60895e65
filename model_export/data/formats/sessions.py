"""Format `sessions`: anonymous sessions, one a line, items oldest first; no times.

`train_sessions.txt` (or the file that the user names) and, where it is there, `test_samples.tsv`: lines of
`prefix items<TAB>next item`, each of them a segment of its own whose last event is the only target.
"""

from pathlib import Path

import polars as pl

from model_export.data.config import PrepareConfig
from model_export.data.delimited import read_delimited, read_lines
from model_export.data.events import clean_events
from model_export.data.formats.industrial import one_segment_a_row
from model_export.data.inputs import Inputs
from model_export.data.log import EventLog
from model_export.data.rejects import Rejects
from model_export.data.splits import TEST, TRAIN

ACTION = "click"


def read_sessions(inputs: Inputs, _config: PrepareConfig, rejects: Rejects) -> EventLog:
    """Users `train:<line>` and `test:<line>`; the split is given where there are test samples."""
    file = inputs.main or inputs.require("train_sessions.txt")
    train = _read_lines_of_items(inputs, file, rejects)
    events = clean_events(train, file, rejects, default_action=ACTION)
    test_file = inputs.optional("test_samples.tsv")
    if test_file is None:
        events = events.drop("segment_key", "part", "last_only")
    else:
        num_train = train["segment_key"].n_unique()
        test = _read_samples(inputs, test_file, rejects).with_columns(pl.col("segment_key") + num_train)
        events = pl.concat([events, clean_events(test, test_file, rejects, default_action=ACTION)])
    return EventLog(events=events, default_action=ACTION, has_times=False, anonymous=True)


def _read_lines_of_items(inputs: Inputs, file: Path, rejects: Rejects) -> pl.DataFrame:
    lines = read_lines(inputs, file).with_columns(item_id=pl.col("row").str.extract_all(r"\S+"))
    lines = rejects.sift(
        lines, file, pl.when(pl.col("item_id").list.len() == 0).then(pl.lit("a session without items"))
    )
    return lines.with_columns(
        user_id=pl.format("train:{}", pl.col("line")),
        segment_key=pl.int_range(pl.len()),
        part=pl.lit(TRAIN),
        last_only=pl.lit(False),
    ).explode("item_id")


def _read_samples(inputs: Inputs, file: Path, rejects: Rejects) -> pl.DataFrame:
    rows = read_delimited(inputs, file, rejects, separator="\t", columns=("prefix", "target"))
    rows = rows.with_columns(
        history=pl.col("prefix").str.extract_all(r"\S+"),
        user_id=pl.format("test:{}", pl.col("line")),
    )
    no_history = pl.col("history").list.len() == 0
    rows = rejects.sift(rows, file, pl.when(no_history).then(pl.lit("a sample without prefix items")))
    return one_segment_a_row(rows).with_columns(part=pl.lit(TEST))
