"""What every history store must do: in this process, in one Redis, and in a Redis Cluster of three real servers.

Longer than other files, because it is one contract, and a store keeps all of it.
"""

import asyncio
import itertools
import math
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import redis
from hypothesis import given, settings
from hypothesis import strategies as st
from impressions import an_impression
from redis_cluster import cluster

from service.connection import ConnectionLimits
from service.domain import Event, HistoryEntry, item_key
from service.errors import HistoryUnavailable
from service.history import (
    EventOutcome,
    GuardedHistoryStore,
    HistoryLimits,
    HistoryStore,
    MemoryHistoryStore,
    UserHistory,
)
from service.history.redis_store import RedisHistoryStore
from service.history.shown import shown_of
from service.history.store import DAY_MS, user_key

NOW_MS = 1_790_000_000_000
# A busy two-core machine is not what these tests are about.
PATIENT = ConnectionLimits(connect_timeout_ms=20_000, read_timeout_ms=20_000)
fresh_user = map("user-{}".format, itertools.count())


@dataclass
class Backend:
    """Where histories are kept, and the way to open another store over the same ones."""

    name: str
    open: Callable[[HistoryLimits | None], HistoryStore]
    servers: list[str] = field(default_factory=list)

    def wipe(self) -> None:
        for url in self.servers:
            with redis.Redis.from_url(url) as client:
                client.flushall()


@pytest.fixture(params=["memory", "guarded", "redis", "cluster"])
def backend(request: pytest.FixtureRequest, closing: Callable[[Any], Any]) -> Backend:
    if request.param == "memory":
        shared = MemoryHistoryStore()
        return Backend("memory", lambda limits: MemoryHistoryStore(limits) if limits else shared)
    if request.param == "guarded":
        inner = MemoryHistoryStore()
        return Backend("memory", lambda limits: GuardedHistoryStore(MemoryHistoryStore(limits) if limits else inner))
    if request.param == "redis":
        url = request.getfixturevalue("redis_url")
        return Backend("redis", lambda limits: closing(RedisHistoryStore(url, limits, PATIENT)), [url])
    ports = request.getfixturevalue("cluster_ports")
    url = f"redis+cluster://127.0.0.1:{ports[0]}"
    servers = [f"redis://127.0.0.1:{port}" for port in ports]
    return Backend("cluster", lambda limits: closing(RedisHistoryStore(url, limits, PATIENT)), servers)


@pytest.fixture
async def store(backend: Backend) -> HistoryStore:
    return backend.open(None)


def an_event(user_id: str, item_id: str = "item", **changes: object) -> Event:
    fields: dict[str, object] = {"action": "view", "timestamp_ms": NOW_MS, **changes}
    return Event(user_id=user_id, item_id=item_id, **fields)  # type: ignore[arg-type]


def statuses(outcomes: list[EventOutcome]) -> list[str]:
    return [outcome.status for outcome in outcomes]


async def test_an_unknown_user_has_an_empty_history(store: HistoryStore) -> None:
    history = await store.read("nobody")
    assert history.as_entries() == ()
    assert history.entries_N.shape == history.seen_keys.shape == (0,)
    assert history.seen_keys.dtype == np.uint64
    assert await store.delete("nobody") is False


@pytest.mark.parametrize("user_id", ["plain", "with}brace{", "line\nend\0", "ключ 鍵 🗝", "x" * 2000])
async def test_what_is_stored_is_read(store: HistoryStore, user_id: str) -> None:
    events = [
        an_event(user_id, "a", action="view", timestamp_ms=NOW_MS - 2000, value=None),
        an_event(user_id, "b", action="watch", timestamp_ms=NOW_MS - 1000, value=12.5),
        an_event(user_id, "a", action="like", timestamp_ms=NOW_MS, value=-0.0),
    ]
    assert statuses(await store.append(events, NOW_MS)) == ["stored"] * 3
    history = await store.read(user_id, NOW_MS)
    assert history.as_entries() == (
        HistoryEntry(item_key("a"), NOW_MS - 2000, "view", None),
        HistoryEntry(item_key("b"), NOW_MS - 1000, "watch", 12.5),
        HistoryEntry(item_key("a"), NOW_MS, "like", 0.0),
    )
    assert set(history.seen_keys.tolist()) == {item_key("a"), item_key("b")}
    assert seen_pairs(history) == {(item_key("a"), "view"), (item_key("b"), "watch"), (item_key("a"), "like")}
    await store.delete(user_id)


