"""Whoever is killed while events come in: each that was acknowledged is there once, in history and in Parquet."""

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from kit import Ingest, LogCollector, Process, Redis, Service, complaints, running, until
from measured import Figures

from service.connection import ConnectionLimits
from service.domain import item_key
from service.history import HistoryLimits
from service.history.redis_store import RedisHistoryStore

EVENTS_PER_USER = 200
Histories = dict[str, Counter[tuple[int, int]]]


def made_events(num_events: int) -> list[dict[str, Any]]:
    """Of every user one after another, so that a batch holds those of many."""
    num_users = -(-num_events // EVENTS_PER_USER)
    start_s = round(time.time()) - num_events
    return [
        {
            "event_id": f"e{number}",
            "user_id": f"user-{number % num_users}",
            "item_id": f"item-{number * 7 % 1000}",
            "timestamp": start_s + number,
        }
        for number in range(num_events)
    ]


def histories_of(events: list[dict[str, Any]]) -> Histories:
    found: Histories = {}
    for event in events:
        entry = (item_key(event["item_id"]), event["timestamp"] * 1000)
        found.setdefault(event["user_id"], Counter())[entry] += 1
    return found


async def stored_histories(url: str, user_ids: list[str]) -> Histories:
    store = RedisHistoryStore(
        url, HistoryLimits(num_entries=10 * EVENTS_PER_USER), ConnectionLimits(read_timeout_ms=20_000)
    )
    try:
        found: Histories = {}
        for user_id in user_ids:
            entries = (await store.read(user_id)).as_entries()
            found[user_id] = Counter((entry.item_key, entry.timestamp_ms) for entry in entries)
        return found
    finally:
        await store.close()


def num_lives(collector: LogCollector) -> int:
    """How often it came so far as to say what it does."""
    return collector.log.read_text().count("draining the event log")


@pytest.mark.parametrize(("victim", "num_kills"), [("service", 50), ("redis", 10), ("collector", 10)])
def test_every_acknowledged_event_is_there_exactly_once(
    victim: str, num_kills: int, tmp_path: Path, scaled: Callable[[int, int], int], figures: Figures
) -> None:
    num_kills, num_events = scaled(3, num_kills), scaled(4000, 100_000)
    events = made_events(num_events)
    server = Redis(tmp_path / "redis")
    service = Service(
        tmp_path,
        server.url,
        ONESLATE_EVENT_LOG__MAX_ROWS=10_000_000,
        ONESLATE_HISTORY__NUM_ENTRIES=10 * EVENTS_PER_USER,
        ONESLATE_HISTORY__READ_TIMEOUT_MS=1000,
        ONESLATE_HISTORY__CONNECT_TIMEOUT_MS=1000,
    )
    collector = LogCollector(tmp_path, server.url)
    victims: dict[str, Process] = {"service": service, "redis": server, "collector": collector}
    ingest = Ingest(service.url, events, batch_size=scaled(20, 50))
    with running(server, service, collector):
        ingest.start()
        said = 0
        for kill in range(num_kills):
            # Spread over the whole of it, each in the middle of somebody's request.
            due = num_events * (kill + 1) // (num_kills + 2)
            until(lambda: ingest.num_acknowledged >= due, "events are taken", timeout_s=120)  # noqa: B023
            victims[victim].kill()
            said = num_lives(collector) if victim == "collector" else 0
            victims[victim].start()
        ingest.join()
        until(lambda: num_lives(collector) > said, "the collector is up")
        assert collector.end() == 0, collector.log.read_text()[-2000:]
        last = LogCollector(tmp_path, server.url, "--once")
        last.start()
        until(lambda: not last.is_running, "the rest is drained")
        histories = asyncio.run(stored_histories(server.url, sorted({event["user_id"] for event in events})))
    assert ingest.trouble == []
    assert complaints(service.log) == []
    assert histories == histories_of(events)
    rows = [row for file in sorted((collector.folder / "events").glob("[0-9]*")) for row in rows_of(file)]
    assert Counter(rows) == Counter(event["event_id"] for event in events)
    figures(f"{num_events} events, {victim} killed", "kills", num_kills, "")
    figures(f"{num_events} events, {victim} killed", "requests that were sent again", ingest.num_retries, "")
    num_entries = sum(history.total() for history in histories.values())
    figures(f"{num_events} events, {victim} killed", "events in the histories, each once", num_entries, "")
    figures(f"{num_events} events, {victim} killed", "events in Parquet, each once", len(rows), "")


def rows_of(file: Path) -> list[str]:
    ids: list[str] = pq.read_table(file, columns=["event_id"])["event_id"].to_pylist()
    return ids
