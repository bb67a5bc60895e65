"""`docker compose up` without a container engine: what the services run, as processes of this machine, in their order.

Folders stand for volumes and for the image's root, ports of loopback for the names of services. Commands, environment,
health checks and who waits for whom are those of docker-compose.yml and the Dockerfile. Prometheus and Grafana have no
part in it. The log and the model are tiny; `--set` stands where `docker compose run trainer` takes it.
"""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import compose
import dockerfile
import httpx
import pytest
import redis
import tiny_build
from dockerfile import ROOT
from tiny_build import Built

from oneslate_client import OneSlate
from service.history.embedded import find_redis_server

LISTENING = {"service": 8000, "redis": 6379, "collector": 9101, "locust": 8089}
"""Ports inside the containers, which each have an address of their own."""
TOLD_PORTS = {"redis-server": "--port", "redis-cli": "-p", "locust": "--web-port"}
"""Programs that hear nothing of the port inside their container, for it is their default; here they have to."""


def redis_settings() -> dict[str, str]:
    """Of the file that Redis is started with."""
    lines = (ROOT / "deploy" / "redis" / "redis.conf").read_text().splitlines()
    pairs = (line.split(maxsplit=1) for line in lines if line and not line.startswith("#"))
    return {name: value.strip('"') for name, value in pairs}


