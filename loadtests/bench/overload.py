"""Three times as many requests as the service can answer: what is answered in time, what is told to the rest, and how
soon all is well again.

The model is a fake that takes the same time for every batch, so the capacity is known: that of full batches. The
service has one core, the generator and Redis share another. Requests come by a Poisson schedule that does not wait for
answers, and a latency counts from the intended send time. A request that finds all connections busy opens another one.
"""

import asyncio
import os
import random
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import httpx
import numpy as np
import orjson
import psutil
import uvloop
from rich.console import Console

from loadtests.bench.connection import Connection, Response, post
from loadtests.bench.errors import BenchError
from loadtests.bench.live_service import LiveService, live_service
from loadtests.bench.result import BenchResult, Row, new_result
from service.history.embedded import EmbeddedRedis

MAX_LAG_MS: Final = 20.0
"""The generator's own lateness (p99) above which the run means nothing."""
WINDOW_S: Final = 0.2
"""Recovery is looked for in steps of this."""
GOOD, LESSER, REFUSED = "in time by the model", "lesser", "refused"


@dataclass(frozen=True, slots=True, kw_only=True)
class OverloadWorkload:
    """How much, and for how long."""

    service_time_ms: float = 40.0
    """Of every batch."""
    max_batch_size: int = 8
    deadline_ms: float = 500.0
    factor: float = 3.0
    """Requests that come, over the capacity."""
    overload_s: float = 60.0
    calm_s: float = 5.0
    """Before and after, at half of the capacity."""
    num_users: int = 500
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.service_time_ms, self.deadline_ms, self.overload_s, self.calm_s, self.factor) <= 0:
            raise ValueError("times and factor must be positive")
        if min(self.max_batch_size, self.num_users) < 1:
            raise ValueError("max_batch_size and num_users must be at least 1")

    @property
    def capacity(self) -> float:
        """Requests a second in full batches, one after another."""
        return self.max_batch_size / self.service_time_ms * 1000


@dataclass(slots=True)
class Phase:
    """What was asked and answered in one stretch of time."""

    began_s: float
    wall_s: float = 0.0
    answers: list[tuple[float, float, str]] = field(default_factory=list)
    """Intended send time, latency, and kind of each."""
    lags_s: list[float] = field(default_factory=list)
    retry_after_s: Counter[int] = field(default_factory=Counter)

    def count(self, kind: str) -> int:
        """Answers of that kind."""
        return sum(one == kind for _, _, one in self.answers)

    def latencies_ms(self, *kinds: str) -> list[float]:
        """Of answers of these kinds."""
        return [latency_s * 1000 for _, latency_s, kind in self.answers if kind in kinds]


def run(
    *, workload: OverloadWorkload | None = None, record: bool = False, console: Console | None = None
) -> BenchResult:
    """Measures, prints the table and the JSON line, and appends to `results/overload.jsonl` when asked to.

    Raises:
        BenchError: fewer than two cores, an answer that is neither slate nor refusal, or a generator that lags.
    """
    console = console or Console()
    result = measure(workload or OverloadWorkload(), console)
    result.print_to(console)
    if record:
        result.append_to()
    return result


def measure(workload: OverloadWorkload, console: Console) -> BenchResult:
    """Starts Redis and the service, drives both phases, stops them. BenchError: see `run`."""
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        raise BenchError("the overload bench needs two cores: one for the service, one for the generator and Redis")
    os.sched_setaffinity(0, {cores[1]})
    settings = {
        "ONESLATE_RUNNER": "fake",
        "ONESLATE_FAKE__SERVICE_TIME_MS": str(workload.service_time_ms),
        "ONESLATE_BATCH__MAX_SIZE": str(workload.max_batch_size),
        "ONESLATE_DEADLINE_MS": str(workload.deadline_ms),
        "ONESLATE_LOG_LEVEL": "warning",
    }
    try:
        with (
            tempfile.TemporaryDirectory(prefix="oneslate-bench-") as folder,
            EmbeddedRedis(Path(folder)) as url,
            live_service(settings | {"ONESLATE_HISTORY__URL": url}, cores=frozenset({cores[0]})) as service,
        ):
            generator = _Generator(workload, service)
            phases, memory = uvloop.run(_course(generator, psutil.Process(service.pid), console))
    finally:
        os.sched_setaffinity(0, set(cores))
    return _summarise(workload, phases, memory)


async def _course(
    generator: "_Generator", service: psutil.Process, console: Console
) -> tuple[dict[str, Phase], tuple[int, int]]:
    """Calm, overload, calm again; and the service's resident memory before and after the overload."""
    workload, phases = generator.workload, {}
    try:
        for name, rate, seconds in (
            ("warm-up", workload.capacity, workload.calm_s),
            ("calm before", workload.capacity / 2, workload.calm_s),
            ("overload", workload.capacity * workload.factor, workload.overload_s),
            ("calm after", workload.capacity / 2, workload.calm_s),
        ):
            if name == "overload":
                before = service.memory_info().rss
            console.print(f"{name}: {rate:,.0f} requests/s for {seconds:g} s", highlight=False)
            phases[name] = await generator.drive(rate, seconds)
            if name == "overload":
                after = service.memory_info().rss
    finally:
        await generator.close()
    return phases, (before, after)


