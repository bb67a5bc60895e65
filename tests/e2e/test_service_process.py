"""The service as a process of its own: what it says when it cannot start, and what survives when it is killed."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from service.app import serve
from service.bundle import write_bundle
from service.errors import BundleError, HistoryUnavailable
from service.history.embedded import EmbeddedRedis
from service.inference.fake_runner import fake_manifest
from service.settings import HistorySettings, Settings

ROOT = Path(__file__).resolve().parents[2]
SERVE = "from service.app import serve; from service.settings import Settings; serve(Settings.load(), on_ready=print)"


@contextmanager
def process_of(data_dir: Path) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("ONESLATE_")}
    environment |= {
        "ONESLATE_RUNNER": "fake",
        "ONESLATE_PORT": "0",
        "ONESLATE_HISTORY__DATA_DIR": str(data_dir),
        "ONESLATE_HISTORY__READ_TIMEOUT_MS": "3000",
        "ONESLATE_HISTORY__CONNECT_TIMEOUT_MS": "3000",
        "PYTHONUNBUFFERED": "1",
    }
    command = [sys.executable, "-c", SERVE]
    with subprocess.Popen(
        command, env=environment, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        try:
            assert process.stdout is not None
            url = process.stdout.readline().decode().strip()
            assert url.startswith("http://"), "the service did not start"
            yield process, url
        finally:
            process.kill()


def test_every_acknowledged_event_survives_a_killed_service(tmp_path: Path) -> None:
    acknowledged: list[str] = []
    try:
        for life in range(3):
            with process_of(tmp_path) as (process, url), httpx.Client(base_url=url, timeout=10) as client:
                until_s = time.monotonic() + 0.3
                while time.monotonic() < until_s:
                    number = len(acknowledged)
                    event = {"event_id": f"e{life}-{number}", "user_id": "ann", "item_id": f"item-{number}"}
                    answer = client.post("/v1/events", json={"events": [{**event, "timestamp": time.time()}]})
                    assert answer.json()["results"][0]["status"] == "stored"
                    acknowledged.append(event["item_id"])
                process.send_signal(signal.SIGKILL)
        with process_of(tmp_path) as (_, url):
            history = httpx.get(f"{url}/v1/users/ann/history").json()
        stored = [event["item_id"] for event in history["events"]]
        assert stored == acknowledged[-256:]
        assert history["num_seen"] == len(acknowledged)
    finally:
        EmbeddedRedis(tmp_path).stop()


@pytest.mark.parametrize("signal_number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_service_cleanly(tmp_path: Path, signal_number: int) -> None:
    try:
        with process_of(tmp_path) as (process, url):
            assert httpx.get(f"{url}/livez").status_code == 200
            process.send_signal(signal_number)
            assert process.wait(timeout=15) == 0
            assert process.stderr is not None
            assert b"Traceback" not in process.stderr.read()
    finally:
        EmbeddedRedis(tmp_path).stop()


def _settings(**values: object) -> Settings:
    return Settings(**{"port": 0, "log_level": "error", "history": HistorySettings(url="memory://"), **values})  # type: ignore[arg-type]


def test_a_bundle_with_a_flipped_byte_is_refused_by_name(tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    fields = fake_manifest().model_dump(exclude={"files"})
    write_bundle(bundle, fields, {"generator.onnx": lambda file: file.write_bytes(b"0123") and None})  # type: ignore[func-returns-value]
    (bundle / "generator.onnx").write_bytes(b"0124")
    with pytest.raises(BundleError, match=r"generator\.onnx: sha256 is"):
        serve(_settings(bundle=bundle))
    (bundle / "generator.onnx").unlink()
    with pytest.raises(BundleError, match=r"generator\.onnx: missing"):
        serve(_settings(bundle=bundle))
    with pytest.raises(BundleError, match="no bundle here"):
        serve(_settings(bundle=tmp_path / "nowhere"))


def test_a_port_in_use_is_one_clear_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ValueError, match=f"cannot listen on 127.0.0.1:{port}: Address already in use"):
            serve(_settings(runner="fake", port=port))


def test_nowhere_to_keep_histories_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="ONESLATE_HISTORY__URL or ONESLATE_HISTORY__DATA_DIR"):
        serve(_settings(runner="fake", history=HistorySettings()))
    with pytest.raises(ValueError, match="redis://"):
        serve(_settings(runner="fake", history=HistorySettings(url="http://x")))  # type: ignore[arg-type]
    (tmp_path / "appendonly.aof").mkdir()
    with pytest.raises(HistoryUnavailable, match="redis-server ended at once"):
        serve(_settings(runner="fake", history=HistorySettings(data_dir=tmp_path)))
