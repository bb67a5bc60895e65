"""The event log: what the history store writes into it, in one Redis and in a cluster of three, and who drains it."""

import asyncio
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import redis
from impressions import an_impression

from service.connection import ConnectionLimits, RedisConnection
from service.domain import Event
from service.errors import EventLogDamaged, EventLogFull, EventLogOwned, HistoryUnavailable
from service.eventlog.collector import Collector, CollectorLimits, CollectorMetrics
from service.eventlog.dataset import LogDataset
from service.eventlog.rows import NUM_BUCKETS, bucket_of, stream_key
from service.eventlog.streams import LogStreams
from service.history import HistoryLimits
from service.history.redis_store import RedisHistoryStore

NOW_MS = 1_790_000_000_000
PATIENT = ConnectionLimits(connect_timeout_ms=20_000, read_timeout_ms=20_000)
fresh_user = map("user-{}".format, itertools.count())
ROOMY = 1_000_000


@dataclass
class Log:
    """A Redis, and everybody who has to do with its log."""

    url: str
    servers: list[str]
    closing: Callable[[Any], Any]

    def store(self, log_rows: int = ROOMY) -> RedisHistoryStore:
        store: RedisHistoryStore = self.closing(RedisHistoryStore(self.url, HistoryLimits(log_rows=log_rows), PATIENT))
        return store

    def streams(self, collector: str) -> LogStreams:
        return LogStreams(self.closing(RedisConnection(self.url, PATIENT)), collector)

    def collector(self, dataset: LogDataset, max_rows: int = 100_000) -> Collector:
        limits = CollectorLimits(max_rows=max_rows, every_s=0.05)
        return Collector(self.streams(dataset.collector), dataset, CollectorMetrics(), limits)

    async def drained(self, folder: Path) -> dict[str, list[dict[str, Any]]]:
        with LogDataset.opened(folder) as dataset:
            await self.collector(dataset).drain()
        return rows_in(folder)

    def wipe(self) -> None:
        for server in self.servers:
            with redis.Redis.from_url(server) as client:
                client.flushall()


def rows_in(folder: Path) -> dict[str, list[dict[str, Any]]]:
    return {
        kind: [row for file in sorted((folder / kind).glob("[0-9]*")) for row in pq.read_table(file).to_pylist()]
        for kind in ("events", "impressions", "forgotten")
    }


def bytes_in(folder: Path, pattern: str) -> bytes:
    return b"".join(path.read_bytes() for path in folder.glob(pattern))


@pytest.fixture(params=["redis", "cluster"])
def log(request: pytest.FixtureRequest, closing: Callable[[Any], Any]) -> Iterator[Log]:
    if request.param == "redis":
        url = request.getfixturevalue("redis_url")
        made = Log(url, [url], closing)
    else:
        ports = request.getfixturevalue("cluster_ports")
        made = Log(f"redis+cluster://127.0.0.1:{ports[0]}", [f"redis://127.0.0.1:{port}" for port in ports], closing)
    made.wipe()
    yield made
    made.wipe()


def an_event(user_id: str, event_id: str, **changes: Any) -> Event:
    fields: dict[str, Any] = {"item_id": "item", "action": "view", "timestamp_ms": NOW_MS, **changes}
    return Event(user_id=user_id, event_id=event_id, **fields)