@pytest.mark.parametrize("user_id", ["plain", "with}brace{", "line\nend\0", "ключ 鍵 🗝"])
async def test_what_was_shown_is_kept_beside_the_history_until_it_is_forgotten(
    store: HistoryStore, user_id: str
) -> None:
    slates = [
        an_impression(user_id, 2**127 + 1, "a", "b"),
        an_impression(user_id, 7, continues=3),
        an_impression(user_id, 3, "c"),
    ]
    others = [an_impression(next(fresh_user), number, "x") for number in range(20)]
    await store.append([an_event(user_id)], NOW_MS)
    await store.remember([slates[0], *others, slates[1]])
    await store.remember([slates[2]])
    history = await store.read(user_id, NOW_MS, with_shown=True)
    assert history.shown == tuple(map(shown_of, slates))
    assert len(history.as_entries()) == len(history.seen_keys) == 1
    assert (await store.read(user_id, NOW_MS)).shown == ()
    for other in others:
        assert (await store.read(other.user_id, with_shown=True)).shown == (shown_of(other),)
    assert await store.delete(user_id) is True
    assert (await store.read(user_id, with_shown=True)).shown == ()


async def test_the_oldest_shown_slates_make_room(backend: Backend) -> None:
    store, user = backend.open(HistoryLimits(shown_bytes=3 * (33 + 16))), next(fresh_user)
    slates = [an_impression(user, number, "a", "b") for number in range(5)]
    await store.remember(slates)
    assert (await store.read(user, with_shown=True)).shown == tuple(map(shown_of, slates[2:]))
    longer = an_impression(user, 9, *"abcdefgh")  # takes the room of two
    await store.remember([longer])
    assert (await store.read(user, with_shown=True)).shown == (shown_of(slates[4]), shown_of(longer))
    await store.remember([an_impression(user, 10, *map(str, range(255)))])  # fits in no way
    assert (await store.read(user, with_shown=True)).shown == ()
    await store.remember(slates[:1])
    assert (await store.read(user, with_shown=True)).shown == (shown_of(slates[0]),)


async def test_shown_slates_are_forgotten_some_time_after_the_last(backend: Backend) -> None:
    store, user = backend.open(HistoryLimits(shown_ms=1500)), next(fresh_user)
    first, second, third = (an_impression(user, number, "a") for number in range(3))
    await store.remember([first])
    await asyncio.sleep(0.9)
    await store.remember([second])
    await asyncio.sleep(0.9)
    assert (await store.read(user, with_shown=True)).shown == (shown_of(first), shown_of(second))
    await asyncio.sleep(1.2)
    assert (await store.read(user, with_shown=True)).shown == ()
    await store.remember([third])
    assert (await store.read(user, with_shown=True)).shown == (shown_of(third),)


