"""Redis goes away under a running service, and comes back."""

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from live_http import fake_settings, live_client

from service.api.answers import EventsAnswer
from service.history.embedded import STATE_FILE, EmbeddedRedis
from service.settings import HistorySettings


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[EmbeddedRedis]:
    # With "everysec" a busy disk puts off writing, and a killed Redis forgets what it has just acknowledged.
    server = EmbeddedRedis(tmp_path, appendfsync="always")
    yield server
    server.stop()


def events_of(*item_ids: str, prefix: str = "e") -> dict[str, Any]:
    return {
        "events": [
            {"event_id": f"{prefix}-{item_id}", "user_id": "ann", "item_id": item_id, "timestamp": time.time() - 10}
            for item_id in item_ids
        ]
    }


def statuses(answer: httpx.Response) -> list[str]:
    assert answer.status_code == 200, answer.text
    return [result.status for result in EventsAnswer.model_validate_json(answer.content).results]


def recommend(client: httpx.Client, **body: Any) -> dict[str, Any]:
    answer = client.post("/v1/recommend", json={"user_id": "ann", "slate_size": 5, **body})
    assert answer.status_code == 200, answer.text
    members: dict[str, Any] = answer.json()
    return members


@contextmanager
def stopped(redis: EmbeddedRedis, _: int) -> Iterator[None]:
    redis.stop()
    yield
    redis.start()


@contextmanager
def killed(redis: EmbeddedRedis, pid: int) -> Iterator[None]:
    os.kill(pid, signal.SIGKILL)
    yield
    redis.start()


@contextmanager
def paused(_: EmbeddedRedis, pid: int) -> Iterator[None]:
    os.kill(pid, signal.SIGSTOP)
    yield
    os.kill(pid, signal.SIGCONT)


# Only a paused Redis must be given up on; even then not as soon as a busy machine may make it look paused.
@pytest.mark.parametrize(("fault", "timeout_ms"), [(stopped, 20_000), (killed, 20_000), (paused, 1000)])
def test_slates_go_on_without_redis_and_events_are_refused(
    redis: EmbeddedRedis, tmp_path: Path, fault: Callable[[EmbeddedRedis, int], Any], timeout_ms: int
) -> None:
    url = redis.start()
    history = HistorySettings(url=url, read_timeout_ms=timeout_ms, connect_timeout_ms=timeout_ms)  # type: ignore[arg-type]
    pid = json.loads((tmp_path / STATE_FILE).read_text())["pid"]
    with live_client(fake_settings(history=history)) as client:
        assert statuses(client.post("/v1/events", json=events_of("item-1", "item-2"))) == ["stored", "stored"]
        assert recommend(client)["reason"] is None
        with fault(redis, pid):
            lesser = recommend(client)
            assert (lesser["source"], lesser["degraded"], lesser["reason"]) == ("model", True, "stale_history")
            assert len(lesser["items"]) == 5
            assert not {"item-1", "item-2"} & {item["item_id"] for item in lesser["items"]}
            unknown = recommend(client, user_id="someone else")
            assert (unknown["source"], unknown["degraded"], unknown["reason"]) == ("model", True, "history_unavailable")
            tight = recommend(client, deadline_ms=100)
            assert tight["degraded"]
            assert tight["reason"] in {"stale_history", "deadline"}
            assert recommend(client, history=[{"item_id": "item-9", "timestamp": 0}])["reason"] is None
            for answer in (
                client.post("/v1/events", json=events_of("item-3")),
                client.get("/v1/users/ann/history"),
                client.delete("/v1/users/someone-else/history"),
            ):
                assert answer.status_code == 503
                assert answer.headers["content-type"] == "application/problem+json"
                assert answer.json()["type"] == "urn:oneslate:problem:history-unavailable"
                assert str(tmp_path) not in answer.text
            ready = client.get("/readyz")
            assert (ready.status_code, ready.json()["degraded"]) == (200, ["history_unavailable"])
            assert client.get("/version").json()["durability"] == "unknown"
        _until_well(client)
        again = statuses(client.post("/v1/events", json=events_of("item-1", "item-2", "item-3")))
        # A paused Redis may still have taken what it could not acknowledge; the id makes the retry harmless.
        assert again[:2] == ["duplicate", "duplicate"]
        assert again[2] in {"stored", "duplicate"}
        stored = [event["item_id"] for event in client.get("/v1/users/ann/history").json()["events"]]
        assert sorted(stored) == ["item-1", "item-2", "item-3"]


def _until_well(client: httpx.Client) -> None:
    until_s = time.monotonic() + 20
    while client.get("/readyz").json()["degraded"]:
        assert time.monotonic() < until_s, "Redis is back, but the service does not notice"
        time.sleep(0.05)


def test_each_event_has_its_own_outcome(redis: EmbeddedRedis) -> None:
    with live_client(fake_settings(redis.start())) as client:
        now_s = time.time()
        base = {"user_id": "ann", "timestamp": now_s - 5}
        batch = {
            "events": [
                {**base, "event_id": "1", "item_id": "item-1", "action": "watch", "value": 30.5},
                {**base, "event_id": "1", "item_id": "item-1"},
                {**base, "event_id": "2", "item_id": "no such item"},
                {**base, "event_id": "3", "item_id": "item-3", "action": "no such action"},
                {**base, "event_id": "4", "item_id": "item-4", "timestamp": -5},
                {**base, "event_id": "5", "item_id": "item-5", "timestamp": now_s + 86_400},
                {**base, "event_id": "6", "item_id": "item-6", "recommendation_id": "r"},
            ]
        }
        answer = client.post("/v1/events", json=batch)
        expected = ["stored", "duplicate", "refused", "refused", "refused", "refused", "stored"]
        assert statuses(answer) == expected
        results = answer.json()["results"]
        assert [result["event_id"] for result in results] == ["1", "1", "2", "3", "4", "5", "6"]
        problems = [result["problem"] for result in results if result["status"] == "refused"]
        assert [problem["type"].rsplit(":", 1)[1] for problem in problems] == [
            "unknown-item", "unknown-action", "refused-event", "refused-event",
        ]  # fmt: skip
        assert [problem["errors"][0]["pointer"] for problem in problems] == [
            "/events/2/item_id", "/events/3/action", "/events/4/timestamp", "/events/5/timestamp",
        ]  # fmt: skip
        assert all(result.get("problem") is None for result in results if result["status"] != "refused")
        stored = client.get("/v1/users/ann/history").json()["events"]
        assert [event["item_id"] for event in stored] == ["item-1", "item-6"]
        assert (stored[0]["action"], stored[0]["value"], stored[1]["value"]) == ("watch", 30.5, None)
        metrics = client.get("/metrics").text
        for outcome, count in (("stored", 2), ("duplicate", 1), ("refused", 4)):
            assert f'oneslate_events_total{{outcome="{outcome}"}} {count}.0' in metrics