async def test_stored_events_and_shown_slates_come_out_as_rows_joined_by_their_id(log: Log, tmp_path: Path) -> None:
    store = log.store()
    shown = an_impression("ann", 77, "a", "b", continues=76)
    assert await store.remember([shown, an_impression("bob", 78)]) == 0
    events = [
        an_event("ann", "1", item_id="a", value=2.5, recommendation_id=shown.recommendation_id),
        an_event("ann", "2", item_id="b", timestamp_ms=NOW_MS - 5),
        an_event("bob", "3", timestamp_ms=NOW_MS + 10**9),  # refused
    ]
    await store.append(events, NOW_MS)
    await store.append(events[:2], NOW_MS + 1)  # duplicates
    rows = await log.drained(tmp_path)
    [ann, bob] = sorted(
        {row["user_id"] for row in rows["impressions"]}, key=lambda user: user != rows["events"][0]["user_id"]
    )
    assert "ann" not in ann
    assert len(ann) == 32
    assert ann != bob
    assert [
        (row["user_id"], row["event_id"], row["item_id"], row["value"], row["recommendation_id"])
        for row in rows["events"]
    ] == [(ann, "1", "a", 2.5, f"{77:032x}"), (ann, "2", "b", None, None)]
    assert [row["timestamp"].timestamp() * 1000 for row in rows["events"]] == [NOW_MS, NOW_MS - 5]
    assert rows["events"][0]["received"].timestamp() * 1000 == NOW_MS
    of_ann = next(row for row in rows["impressions"] if row["user_id"] == ann)
    assert (of_ann["item_ids"], of_ann["item_scores"]) == (["a", "b"], [0.0, -0.5])
    assert (of_ann["recommendation_id"], of_ann["continued_from"]) == (f"{77:032x}", f"{76:032x}")
    assert (of_ann["model_version"], of_ann["source"], of_ann["propensity"]) == ("m1", "model", None)
    assert len(rows["impressions"]) == 2
    # Nothing is left, and nothing comes twice.
    assert await log.streams("x").num_waiting() == 0
    assert await log.drained(tmp_path) == rows


async def test_without_a_log_nothing_is_written(log: Log) -> None:
    store = log.store(log_rows=0)
    await store.append([an_event("ann", "1")], NOW_MS)
    await store.remember([an_impression("ann", 1, "a")])
    assert await log.streams("x").num_waiting() == 0


async def test_a_full_log_refuses_events_stores_none_and_takes_them_once_it_is_drained(
    log: Log, tmp_path: Path
) -> None:
    store = log.store(log_rows=3 * NUM_BUCKETS)
    assert len(await store.append([an_event("ann", str(number)) for number in range(2)], NOW_MS)) == 2
    with pytest.raises(EventLogFull):
        await store.append([an_event("ann", str(number)) for number in range(2, 4)], NOW_MS)
    assert len((await store.read("ann", NOW_MS)).entries_N) == 2
    # One more has room; then neither events nor slates, but forgetting has.
    await store.append([an_event("ann", "2")], NOW_MS)
    assert await store.remember([an_impression("ann", 5, "a")]) == 1
    assert len((await store.read("ann", NOW_MS, with_shown=True)).shown) == 1
    other = next(user for user in fresh_user if bucket_of(user) != bucket_of("ann"))
    with pytest.raises(EventLogFull):  # of two users one has room: what is sent again is a duplicate
        await store.append([an_event("ann", "3"), an_event(other, "3")], NOW_MS)
    rows = await log.drained(tmp_path)
    assert [row["event_id"] for row in rows["events"]].count("2") == 1
    outcomes = await store.append([an_event("ann", "3"), an_event(other, "3")], NOW_MS)
    assert [outcome.status for outcome in outcomes] == ["stored", "duplicate"]
    assert sorted(row["event_id"] for row in (await log.drained(tmp_path))["events"]) == ["0", "1", "2", "3", "3"]


async def test_a_forgotten_user_is_gone_from_what_was_drained_and_begins_anew(log: Log, tmp_path: Path) -> None:
    store = log.store()
    await store.append([an_event("ann", "1"), an_event("bob", "2")], NOW_MS)
    await store.remember([an_impression("ann", 1, "a")])
    before = await log.drained(tmp_path)
    assert len(before["events"]) == 2
    [ann] = {row["user_id"] for row in before["impressions"]}
    await store.append([an_event("ann", "3")], NOW_MS)  # not drained when she goes
    assert await store.delete("ann")
    await store.append([an_event("ann", "4")], NOW_MS)  # after: a new one, whom nothing joins to the old one
    await store.remember([an_impression("ann", 2, "a")])
    after = await log.drained(tmp_path)
    assert [row["event_id"] for row in after["events"]] == ["2", "4"]
    assert [row["recommendation_id"] for row in after["impressions"]] == [f"{2:032x}"]
    assert [row["user_id"] for row in after["forgotten"]] == [ann]
    assert {row["user_id"] for row in after["events"]}.isdisjoint({ann})
    assert ann.encode() not in bytes_in(tmp_path, "[ei]*/*")
    # Who is forgotten twice is told once: after the first time nothing is known of her.
    assert await store.delete("ann")
    assert not await store.delete("ann")
    assert len((await log.drained(tmp_path))["forgotten"]) == 2


