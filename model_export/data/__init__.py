"""From files of events to a prepared data set: formats, sessions, splits, and the built-in simulator."""

from model_export.data.config import PrepareConfig
from model_export.data.errors import DataError
from model_export.data.examples import Examples
from model_export.data.preparation import prepare
from model_export.data.prepared import PreparedData

__all__ = ["DataError", "Examples", "PrepareConfig", "PreparedData", "prepare"]
