"""What a request costs besides the model: the service on one core, the fake runner, histories read from a real Redis.

The service has one core to itself; the generator and Redis share another one. Three workloads, interleaved, medians of
the rounds: all connections busy (closed loop), Poisson arrivals at half of that rate (open loop, latency from the
intended send time), and one connection alone. CPU time is that of the service process, user and system, fake runner
included; Redis' stands beside it.
"""

import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import httpx
import numpy as np
import orjson
import psutil
import uvloop
from prometheus_client.parser import text_string_to_metric_families
from rich.console import Console

from loadtests.bench.connection import post
from loadtests.bench.errors import BenchError
from loadtests.bench.generator import Answered, Generator
from loadtests.bench.histories import store_histories
from loadtests.bench.live_service import LiveService, live_service
from loadtests.bench.result import BenchResult, Row, new_result
from loadtests.bench.where import profiled_command, shares_of
from service.history.embedded import STATE_FILE, EmbeddedRedis

MAX_CPU_MS: Final = 1.0
"""The bar: CPU time of the service per request."""
MAX_LAG_MS: Final = 5.0
"""The generator's own lateness (p99) above which latencies mean nothing."""
_SETTINGS: Final = {
    "ONESLATE_RUNNER": "fake",
    "ONESLATE_LOG_LEVEL": "warning",
    # A busy machine must show in the latencies, not as errors.
    "ONESLATE_HISTORY__CONNECT_TIMEOUT_MS": "5000",
    "ONESLATE_HISTORY__READ_TIMEOUT_MS": "5000",
    "ONESLATE_DEADLINE_MS": "5000",
}
SATURATED: Final = "saturated"
OPEN_LOOP: Final = "open loop at half the rate"
ALONE: Final = "one connection"
PROFILED: Final = "saturated, under Python's profiler"
"""Which slows Python down more than C: shares, no times."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpWorkload:
    """What is asked, and for how long."""

    num_users: int = 500
    history_events: int = 100
    """Stored per user before the first measurement."""
    slate_size: int = 10
    num_connections: int = 32
    num_rounds: int = 5
    round_s: float = 3.0
    """Of each workload in each round."""
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.num_users, self.history_events, self.num_connections, self.num_rounds) < 1 or self.round_s <= 0:
            raise ValueError("numbers of users, events, connections and rounds, and round_s, must be positive")


@dataclass(slots=True, kw_only=True)
class Window(Answered):
    """One workload of one round."""

    wall_s: float = 0.0
    service_cpu_s: float = 0.0
    redis_cpu_s: float = 0.0
    stage_s: dict[str, float] = field(default_factory=dict)
    """Mean seconds per slate by stage, as the service measured them."""

    def figures(self) -> Iterator[tuple[str, float, str]]:
        """System, value and unit of everything that is reported."""
        yield "service", self.num_requests / self.wall_s, "requests/s"
        yield "service", self.service_cpu_s / self.num_requests * 1000, "ms CPU a request"
        yield "redis", self.redis_cpu_s / self.num_requests * 1000, "ms CPU a request"
        for percent in (50, 99):
            yield "service", float(np.percentile(self.latencies_s, percent)) * 1000, f"ms p{percent}"
        if self.lags_s:
            yield "generator", float(np.percentile(self.lags_s, 99)) * 1000, "ms p99 lag"
        for stage, seconds in self.stage_s.items():
            yield f"stage {stage}", seconds * 1000, "ms mean"


def run(*, workload: HttpWorkload | None = None, record: bool = False, console: Console | None = None) -> BenchResult:
    """Measures, prints the table and the JSON line, and appends to `results/http.jsonl` when asked to.

    Raises:
        BenchError: fewer than two cores, a wrong answer, or a generator too slow for what it reports.
    """
    console = console or Console()
    result = measure(workload or HttpWorkload(), console)
    result.print_to(console)
    lag_ms = next(row.value for row in result.rows if row.system == "generator")
    if lag_ms > MAX_LAG_MS:
        raise BenchError(f"the generator itself was {lag_ms:.1f} ms late (p99): the open-loop latencies are wrong")
    if record:
        result.append_to()
    return result


def measure(workload: HttpWorkload, console: Console) -> BenchResult:
    """Starts Redis and the service, measures every round, stops both.

    Raises:
        BenchError: fewer than two cores, or a wrong answer.
    """
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        raise BenchError("the HTTP bench needs two cores: one for the service, one for the generator and Redis")
    load_average = os.getloadavg()[0]
    os.sched_setaffinity(0, {cores[1]})
    try:
        with tempfile.TemporaryDirectory(prefix="oneslate-bench-") as folder:
            redis = EmbeddedRedis(Path(folder))
            settings = _SETTINGS | {"ONESLATE_HISTORY__URL": redis.start()}
            try:
                redis_pid = orjson.loads((Path(folder) / STATE_FILE).read_bytes())["pid"]
                with live_service(settings, cores=frozenset({cores[0]})) as service:
                    rounds = _run(_Bench(workload, service, redis_pid, console))
                shares = _profiled(workload, settings, Path(folder), cores[0])
            finally:
                redis.stop()
    finally:
        os.sched_setaffinity(0, set(cores))
    return _summarise(workload, rounds, shares, load_average)


def _profiled(workload: HttpWorkload, settings: dict[str, str], folder: Path, core: int) -> dict[str, float]:
    """Shares of a saturated service's time by part, with the histories that are there; see `shares_of`."""
    path = folder / "profile"
    command = profiled_command(path)
    with live_service(settings, cores=frozenset({core}), command=command) as service:
        generator = Generator(service.host, service.port, _requests(workload, service), random.Random(workload.seed))

        async def load() -> None:
            async with generator.connected(workload.num_connections):
                await generator.closed_loop(Answered(), workload.num_connections, workload.round_s)

        uvloop.run(load())
    return shares_of(path)


