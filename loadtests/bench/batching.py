"""What batching is worth in service, beside what it is worth to the bare decoder.

A real bundle, one thread on one core for the decoder; generator and Redis on another. The bare decoder runs batches
of one and of `batch_size`; the service answers a closed loop of twice as many connections, once with batches of at
most one and once of `batch_size`, beams as wide as the model's either way. At low load (a fifth of what single
requests can be answered) batching must cost nobody time. The bars: nine tenths of the bare
decoder's gain, and 1.1 times the unbatched p50.
"""

import os
import random
import statistics
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import orjson
import uvloop
from rich.console import Console

from loadtests.bench.connection import post
from loadtests.bench.errors import BenchError
from loadtests.bench.generator import Answered, Generator
from loadtests.bench.histories import store_histories
from loadtests.bench.live_service import LiveService, live_service
from loadtests.bench.result import BenchResult, Row, new_result
from service.bundle import Manifest
from service.catalog import CatalogSnapshot
from service.domain import item_key
from service.history.embedded import EmbeddedRedis
from service.inference.features import RequestInputs, build_batch
from service.inference.runner import Runner
from service.opening import open_model
from service.settings import BatchSettings, Settings


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchingWorkload:
    """What is asked, and for how long."""

    batch_size: int = 16
    num_users: int = 200
    num_rounds: int = 5
    round_s: float = 6.0
    """Of each load in each round."""
    low_load: float = 0.2
    """Share of the unbatched capacity."""
    seed: int = 0


def run(
    bundle: Path, *, workload: BatchingWorkload | None = None, record: bool = False, console: Console | None = None
) -> BenchResult:
    """Measures, prints the table and the JSON line, and appends to `results/batching.jsonl` when asked to.

    Raises:
        BenchError: fewer than two cores, or a wrong answer.
        BundleError: the bundle cannot be used.
    """
    console = console or Console()
    result = measure(bundle, workload or BatchingWorkload(), console)
    result.print_to(console)
    if record:
        result.append_to()
    return result


def measure(bundle: Path, workload: BatchingWorkload, console: Console) -> BenchResult:
    """Rounds of bare decoder and both services in turn."""
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        raise BenchError("the batching bench needs two cores: one for the decoder, one for the generator and Redis")
    with ExitStack() as stack:
        stack.callback(os.sched_setaffinity, 0, set(cores))
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="oneslate-bench-")))
        os.sched_setaffinity(0, {cores[0]})
        bare = _Bare(bundle, workload)
        os.sched_setaffinity(0, {cores[1]})
        redis_url = stack.enter_context(EmbeddedRedis(folder))
        services = {
            batch_size: stack.enter_context(
                live_service(_settings(bundle, redis_url, batch_size), cores=frozenset({cores[0]}))
            )
            for batch_size in (1, workload.batch_size)
        }
        store_histories(
            services[1].url,
            bare.item_ids,
            num_users=workload.num_users,
            num_events=bare.manifest.history_length,
            rng=random.Random(workload.seed),
        )
        times: dict[str, list[float]] = {}
        for number in range(workload.num_rounds + 1):  # the first warms up
            os.sched_setaffinity(0, {cores[0]})
            found = bare.measure()
            os.sched_setaffinity(0, {cores[1]})
            found |= _measure_services(services, bare.manifest, workload, number)
            console.print(f"round {number} of {workload.num_rounds}" if number else "warm-up")
            if number:
                for name, value in found.items():
                    times.setdefault(name, []).append(value)
    return _summarise(workload, {name: statistics.median(values) for name, values in times.items()}, bare)


class _Bare:
    """The decoder without a service around it."""

    def __init__(self, bundle: Path, workload: BatchingWorkload) -> None:
        settings = Settings(
            bundle=bundle,
            intra_op_threads=1,
            load_graphs="first_use",
            batch=BatchSettings(max_size=workload.batch_size),
        )
        self._runner: Runner
        self._runner, live = open_model(settings, None)
        self._snapshot: CatalogSnapshot = live.snapshot
        self._workload = workload

    @property
    def manifest(self) -> Manifest:
        return self._runner.manifest

    @property
    def item_ids(self) -> list[str]:
        return [item.item_id for item in self._snapshot.items]

    def measure(self) -> dict[str, float]:
        """Seconds a run, by batch."""
        found = {}
        for batch_size in (1, self._workload.batch_size):
            batch = build_batch(
                [self._request(number) for number in range(batch_size)],
                self._snapshot,
                self.manifest,
                batch_size,
                beam_width=self.manifest.beam_width,
            )
            self._runner.run(batch)
            runs_s: list[float] = []
            until_s = time.perf_counter() + self._workload.round_s / 2
            while time.perf_counter() < until_s or not runs_s:
                began_s = time.perf_counter()
                self._runner.run(batch)
                runs_s.append(time.perf_counter() - began_s)
            found[f"bare {batch_size}"] = statistics.median(runs_s)
        return found

    def _request(self, seed: int) -> RequestInputs:
        rng = np.random.default_rng(seed)
        num_events = self.manifest.history_length
        rows = rng.integers(0, self._snapshot.num_items, num_events)
        return RequestInputs(
            item_keys_E=np.array([item_key(self._snapshot.items[row].item_id) for row in rows], dtype=np.uint64),
            timestamps_ms_E=np.arange(num_events, dtype=np.int64) * 60_000,
            actions_E=np.ones(num_events, dtype=np.int32),
            values_E=np.full(num_events, np.nan, dtype=np.float32),
            now_ms=num_events * 60_000,
            purpose="generator",
        )


