"""A service process of its own, as users run it: `oneslate serve`, settings in the environment, HTTP over loopback."""

import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import httpx

from loadtests.bench.errors import BenchError

SERVE = (sys.executable, "-c", "import oneslate; oneslate.main()", "serve")
"""`oneslate serve` of this interpreter, wherever its scripts are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveService:
    """A service that answers."""

    host: str
    port: int
    pid: int

    @property
    def url(self) -> str:
        """Without a slash at the end."""
        return f"http://{self.host}:{self.port}"


@contextmanager
def live_service(
    settings: Mapping[str, str],
    *,
    cores: frozenset[int] | None = None,
    command: tuple[str, ...] = SERVE,
    timeout_s: float = 60.0,
) -> Iterator[LiveService]:
    """Starts a service, waits until it is ready, and stops it at the end.

    Args:
        settings: `ONESLATE_*` values; of this process' own environment those are dropped.
        cores: The cores that the process may use; None: all that this one may use.
        command: What serves.
        timeout_s: How long it may take to get ready.

    Raises:
        BenchError: it ended or did not get ready in time; with the end of what it logged.
    """
    host, port = "127.0.0.1", _free_port()
    environment = {name: value for name, value in os.environ.items() if not name.startswith("ONESLATE_")}
    environment |= {"ONESLATE_HOST": host, "ONESLATE_PORT": str(port), **settings}
    with tempfile.TemporaryFile() as log:
        own_cores = os.sched_getaffinity(0)
        # A child takes over the affinity of the thread that starts it.
        os.sched_setaffinity(0, cores or own_cores)
        try:
            process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        finally:
            os.sched_setaffinity(0, own_cores)
        try:
            service = LiveService(host=host, port=port, pid=process.pid)
            if trouble := _trouble_getting_ready(process, service, timeout_s):
                log.seek(0)
                last_words = log.read()[-2000:].decode(errors="replace")
                raise BenchError(f"the service {trouble}: {last_words}")
            yield service
        finally:
            process.terminate()
            try:
                process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _trouble_getting_ready(process: subprocess.Popen[bytes], service: LiveService, timeout_s: float) -> str:
    until_s = time.monotonic() + timeout_s
    while time.monotonic() < until_s:
        if process.poll() is not None:
            return f"ended with code {process.returncode}"
        with suppress(httpx.TransportError):
            if httpx.get(f"{service.url}/readyz", timeout=2).status_code == httpx.codes.OK:
                return ""
        time.sleep(0.05)
    return f"did not get ready in {timeout_s:g} s"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
