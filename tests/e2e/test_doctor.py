"""`oneslate doctor` as a user runs it: what it finds, and what it tells them to do."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from model_bundles import write_model

from service.doctor import _info
from service.history.embedded import EmbeddedRedis

ROOT = Path(__file__).resolve().parents[2]
Findings = dict[str, dict[str, Any]]


def run(*options: str, **settings: object) -> "subprocess.CompletedProcess[str]":
    environment = {name: value for name, value in os.environ.items() if not name.startswith("ONESLATE_")}
    environment |= {f"ONESLATE_{name}": str(value) for name, value in settings.items()}
    command = [sys.executable, "-c", "import oneslate; oneslate.main()", "doctor", *options]
    return subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)


def found(done: "subprocess.CompletedProcess[str]") -> Findings:
    assert "Traceback" not in done.stderr, done.stderr
    return {finding["name"]: finding for finding in map(json.loads, done.stdout.splitlines())}


def verdicts(findings: Findings) -> dict[str, str]:
    return {name: finding["verdict"] for name, finding in findings.items()}


@pytest.fixture
def redis_url(tmp_path: Path) -> Iterator[str]:
    with EmbeddedRedis(tmp_path / "redis") as url:
        yield url


def test_a_sound_service_is_called_so(redis_url: str, tmp_path: Path) -> None:
    bundle = write_model(tmp_path / "models", "one")
    done = run("--json", "--bundle", str(bundle), RUNNER="fake", HISTORY__URL=redis_url, PORT=0)
    findings = found(done)
    assert done.returncode == 0, done.stderr
    assert {name for name, verdict in verdicts(findings).items() if verdict == "wrong"} == set()
    assert "hashes and golden cases agree" in findings["bundle"]["seen"]
    for name in ("python", "settings", "bundle", "port", "redis", "redis persistence", "redis memory", "clock"):
        assert findings[name]["verdict"] == "ok", findings[name]
        assert findings[name]["remedy"] == ""


def test_everything_wrong_is_named_with_its_remedy(redis_url: str, tmp_path: Path) -> None:
    bundle = write_model(tmp_path / "models", "one")
    (bundle / "generator.onnx").write_bytes(b"damaged")
    (tmp_path / "keys.json").write_text("{")
    with redis.Redis.from_url(redis_url) as client:
        client.config_set("maxmemory-policy", "allkeys-lru")
        client.config_set("appendonly", "no")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        done = run(
            "--json", RUNNER="fake", BUNDLE=bundle, HISTORY__URL=redis_url, PORT=taken.getsockname()[1],
            KEYS_FILE=tmp_path / "keys.json", LIMITS__CONNECTIONS=10_000_000,
        )  # fmt: skip
    findings = found(done)
    assert done.returncode == 1
    assert "error: 3 of these must be mended" in done.stderr
    assert verdicts(findings) | {"redis latency": "ok"} == {
        "python": "ok", "settings": "ok", "engine": "warning", "bundle": "wrong", "keys": "wrong", "port": "warning",
        "open files": "warning", "redis": "ok", "redis latency": "ok", "redis persistence": "warning",
        "redis memory": "wrong", "clock": "ok",
    }  # fmt: skip
    assert "generator.onnx" in findings["bundle"]["seen"]
    assert "noeviction" in findings["redis memory"]["remedy"]
    assert all(finding["remedy"] for finding in findings.values() if finding["verdict"] != "ok")


@pytest.mark.parametrize(
    ("settings", "name", "words"),
    [
        ({"HISTRY__URL": "x"}, "settings", "did you mean"),
        ({"HISTORY__URL": "redis://127.0.0.1:1"}, "redis", "did not answer"),
        ({"HISTORY__URL": "http://x"}, "redis", "a Redis URL starts with"),
        ({}, "redis", "nothing says where histories are kept"),
    ],
)
def test_what_keeps_it_from_starting_is_one_finding(settings: dict[str, str], name: str, words: str) -> None:
    done = run("--json", RUNNER="fake", PORT=0, **settings)
    findings = found(done)
    assert done.returncode == 1
    assert findings[name]["verdict"] == "wrong"
    assert words in findings[name]["seen"]


def test_an_embedded_redis_is_looked_at_and_not_started(tmp_path: Path) -> None:
    settings = {"RUNNER": "fake", "PORT": 0, "HISTORY__DATA_DIR": tmp_path / "redis"}
    assert "to be started" in found(run("--json", **settings))["redis"]["seen"]
    assert not (tmp_path / "redis").exists()
    with EmbeddedRedis(tmp_path / "redis", appendfsync="always"):
        findings = found(run("--json", **settings))
    assert "Redis " in findings["redis"]["seen"]
    assert "fsync always" in findings["redis persistence"]["seen"]


def test_people_get_lines_with_what_to_do() -> None:
    done = run(RUNNER="fake", PORT=0, HISTORY__URL="memory://")
    assert done.returncode == 0
    assert "look  redis: memory://: every history ends with the process\n       → ONESLATE_HISTORY__URL" in done.stdout


@pytest.mark.parametrize(
    "reply",
    [
        b"# Server\r\nredis_version:7.2.5\r\naof_enabled:1\r\n",
        {"redis_version": "7.2.5", "aof_enabled": 1},
        {"127.0.0.1:1": {"redis_version": "7.2.5", "aof_enabled": 1}, "127.0.0.1:2": {"redis_version": "7"}},
    ],
)
def test_a_server_or_the_first_of_a_cluster_is_read(reply: Any) -> None:
    info = _info(reply)
    assert (info["redis_version"], info["aof_enabled"]) == ("7.2.5", "1")
