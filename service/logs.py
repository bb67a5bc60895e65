"""Structured logs: one JSON object a line, or plain lines for people; each with the request it belongs to.

User ids are not logged at info level and above.
"""

import logging
import time
from contextvars import ContextVar
from typing import Literal

import orjson

request_id: ContextVar[str] = ContextVar("request_id", default="")
"""Id of the request being handled; empty outside of one."""

LogFormat = Literal["json", "console"]
LogLevel = Literal["debug", "info", "warning", "error"]

_PLAIN_FIELDS = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "color_message"}


class JsonFormatter(logging.Formatter):
    """Time, level, logger, message, request id, traceback, and whatever `extra` adds."""

    def format(self, record: logging.LogRecord) -> str:
        """One line of JSON."""
        line: dict[str, object] = {
            "time": f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(record.created))}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if current := request_id.get():
            line["request_id"] = current
        line.update({key: value for key, value in vars(record).items() if key not in _PLAIN_FIELDS})
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return orjson.dumps(line, default=str).decode()


class ConsoleFormatter(logging.Formatter):
    """Time, level, message and, inside a request, its id."""

    def format(self, record: logging.LogRecord) -> str:
        """One line for people, a traceback below it."""
        line = f"{self.formatTime(record, '%H:%M:%S')} {record.levelname.lower():8} {record.getMessage()}"
        if current := request_id.get():
            line += f" [{current}]"
        if record.exc_info:
            line += "\n" + self.formatException(record.exc_info)
        return line


def configure_logging(level: LogLevel, log_format: LogFormat) -> None:
    """Sends all logs of this process to stderr in the chosen form."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter() if log_format == "json" else ConsoleFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access"):  # they bring handlers of their own
        logging.getLogger(name).handlers.clear()
        logging.getLogger(name).propagate = True