async def test_a_log_is_drained_in_commits_of_bounded_size_while_it_fills(log: Log, tmp_path: Path) -> None:
    store = log.store()
    users = [next(fresh_user) for _ in range(40)]
    stopping = asyncio.Event()
    with LogDataset.opened(tmp_path) as dataset:
        collector = log.collector(dataset, max_rows=2 * NUM_BUCKETS)
        running = asyncio.create_task(collector.run(stopping))
        for turn in range(20):
            await store.append([an_event(user, f"{user}-{turn}", timestamp_ms=NOW_MS + turn) for user in users], NOW_MS)
        stopping.set()
        await running
        await collector.drain()
        stopping.clear()
        assert await collector.drain(stopping) == 0
    events = rows_in(tmp_path)["events"]
    assert len(events) == len({row["event_id"] for row in events}) == 800
    by_user: dict[str, list[int]] = {}
    for row in events:
        by_user.setdefault(row["user_id"], []).append(row["timestamp"])
    assert all(times == sorted(times) for times in by_user.values())
    assert max(pq.read_metadata(file).num_rows for file in (tmp_path / "events").glob("*")) <= 2 * NUM_BUCKETS


async def test_rows_that_wait_are_counted_as_a_look_begins_and_until_the_next_one(log: Log, tmp_path: Path) -> None:
    metrics = CollectorMetrics()

    def waiting() -> float | None:
        return metrics.registry.get_sample_value("oneslate_collector_waiting_rows")

    store = log.store()
    with LogDataset.opened(tmp_path) as dataset:
        collector = Collector(log.streams(dataset.collector), dataset, metrics, CollectorLimits(max_rows=NUM_BUCKETS))
        await store.append([an_event("ann", str(number)) for number in range(3)], NOW_MS)
        await store.append([an_event("bob", "3")], NOW_MS)
        assert await collector.drain() == 4
        assert metrics.registry.get_sample_value("oneslate_collector_commits_total") == 3
        assert waiting() == 4
        await store.append([an_event("ann", "4")], NOW_MS)
        assert waiting() == 4
        assert await collector.drain() == 1
        assert waiting() == 1
        assert await collector.drain() == 0
        assert waiting() == 0


async def test_no_two_collectors_share_a_log(log: Log, tmp_path: Path) -> None:
    store = log.store()
    await store.append([an_event("ann", "1")], NOW_MS)
    with LogDataset.opened(tmp_path / "one") as one, LogDataset.opened(tmp_path / "other") as other:
        first = log.collector(one)
        assert await first.drain() == 1
        await store.append([an_event("ann", "2")], NOW_MS)
        with pytest.raises(EventLogOwned, match=one.collector):
            await log.collector(other).drain()
        await log.collector(other).take_over()
        assert await log.collector(other).drain() == 1
        # The one who was left behind takes nothing away any more.
        await store.append([an_event("ann", "3")], NOW_MS)
        with pytest.raises(EventLogOwned, match=other.collector):
            await first.drain()
        assert await log.collector(other).drain() == 1
        # It may take it back, and goes on where the streams are now.
        await store.append([an_event("ann", "4")], NOW_MS)
        await log.collector(one).take_over()
        assert await first.drain() == 1
    assert [row["event_id"] for row in rows_in(tmp_path / "one")["events"]] == ["1", "4"]
    assert [row["event_id"] for row in rows_in(tmp_path / "other")["events"]] == ["2", "3"]


