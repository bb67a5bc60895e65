"""What a catalog that moves costs: slates a second with and without a stream of changes, and how soon these are seen.

Two replicas over one Redis. The first answers slates as fast as it can on a core of its own; the second, the generator
and Redis share the other core. Windows of every kind follow each other within a round, medians of the rounds count:
nothing changes; changes go to the second replica, the first only follows; changes go to the first itself.
"""

import asyncio
import os
import random
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import httpx
import numpy as np
import orjson
import uvloop
from rich.console import Console

from loadtests.bench.connection import Connection, post
from loadtests.bench.errors import BenchError
from loadtests.bench.live_service import LiveService, live_service
from loadtests.bench.result import BenchResult, Row, new_result
from service.bundle import Bundle
from service.history.embedded import EmbeddedRedis

MAX_COST: Final = 0.05
"""The bar: share of the throughput that a thousand changes a second may cost."""
MAX_VISIBLE_S: Final = 1.0
"""The bar: until a change is seen on every replica."""
_SETTINGS: Final = {
    "ONESLATE_LOG_LEVEL": "warning",
    "ONESLATE_INTRA_OP_THREADS": "1",
    "ONESLATE_HISTORY__CONNECT_TIMEOUT_MS": "5000",
    "ONESLATE_HISTORY__READ_TIMEOUT_MS": "5000",
    "ONESLATE_DEADLINE_MS": "20000",
}
QUIET: Final = "no changes"
_KINDS: Final = {"changed": "changes of items", "mixed": "changes, a tenth of them new items", "new": "new items only"}
_ELSEWHERE: Final = "through another replica"
_HERE: Final = "through the same replica"
_POLL_S: Final = 0.005
_SETTLE_S: Final = 0.7
"""Longer than a replica ever waits for its next snapshot."""
_MAX_WAIT_S: Final = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveWorkload:
    """How much is asked and changed, and for how long."""

    num_users: int = 200
    history_events: int = 50
    num_connections: int = 16
    slate_size: int = 5
    changes_per_s: int = 1000
    bulk_size: int = 250
    num_rounds: int = 5
    round_s: float = 4.0
    num_visibility_probes: int = 60
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.num_users, self.num_connections, self.changes_per_s, self.bulk_size, self.num_rounds) < 1:
            raise ValueError("users, connections, changes, bulk size and rounds must be at least 1")


@dataclass(slots=True)
class Window:
    """One kind of load in one round."""

    num_slates: int = 0
    num_changes: int = 0
    wall_s: float = 0.0
    latencies_s: list[float] = field(default_factory=list)


def run(
    bundle: Path,
    *,
    workload: LiveWorkload | None = None,
    settings: dict[str, str] | None = None,
    record: bool = False,
    console: Console | None = None,
) -> BenchResult:
    """Measures, prints the table and the JSON line, and appends to `results/live.jsonl` when asked to.

    Args:
        bundle: What both replicas serve.
        workload: None: the usual one.
        settings: Further `ONESLATE_*` settings of the replicas.
        record: Whether to append.
        console: Where to print.

    Raises:
        BenchError: fewer than two cores, or a wrong answer.
    """
    console = console or Console()
    workload = workload or LiveWorkload()
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        raise BenchError("the live bench needs two cores: one for the replica that is measured, one for all others")
    every = _SETTINGS | {"ONESLATE_BUNDLE": str(bundle)} | (settings or {})
    load_average = os.getloadavg()[0]
    os.sched_setaffinity(0, {cores[1]})
    try:
        with ExitStack() as stack:
            redis = EmbeddedRedis(Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="oneslate-bench-"))))
            every["ONESLATE_HISTORY__URL"] = stack.enter_context(redis)
            here = stack.enter_context(live_service(every, cores=frozenset({cores[0]})))
            there = stack.enter_context(live_service(every, cores=frozenset({cores[1]})))
            bench = _Bench(workload, here, there, Bundle.open(bundle), console)
            windows, visible_s = uvloop.run(bench.measure())
    finally:
        os.sched_setaffinity(0, set(cores))
    result = _summarise(workload, bundle, windows, visible_s, load_average)
    result.print_to(console)
    if record:
        result.append_to()
    return result


