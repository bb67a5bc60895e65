"""`oneslate loadtest`: open-loop load on a running service, step by step up to where it no longer keeps its deadline.

Each step is one run of Locust with `loadtests/openloop.py`. Good is a slate that the model wrote and that came within
the deadline, counted from when it was to be asked for. The knee is the highest rate at which nearly all slates are
good.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from rich.console import Console

from loadtests.arrivals import Shape
from loadtests.bench.errors import BenchError
from loadtests.bench.live_service import live_service
from loadtests.bench.result import BenchResult, Row, new_result
from service.history.embedded import EmbeddedRedis

FILE: Final = Path(__file__).parent / "openloop.py"
GOOD_SHARE: Final = 0.99
"""Of the slates asked for, below which a step is past the knee."""
GROWTH: Final = 1.5
"""From one step of a ladder to the next; then the last gap is halved twice."""
MAX_STEPS: Final = 20
_GRACE_S: Final = 120.0
_LAGGED: Final = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What comes, in each step."""

    host: str
    """URL of the service."""
    rate: float = 50.0
    """Requests a second; of a ladder the first step's."""
    seconds: float = 30.0
    shape: Shape = "poisson"
    population: int = 10_000
    zipf: float = 1.0
    deadline_ms: float = 500.0
    seed: int = 0
    under_way: int = 1000
    """Requests at once, at most: one that comes beyond them fails without being sent."""
    max_lag_ms: float = 20.0
    """How late (p99) the generator may be itself before the latencies mean nothing."""
    report: Path | None = None
    """Folder for Locust's HTML page and CSV files, of every step; None: none are kept."""

    def __post_init__(self) -> None:
        if min(self.rate, self.seconds, self.deadline_ms) <= 0 or self.population < 1 or self.zipf < 0:
            raise ValueError("rate, seconds, deadline and population must be positive, and zipf not negative")


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What came of one step."""

    rate: float
    """Asked for."""
    num_slates: int
    """Slates asked for; the rest of the requests are events, histories and changes of items."""
    good: int
    refused: int
    """Requests of any kind that were told when to come again."""
    failures: dict[str, int]
    """Those that got neither what they asked for nor that, of any kind, by reason (status and type of problem)."""
    sources: dict[str, int]
    """Slates by source and reason."""
    p50_ms: float
    p99_ms: float
    """Of slates, from when they were to be asked for; NaN: there was none."""
    lag_p99_ms: float
    seconds: float
    """Of the schedule: the last answers may have come later."""
    changes_items: bool = True
    """False: the key may not."""

    @property
    def failed(self) -> int:
        """Of all requests."""
        return sum(self.failures.values())

    @property
    def most_failures(self) -> str:
        """The two most frequent reasons."""
        most = sorted(self.failures.items(), key=lambda item: -item[1])[:2]
        return ", ".join(f"{reason} ({count}x)" for reason, count in most)

    @property
    def good_share(self) -> float:
        """Of the slates asked for."""
        return self.good / max(1, self.num_slates)

    @property
    def goodput(self) -> float:
        """Good slates a second."""
        return self.good / self.seconds

    @property
    def holds(self) -> bool:
        """Whether it is below the knee."""
        return self.good_share >= GOOD_SHARE and not self.failed


class GeneratorLateError(BenchError):
    """The generator did not send when it was to: the step's latencies would mean nothing."""


def run(load: Load, *, ladder: bool, record: bool, console: Console) -> BenchResult:
    """One step, or a ladder; prints table and JSON line, and appends to `results/loadtest.jsonl` if asked to.

    Raises:
        BenchError: the service does not answer, the generator was late at once, or a ladder's first step does not
            hold: then there is no knee to be found above it.
    """
    steps = climb(load, console) if ladder else [run_step(load, load.rate, console)]
    if ladder and knee(steps) is None:
        [first] = steps
        raise BenchError(
            f"not even {first.rate:,.0f} requests/s hold: {first.good} of {first.num_slates} slates good, "
            f"{first.failed} requests failed" + (f": {first.most_failures}" if first.failed else "; try a lower rate")
        )
    result = _summarise(load, steps, ladder=ladder)
    result.print_to(console)
    if record:
        result.append_to()
    return result


def climb(load: Load, console: Console) -> list[Step]:
    """Steps up until one does not hold, then twice into the gap between the last two.

    Where the generator is late the ladder ends, and what was measured stands. GeneratorLateError: it was in the first
    step.
    """
    steps = [run_step(load, load.rate, console)]
    try:
        while steps[-1].holds and len(steps) < MAX_STEPS:
            steps.append(run_step(load, steps[-1].rate * GROWTH, console))
        if steps[-1].holds or len(steps) == 1:
            return steps
        low, high = steps[-2].rate, steps[-1].rate
        for _ in range(2):
            step = run_step(load, (low + high) / 2, console)
            steps.append(step)
            low, high = (step.rate, high) if step.holds else (low, step.rate)
    except GeneratorLateError as late:
        console.print(f"  {late}; the ladder ends here", highlight=False)
    return steps


def knee(steps: list[Step]) -> float | None:
    """The highest rate that held; None: not even the first did."""
    return max((step.rate for step in steps if step.holds), default=None)


def run_step(load: Load, rate: float, console: Console) -> Step:
    """One rate. BenchError: see `run`."""
    console.print(f"{rate:,.0f} requests/s ({load.shape}) for {load.seconds:g} s", highlight=False)
    with tempfile.TemporaryDirectory(prefix="oneslate-loadtest-") as folder:
        file = Path(folder) / "outcome.json"
        done = _locust(load, rate, file)
        outcome = json.loads(file.read_text()) if file.exists() else {"trouble": _last_words(done)}
    if trouble := outcome.get("trouble"):
        raise BenchError(f"no step at {load.host}: {trouble}")
    if done.returncode == _LAGGED:
        raise GeneratorLateError(
            f"the generator was late at {rate:,.0f} requests/s: give it a core of its own, or ask less"
        )
    step = _step(load, rate, outcome)
    _say(step, console)
    return step


