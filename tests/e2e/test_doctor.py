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
import redis_cluster
from model_bundles import write_model

from service.doctor.around import _no_folder
from service.doctor.redis import _disk, _info, _memory
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
    for name in (
        "python",
        "settings",
        "bundle",
        "port",
        "redis",
        "redis writes",
        "redis persistence",
        "redis memory",
        "clock",
    ):
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
        "open files": "warning", "redis": "ok", "redis latency": "ok", "redis writes": "ok",
        "redis persistence": "warning", "redis memory": "wrong", "clock": "ok",
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
        {"127.0.0.1:1": {"redis_version": "7.2.5", "aof_enabled": 1}},
    ],
)
def test_a_server_is_read_whatever_the_client_made_of_it(reply: Any) -> None:
    info = _info(reply)
    assert (info["redis_version"], info["aof_enabled"]) == ("7.2.5", "1")


def wrongs(findings: Findings) -> dict[str, dict[str, Any]]:
    return {name: finding for name, finding in findings.items() if finding["verdict"] == "wrong"}


def looked_at(redis_url: str) -> Findings:
    return found(run("--json", RUNNER="fake", PORT=0, HISTORY__URL=redis_url))


def test_whether_it_may_write_is_tried_and_leaves_nothing(redis_url: str) -> None:
    assert looked_at(redis_url)["redis writes"]["verdict"] == "ok"
    with redis.Redis.from_url(redis_url) as client:
        assert client.dbsize() == 0


def test_a_replica_is_wrong(redis_url: str) -> None:
    with redis.Redis.from_url(redis_url) as client:
        client.replicaof("127.0.0.1", 1)  # type: ignore[no-untyped-call]
        bad = wrongs(looked_at(redis_url))
        client.replicaof("NO", "ONE")  # type: ignore[no-untyped-call]
    assert bad.keys() == {"redis role", "redis writes"}
    assert "a replica of 127.0.0.1:1" in bad["redis role"]["seen"]
    assert {finding["remedy"] for finding in bad.values()} >= {"ONESLATE_HISTORY__URL must name the primary"}


def test_a_full_one_is_wrong_and_one_that_is_nearly_full_is_said(redis_url: str) -> None:
    with redis.Redis.from_url(redis_url) as client:
        client.set("ballast", b"x" * 20_000_000)
        client.config_set("maxmemory", "10mb")
        bad = wrongs(looked_at(redis_url))
        client.config_set("maxmemory", "24mb")
        soon = looked_at(redis_url)
    assert bad.keys() == {"redis memory", "redis writes"}
    assert "it is full" in bad["redis memory"]["seen"]
    assert "raise its maxmemory" in bad["redis writes"]["remedy"]
    assert wrongs(soon) == {}
    assert soon["redis memory"]["verdict"] == "warning"


def with_user(redis_url: str, *rules: str) -> str:
    with redis.Redis.from_url(redis_url) as client:
        client.execute_command("ACL", "SETUSER", "ann", "on", ">secret", "~*", *rules)
    return redis_url.replace("unix://", "unix://ann:secret@")


def test_a_user_who_may_not_write_is_wrong(redis_url: str) -> None:
    bad = wrongs(looked_at(with_user(redis_url, "+@all", "-@write")))
    assert bad.keys() == {"redis writes"}
    assert "ACL SETUSER" in bad["redis writes"]["remedy"]


def test_what_may_not_be_asked_is_a_warning_where_all_that_is_needed_may_be_done(redis_url: str) -> None:
    findings = looked_at(with_user(redis_url, "-@all", "+@read", "+@write", "+@scripting"))
    assert wrongs(findings) == {}
    for name, words in (("redis", "INFO may not be asked"), ("clock", "TIME of Redis may not be asked")):
        assert findings[name]["verdict"] == "warning"
        assert words in findings[name]["seen"]
    assert findings["redis writes"]["verdict"] == "ok"