class Stack:
    """The services as processes."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.services: dict[str, Any] = compose.load()["services"]
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        sockets = {name: socket.create_server(("127.0.0.1", 0)) for name in LISTENING}
        self.ports = {name: one.getsockname()[1] for name, one in sockets.items()}
        for one in sockets.values():
            one.close()
        for volume in compose.load()["volumes"]:
            (root / volume).mkdir()

    def url(self, name: str) -> str:
        return f"http://127.0.0.1:{self.ports[name]}"

    def here(self, name: str, word: str) -> str:
        """A word of the container `name`, with its addresses and folders as they are here."""
        for other, port in LISTENING.items():
            word = re.sub(rf"\b{other}:{port}\b", f"127.0.0.1:{self.ports[other]}", word)
        if name in LISTENING:
            word = re.sub(rf"(?<=127\.0\.0\.1:){LISTENING[name]}\b|^{LISTENING[name]}$", str(self.ports[name]), word)
        for mount in self.services[name].get("volumes", []):
            volume, folder = mount.split(":")[:2]
            place = ROOT / volume if volume.startswith(".") else self.root / volume
            word = re.sub(rf"(?:^|(?<= )){folder}(?=/|$)", str(place), word, flags=re.MULTILINE)
        return word.replace("/opt/locustfile.py", str(ROOT / "loadtests" / "locustfile.py"))

    def _program(self, name: str, words: list[str]) -> list[str]:
        program, *rest = (self.here(name, word) for word in words)
        redis_server = str(find_redis_server())
        there = {
            "oneslate": tiny_build.command(),
            "python": [sys.executable],
            "locust": [sys.executable, "-m", "locust"],
            "redis-server": [redis_server],
            "redis-cli": [str(Path(redis_server).with_name("redis-cli"))],
        }[program]
        told = [TOLD_PORTS[program], str(self.ports[name])] if program in TOLD_PORTS else []
        if program == "redis-server":
            # Its file comes first. The folder in it is the container's, and Redis goes there before it reads on.
            (file,) = rest
            own = self.root / "redis.conf"
            own.write_text("".join(self.here(name, line) for line in Path(file).read_text().splitlines(keepends=True)))
            return [*there, str(own), *told]
        return [*there, *told, *rest]

    def _image(self, name: str) -> str:
        return str(self.services[name].get("build", {}).get("target", ""))

    def environment(self, name: str) -> dict[str, str]:
        image = dockerfile.pairs_of(self._image(name), "ENV") if self._image(name) else {}
        given = {key: str(value) for key, value in self.services[name].get("environment", {}).items()}
        merged = {key: self.here(name, value) for key, value in (image | given).items() if key != "PATH"}
        # Two busy cores must not make requests fail here.
        patient = {f"ONESLATE_HISTORY__{kind}_TIMEOUT_MS": "5000" for kind in ("CONNECT", "READ")}
        return {"PATH": os.environ["PATH"], "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)} | patient | merged

    def start(self, name: str, *more: str) -> subprocess.Popen[bytes]:
        """One service, when those that it waits for are as they should be."""
        service = self.services[name]
        for awaited, condition in compose.conditions(service).items():
            if condition == "service_completed_successfully":
                assert self.processes[awaited].wait(timeout=120) == 0
            elif condition == "service_healthy":
                self.await_health(awaited)
        words = service.get("command") or json.loads(dockerfile.metadata(self._image(name), "CMD"))
        if self._image(name):
            words = json.loads(dockerfile.metadata(self._image(name), "ENTRYPOINT")) + words
        with (self.root / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                # The working folder of our images, below which they look for volumes by name.
                [*self._program(name, words), *more],
                cwd=self.root,
                env=self.environment(name),
                stdout=log,
                stderr=log,
            )
        return self.processes[name]

    def is_healthy(self, name: str) -> bool:
        if (check := self.services[name].get("healthcheck")) is not None:
            _, *words = check["test"]
        else:
            words = json.loads(dockerfile.metadata(self._image(name), "HEALTHCHECK").split("CMD ", 1)[1])
        command, environment = self._program(name, words), self.environment(name)
        return subprocess.run(command, env=environment, capture_output=True, check=False).returncode == 0

    def await_health(self, name: str) -> None:
        until_s = time.monotonic() + 60
        while not self.is_healthy(name):
            assert self.processes[name].poll() is None, self.said(name)
            assert time.monotonic() < until_s, f"{name} is never healthy: {self.said(name)}"
            time.sleep(0.1)

    def run(self, name: str, *more: str) -> str:
        """A service that ends; what it said."""
        before = len(self.said(name))
        process = self.start(name, *more)
        assert process.wait(timeout=180) == 0, self.said(name)
        return self.said(name)[before:]

    def said(self, name: str) -> str:
        log = self.root / f"{name}.log"
        return log.read_text() if log.exists() else ""

    def down(self) -> dict[str, int]:
        """Stops everything in order, the last first; exit codes by service."""
        codes = {}
        for name, process in reversed(self.processes.items()):
            process.send_signal(signal.SIGTERM)
            try:
                codes[name] = process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                process.kill()
                codes[name] = process.wait()
        return codes


@pytest.fixture
def stack(tmp_path: Path, built: Built) -> Iterator[Stack]:
    stack = Stack(tmp_path)
    # The volumes of somebody who killed the trainer while it was putting its bundle into its place.
    shutil.copytree(built.cwd / "runs", tmp_path / "runs", dirs_exist_ok=True)
    left_over = tmp_path / "bundles" / ".demo.copying"
    left_over.mkdir()
    (left_over / "manifest.json").write_text("{")
    yield stack
    stack.down()


@pytest.mark.slow
def test_up_ends_at_an_explorer_with_users_who_have_a_history(stack: Stack, tmp_path: Path) -> None:
    tiny = tiny_build.set_options()
    bundle = tmp_path / "bundles" / "demo"
    said = stack.run("trainer", *tiny)
    assert said.count("done already") == 5
    assert sorted(path.name for path in bundle.parent.iterdir()) == ["demo"]

    stack.start("redis")
    stack.await_health("redis")
    with redis.Redis(port=stack.ports["redis"]) as server:
        there = server.config_get()
    assert redis_settings() | {"dir": str(tmp_path / "redis")} == {name: there[name] for name in redis_settings()}
    stack.start("service")
    said = stack.run("seed", *tiny)
    found = re.search(r"replayed ([\d,]+) events of (\d+) users", said)
    assert found is not None, said
    num_events = int(found.group(1).replace(",", ""))
    stack.start("collector")
    stack.start("locust")
    assert_that_the_explorer_has_something_to_show(stack)

    stack.await_health("collector")
    # Another container's Prometheus comes to another address than the collector's own health check.
    metrics_url = f"http://127.0.0.2:{stack.ports['collector']}/metrics"
    metrics = ""
    until_s = time.monotonic() + 30
    while f'oneslate_collector_rows_total{{kind="event"}} {num_events}.0' not in metrics:
        assert time.monotonic() < until_s, metrics
        time.sleep(0.1)
        metrics = httpx.get(metrics_url).text
    assert any((tmp_path / "log" / "events").glob("*.parquet"))

    stack.await_health("locust")
    assert_that_load_comes_at_the_press_of_a_button(stack)

    # Up again: at once, with the same bundle and the same histories, and that of a user who had none left.
    before = (bundle.stat().st_ino, (bundle / "manifest.json").stat().st_mtime_ns)
    assert "(there already)" in stack.run("trainer")
    assert (bundle.stat().st_ino, (bundle / "manifest.json").stat().st_mtime_ns) == before
    forgotten = httpx.get(f"{stack.url('service')}/v1/users", params={"limit": 100}).json()["user_ids"]
    forgotten = next(user_id for user_id in forgotten if user_id.startswith("user-"))
    history = f"{stack.url('service')}/v1/users/{forgotten}/history"
    assert httpx.delete(history).status_code == 204
    said = stack.run("seed", *tiny)
    assert re.search(rf"replayed \d+ events of 1 users .*; {int(found.group(2)) - 1} had a history already", said), said
    assert httpx.get(history).json()["events"]
    codes = stack.down()
    assert [codes[name] for name in ("service", "collector", "locust")] == [0, 0, 0]
    assert "Traceback" not in "".join(stack.said(name) for name in stack.services)


def assert_that_the_explorer_has_something_to_show(stack: Stack) -> None:
    page = httpx.get(stack.url("service") + "/")
    assert (page.status_code, "OneSlate explorer" in page.text) == (200, True)
    with OneSlate(stack.url("service"), timeout_s=30) as client:
        user_id, *others = client.some_users()
        assert len(others) >= 5
        history = client.history(user_id)
        assert len(history.events) >= 8
        last = history.events[-1].item_id
        assert last is not None
        assert client.item(last).title
        slate = client.recommend(user_id, 3, deadline_ms=20_000)
        assert (slate.source, slate.reason, len(slate.items)) == ("model", None, 3)
        # Events are on disk: a Redis that is killed has them again. Until the service has noticed that it is back, the
        # client is told when to come again.
        time.sleep(1.5)  # appendfsync everysec
        stack.processes["redis"].kill()
        stack.processes["redis"].wait()
        stack.start("redis")
        stack.await_health("redis")
        assert client.history(user_id) == history


def assert_that_load_comes_at_the_press_of_a_button(stack: Stack) -> None:
    with httpx.Client(base_url=stack.url("locust"), timeout=30) as client:
        assert "Locust" in client.get("/").text
        form = {"user_count": "3", "spawn_rate": "3", "host": f"http://127.0.0.1:{stack.ports['service']}"}
        assert client.post("/swarm", data=form).json()["success"] is True
        until_s = time.monotonic() + 60
        while (stats := client.get("/stats/requests").json())["stats"][-1]["num_requests"] < 20:
            assert time.monotonic() < until_s, stats
            time.sleep(0.2)
        assert client.post("/stop").json()["success"] is True
        assert stats["fail_ratio"] == 0, stats