async def test_a_collector_goes_on_when_redis_has_lost_who_it_is(log: Log, tmp_path: Path) -> None:
    store = log.store()
    await store.append([an_event("ann", "1")], NOW_MS)
    assert len((await log.drained(tmp_path))["events"]) == 1
    log.wipe()
    await log.store().append([an_event("ann", "2")], NOW_MS)
    assert [row["event_id"] for row in (await log.drained(tmp_path))["events"]] == ["1", "2"]


def drained_elsewhere(folder: Path) -> None:
    """A folder of another Redis' log, drained up to ids that this one will not reach."""
    with LogDataset.opened(folder) as dataset:
        dataset.add([], dict.fromkeys(range(NUM_BUCKETS), "9999999999999-0"))


async def test_the_log_of_another_redis_is_drained_from_its_first_row(log: Log, tmp_path: Path) -> None:
    drained_elsewhere(tmp_path)
    await log.store().append([an_event("ann", str(number)) for number in range(5)], NOW_MS)
    with LogDataset.opened(tmp_path) as dataset:
        # Killed when the streams are known to be new, and have not been read.
        unknown = await log.streams(dataset.collector).trim(dataset.cursors)
        dataset.begin_anew(unknown)
    assert [row["event_id"] for row in (await log.drained(tmp_path))["events"]] == list("01234")
    await log.store().append([an_event("ann", "5")], NOW_MS)
    assert [row["event_id"] for row in (await log.drained(tmp_path))["events"]] == list("012345")


async def test_a_log_that_is_taken_over_is_drained_from_its_first_row(log: Log, tmp_path: Path) -> None:
    drained_elsewhere(tmp_path / "new")
    await log.store().append([an_event("ann", "1")], NOW_MS)
    assert len((await log.drained(tmp_path / "old"))["events"]) == 1
    await log.store().append([an_event("ann", "2")], NOW_MS)
    with LogDataset.opened(tmp_path / "new") as dataset:
        collector = log.collector(dataset)
        for num_rows in (1, 0):  # who has them already keeps them as they are
            await collector.take_over()
            assert await collector.drain() == num_rows
    assert [row["event_id"] for row in rows_in(tmp_path / "new")["events"]] == ["2"]


async def test_what_comes_at_once_finds_room_in_an_empty_log(log: Log, tmp_path: Path) -> None:
    store = log.store(log_rows=NUM_BUCKETS)
    events = [an_event("ann", str(number)) for number in range(50)]
    assert {outcome.status for outcome in await store.append(events, NOW_MS)} == {"stored"}
    with pytest.raises(EventLogFull):
        await store.append([an_event("ann", "50")], NOW_MS)
    assert len((await log.drained(tmp_path))["events"]) == 50


async def test_an_entry_that_is_no_row_is_named_and_stays(log: Log, tmp_path: Path) -> None:
    connection = log.closing(RedisConnection(log.url, PATIENT))
    for fields in (["k", "e"], ["k", "z", "u", "p", "d", "{}"], ["k", "e", "u", "p", "d", "{"]):
        await connection.command("XADD", stream_key(3), "*", *fields)
        with pytest.raises(EventLogDamaged, match=r"\{b3\}l1 \d+-0: .*no row of format 1"):
            await log.drained(tmp_path)
        assert await log.streams("x").num_waiting() == 1
        await connection.command("DEL", stream_key(3))


async def test_a_store_too_full_to_be_written_to_still_forgets(
    redis_url: str, closing: Callable[[Any], Any], tmp_path: Path
) -> None:
    log = Log(redis_url, [redis_url], closing)
    store = log.store()
    await store.append([an_event("ann", "1")], NOW_MS)
    with redis.Redis.from_url(redis_url) as client:
        client.config_set("maxmemory", 1)
        try:
            with pytest.raises(HistoryUnavailable):
                await store.append([an_event("bob", "1")], NOW_MS)
            assert await store.delete("ann")
            told = await store.forgotten("0-0")
            # And is drained, by one who never did before: that makes room.
            assert len((await log.drained(tmp_path))["forgotten"]) == 1
        finally:
            client.config_set("maxmemory", 0)
    assert len(told.user_keys) >= 1
    assert await log.streams("x").num_waiting() == 0
    log.wipe()