class _Generator:
    """Sends on schedule, whatever comes back."""

    def __init__(self, workload: OverloadWorkload, service: LiveService) -> None:
        self.workload = workload
        self._service = service
        self._random = random.Random(workload.seed)
        self._requests = [
            post("/v1/recommend", orjson.dumps({"user_id": f"user-{number}", "slate_size": 10}), service.host)
            for number in range(workload.num_users)
        ]
        self._free: list[Connection] = []
        self._all: list[Connection] = []

    async def drive(self, rate: float, seconds: float) -> Phase:
        """Poisson arrivals at `rate` a second for so long; ends when all are answered."""
        intended_s = time.perf_counter()
        phase, until_s = Phase(intended_s), intended_s + seconds
        async with asyncio.TaskGroup() as tasks:
            while (intended_s := intended_s + self._random.expovariate(rate)) < until_s:
                if (rest_s := intended_s - time.perf_counter()) > 0:
                    await asyncio.sleep(rest_s)
                phase.lags_s.append(time.perf_counter() - intended_s)
                tasks.create_task(self._send(phase, intended_s))
        phase.wall_s = seconds
        lag_ms = float(np.percentile(phase.lags_s, 99)) * 1000
        if lag_ms > MAX_LAG_MS:
            raise BenchError(f"the generator itself was {lag_ms:.1f} ms late (p99): it is too slow for {rate:,.0f}/s")
        return phase

    async def close(self) -> None:
        """Hangs up."""
        for connection in self._all:
            await connection.close()

    async def _send(self, phase: Phase, intended_s: float) -> None:
        connection = self._free.pop() if self._free else await self._open()
        try:
            response = await connection.request(self._random.choice(self._requests))
        except ConnectionError:  # it was idle for too long: no request is lost by asking again on another one
            self._all.remove(connection)
            connection = await self._open()
            response = await connection.request(self._random.choice(self._requests))
        latency_s = time.perf_counter() - intended_s
        self._free.append(connection)
        phase.answers.append((intended_s, latency_s, self._kind(phase, response, latency_s)))

    def _kind(self, phase: Phase, response: Response, latency_s: float) -> str:
        if response.status == httpx.codes.TOO_MANY_REQUESTS:
            phase.retry_after_s[_retry_after(response)] += 1
            return REFUSED
        if response.status != httpx.codes.OK:
            raise BenchError(f"answer {response.status}: {response.body[:300].decode(errors='replace')}")
        is_good = b'"source":"model"' in response.body and latency_s * 1000 <= self.workload.deadline_ms
        return GOOD if is_good else LESSER

    async def _open(self) -> Connection:
        connection = await Connection.open(self._service.host, self._service.port)
        self._all.append(connection)
        return connection


def _retry_after(response: Response) -> int:
    """Seconds. BenchError: a refusal does not say when to come again."""
    for line in response.head.split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name == b"retry-after":
            return int(value)
    raise BenchError("a refusal without Retry-After")


def recovery_s(phase: Phase) -> float:
    """From the end of the overload to the first step from which on every answer is the model's, in time."""
    well_s = 0.0
    for intended_s, latency_s, kind in phase.answers:
        if kind != GOOD:
            well_s = max(well_s, intended_s - phase.began_s + latency_s)
    return float(np.ceil(well_s / WINDOW_S) * WINDOW_S)


def _summarise(workload: OverloadWorkload, phases: dict[str, Phase], memory: tuple[int, int]) -> BenchResult:
    rows: list[Row] = []
    for name, phase in phases.items():
        if name == "warm-up":
            continue
        asked = len(phase.answers)
        accepted_ms = phase.latencies_ms(GOOD, LESSER)
        rows += [
            Row(workload=name, system="generator", value=asked / phase.wall_s, unit="requests/s"),
            Row(
                workload=name,
                system="generator",
                value=float(np.percentile(phase.lags_s, 99)) * 1000,
                unit="ms p99 lag",
            ),
            *(
                Row(workload=name, system=f"service, {kind}", value=phase.count(kind) / phase.wall_s, unit="requests/s")
                for kind in (GOOD, LESSER, REFUSED)
            ),
            *(
                Row(
                    workload=name,
                    system="service, accepted",
                    value=float(np.percentile(accepted_ms, percent)),
                    unit=f"ms p{percent}",
                )
                for percent in (50, 99)
            ),
        ]
    overload = phases["overload"]
    refused_ms = overload.latencies_ms(REFUSED)
    recovered_s = recovery_s(phases["calm after"])
    if refused_ms:
        rows.append(
            Row(
                workload="overload",
                system="service, refused",
                value=float(np.percentile(refused_ms, 99)),
                unit="ms p99",
            )
        )
    rows += [
        Row(workload="overload", system="service", value=memory[0] / 2**20, unit="MiB resident before"),
        Row(workload="overload", system="service", value=memory[1] / 2**20, unit="MiB resident after"),
        Row(workload="calm after", system="service", value=recovered_s, unit="s until all is well"),
    ]
    accepted_p99_ms = float(np.percentile(overload.latencies_ms(GOOD, LESSER), 99))
    retries = ", ".join(f"{seconds} s: {count}" for seconds, count in sorted(overload.retry_after_s.items()))
    return new_result(
        "overload",
        rows,
        ratios={
            "goodput over capacity": overload.count(GOOD) / overload.wall_s / workload.capacity,
            "accepted p99 over deadline": accepted_p99_ms / workload.deadline_ms,
        },
        caveat=(
            f"Fake runner, {workload.service_time_ms:g} ms for every batch of up to {workload.max_batch_size}: "
            f"capacity {workload.capacity:g} requests/s; deadline {workload.deadline_ms:g} ms; Poisson arrivals at "
            f"{workload.factor:g} times that for {workload.overload_s:g} s. One core for the service, another for "
            f"generator and Redis. Retry-After of the refused: {retries or 'none refused'}."
        ),
    )
