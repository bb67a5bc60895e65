"""Format `yoochoose`: raw clicks `SessionId ItemId Time` (TAB, Unix seconds), split by day into train and test files.

The preprocessed form (`train_sessions.txt`, `test_samples.tsv`) is read as format `sessions`.
"""

from pathlib import Path

import polars as pl

from model_export.data.config import PrepareConfig
from model_export.data.delimited import guess_separator, read_delimited
from model_export.data.events import clean_events
from model_export.data.formats.sessions import read_sessions
from model_export.data.inputs import Inputs
from model_export.data.log import EventLog
from model_export.data.rejects import Rejects
from model_export.data.splits import TEST, TRAIN

COLUMNS = ("SessionId", "ItemId", "Time")
ACTION = "click"


def read_yoochoose(inputs: Inputs, config: PrepareConfig, rejects: Rejects) -> EventLog:
    """Each session is a user. A folder with a train and a test file gives the split; a single file does not.

    In a given test part every click of a session but its first is a target, with the clicks before it as history.
    """
    if inputs.main is not None:
        events = _read_clicks(inputs, inputs.main, rejects)
        return EventLog(events=events, default_action=ACTION, anonymous=True)
    if inputs.find("train_sessions.txt"):
        return read_sessions(inputs, config, rejects)
    parts = {TRAIN: inputs.require("*_train_full.txt"), TEST: inputs.require("*_test.txt")}
    frames = [
        _read_clicks(inputs, file, rejects).with_columns(part=pl.lit(part, dtype=pl.Int8))
        for part, file in parts.items()
    ]
    events = pl.concat(frames).with_columns(
        segment_key=pl.struct("user_id", "part").rank("dense").cast(pl.Int64), last_only=pl.lit(False)
    )
    return EventLog(events=events, default_action=ACTION, anonymous=True)


def _read_clicks(inputs: Inputs, file: Path, rejects: Rejects) -> pl.DataFrame:
    separator = guess_separator(inputs, file)
    raw = read_delimited(inputs, file, rejects, separator=separator, required=COLUMNS)
    raw = raw.select("line", "row", user_id="SessionId", item_id="ItemId", timestamp="Time")
    return clean_events(raw, file, rejects, default_action=ACTION)