@pytest.mark.parametrize(
    ("info", "configured", "verdict"),
    [
        ({"aof_last_write_status": "err"}, {}, "wrong"),
        ({"rdb_last_bgsave_status": "err"}, {"save": "3600 1"}, "wrong"),
        ({"rdb_last_bgsave_status": "err"}, {}, "warning"),
        ({"rdb_last_bgsave_status": "err"}, {"save": ""}, None),
        ({"aof_last_write_status": "ok", "rdb_last_bgsave_status": "ok"}, {"save": "3600 1"}, None),
    ],
)
def test_a_disk_that_cannot_be_written_is_seen(
    info: dict[str, str], configured: dict[str, str], verdict: str | None
) -> None:
    found = _disk(info, configured)
    assert (found and found.verdict) == verdict


@pytest.mark.parametrize(("used", "verdict"), [(79, "ok"), (80, "warning"), (99, "warning"), (100, "wrong")])
def test_memory_is_judged_by_its_limit(used: int, verdict: str) -> None:
    found = _memory({"used_memory": str(used), "maxmemory": "100"}, {})
    assert found is not None
    assert found.verdict == verdict
    unlimited = _memory({"used_memory": str(used), "maxmemory": "0"}, {})
    assert unlimited is not None
    assert unlimited.verdict == "ok"


def test_every_primary_of_a_cluster_is_judged(tmp_path: Path) -> None:
    with redis_cluster.cluster(tmp_path / "cluster", 3) as ports:
        with redis.Redis(port=ports[2]) as client:
            client.config_set("maxmemory-policy", "allkeys-lru")
        done = run(
            "--json", RUNNER="fake", PORT=0, HISTORY__URL=f"redis+cluster://127.0.0.1:{ports[0]}",
        )  # fmt: skip
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    [bad] = [line for line in lines if line["verdict"] == "wrong"]
    assert bad["name"] == "redis memory"
    assert bad["seen"].startswith(f"127.0.0.1:{ports[2]}: ")
    # Without an append-only file, each of them.
    assert len([line for line in lines if line["name"] == "redis persistence"]) == 3
    assert [line["verdict"] for line in lines if line["name"] == "redis writes"] == ["ok"]


def test_a_data_folder_that_cannot_be_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    finding = found(run("--json", RUNNER="fake", PORT=0, HISTORY__DATA_DIR=tmp_path / "file" / "redis"))["redis"]
    assert finding["verdict"] == "wrong"
    assert f"{tmp_path / 'file'} is no folder" in finding["seen"]
    # Whoever runs the tests may perhaps write everywhere.
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path)
    assert _no_folder(tmp_path / "new" / "redis") == f"{tmp_path / 'new' / 'redis'}: {tmp_path} may not be written"
    assert _no_folder(Path("/")) == ""


def test_a_bundle_is_to_be_exported_again_only_where_it_is_its_own_fault(tmp_path: Path) -> None:
    bundle = write_model(tmp_path / "models", "one")
    (tmp_path / "empty").mkdir()

    def remedy(path: Path, **settings: object) -> tuple[str, str]:
        finding = found(run("--json", BUNDLE=path, HISTORY__URL="memory://", PORT=0, **settings))["bundle"]
        assert finding["verdict"] == "wrong"
        return finding["seen"], finding["remedy"]

    for path, words in ((tmp_path / "nowhere", "there is no such folder"), (tmp_path / "empty", "no bundle here")):
        seen, what = remedy(path)
        assert words in seen
        assert "ONESLATE_BUNDLE" in what
    seen, what = remedy(bundle, RUNNER="onnx", PROVIDER="cuda")
    assert "CUDAExecutionProvider" in seen
    assert what == "pip install 'oneslate[gpu]'"
    (bundle / "generator.onnx").write_bytes(b"damaged")
    assert remedy(bundle, RUNNER="fake")[1] == "export it again: oneslate export"


def test_a_file_without_keys_is_said(tmp_path: Path) -> None:
    (tmp_path / "keys.json").write_text('{"keys": []}')
    finding = found(run("--json", RUNNER="fake", PORT=0, HISTORY__URL="memory://", KEYS_FILE=tmp_path / "keys.json"))
    assert finding["keys"]["verdict"] == "warning"
    assert "nobody may anything" in finding["keys"]["seen"]
