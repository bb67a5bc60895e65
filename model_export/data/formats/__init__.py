"""Readers: one per named format, each from the files of a `--data` path to an `EventLog`."""

from collections.abc import Callable

from model_export.data.config import PrepareConfig
from model_export.data.formats.collected import read_collected
from model_export.data.formats.industrial import read_industrial
from model_export.data.formats.kuairand import read_kuairand
from model_export.data.formats.movielens import read_movielens
from model_export.data.formats.sequences import read_sequences
from model_export.data.formats.sessions import read_sessions
from model_export.data.formats.table import read_table
from model_export.data.formats.yoochoose import read_yoochoose
from model_export.data.inputs import Inputs
from model_export.data.log import EventLog
from model_export.data.rejects import Rejects

Reader = Callable[[Inputs, PrepareConfig, Rejects], EventLog]

READERS: dict[str, Reader] = {
    "collected": read_collected,
    "industrial": read_industrial,
    "kuairand": read_kuairand,
    "movielens": read_movielens,
    "sequences": read_sequences,
    "sessions": read_sessions,
    "table": read_table,
    "yoochoose": read_yoochoose,
}