class _Bench:
    """The generator."""

    def __init__(
        self, workload: LiveWorkload, here: LiveService, there: LiveService, bundle: Bundle, console: Console
    ) -> None:
        self._workload = workload
        self._here, self._there = here, there
        self._console = console
        self._random = random.Random(workload.seed)
        self._items = [item.item_id for item in bundle.catalog().items]
        self._titles = [item.title for item in bundle.catalog().items if item.title] or ["an item"]
        self._num_new = 0
        self._requests = [
            post("/v1/recommend", orjson.dumps({"user_id": name, "slate_size": workload.slate_size}), here.host)
            for name in (f"user-{number}" for number in range(workload.num_users))
        ]

    async def measure(self) -> tuple[list[dict[str, Window]], dict[str, list[float]]]:
        """Windows of every round by name, and seconds until changes were seen, by replica."""
        await self._seed()
        rounds = []
        loads: list[tuple[str, str | None, LiveService]] = [(QUIET, None, self._here)]
        for kind, what in _KINDS.items():
            loads += [(f"{what}, {_ELSEWHERE}", kind, self._there), (f"{what}, {_HERE}", kind, self._here)]
        for number in range(self._workload.num_rounds + 1):
            windows: dict[str, Window] = {}
            # Another order each time: what one window leaves behind must not always fall to the same one.
            for name, changes, target in self._random.sample(loads, len(loads)):
                await self._settled()
                windows[name] = await self._window(changes, target)
            rounds.append(windows)
            rates = ", ".join(f"{windows[load[0]].num_slates / windows[load[0]].wall_s:.1f}" for load in loads)
            self._console.print(f"{f'round {number}' if number else 'warm-up'}: {rates} slates/s", highlight=False)
        return rounds[1:], await self._visibility()

    async def _window(self, kind: str | None, target: LiveService) -> Window:
        window = Window()
        connections = [
            await Connection.open(self._here.host, self._here.port) for _ in range(self._workload.num_connections)
        ]
        started_s = time.perf_counter()
        until_s = started_s + self._workload.round_s
        try:
            async with asyncio.TaskGroup() as tasks:
                for connection in connections:
                    tasks.create_task(self._ask(connection, window, until_s))
                if kind is not None:
                    tasks.create_task(self._change(kind, target, window, until_s))
        finally:
            for connection in connections:
                await connection.close()
        window.wall_s = time.perf_counter() - started_s
        return window

    async def _ask(self, connection: Connection, window: Window, until_s: float) -> None:
        while (sent_s := time.perf_counter()) < until_s:
            response = await connection.request(self._random.choice(self._requests))
            if response.status != httpx.codes.OK or b'"source":"model"' not in response.body:
                raise BenchError(f"answer {response.status}: {response.body[:300].decode(errors='replace')}")
            window.num_slates += 1
            window.latencies_s.append(time.perf_counter() - sent_s)

    async def _change(self, kind: str, target: LiveService, window: Window, until_s: float) -> None:
        """Bulks at even distances, whatever the answers take."""
        pause_s = self._workload.bulk_size / self._workload.changes_per_s
        next_s = time.perf_counter()
        connection = await Connection.open(target.host, target.port)
        try:
            while next_s < until_s:
                body = orjson.dumps({"items": [self._one(kind) for _ in range(self._workload.bulk_size)]})
                response = await connection.request(post("/v1/items", body, target.host))
                if response.status != httpx.codes.OK or b'"refused"' in response.body:
                    raise BenchError(f"changes: {response.status}: {response.body[:300].decode(errors='replace')}")
                window.num_changes += self._workload.bulk_size
                next_s += pause_s
                await asyncio.sleep(max(0.0, next_s - time.perf_counter()))
        finally:
            await connection.close()

    def _one(self, kind: str) -> dict[str, Any]:
        """One change: now and then unavailable, mostly other tags."""
        if kind == "new" or (kind == "mixed" and self._random.random() < 0.1):
            self._num_new += 1
            # As real ones: much like an item that is there.
            title = f"{self._random.choice(self._titles)} {self._random.choice(self._titles).split()[0]}"
            return {"item_id": f"new-{self._num_new}", "title": title, "tags": [f"tag-{self._num_new % 50}"]}
        item_id = self._random.choice(self._items)
        if self._random.random() < 0.5:
            return {"item_id": item_id, "available": self._random.random() < 0.9}
        return {"item_id": item_id, "tags": [f"tag-{self._random.randrange(50)}"]}

    async def _settled(self) -> None:
        """Returns when both replicas have shown the same catalog for a while."""
        same_since_s, last = time.perf_counter(), ""
        async with httpx.AsyncClient(timeout=30) as client:
            while time.perf_counter() - same_since_s < _SETTLE_S:
                versions = [(await client.get(f"{one.url}/version")).json()["catalog_version"] for one in self._both]
                if versions != [last, last]:
                    same_since_s, last = time.perf_counter(), versions[0]
                await asyncio.sleep(0.05)

    @property
    def _both(self) -> tuple[LiveService, LiveService]:
        return self._here, self._there

    async def _visibility(self) -> dict[str, list[float]]:
        """Seconds from sending a new item until each replica recommends it, while changes and slates go on."""
        seen_s: dict[str, list[float]] = {"the replica asked": [], "the other replica": []}
        window = Window()
        connections = [await Connection.open(self._here.host, self._here.port) for _ in range(4)]
        async with asyncio.TaskGroup() as tasks:
            endless_s = time.perf_counter() + 3600
            busy = [tasks.create_task(self._ask(connection, window, endless_s)) for connection in connections]
            busy.append(tasks.create_task(self._change("mixed", self._there, window, endless_s)))
            async with httpx.AsyncClient(timeout=30) as client:
                for number in range(self._workload.num_visibility_probes):
                    asked, other = (self._here, self._there) if number % 2 else (self._there, self._here)
                    tags = [f"probe-{number}"]
                    item = {"title": self._random.choice(self._titles), "tags": tags}
                    sent_s = time.perf_counter()
                    (await client.put(f"{asked.url}/v1/items/probe-{number}", json=item)).raise_for_status()
                    waits = [_until_recommended(client, replica, tags) for replica in (asked, other)]
                    for name, at_s in zip(seen_s, await asyncio.gather(*waits), strict=True):
                        seen_s[name].append(at_s - sent_s)
                    await asyncio.sleep(self._random.random() * 0.3)
            for task in busy:
                task.cancel()
        for connection in connections:
            await connection.close()
        return seen_s

    async def _seed(self) -> None:
        """Stores every user's history."""
        now_s = time.time()
        async with httpx.AsyncClient(base_url=self._here.url, timeout=30) as client:
            for user in range(self._workload.num_users):
                events = [
                    {
                        "event_id": f"seed-{number}",
                        "user_id": f"user-{user}",
                        "item_id": self._random.choice(self._items),
                        "timestamp": now_s - 60.0 * (self._workload.history_events - number),
                    }
                    for number in range(self._workload.history_events)
                ]
                (await client.post("/v1/events", json={"events": events})).raise_for_status()


