"""Progress of long work: bars on a terminal, occasional lines elsewhere."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

_LINE_EVERY_S = 15.0


class Progress:
    """Shows what goes on and how far it is."""

    class Task:
        """One piece of work with a known number of steps."""

        def __init__(self, console: Console, name: str, total: int, done: int, bars: RichProgress | None) -> None:
            self._console = console
            self._name = name
            self._total = total
            self._done = done
            self._bars = bars
            self._task: TaskID | None = bars.add_task(name, total=total, completed=done, note="") if bars else None
            self._last_line = time.monotonic()

        def advance(self, steps: int = 1, note: str = "") -> None:
            """Tells that `steps` more are done."""
            self._done += steps
            if self._bars is not None and self._task is not None:
                self._bars.update(self._task, completed=self._done, note=note)
            elif time.monotonic() - self._last_line >= _LINE_EVERY_S:
                self._last_line = time.monotonic()
                line = f"  {self._name} {self._done}/{self._total} {note}"
                self._console.print(line, highlight=False, markup=False, soft_wrap=True)

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True)

    @contextmanager
    def task(self, name: str, total: int, done: int = 0) -> Iterator["Progress.Task"]:
        """Shows a bar for the time of the block."""
        if not self.console.is_terminal:
            yield Progress.Task(self.console, name, total, done, None)
            return
        columns = (TextColumn("  {task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with RichProgress(*columns, TextColumn("{task.fields[note]}"), console=self.console) as bars:
            yield Progress.Task(self.console, name, total, done, bars)

    def say(self, text: str) -> None:
        """One line that stays."""
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)
