"""Models are switched and taken back under load: nobody fails, no answer is of two models, and nobody waits long."""

import asyncio
import threading
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import numpy as np
import orjson
from kit import Redis, Service, complaints, running
from measured import Figures
from model_bundles import write_model

from loadtests.bench.connection import Connection, post

RATE = 100.0
NUM_CONNECTIONS = 16


class OpenLoop:
    """Slates asked for on schedule, and what came: (intended second, seconds until the answer, trouble or empty)."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()))
        self.seen: list[tuple[float, float, str]] = []

    def __enter__(self) -> "OpenLoop":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join()

    async def _run(self) -> None:
        idle: asyncio.Queue[Connection] = asyncio.Queue()
        for _ in range(NUM_CONNECTIONS):
            idle.put_nowait(await Connection.open("127.0.0.1", self._port))
        tasks: set[asyncio.Task[None]] = set()
        begin_s = time.monotonic()
        number = 0
        while not self._stopping.is_set():
            due_s = begin_s + number / RATE
            await asyncio.sleep(max(0.0, due_s - time.monotonic()))
            tasks.add(asyncio.create_task(self._ask(idle, number, due_s)))
            number += 1
        await asyncio.gather(*tasks)
        while not idle.empty():
            await idle.get_nowait().close()

    async def _ask(self, idle: "asyncio.Queue[Connection]", number: int, due_s: float) -> None:
        connection = await idle.get()
        body = orjson.dumps({"user_id": f"user-{number % 500}", "slate_size": 5, "deadline_ms": 5000})
        try:
            answer = await connection.request(post("/v1/recommend", body, "x"))
        finally:
            idle.put_nowait(connection)
        trouble = ""
        if answer.status != 200:
            trouble = f"{answer.status} {answer.body[:200]!r}"
        else:
            members = orjson.loads(answer.body)
            owners = {item["item_id"].split(":")[0] for item in members["items"]}
            if owners != {members["model_version"]} or members["source"] != "model":
                trouble = f"{members['model_version']} answers {members['items']}, {members['reason']}"
        self.seen.append((due_s, time.monotonic() - due_s, trouble))


def test_nobody_fails_while_models_are_switched(
    tmp_path: Path, scaled: Callable[[int, int], int], figures: Figures
) -> None:
    num_switches = scaled(3, 20)
    for version in ("one", "two"):
        write_model(tmp_path / "models", version)
    server = Redis(tmp_path / "redis", fsync="everysec")
    service = Service(
        tmp_path, server.url, ONESLATE_BUNDLE=tmp_path / "models" / "one", ONESLATE_MODELS_DIR=tmp_path / "models",
        ONESLATE_FAKE__SERVICE_TIME_MS=5, ONESLATE_HISTORY__READ_TIMEOUT_MS=1000, ONESLATE_LIMITS__READ_S=60,
    )  # fmt: skip
    with running(server, service), httpx.Client(base_url=service.url, timeout=120) as admin:
        with OpenLoop(service.port) as load:
            time.sleep(scaled(2, 20))
            first_s = time.monotonic()
            for switch in range(num_switches):
                if switch % 2 == 0:
                    answer = admin.post("/v1/models/two/activate", json={})
                else:
                    answer = admin.post("/v1/models/rollback", json={})
                assert (answer.status_code, answer.json()["active"]) == (200, ("two", "one")[switch % 2])
                time.sleep(0.2)
            last_s = time.monotonic()
        assert complaints(service.log) == []
    assert [trouble for _, _, trouble in load.seen if trouble] == []
    quiet = [took_s for due_s, took_s, _ in load.seen if due_s < first_s]
    during = [took_s for due_s, took_s, _ in load.seen if first_s <= due_s < last_s]
    assert min(len(quiet), len(during)) > 50
    name = f"{num_switches} switches and rollbacks, {RATE:.0f} slates a second"
    figures(name, "slates", len(load.seen), "answered, none failed or of two models")
    for system, times in (("quiet", quiet), ("switching", during)):
        figures(name, system, float(np.quantile(times, 0.5)) * 1000, "ms p50")
        figures(name, system, float(np.quantile(times, 0.99)) * 1000, "ms p99")
    figures(name, "p99, switching over quiet", float(np.quantile(during, 0.99) / np.quantile(quiet, 0.99)), "")