async def _until_recommended(client: httpx.AsyncClient, replica: LiveService, tags: list[str]) -> float:
    """When a slate first held the one item with these tags."""
    body = {"user_id": "probe", "slate_size": 1, "filter": {"all_of": tags}}
    async with asyncio.timeout(_MAX_WAIT_S):
        # Another process cannot set an event.
        while not (await client.post(f"{replica.url}/v1/recommend", json=body)).json()["items"]:  # noqa: ASYNC110
            await asyncio.sleep(_POLL_S)
    return time.perf_counter()


def _summarise(
    workload: LiveWorkload,
    bundle: Path,
    rounds: list[dict[str, Window]],
    visible_s: dict[str, list[float]],
    load_average: float,
) -> BenchResult:
    rows = [row for name in rounds[0] for row in _rows(name, [windows[name] for windows in rounds])]
    # Ratios within a round: the machine's mood is the same.
    ratios = {
        f"throughput, {name}": statistics.median(
            (windows[name].num_slates / windows[name].wall_s) / (windows[QUIET].num_slates / windows[QUIET].wall_s)
            for windows in rounds
        )
        for name in rounds[0]
        if name != QUIET
    }
    for name, seconds in visible_s.items():
        for unit, percent in (("ms p50", 50), ("ms p90", 90), ("ms at most", 100)):
            value = float(np.percentile(seconds, percent)) * 1000
            rows.append(Row(workload="until a new item is recommended", system=name, value=value, unit=unit))
    slowest_s = max(max(seconds) for seconds in visible_s.values())
    ratios["slowest new item over the bar of 1 s"] = slowest_s / MAX_VISIBLE_S
    manifest = Bundle.open(bundle).manifest
    return new_result(
        "live",
        rows,
        ratios=ratios,
        caveat=(
            f"Model {manifest.model_version}, beam {manifest.beam_width}, slates of {workload.slate_size}, histories "
            f"of {workload.history_events} events; {workload.num_connections} connections; medians of "
            f"{workload.num_rounds} rounds of {workload.round_s:g} s, ratios within a round. Bulks of "
            f"{workload.bulk_size} at {workload.changes_per_s} changes a second. The replica that is measured has one "
            "core with one inference thread; the other replica, the generator and Redis share the second core. "
            f"{workload.num_visibility_probes} new items, each from its sending until a slate held it, while "
            f"mixed changes and slates went on. The bar for the throughput is {1 - MAX_COST:g}. "
            f"Load average before the run: {load_average:.1f}."
        ),
    )


def _rows(name: str, windows: list[Window]) -> Iterator[Row]:
    rate = statistics.median(window.num_slates / window.wall_s for window in windows)
    yield Row(workload=name, system="measured replica", value=rate, unit="slates/s")
    p99_ms = statistics.median(float(np.percentile(window.latencies_s, 99)) * 1000 for window in windows)
    yield Row(workload=name, system="measured replica", value=p99_ms, unit="ms p99")
    if windows[0].num_changes:
        changes = statistics.median(window.num_changes / window.wall_s for window in windows)
        yield Row(workload=name, system="generator", value=changes, unit="changes/s")
