"""Real processes that tests break: Redis, the service, the collector of its log, and what lies between them."""

import asyncio
import json
import os
import random
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import httpx
import psutil
import redis

from service.history.embedded import find_redis_server

ROOT = Path(__file__).resolve().parents[2]
ONESLATE = [sys.executable, "-c", "import oneslate; oneslate.main()"]
PATIENCE_S = 120.0
"""Of a client, with a batch of events that nobody acknowledges."""


def free_port() -> int:
    """Below those that the kernel gives to clients: it stays free while its server is being restarted."""
    while True:
        port = random.randrange(10_000, 32_000)
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port


def until(condition: Callable[[], object], what: str, timeout_s: float = 60.0) -> None:
    """Waits for it."""
    end_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end_s, f"{what}: not within {timeout_s:.0f} s"
        time.sleep(0.01)


class Process:
    """A command that can be started again, and its log."""

    def __init__(self, command: Sequence[str], log: Path, environment: dict[str, str] | None = None) -> None:
        self._command = [str(word) for word in command]
        self._environment = {name: value for name, value in os.environ.items() if not name.startswith("ONESLATE_")}
        self._environment |= environment or {}
        self.log = log
        self._running: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Starts it."""
        with self.log.open("ab") as log:
            self._running = subprocess.Popen(
                self._command, env=self._environment, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )

    @property
    def process(self) -> psutil.Process:
        """The running one."""
        assert self._running is not None
        return psutil.Process(self._running.pid)

    @property
    def is_running(self) -> bool:
        """Whether it has not ended."""
        return self._running is not None and self._running.poll() is None

    def signal(self, number: signal.Signals) -> None:
        """Sends a signal."""
        assert self._running is not None
        self._running.send_signal(number)

    def kill(self) -> None:
        """Ends it at once, wherever it is."""
        if self._running is not None:
            self._running.kill()
            self._running.wait()

    def end(self) -> int:
        """Asks it to end, and waits; its exit code."""
        assert self._running is not None
        self._running.terminate()
        return self._running.wait(timeout=60)


class Redis(Process):
    """A server on loopback that loses nothing that it acknowledged."""

    def __init__(self, folder: Path, *, fsync: Literal["always", "everysec"] = "always") -> None:
        folder.mkdir()
        self.port = free_port()
        options = {
            "port": self.port, "bind": "127.0.0.1", "dir": folder, "save": "", "appendonly": "yes",
            "appendfsync": fsync, "set-max-intset-entries": 4096,
        }  # fmt: skip
        words = [str(word) for name, value in options.items() for word in (f"--{name}", value)]
        super().__init__([str(find_redis_server()), *words], folder / "log")

    @property
    def url(self) -> str:
        """Of the server."""
        return f"redis://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Starts it, and waits until it answers."""
        super().start()
        until(self._answers, "Redis answers")

    def _answers(self) -> bool:
        assert self.is_running, self.log.read_text()[-2000:]
        with redis.Redis(port=self.port, socket_timeout=1) as client, suppress(redis.RedisError):
            return bool(client.ping())
        return False


