"""The embedded Redis: started, found again, stopped; with real processes throughout."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from service.errors import HistoryUnavailable
from service.history import embedded
from service.history.embedded import STATE_FILE, EmbeddedRedis, find_redis_server

STARTER = """
import sys, time
from pathlib import Path
from service.history.embedded import EmbeddedRedis
embedded = EmbeddedRedis(Path(sys.argv[1]))
print(embedded.start(), flush=True)
time.sleep(60)
"""


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[Path]:
    """A directory whose Redis, if any, is gone after the test."""
    folder = tmp_path / "r"
    yield folder
    for pid in servers_of(folder):
        os.kill(pid, signal.SIGKILL)


def servers_of(directory: Path) -> list[int]:
    """Process ids of every redis-server that runs in the directory."""
    return [
        process.pid
        for process in psutil.process_iter(["name", "cwd", "status"])
        if process.info["name"] == "redis-server"
        and process.info["cwd"] == str(directory)
        and process.info["status"] != psutil.STATUS_ZOMBIE
    ]


def start_elsewhere(directory: Path) -> tuple[subprocess.Popen[str], str]:
    """Another process that has started the Redis of the directory, and the URL it got."""
    starter = subprocess.Popen([sys.executable, "-c", STARTER, str(directory)], stdout=subprocess.PIPE, text=True)
    assert starter.stdout is not None
    with starter.stdout:
        return starter, starter.stdout.readline().strip()


def end(starter: subprocess.Popen[str]) -> None:
    starter.send_signal(signal.SIGKILL)
    starter.wait()


def test_it_outlives_a_killed_starter_and_is_found_again(directory: Path) -> None:
    starter, url = start_elsewhere(directory)
    with redis.Redis.from_url(url) as client:
        client.set("a", "b")
    pids = servers_of(directory)
    assert os.getsid(pids[0]) == pids[0], "a Ctrl-C for the starter would reach the server"
    end(starter)
    again = EmbeddedRedis(directory)
    assert again.start() == url
    assert servers_of(directory) == pids
    assert json.loads((directory / STATE_FILE).read_text()) == {"url": url, "pid": pids[0]}
    with redis.Redis.from_url(url) as client:
        assert client.get("a") == b"b"
    again.stop()
    assert servers_of(directory) == []
    assert not (directory / STATE_FILE).exists()


def test_what_was_stored_is_there_after_a_stop(directory: Path) -> None:
    with EmbeddedRedis(directory) as url, redis.Redis.from_url(url) as client:
        client.set("a", "b")
    assert servers_of(directory) == []
    with EmbeddedRedis(directory) as url, redis.Redis.from_url(url) as client:
        assert client.get("a") == b"b"
        assert client.config_get("append*") | client.config_get("save") == {
            "appendonly": "yes",
            "appendfsync": "everysec",
            "appendfilename": client.config_get("appendfilename")["appendfilename"],
            **client.config_get("appenddirname"),
            "save": "",
        }


def test_racing_starters_share_one_server(directory: Path) -> None:
    with ThreadPoolExecutor() as pool:
        starters = list(pool.map(lambda _: start_elsewhere(directory), range(4)))
    assert len({url for _, url in starters}) == 1
    assert len(servers_of(directory)) == 1
    for starter, _ in starters:
        end(starter)
    EmbeddedRedis(directory).stop()


def test_racing_starts_in_one_process_share_one_server(directory: Path) -> None:
    rivals = [EmbeddedRedis(directory) for _ in range(6)]
    with ThreadPoolExecutor(len(rivals)) as pool:
        urls = set(pool.map(EmbeddedRedis.start, rivals))
    assert len(urls) == 1
    assert len(servers_of(directory)) == 1
    with ThreadPoolExecutor(len(rivals)) as pool:
        list(pool.map(EmbeddedRedis.stop, rivals))
    assert servers_of(directory) == []


@pytest.mark.parametrize("state", ["", "{", "[]", '{"pid": 1, "url": "unix:///nowhere/redis.sock"}'])
def test_a_stale_or_damaged_state_file_is_replaced(directory: Path, state: str) -> None:
    directory.mkdir()
    (directory / STATE_FILE).write_text(state)
    EmbeddedRedis(directory).stop()
    with EmbeddedRedis(directory):
        assert json.loads((directory / STATE_FILE).read_text())["pid"] == servers_of(directory)[0]


def test_a_killed_server_is_replaced_with_its_data(directory: Path) -> None:
    server = EmbeddedRedis(directory, appendfsync="always")
    with redis.Redis.from_url(server.start()) as client:
        client.set("a", "b")
        assert client.config_get("appendfsync") == {"appendfsync": "always"}
        EmbeddedRedis(directory, keep_fsync=True).start()
        assert client.config_get("appendfsync") == {"appendfsync": "always"}
    [killed] = servers_of(directory)
    os.kill(killed, signal.SIGKILL)
    with redis.Redis.from_url(server.start()) as client:
        assert client.get("a") == b"b"
    assert servers_of(directory) != [killed]
    server.stop()


def test_a_found_server_takes_over_the_asked_fsync(directory: Path) -> None:
    with (
        EmbeddedRedis(directory),
        redis.Redis.from_url(EmbeddedRedis(directory, appendfsync="always").start()) as client,
    ):
        assert client.config_get("appendfsync") == {"appendfsync": "always"}


def test_a_server_that_hangs_is_stopped_all_the_same(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server = EmbeddedRedis(directory)
    server.start()
    monkeypatch.setattr(embedded, "_SHUTDOWN_TIMEOUT_S", 0.3)
    os.kill(servers_of(directory)[0], signal.SIGSTOP)
    server.stop()
    assert servers_of(directory) == []


def test_a_server_that_hangs_is_not_doubled(directory: Path) -> None:
    with EmbeddedRedis(directory):
        [pid] = servers_of(directory)
        os.kill(pid, signal.SIGSTOP)
        try:
            with pytest.raises(HistoryUnavailable, match=r"did not get ready in 1\.5 s"):
                EmbeddedRedis(directory, timeout_s=1.5).start()
            assert servers_of(directory) == [pid]
        finally:
            os.kill(pid, signal.SIGCONT)


def test_a_long_path_gets_a_loopback_port_with_a_password(tmp_path: Path) -> None:
    directory = tmp_path / ("long " * 25).strip() / 'with "quotes" and \\'
    server = EmbeddedRedis(directory)
    url = server.start()
    try:
        assert url.startswith("redis://:")
        assert "@127.0.0.1:" in url
        with redis.Redis.from_url(url) as client:
            assert client.ping()
        once = Retry(NoBackoff(), 0)
        stranger = redis.Redis(port=int(url.rpartition(":")[2]), retry=once)
        with stranger, pytest.raises(redis.AuthenticationError):
            stranger.ping()
        assert EmbeddedRedis(directory).start() == url
        private = [path.name for path in directory.iterdir() if path.stat().st_mode & 0o077 and "redis" in path.name]
        assert set(private) <= {"redis.log"}
    finally:
        server.stop()
    assert servers_of(directory) == []


def test_stopping_what_never_ran_does_nothing(directory: Path) -> None:
    EmbeddedRedis(directory).stop()
    assert not directory.exists()


def test_a_server_that_cannot_start_says_why(directory: Path) -> None:
    directory.mkdir()
    # Both layouts of an append-only file: Redis 6, and Redis 7's folder.
    (directory / "appendonly.aof").write_bytes(b"garbage that is no command\r\n" * 3)
    (directory / "appendonlydir").mkdir()
    (directory / "appendonlydir" / "appendonly.aof.manifest").write_text("garbage\n")
    start_s = time.monotonic()
    with pytest.raises(
        HistoryUnavailable, match=r"redis-server ended at once: .*(Bad file format|Invalid AOF manifest)"
    ):
        EmbeddedRedis(directory).start()
    assert time.monotonic() - start_s < 5
    assert servers_of(directory) == []


def test_no_redis_server_is_one_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(embedded, "find_spec", lambda name: None)
    with pytest.raises(HistoryUnavailable, match=r"no redis-server: install Redis 6\.2 .* Python 3\.13"):
        find_redis_server()


def test_redis_server_on_path_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    on_path = tmp_path / "redis-server"
    on_path.symlink_to(find_redis_server())
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_redis_server() == on_path


def test_a_directory_with_a_line_end_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="line ends"):
        EmbeddedRedis(tmp_path / "a\nb")