def _settings(bundle: Path, redis_url: str, batch_size: int) -> dict[str, str]:
    return {
        "ONESLATE_BUNDLE": str(bundle),
        "ONESLATE_HISTORY__URL": redis_url,
        "ONESLATE_HISTORY__CONNECT_TIMEOUT_MS": "5000",
        "ONESLATE_HISTORY__READ_TIMEOUT_MS": "5000",
        "ONESLATE_INTRA_OP_THREADS": "1",
        "ONESLATE_LOAD_GRAPHS": "first_use",
        "ONESLATE_BATCH__MAX_SIZE": str(batch_size),
        # One width for all, or saturation would buy itself time by worse slates.
        "ONESLATE_BATCH__NARROW_TO": "1",
        "ONESLATE_DEADLINE_MS": "30000",
        "ONESLATE_LOG_LEVEL": "warning",
        "OMP_NUM_THREADS": "1",
    }


def _measure_services(
    services: dict[int, LiveService], manifest: Manifest, workload: BatchingWorkload, seed: int
) -> dict[str, float]:
    """Slates a second at saturation, and seconds (p50) at low load, of each service."""

    async def both() -> dict[str, float]:
        generators = {
            size: Generator(one.host, one.port, _requests(one, manifest, workload), random.Random(seed))
            for size, one in services.items()
        }
        found = {}
        for size, generator in generators.items():
            found[f"saturated {size}"] = await _rate(generator, 2 * workload.batch_size, workload.round_s)
        rate = found["saturated 1"] * workload.low_load
        # In turn first and last: what the machine does in between is nobody's merit.
        for size, generator in sorted(generators.items(), reverse=seed % 2 == 1):
            answered = Answered()
            async with generator.connected(2 * workload.batch_size):
                await generator.open_loop(answered, rate, 2 * workload.round_s)
            found[f"low {size}"] = statistics.median(answered.latencies_s)
        return found

    return uvloop.run(both())


async def _rate(generator: Generator, num_connections: int, seconds: float) -> float:
    answered = Answered()
    async with generator.connected(num_connections):
        began_s = time.perf_counter()
        await generator.closed_loop(answered, num_connections, seconds)
        return answered.num_requests / (time.perf_counter() - began_s)


def _requests(service: LiveService, manifest: Manifest, workload: BatchingWorkload) -> list[bytes]:
    bodies = [{"user_id": f"user-{user}", "slate_size": manifest.slate_size} for user in range(workload.num_users)]
    return [post("/v1/recommend", orjson.dumps(body), service.host) for body in bodies]


def _summarise(workload: BatchingWorkload, value: dict[str, float], bare: _Bare) -> BenchResult:
    size = workload.batch_size
    bare_rate = {batch: batch / value[f"bare {batch}"] for batch in (1, size)}
    rows = []
    for batch in (1, size):
        label = f"batches of {batch}"
        rows += [
            Row(workload=label, system="bare decoder", value=value[f"bare {batch}"] * 1000, unit="ms a run"),
            Row(workload=label, system="bare decoder", value=bare_rate[batch], unit="slates/s"),
            Row(workload=label, system="service, saturated", value=value[f"saturated {batch}"], unit="slates/s"),
            Row(workload=label, system="service, low load", value=value[f"low {batch}"] * 1000, unit="ms p50"),
        ]
    gain, bare_gain = value[f"saturated {size}"] / value["saturated 1"], bare_rate[size] / bare_rate[1]
    return new_result(
        "batching",
        rows,
        ratios={
            "bare decoder's gain": bare_gain,
            "service's gain": gain,
            "service's gain over the bare decoder's": gain / bare_gain,
            "low load, p50 batched over unbatched": value[f"low {size}"] / value["low 1"],
        },
        caveat=(
            f"Bundle {bare.manifest.model_version}, {bare.manifest.beam_width} beams, full histories of "
            f"{bare.manifest.history_length}; medians of {workload.num_rounds} interleaved rounds. One core and one "
            f"thread for the decoder and its service, another core for the generator and Redis. Saturated: "
            f"{2 * size} connections, closed loop. Low load: {workload.low_load:.0%} of the unbatched rate, Poisson."
        ),
    )