def _locust(load: Load, rate: float, outcome: Path) -> "subprocess.CompletedProcess[str]":
    command = [
        *(sys.executable, "-m", "locust", "-f", str(FILE), "--headless", "--users", "1"),
        *("--host", load.host.rstrip("/"), "--rate", str(rate), "--seconds", str(load.seconds)),
        *("--shape", load.shape, "--population", str(load.population), "--zipf", str(load.zipf)),
        *("--seed", str(load.seed), "--deadline", str(load.deadline_ms), "--under-way", str(load.under_way)),
        *("--max-lag", str(load.max_lag_ms)),
        *("--outcome", str(outcome), "--loglevel", "WARNING"),
    ]
    if load.report is not None:
        load.report.mkdir(parents=True, exist_ok=True)
        name = str(load.report / f"{rate:.0f}-per-second")
        command += ["--html", f"{name}.html", "--csv", name]
    environment = os.environ | {"PYTHONPATH": str(FILE.parent.parent)}
    timeout_s = load.seconds + _GRACE_S
    try:
        return subprocess.run(command, env=environment, check=False, capture_output=True, text=True, timeout=timeout_s)
    except subprocess.TimeoutExpired as error:
        raise BenchError(f"no step at {load.host}: locust did not end within {timeout_s:g} s") from error


def _last_words(done: "subprocess.CompletedProcess[str]") -> str:
    """The last line with a word in it: Locust ends its tables with rules."""
    lines = (done.stderr or done.stdout).splitlines()
    said = [line.strip() for line in lines if any(letter.isalpha() for letter in line)]
    return said[-1] if said else f"locust ended with {done.returncode}"


def _step(load: Load, rate: float, outcome: dict[str, Any]) -> Step:
    latencies_ms = outcome["latencies_ms"]
    p50_ms, p99_ms = np.percentile(latencies_ms, [50, 99]) if latencies_ms else (float("nan"), float("nan"))
    return Step(
        rate=rate,
        num_slates=outcome["num_slates"],
        good=outcome["good"],
        refused=outcome["refused"],
        failures=outcome["failures"],
        sources=dict(sorted(outcome["sources"].items())),
        p50_ms=float(p50_ms),
        p99_ms=float(p99_ms),
        lag_p99_ms=outcome["lag_p99_ms"],
        seconds=load.seconds,
        changes_items=outcome["changes_items"],
    )


def _say(step: Step, console: Console) -> None:
    sources = "; ".join(f"{name}: {count}" for name, count in step.sources.items())
    console.print(
        f"  {step.good_share:.1%} good, {step.goodput:,.1f} a second; {step.refused} refused, {step.failed} failed; "
        f"p50 {step.p50_ms:.1f} ms, p99 {step.p99_ms:.1f} ms ({sources})",
        highlight=False,
    )
    if step.failed:
        console.print(f"  failed: {step.most_failures}", markup=False, highlight=False)


def _summarise(load: Load, steps: list[Step], *, ladder: bool) -> BenchResult:
    rows = []
    for step in sorted(steps, key=lambda step: step.rate):
        workload = f"{step.rate:.0f} requests/s, {load.shape}"
        figures = {
            "good slates/s": step.goodput,
            "of slates good": step.good_share,
            "refused": float(step.refused),
            "failed": float(step.failed),
            "ms p50": step.p50_ms,
            "ms p99": step.p99_ms,
        }
        rows += [
            Row(workload=workload, system="service", value=value, unit=unit)
            for unit, value in figures.items()
            if np.isfinite(value)
        ]
        rows.append(Row(workload=workload, system="generator", value=step.lag_p99_ms, unit="ms p99 lag"))
    is_open_above = ladder and max(steps, key=lambda step: step.rate).holds
    if ladder and (highest := knee(steps)) is not None:
        rows.append(Row(workload="ladder", system="service", value=highest, unit="requests/s at the knee"))
    return new_result(
        "loadtest",
        rows,
        caveat=(
            f"Open loop ({load.shape}), {load.seconds:g} s a step, {load.population:,} users by Zipf {load.zipf:g}; "
            f"80 % slates, 15 % events, 4 % histories, {_changes(steps)}; good: by the model within "
            f"{load.deadline_ms:g} ms of the intended send time; a step holds with {GOOD_SHARE:.0%} good and nothing "
            "failed. "
            + "The highest step holds: the knee lies above it. " * is_open_above
            + "The generator shares the machine with whatever else runs on it."
        ),
    )


def _changes(steps: list[Step]) -> str:
    if all(step.changes_items for step in steps):
        return "1 % changes of items"
    return "no changes of items (the key lacks the scope `items`)"


@contextmanager
def smoke_service() -> Iterator[str]:
    """A service with the fake runner and a Redis of its own, for as long as the block lasts; its URL."""
    settings = {
        "ONESLATE_RUNNER": "fake",
        "ONESLATE_LOG_LEVEL": "warning",
        # A busy machine must show in the latencies, not as errors.
        "ONESLATE_HISTORY__CONNECT_TIMEOUT_MS": "5000",
        "ONESLATE_HISTORY__READ_TIMEOUT_MS": "5000",
    }
    with (
        tempfile.TemporaryDirectory(prefix="oneslate-smoke-") as folder,
        EmbeddedRedis(Path(folder)) as url,
        live_service(settings | {"ONESLATE_HISTORY__URL": url}) as live,
    ):
        yield live.url