async def test_outcomes_keep_the_order_of_events_of_many_users(store: HistoryStore) -> None:
    users = [next(fresh_user) for _ in range(40)]
    events = [an_event(user, f"item-{i}", event_id=f"{i}") for i in range(3) for user in users]
    events[5] = an_event(users[5], timestamp_ms=NOW_MS + DAY_MS, event_id="future")
    events[50] = events[10]
    outcomes = await store.append(events, NOW_MS)
    expected = ["stored"] * 120
    expected[5], expected[50] = "refused", "duplicate"
    assert statuses(outcomes) == expected
    for i, user in enumerate(users):
        history = await store.read(user, NOW_MS)
        assert history.entries_N.size == 3 - (i in (5, 10))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"timestamp_ms": NOW_MS + 5 * 60_000 + 1}, "timestamp_in_future"),
        ({"timestamp_ms": -1}, "timestamp_out_of_range"),
        ({"timestamp_ms": 2**48}, "timestamp_out_of_range"),
        ({"value": math.nan}, "value_out_of_range"),
        ({"value": math.inf}, "value_out_of_range"),
        ({"value": 1e39}, "value_out_of_range"),
    ],
)
async def test_a_refused_event_names_its_reason_and_leaves_nothing(
    store: HistoryStore, changes: dict[str, object], reason: str
) -> None:
    user = next(fresh_user)
    [outcome] = await store.append([an_event(user, event_id="1", **changes)], NOW_MS)
    assert (outcome.status, outcome.reason) == ("refused", reason)
    assert outcome.detail
    assert await store.delete(user) is False
    # Its event id is not used up: the client may correct the event and send it again.
    assert statuses(await store.append([an_event(user, event_id="1")], NOW_MS)) == ["stored"]


async def test_a_timestamp_within_the_tolerance_is_stored(store: HistoryStore) -> None:
    user = next(fresh_user)
    outcomes = await store.append([an_event(user, timestamp_ms=NOW_MS + 5 * 60_000)], NOW_MS)
    assert statuses(outcomes) == ["stored"]


async def test_one_event_id_is_one_event_of_its_user(backend: Backend, store: HistoryStore) -> None:
    user, other = next(fresh_user), next(fresh_user)
    batch = [
        an_event(user, "a", event_id="1"),
        an_event(user, "b", event_id="1"),
        an_event(other, "c", event_id="1"),
        an_event(user, "d"),
        an_event(user, "d"),
    ]
    assert statuses(await store.append(batch, NOW_MS)) == ["stored", "duplicate", "stored", "stored", "stored"]
    replica = backend.open(None)
    again = await replica.append([an_event(user, "e", event_id="1"), an_event(user, "f", event_id="2")], NOW_MS)
    assert statuses(again) == ["duplicate", "stored"]
    kept = [entry.item_key for entry in (await store.read(user, NOW_MS)).as_entries()]
    assert kept == [item_key(item) for item in "addf"]