def _requests(workload: HttpWorkload, service: LiveService) -> list[bytes]:
    return [
        post("/v1/recommend", orjson.dumps({"user_id": name, "slate_size": workload.slate_size}), service.host)
        for name in (f"user-{number}" for number in range(workload.num_users))
    ]


def _run(bench: "_Bench") -> list[dict[str, Window]]:
    try:
        bench.seed()
        return uvloop.run(bench.rounds())
    except ExceptionGroup as group:  # of the connections, which as a rule all have the same trouble
        raise BenchError(str(group.exceptions[0])) from group


class _Bench:
    """The generator: one per run."""

    def __init__(self, workload: HttpWorkload, service: LiveService, redis_pid: int, console: Console) -> None:
        self._workload = workload
        self._service = service
        self._console = console
        self._processes = psutil.Process(service.pid), psutil.Process(redis_pid)
        self._random = random.Random(workload.seed)
        self._generator = Generator(service.host, service.port, _requests(workload, service), self._random)

    def seed(self) -> None:
        """Stores every user's history."""
        version = httpx.get(f"{self._service.url}/version", timeout=30).raise_for_status().json()
        store_histories(
            self._service.url,
            [f"item-{number}" for number in range(version["num_items"])],
            num_users=self._workload.num_users,
            num_events=self._workload.history_events,
            rng=self._random,
        )

    async def rounds(self) -> list[dict[str, Window]]:
        """Every workload once a round; a first round, not counted, warms everything up."""
        rounds = []
        for number in range(self._workload.num_rounds + 1):
            saturated = await self._measure(lambda window: self._closed_loop(window, self._workload.num_connections))
            rate = saturated.num_requests / saturated.wall_s / 2
            open_loop = await self._measure(
                lambda window, rate=rate: self._generator.open_loop(  # type: ignore[misc]
                    window, rate, self._workload.round_s
                )
            )
            alone = await self._measure(lambda window: self._closed_loop(window, 1))
            rounds.append({SATURATED: saturated, OPEN_LOOP: open_loop, ALONE: alone})
            what = f"round {number} of {self._workload.num_rounds}" if number else "warm-up"
            self._console.print(f"{what}: {rate * 2:,.0f} requests/s")
        return rounds[1:]

    async def _closed_loop(self, window: Window, num_connections: int) -> None:
        await self._generator.closed_loop(window, num_connections, self._workload.round_s)

    async def _measure(self, load: Callable[[Window], Coroutine[Any, Any, None]]) -> Window:
        window = Window()
        async with self._generator.connected(self._workload.num_connections):
            stages_before = await self._stages()
            cpu_before = [_cpu_s(process) for process in self._processes]
            began_s = time.perf_counter()
            await load(window)
            window.wall_s = time.perf_counter() - began_s
            window.service_cpu_s, window.redis_cpu_s = (
                _cpu_s(process) - before for process, before in zip(self._processes, cpu_before, strict=True)
            )
            await self._add_stages(window, stages_before)
        return window

    async def _add_stages(self, window: Window, stages_before: dict[str, tuple[float, float]]) -> None:
        if not window.num_requests:
            raise BenchError(f"no answer within {self._workload.round_s:g} s: the machine is too busy")
        for stage, (seconds, count) in (await self._stages()).items():
            seconds_before, count_before = stages_before[stage]
            if count - count_before != window.num_requests:
                raise BenchError(f"{window.num_requests} answers, but the service counted {count - count_before}")
            window.stage_s[stage] = (seconds - seconds_before) / window.num_requests

    async def _stages(self) -> dict[str, tuple[float, float]]:
        """Stage -> seconds and slates so far."""
        async with httpx.AsyncClient() as client:
            text = (await client.get(f"{self._service.url}/metrics")).raise_for_status().text
        sums: dict[str, dict[str, float]] = {}
        for family in text_string_to_metric_families(text):
            if family.name == "oneslate_recommend_stage_seconds":
                for sample in family.samples:
                    sums.setdefault(sample.labels["stage"], {})[sample.name.rsplit("_", 1)[1]] = sample.value
        return {stage: (values["sum"], values["count"]) for stage, values in sums.items()}


def _cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def _summarise(
    workload: HttpWorkload, rounds: list[dict[str, Window]], shares: dict[str, float], load_average: float
) -> BenchResult:
    rows = []
    for name in (SATURATED, OPEN_LOOP, ALONE):
        figures: dict[tuple[str, str], list[float]] = {}
        for windows in rounds:
            for system, value, unit in windows[name].figures():
                figures.setdefault((system, unit), []).append(value)
        rows += [
            Row(workload=name, system=system, value=statistics.median(values), unit=unit)
            for (system, unit), values in figures.items()
        ]
    rows += [Row(workload=PROFILED, system=part, value=share, unit="of the time") for part, share in shares.items()]
    return new_result(
        "http",
        rows,
        ratios={"cpu_of_bar": max(row.value for row in rows if (row.system, row.unit) == _CPU) / MAX_CPU_MS},
        caveat=(
            f"Fake runner, {workload.history_events}-event histories of {workload.num_users} users, slates of "
            f"{workload.slate_size}, {workload.num_connections} keep-alive connections; medians of "
            f"{workload.num_rounds} rounds of {workload.round_s:g} s. One core for the service, another for "
            "generator and Redis (unix socket). Stages are wall time; features and inference are the whole batch's. "
            "cpu_of_bar: the worst workload's CPU time a request over the bar of 1 ms. Load average before the run: "
            f"{load_average:.1f}."
        ),
    )


_CPU: Final = ("service", "ms CPU a request")