class Service(Process):
    """`oneslate serve` with the fake runner."""

    def __init__(self, folder: Path, redis_url: str, **environment: object) -> None:
        self.port = free_port()
        self.redis_port = urlsplit(redis_url).port
        given = {
            "ONESLATE_RUNNER": "fake",
            "ONESLATE_PORT": self.port,
            "ONESLATE_HISTORY__URL": redis_url,
            "ONESLATE_LOG_LEVEL": "warning",
            **environment,
        }
        super().__init__(
            [*ONESLATE, "serve"], folder / "service.log", {name: str(value) for name, value in given.items()}
        )

    @property
    def url(self) -> str:
        """Of the service."""
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Starts it, and waits until it is ready."""
        super().start()
        with httpx.Client(base_url=self.url) as client:
            until(lambda: self._is_ready(client), "the service is ready")

    def _is_ready(self, client: httpx.Client) -> bool:
        assert self.is_running, self.log.read_text()[-2000:]
        with suppress(httpx.TransportError):
            return client.get("/readyz").status_code == httpx.codes.OK
        return False


class LogCollector(Process):
    """`oneslate collect`."""

    def __init__(self, folder: Path, redis_url: str, *options: str) -> None:
        self.folder = folder / "log"
        command = [*ONESLATE, "collect", "--out", str(self.folder), *(options or ("--every", "0.1"))]
        super().__init__(command, folder / "collector.log", {"ONESLATE_HISTORY__URL": redis_url})


@contextmanager
def running(*processes: Process) -> Iterator[None]:
    """Starts them, in order; kills whatever runs in the end."""
    try:
        for process in processes:
            process.start()
        yield
    finally:
        for process in reversed(processes):
            process.kill()


class Ingest:
    """Clients that send events until each is acknowledged, however often they must."""

    def __init__(
        self, url: str, events: Sequence[dict[str, Any]], *, num_clients: int = 4, batch_size: int = 50
    ) -> None:
        self._url = url
        self._batches = iter([events[start : start + batch_size] for start in range(0, len(events), batch_size)])
        self._lock = threading.Lock()
        self.num_acknowledged = 0
        self.num_retries = 0
        self.trouble: list[str] = []
        """What should not have happened."""
        self._clients = [threading.Thread(target=self._send_all) for _ in range(num_clients)]

    def start(self) -> None:
        """Begins."""
        for client in self._clients:
            client.start()

    def join(self) -> None:
        """Waits until all is acknowledged."""
        for client in self._clients:
            client.join(timeout=600)
            assert not client.is_alive(), "events are still not acknowledged"

    def _send_all(self) -> None:
        with httpx.Client(base_url=self._url, timeout=10) as client:
            while True:
                with self._lock:
                    batch = next(self._batches, None)
                if batch is None:
                    return
                given_up_s = time.monotonic() + PATIENCE_S
                while not self._is_acknowledged(client, batch):
                    if time.monotonic() > given_up_s:  # as where the test has failed and nobody listens any more
                        self.trouble.append(f"not acknowledged within {PATIENCE_S:.0f} s")
                        return
                    with self._lock:
                        self.num_retries += 1
                    time.sleep(0.02)
                with self._lock:
                    self.num_acknowledged += len(batch)

    def _is_acknowledged(self, client: httpx.Client, batch: Sequence[dict[str, Any]]) -> bool:
        try:
            answer = client.post("/v1/events", json={"events": batch})
        except httpx.TransportError:
            return False  # it was killed, or is not up yet
        if answer.status_code == httpx.codes.SERVICE_UNAVAILABLE:
            return False
        statuses = {result["status"] for result in answer.json().get("results", [])}
        if answer.status_code != httpx.codes.OK or not statuses <= {"stored", "duplicate"}:
            self.trouble.append(f"{answer.status_code} {answer.text[:200]}")
        return True


class Proxy:
    """TCP between the service and Redis, which can be slow or reset everything."""

    def __init__(self, target_port: int) -> None:
        self._target_port = target_port
        self.mode: Literal["pass", "slow", "reset"] = "pass"
        self.delay_s = 0.2
        self.port = free_port()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def url(self) -> str:
        """Of what looks like a Redis."""
        return f"redis://127.0.0.1:{self.port}"

    @contextmanager
    def open(self) -> Iterator["Proxy"]:
        """Runs inside the block."""
        self._thread.start()
        server = asyncio.run_coroutine_threadsafe(
            asyncio.start_server(self._serve, "127.0.0.1", self.port), self._loop
        ).result()
        try:
            yield self
        finally:
            asyncio.run_coroutine_threadsafe(self._end(server), self._loop).result()
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()

    async def _end(self, server: asyncio.Server) -> None:
        server.close()
        await asyncio.sleep(0.05)  # what was accepted just now is served, and so is among the tasks
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.sleep(0.05)  # what was aborted closes in the next turns of the loop

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            with suppress(asyncio.CancelledError):
                await self._pass_on(reader, writer)
        finally:
            _reset(writer)
            self._tasks.discard(task)

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            there_reader, there_writer = await asyncio.open_connection("127.0.0.1", self._target_port)
        except OSError:
            _reset(writer)
            return
        ways = [
            asyncio.create_task(self._copy(reader, there_writer)),
            asyncio.create_task(self._copy(there_reader, writer)),
        ]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            # Before anything is awaited: whoever ends the proxy may cancel that.
            _reset(writer)
            _reset(there_writer)
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)

    async def _copy(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while chunk := await reader.read(65536):
            if self.mode == "reset":
                return
            if self.mode == "slow":
                await asyncio.sleep(self.delay_s / 2)  # once on the way there, once on the way back
            writer.write(chunk)
            await writer.drain()


def _reset(writer: asyncio.StreamWriter) -> None:
    """Closes at once, with RST."""
    sock = writer.get_extra_info("socket")
    if sock is not None:
        with suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


def complaints(log: Path) -> list[str]:
    """Lines of a service's log that no fault excuses: tracebacks, and tasks whose end nobody looked at."""
    text = log.read_text()
    lines = []
    for line in text.splitlines():
        with suppress(json.JSONDecodeError):
            if "traceback" in json.loads(line):
                lines.append(line)
                continue
        if re.search(r"never retrieved|never awaited|Traceback|Task was destroyed", line):
            lines.append(line)
    return lines