async def test_an_event_id_is_recognised_in_the_next_period_and_then_forgotten(backend: Backend) -> None:
    user = next(fresh_user)
    store = backend.open(HistoryLimits(dedupe_ms=200))

    async def again() -> str:
        [outcome] = await store.append([an_event(user, event_id="1")], time.time_ns() // 1_000_000)
        return outcome.status

    assert await again() == "stored"
    end_s = time.monotonic() + 0.19
    while time.monotonic() < end_s:
        assert await again() == "duplicate"
        await asyncio.sleep(0.03)
    await asyncio.sleep(0.45)
    assert await again() == "stored"


async def test_replicas_with_clocks_a_period_apart_agree_on_event_ids(backend: Backend) -> None:
    store = backend.open(None)
    for ahead_ms in (-6 * DAY_MS, 6 * DAY_MS):
        user = next(fresh_user)
        event = an_event(user, event_id="1", timestamp_ms=NOW_MS - 7 * DAY_MS)
        assert statuses(await store.append([event], NOW_MS)) == ["stored"]
        assert statuses(await store.append([event], NOW_MS + ahead_ms)) == ["duplicate"]


async def test_racing_replicas_store_each_event_once(backend: Backend) -> None:
    user = next(fresh_user)
    replicas = [backend.open(None) for _ in range(3)]
    events = [an_event(user, f"item-{i}", event_id=f"{i}", timestamp_ms=NOW_MS - i % 7) for i in range(60)]
    batches = [events[start : start + 12] for start in range(0, 60, 12)]
    answers = await asyncio.gather(*(store.append(batch, NOW_MS) for batch in batches for store in replicas))
    stored = sum(statuses(answer).count("stored") for answer in answers)
    assert stored == 60
    entries_N = (await replicas[0].read(user, NOW_MS)).entries_N
    assert sorted(entries_N["item_key"].tolist()) == sorted(item_key(f"item-{i}") for i in range(60))
    assert (np.diff(entries_N["timestamp_ms"]) >= 0).all()


async def test_a_deleted_user_is_forgotten_whole(store: HistoryStore) -> None:
    user, other = next(fresh_user), next(fresh_user)
    events = [an_event(user, event_id="1"), an_event(other, event_id="1")]
    await store.append(events, NOW_MS)
    assert await store.delete(user) is True
    history = await store.read(user, NOW_MS)
    assert (history.entries_N.size, history.seen_S.size) == (0, 0)
    assert statuses(await store.append(events, NOW_MS)) == ["stored", "duplicate"]


async def test_whoever_asks_is_told_who_was_forgotten(backend: Backend) -> None:
    one, other = backend.open(None), backend.open(None)
    await one.append([an_event("before")], NOW_MS)
    await one.delete("before")
    start = await other.forgotten(None)
    assert list(start.user_keys) == []
    assert list((await other.forgotten(start.until)).user_keys) == []
    users = [next(fresh_user) for _ in range(5)]
    for user in users[:3]:
        await one.delete(user)  # nothing was kept of them here, but who knows elsewhere
    first = await other.forgotten(start.until)
    assert list(first.user_keys) == [user_key(user) for user in users[:3]]
    for user in users[3:]:
        await one.delete(user)
    second = await other.forgotten(first.until)
    assert list(second.user_keys) == [user_key(user) for user in users[3:]]
    assert list((await other.forgotten(second.until)).user_keys) == []


async def test_some_users_are_users_with_a_history(backend: Backend) -> None:
    backend.wipe()
    store = backend.open(None)
    assert await store.some_users(5) == []
    users = [*(next(fresh_user) for _ in range(30)), "odd:name}h1:", "ключ"]
    await store.append([an_event(user) for user in users], NOW_MS)
    await store.remember([an_impression("shown alone", 1, "a")])
    found = await store.some_users(10)
    assert 1 <= len(found) <= 10
    assert len(set(found)) == len(found)
    assert set(found) <= set(users)
    assert len(await store.some_users(3)) <= 3
    for user in users:
        await store.delete(user)
    assert await store.some_users(5) == []


async def test_the_action_registry_is_shared_and_has_an_end(backend: Backend) -> None:
    backend.wipe()
    # Stores in memory share nothing, so there the one store is its own replica.
    store = backend.open(HistoryLimits())
    replica = store if backend.name == "memory" else backend.open(HistoryLimits())
    user = next(fresh_user)
    assert (await replica.read(user)).action_names == ()
    events = [an_event(user, "a", action=f"action-{i}", event_id=f"{i}") for i in range(256)]
    outcomes = await store.append(events, NOW_MS)
    assert statuses(outcomes) == ["stored"] * 255 + ["refused"]
    assert outcomes[-1].reason == "too_many_actions"
    history = await replica.read(user, NOW_MS)
    assert [entry.action for entry in history.as_entries()] == [f"action-{i}" for i in range(255)]
    assert history.action_names is (await replica.read(user, NOW_MS)).action_names
    outcomes = await replica.append([an_event(user, action="action-7"), an_event(user, action="another")], NOW_MS)
    assert statuses(outcomes) == ["stored", "refused"]
    backend.wipe()


async def test_old_entries_are_not_read_but_their_items_stay_seen(backend: Backend) -> None:
    store = backend.open(HistoryLimits(max_age_ms=10 * DAY_MS))
    user = next(fresh_user)
    ages_days = (30, 9, 5, 1)
    events = [an_event(user, f"{age}", timestamp_ms=NOW_MS - age * DAY_MS) for age in ages_days]
    assert statuses(await store.append(events, NOW_MS)) == ["stored"] * 4

    async def kept(after_days: int) -> list[int]:
        return [entry.item_key for entry in (await store.read(user, NOW_MS + after_days * DAY_MS)).as_entries()]

    assert await kept(0) == [item_key("9"), item_key("5"), item_key("1")]
    assert await kept(3) == [item_key("5"), item_key("1")]
    assert await kept(10) == []
    seen = set((await store.read(user, NOW_MS)).seen_keys.tolist())
    assert seen == {item_key(f"{age}") for age in ages_days}


async def test_a_store_tells_its_latency_and_durability(backend: Backend, store: HistoryStore) -> None:
    assert 0 <= await store.ping() < 3000
    assert await store.durability() == {"memory": "none", "redis": "everysec", "cluster": "none"}[backend.name]


late_events = st.lists(
    st.lists(
        st.tuples(
            st.integers(0, 12),  # item
            st.sampled_from(["view", "like"]),
            st.integers(0, 40),  # minutes ago
            st.none() | st.integers(0, 25),  # event id
        ),
        max_size=9,
    ),
    max_size=8,
)


@settings(max_examples=60, deadline=None)
@given(batches=late_events, num_entries=st.integers(1, 12), num_seen=st.integers(1, 9), max_age_min=st.integers(1, 60))
def test_memory_is_what_the_rules_say(
    batches: list[list[tuple[int, str, int, int | None]]], num_entries: int, num_seen: int, max_age_min: int
) -> None:
    limits = HistoryLimits(num_entries=num_entries, num_seen=num_seen, max_age_ms=max_age_min * 60_000)
    asyncio.run(_compare_with_oracle(MemoryHistoryStore(limits), limits, batches))


@settings(max_examples=60, deadline=None)
@given(batches=late_events, num_entries=st.integers(1, 12), num_seen=st.integers(1, 9), max_age_min=st.integers(1, 60))
def test_redis_is_what_the_rules_say(
    redis_url: str,
    batches: list[list[tuple[int, str, int, int | None]]],
    num_entries: int,
    num_seen: int,
    max_age_min: int,
) -> None:
    limits = HistoryLimits(num_entries=num_entries, num_seen=num_seen, max_age_ms=max_age_min * 60_000)

    async def compare() -> None:
        store = RedisHistoryStore(redis_url, limits, PATIENT)
        try:
            await _compare_with_oracle(store, limits, batches)
        finally:
            await store.close()

    asyncio.run(compare())


async def _compare_with_oracle(
    store: HistoryStore, limits: HistoryLimits, batches: list[list[tuple[int, str, int, int | None]]]
) -> None:
    """Appends batch after batch, the clock going on a minute each, and compares with sorting everything anew."""
    user = next(fresh_user)
    kept: list[tuple[int, int, HistoryEntry]] = []
    pairs: list[tuple[int, str]] = []
    event_ids: set[int] = set()
    for now_ms, batch in zip(range(NOW_MS, NOW_MS + DAY_MS, 60_000), batches, strict=False):
        events, expected = [], []
        for item, action, minutes_ago, event_id in batch:
            timestamp_ms = now_ms - minutes_ago * 60_000
            name = None if event_id is None else f"event-{event_id}"
            events.append(an_event(user, f"{item}", action=action, timestamp_ms=timestamp_ms, event_id=name))
            expected.append("duplicate" if event_id in event_ids else "stored")
            if event_id not in event_ids:
                kept.append((timestamp_ms, len(kept), HistoryEntry(item_key(f"{item}"), timestamp_ms, action, None)))
                pairs.append((item_key(f"{item}"), action))
            if event_id is not None:
                event_ids.add(event_id)
        assert statuses(await store.append(events, now_ms)) == expected
        history = await store.read(user, now_ms)
        newest = sorted(kept)[-limits.num_entries :]
        oldest_ms = now_ms - limits.max_age_ms
        assert history.as_entries() == tuple(entry for timestamp_ms, _, entry in newest if timestamp_ms >= oldest_ms)
        last_pairs = list(dict.fromkeys(reversed(pairs)))[: limits.num_seen]
        assert set(last_pairs) <= seen_pairs(history) <= set(pairs)
        assert history.seen_S.size <= limits.num_seen + limits.num_seen // 4
    await store.delete(user)


def seen_pairs(history: UserHistory) -> set[tuple[int, str]]:
    return {(key, history.action_names[action]) for key, action in history.seen_S.tolist()}


async def test_a_cluster_keeps_users_on_every_node_and_the_keys_of_one_together(
    cluster_ports: list[int], closing: Callable[[Any], Any]
) -> None:
    users = [next(fresh_user) for _ in range(60)]
    store = closing(RedisHistoryStore(f"redis+cluster://127.0.0.1:{cluster_ports[0]}", None, PATIENT))
    await store.append([an_event(user, event_id="1") for user in users], NOW_MS)
    homes: dict[str, set[int]] = {user: set() for user in users}
    for port in cluster_ports:
        with redis.Redis(port=port, decode_responses=True) as client:
            for key in client.scan_iter(match="*user-*"):
                user = key.split(":")[1]
                if user in homes:
                    homes[user].add(port)
                    assert client.ttl(key) > 0, f"{key} would stay for ever"
    assert all(len(ports) == 1 for ports in homes.values())
    assert set.union(*homes.values()) == set(cluster_ports)


async def test_a_dead_cluster_node_refuses_its_users_quickly(tmp_path: Path, closing: Callable[[Any], Any]) -> None:
    async def append_one_by_one(store: HistoryStore, event_id: str) -> list[str]:
        ends = []
        for i in range(24):
            start_s = time.monotonic()
            try:
                ends += statuses(await store.append([an_event(f"user-{i}", event_id=event_id)], NOW_MS))
            except HistoryUnavailable:
                ends.append("unavailable")
            assert time.monotonic() - start_s < 2.5
        return ends

    async def lose_a_node(ports: list[int]) -> None:
        # The refusal is quick because nobody is there, not because patience ends.
        store = closing(RedisHistoryStore(f"redis+cluster://127.0.0.1:{ports[0]}", None, PATIENT))
        assert await append_one_by_one(store, "1") == ["stored"] * 24
        with redis.Redis(port=ports[1]) as client:
            os.kill(client.info("server")["process_id"], signal.SIGKILL)
        ends = await append_one_by_one(store, "2")
        assert 0 < ends.count("unavailable") < 24
        assert "duplicate" not in ends
        with pytest.raises(HistoryUnavailable):
            await store.append([an_event(f"user-{i}", event_id="3") for i in range(24)], NOW_MS)

    with cluster(tmp_path, num_nodes=3) as ports:
        await lose_a_node(ports)


async def test_what_is_too_old_is_gone_from_redis_itself(redis_url: str, closing: Callable[[Any], Any]) -> None:
    limits = HistoryLimits(max_age_ms=16 * DAY_MS, num_entries=8)
    store = closing(RedisHistoryStore(redis_url, limits, PATIENT))
    user = next(fresh_user)

    async def kept_bytes(*days: int) -> int:
        now_ms = NOW_MS + max(days) * DAY_MS
        await store.append([an_event(user, timestamp_ms=NOW_MS + day * DAY_MS) for day in days], now_ms)
        with redis.Redis.from_url(redis_url) as client:
            [key] = client.keys(f"*h1:{user}")
            return int(client.strlen(key))

    assert await kept_bytes(0, 1, 2) == 3 * 19
    assert await kept_bytes(17) == 4 * 19, "one day too old is within the sixteenth that may lie"
    assert await kept_bytes(18) == 3 * 19
    assert await kept_bytes(-1, 18) == 4 * 19, "an event that is too old already is not written"
    assert await kept_bytes(*[19] * 30) == 8 * 19
