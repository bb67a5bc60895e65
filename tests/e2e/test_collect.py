"""`oneslate collect` as a user runs it: what people saw and did, joined, from a live service into Parquet."""

import asyncio
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import polars as pl
import pytest
from live_http import fake_settings, live_client

from service.app import create_app
from service.history.embedded import EmbeddedRedis
from service.settings import EventLogSettings

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def redis_url(tmp_path: Path) -> Iterator[str]:
    with EmbeddedRedis(tmp_path / "redis") as url:
        yield url


def collect(*options: str, url: str = "") -> "subprocess.CompletedProcess[str]":
    environment = {name: value for name, value in os.environ.items() if not name.startswith("ONESLATE_")}
    environment |= {"ONESLATE_HISTORY__URL": url} if url else {}
    command = [sys.executable, "-c", "import oneslate; oneslate.main()", "collect", *options]
    return subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)


def act(client: httpx.Client, user_id: str, number: int, item_id: str, recommendation_id: str) -> httpx.Response:
    event = {
        "event_id": f"e{number}", "user_id": user_id, "item_id": item_id, "timestamp": time.time() - 5,
        "recommendation_id": recommendation_id,
    }  # fmt: skip
    return client.post("/v1/events", json={"events": [event]})


def test_what_was_shown_and_done_joins_in_parquet(redis_url: str, tmp_path: Path) -> None:
    out = tmp_path / "log"
    with live_client(fake_settings(redis_url, event_log=EventLogSettings(max_rows=10_000))) as client:
        for number, user_id in enumerate(["ann", "bob", "ann"]):
            slate = client.post("/v1/recommend", json={"user_id": user_id, "slate_size": 4}).json()
            clicked = slate["items"][number]["item_id"]
            assert act(client, user_id, number, clicked, slate["recommendation_id"]).status_code == 200
        batch = {"requests": [{"user_id": "eve", "slate_size": 2}, {"user_id": "bob", "slate_size": 2}]}
        assert client.post("/v1/recommend/batch", json=batch).status_code == 200
        # Slates are written behind their answers; the service's end waits for them.
    done = collect("--out", str(out), "--once", url=redis_url)
    assert (done.returncode, done.stdout) == (0, f"8 rows drained into {out}\n"), done.stderr
    events, impressions = (pl.read_parquet(out / kind / "*.parquet") for kind in ("events", "impressions"))
    assert (events.height, impressions.height) == (3, 5)
    joined = events.join(impressions, on=["recommendation_id", "user_id"]).sort("event_id")
    assert joined.height == 3
    assert [ids.index(item) for ids, item in zip(joined["item_ids"].to_list(), joined["item_id"], strict=True)] == [
        0,
        1,
        2,
    ]
    assert set(impressions["source"]) == {"model"}
    assert impressions["user_id"].n_unique() == 3
    assert {"ann", "bob", "eve"}.isdisjoint(impressions["user_id"])
    # Nothing new, then somebody who is forgotten.
    assert collect("--out", str(out), "--once", url=redis_url).stdout.startswith("0 rows")
    with live_client(fake_settings(redis_url, event_log=EventLogSettings(max_rows=10_000))) as client:
        assert client.delete("/v1/users/ann/history").status_code == 204
    assert collect("--out", str(out), "--once", url=redis_url).stdout.startswith("1 rows")
    assert pl.read_parquet(out / "events" / "*.parquet").height == 1
    assert pl.read_parquet(out / "forgotten" / "*.parquet").height == 1


def test_a_full_log_refuses_events_over_http_and_slates_still_come(redis_url: str) -> None:
    with live_client(fake_settings(redis_url, event_log=EventLogSettings(max_rows=256))) as client:
        assert act(client, "ann", 1, "item-1", "0" * 32).status_code == 200
        refused = act(client, "ann", 2, "item-2", "0" * 32)
        assert (refused.status_code, refused.json()["type"]) == (503, "urn:oneslate:problem:event-log-full")
        assert len(client.get("/v1/users/ann/history").json()["events"]) == 1
        slate = client.post("/v1/recommend", json={"user_id": "ann", "slate_size": 3}).json()
        assert (slate["source"], slate["degraded"]) == ("model", False)
        end_s = time.monotonic() + 10
        while "oneslate_impressions_unlogged_total 1.0" not in client.get("/metrics").text:
            assert time.monotonic() < end_s
            time.sleep(0.02)


def test_what_cannot_be_collected_is_one_clear_line(redis_url: str, tmp_path: Path) -> None:
    nowhere = collect("--out", str(tmp_path / "a"), "--once")
    assert nowhere.returncode == 1
    assert "ONESLATE_HISTORY__URL or ONESLATE_HISTORY__DATA_DIR must say" in nowhere.stderr
    memory = collect("--out", str(tmp_path / "a"), "--once", url="memory://")
    assert (memory.returncode, "keeps no event log" in memory.stderr) == (1, True)
    dead = collect("--out", str(tmp_path / "a"), "--once", url="redis://127.0.0.1:1")
    assert (dead.returncode, "did not answer" in dead.stderr) == (1, True)
    assert collect("--out", str(tmp_path / "a"), "--once", url=redis_url).returncode == 0
    other = collect("--out", str(tmp_path / "b"), "--once", url=redis_url)
    assert other.returncode == 1
    assert re.search(r"drained by another collector: [0-9a-f]{32}.*--take-over", other.stderr)
    assert collect("--out", str(tmp_path / "b"), "--once", "--take-over", url=redis_url).returncode == 0
    assert collect("--out", str(tmp_path / "a"), "--once", url=redis_url).returncode == 1
    for failed in (nowhere, memory, dead, other):
        assert "Traceback" not in failed.stderr
        assert failed.stdout == ""


def test_a_log_without_redis_is_refused_at_the_start() -> None:
    settings = fake_settings(event_log=EventLogSettings(max_rows=10))

    async def start() -> None:
        app = create_app(settings)
        async with app.router.lifespan_context(app):
            raise AssertionError

    with pytest.raises(ValueError, match="the event log needs a Redis"):
        asyncio.run(start())
