"""Log lines: one JSON object each, with the request they belong to."""

import json
import logging
import sys
from collections.abc import Iterator

import pytest

from service.logs import ConsoleFormatter, JsonFormatter, configure_logging, request_id


@pytest.fixture(autouse=True)
def logging_as_before() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    token = request_id.set("")
    yield
    request_id.reset(token)
    root.handlers[:] = handlers
    root.setLevel(level)


def _record(message: str = "went %s", *args: object) -> logging.LogRecord:
    return logging.LogRecord("service.x", logging.WARNING, "file.py", 1, message, args or ("well",), None)


def test_a_json_line_holds_all_of_it() -> None:
    request_id.set("r-1")
    record = _record()
    record.num_items = 3
    try:
        raise ValueError("inside")
    except ValueError:
        record.exc_info = sys.exc_info()
    text = JsonFormatter().format(record)
    assert "\n" not in text
    line = json.loads(text)
    assert (line["level"], line["logger"], line["message"]) == ("warning", "service.x", "went well")
    assert (line["request_id"], line["num_items"]) == ("r-1", 3)
    assert "ValueError: inside" in line["traceback"]
    assert line["time"].endswith("Z")


def test_outside_of_a_request_there_is_no_id() -> None:
    assert "request_id" not in json.loads(JsonFormatter().format(_record()))
    assert "[" not in ConsoleFormatter().format(_record())


def test_a_line_for_people_names_the_request_and_shows_the_traceback() -> None:
    request_id.set("r-2")
    record = _record()
    try:
        raise ValueError("inside")
    except ValueError:
        record.exc_info = sys.exc_info()
    first, *rest = ConsoleFormatter().format(record).splitlines()
    assert "warning" in first
    assert "went well [r-2]" in first
    assert rest[-1] == "ValueError: inside"


def test_logs_go_to_stderr_from_the_chosen_level_on(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("warning", "json")
    logging.getLogger("uvicorn.error").warning("from the server")
    logging.getLogger("service.y").info("too fine")
    captured = capsys.readouterr()
    assert captured.out == ""
    assert [json.loads(line)["message"] for line in captured.err.splitlines()] == ["from the server"]
