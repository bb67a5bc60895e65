"""The whole way: from a file of events through `oneslate build` and `oneslate serve` to slates, and through a crash."""

import re
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pyarrow.parquet as pq
import pytest
import tiny_build
from tiny_build import Built

from service.history.embedded import EmbeddedRedis

USER = "someone new"


@contextmanager
def service(built: Built, data_dir: Path, port: int) -> Iterator[tuple[subprocess.Popen[bytes], httpx.Client]]:
    """`oneslate serve` as a process of its own, ready."""
    environment = tiny_build.environment(
        ONESLATE_HISTORY__DATA_DIR=str(data_dir),
        ONESLATE_HISTORY__READ_TIMEOUT_MS="3000",
        ONESLATE_HISTORY__CONNECT_TIMEOUT_MS="3000",
        ONESLATE_DEADLINE_MS="20000",
        ONESLATE_BATCH__MAX_SIZE="2",
    )
    command = tiny_build.command("serve", "--bundle", str(built.bundle), "--port", str(port))
    with (data_dir.parent / "service.log").open("ab") as log:
        process = subprocess.Popen(command, cwd=data_dir.parent, env=environment, stdout=log, stderr=log)
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
        try:
            until_s = time.monotonic() + 60
            while True:
                try:
                    if client.get("/readyz").status_code == 200:
                        break
                except httpx.TransportError:
                    pass
                assert process.poll() is None, (data_dir.parent / "service.log").read_text()
                assert time.monotonic() < until_s
                time.sleep(0.05)
            yield process, client
        finally:
            process.kill()
            process.wait()


def post(client: httpx.Client, path: str, body: dict[str, Any]) -> dict[str, Any]:
    response = client.post(path, json=body)
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def slate(answer: dict[str, Any]) -> list[tuple[str, float]]:
    assert (answer["source"], answer["degraded"]) == ("model", False)
    return [(item["item_id"], pytest.approx(item["score"], abs=1e-4)) for item in answer["items"]]


def items_of(client: httpx.Client) -> list[str]:
    return [event["item_id"] for event in client.get(f"/v1/users/{USER}/history").json()["events"]]


def test_the_whole_way_and_through_a_crash(built: Built, tmp_path: Path, free_port: int) -> None:
    redis = tmp_path / "redis"
    redis.mkdir()
    now_s = time.time()
    try:
        with service(built, redis, free_port) as (process, client):
            cold = post(client, "/v1/recommend", {"user_id": USER, "slate_size": 3})
            assert len(cold["items"]) == 3
            # All but ten items, those first that a stranger is shown.
            favourites = [item["item_id"] for item in cold["items"]]
            others = pq.read_table(built.bundle / "catalog.parquet").column("item_id").to_pylist()
            watched = list(dict.fromkeys([*favourites, *others]))[: len(others) - 10]
            # Ages of 20 to 30 minutes: no time bucket ends there, so that seconds between two requests change no score.
            acknowledged = []
            for number, item_id in enumerate(watched):
                event = {
                    "event_id": f"e{number}", "user_id": USER, "item_id": item_id, "action": "click",
                    "timestamp": now_s - 1200 - 10 * (len(watched) - number), "value": 10.0 + number,
                }  # fmt: skip
                (result,) = post(client, "/v1/events", {"events": [event]})["results"]
                assert result["status"] == "stored"
                acknowledged.append(event)
            stored = post(client, "/v1/recommend", {"user_id": USER, "slate_size": 3})
            assert len(slate(stored)) == 3
            assert not {item["item_id"] for item in stored["items"]} & set(watched)
            # Without the exclusion they would be there, so it is the exclusion that keeps them out.
            seen_too = post(client, "/v1/recommend", {"user_id": USER, "slate_size": 3, "exclude_seen": False})
            assert {item["item_id"] for item in seen_too["items"]} & set(watched)

            kept = ("item_id", "action", "timestamp", "value")
            history = [{name: event[name] for name in kept} for event in reversed(acknowledged)]
            given = post(client, "/v1/recommend", {"user_id": "nobody", "slate_size": 3, "history": history})
            assert slate(given) == slate(stored)
            # The three slates with a history were compared with those of the export, the stranger's was not.
            metrics = client.get("/metrics").text
            assert "\noneslate_slates_compared_total 3.0\n" in metrics
            shares = re.findall(r"^oneslate_reference_shown_ratio{.*} (\S+)$", metrics, re.MULTILINE)
            assert sum(map(float, shares)) == pytest.approx(1)
            process.send_signal(signal.SIGKILL)
            process.wait()
        with service(built, redis, free_port) as (process, client):
            assert items_of(client) == watched
            again = post(client, "/v1/recommend", {"user_id": USER, "slate_size": 3})
            assert slate(again) == slate(stored)
            retried = post(client, "/v1/events", {"events": acknowledged})
            assert {one["status"] for one in retried["results"]} == {"duplicate"}
            assert items_of(client) == watched
            process.send_signal(signal.SIGTERM)
            assert process.wait(timeout=20) == 0
        assert "Traceback" not in (tmp_path / "service.log").read_text()
    finally:
        EmbeddedRedis(redis).stop()
