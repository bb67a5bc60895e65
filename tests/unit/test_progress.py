"""Progress: a bar where there is a terminal, occasional whole lines where there is none."""

import io

import pytest
from rich.console import Console

from model_export import progress as module
from model_export.progress import Progress


def lines_of(monkeypatch: pytest.MonkeyPatch, step_s: float, steps: int) -> list[str]:
    clock = iter(range(10_000))
    monkeypatch.setattr(module.time, "monotonic", lambda: next(clock) * step_s)
    out = io.StringIO()
    progress = Progress(Console(file=out, width=40))
    with progress.task("training", steps, done=0) as task:
        for step in range(steps):
            task.advance(1, f"epoch 1, loss [{step}] and quite some words more than fit into forty columns")
    return out.getvalue().splitlines()


def test_without_a_terminal_there_are_occasional_lines_that_are_neither_wrapped_nor_read_as_markup(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lines = lines_of(monkeypatch, step_s=1.0, steps=100)
    assert 3 <= len(lines) <= 7
    for line in lines:
        done = int(line.split("/")[0].split()[-1])
        assert line == (
            f"  training {done}/100 epoch 1, loss [{done - 1}] and quite some words more than fit into forty columns"
        )


def test_quick_work_prints_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    assert lines_of(monkeypatch, step_s=0.01, steps=100) == []


def test_on_a_terminal_there_is_a_bar_that_starts_where_the_work_went_on() -> None:
    out = io.StringIO()
    progress = Progress(Console(file=out, force_terminal=True, width=120))
    with progress.task("training", 10, done=4) as task:
        progress.say("in between [not markup]")
        task.advance(6, "epoch 2")
    shown = out.getvalue()
    assert "10/10" in shown
    assert "epoch 2" in shown
    assert "in between [not markup]" in shown


def test_a_saying_stays_on_one_line() -> None:
    out = io.StringIO()
    Progress(Console(file=out, width=20)).say("bundle: /a/rather/long/path/to/copy [as it is]")
    assert out.getvalue() == "bundle: /a/rather/long/path/to/copy [as it is]\n"
