"""The Redis store when Redis is killed, paused, away, or damaged: real servers, real signals."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import pytest
import redis

from service.connection import ConnectionLimits
from service.domain import Event, item_key
from service.errors import HistoryUnavailable
from service.history import HistoryLimits
from service.history.embedded import STATE_FILE, EmbeddedRedis
from service.history.redis_store import RedisHistoryStore

NOW_MS = 1_790_000_000_000
TIGHT = ConnectionLimits(connect_timeout_ms=100, read_timeout_ms=100)
PATIENT = ConnectionLimits(connect_timeout_ms=20_000, read_timeout_ms=20_000)
Open = Callable[..., RedisHistoryStore]
T = TypeVar("T")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[EmbeddedRedis]:
    server = EmbeddedRedis(tmp_path / "r", appendfsync="always")
    server.start()
    yield server
    server.stop()


@pytest.fixture
async def opened() -> AsyncIterator[Open]:
    """Opens stores, which are closed however the test ends: a socket left open would fail a later test."""
    async with AsyncExitStack() as stack:

        def open_one(url: str, limits: ConnectionLimits, kept: HistoryLimits | None = None) -> RedisHistoryStore:
            store = RedisHistoryStore(url, kept, limits)
            stack.push_async_callback(store.close)
            return store

        yield open_one


@pytest.fixture
async def store(server: EmbeddedRedis, opened: Open) -> RedisHistoryStore:
    """Waits as long as it takes: most of these tests are not about time."""
    store = opened(server.start(), PATIENT)
    await store.append([event("warm", 0)], NOW_MS)
    return store


@pytest.fixture
async def tight_store(server: EmbeddedRedis, store: RedisHistoryStore, opened: Open) -> RedisHistoryStore:
    """Over the same histories, and connected."""
    tight = opened(server.start(), TIGHT)
    await eventually(lambda: tight.read("warm"))
    return tight


async def quickest(call: Callable[[], Awaitable[object]]) -> float:
    """Seconds that it takes, less what a busy machine adds: the least of three."""
    took_s = []
    for _ in range(3):
        start_s = time.monotonic()
        await call()
        took_s.append(time.monotonic() - start_s)
    return min(took_s)


async def eventually(call: Callable[[], Awaitable[T]]) -> T:
    """What it returns once a machine that may be busy lets it return in time."""
    end_s = time.monotonic() + 20
    while True:
        try:
            return await call()
        except HistoryUnavailable:
            if time.monotonic() > end_s:
                raise


def pid_of(server: EmbeddedRedis) -> int:
    state = json.loads((server.directory / STATE_FILE).read_text())
    return int(state["pid"])


def event(user_id: str, number: int) -> Event:
    return Event(
        user_id=user_id, item_id=f"item-{number}", action="view", timestamp_ms=NOW_MS + number, event_id=f"{number}"
    )


@pytest.mark.parametrize("round_number", range(3))
async def test_every_acknowledged_event_survives_a_kill(server: EmbeddedRedis, round_number: int, opened: Open) -> None:
    store = opened(server.start(), PATIENT, HistoryLimits(num_entries=100_000))
    acknowledged: dict[str, list[int]] = {f"user-{i}": [] for i in range(4)}
    busy = asyncio.Event()

    async def ingest(user: str) -> None:
        number = 0
        while True:
            batch = [event(user, number + i) for i in range(3)]
            outcomes = await store.append(batch, NOW_MS)
            acknowledged[user] += [number + i for i, out in enumerate(outcomes) if out.status == "stored"]
            number += 3
            if min(map(len, acknowledged.values())) >= 30:
                busy.set()

    ingests = [asyncio.create_task(ingest(user)) for user in acknowledged]
    await busy.wait()
    await asyncio.sleep(round_number * 0.013)
    os.kill(pid_of(server), signal.SIGKILL)
    ends = await asyncio.gather(*ingests, return_exceptions=True)
    assert [type(end) for end in ends] == [HistoryUnavailable] * 4
    server.start()
    for user, numbers in acknowledged.items():
        kept = (await store.read(user, NOW_MS)).entries_N["item_key"].tolist()
        assert len(kept) == len(set(kept))
        assert {item_key(f"item-{number}") for number in numbers} <= set(kept)
        # At most the one batch whose acknowledgement was lost is there too, whole; a client sends it again.
        assert len(kept) - len(numbers) in (0, 3)
        again = await store.append([event(user, len(numbers) + i) for i in range(3)], NOW_MS)
        assert {outcome.status for outcome in again} == {"duplicate" if len(kept) > len(numbers) else "stored"}


async def assert_unavailable(store: RedisHistoryStore, within_s: float) -> None:
    for call in (
        lambda: store.append([event("warm", 1)], NOW_MS),
        lambda: store.read("warm"),
        lambda: store.delete("warm"),
        store.ping,
        store.durability,
    ):

        async def refused(call: Callable[[], Awaitable[object]] = call) -> None:
            with pytest.raises(HistoryUnavailable, match="did not answer") as caught:
                await call()
            assert isinstance(caught.value.__cause__, redis.RedisError | OSError)

        assert await quickest(refused) < within_s


async def test_a_stopped_redis_is_unavailable_until_it_is_back(server: EmbeddedRedis, store: RedisHistoryStore) -> None:
    server.stop()
    await assert_unavailable(store, within_s=0.5)
    server.start()
    assert (await store.read("warm", NOW_MS)).entries_N.size == 1
    assert [out.status for out in await store.append([event("warm", 1)], NOW_MS)] == ["stored"]


async def test_a_restart_between_calls_is_not_noticed(server: EmbeddedRedis, store: RedisHistoryStore) -> None:
    os.kill(pid_of(server), signal.SIGKILL)
    server.start()
    outcomes = await store.append([event("warm", 0), event("warm", 1)], NOW_MS)
    assert [out.status for out in outcomes] == ["duplicate", "stored"]


async def test_a_paused_redis_is_unavailable_within_the_timeout(
    server: EmbeddedRedis, store: RedisHistoryStore, tight_store: RedisHistoryStore
) -> None:
    os.kill(pid_of(server), signal.SIGSTOP)
    await assert_unavailable(tight_store, within_s=0.5)
    os.kill(pid_of(server), signal.SIGCONT)
    # What the paused server still runs late is recognised by its event id: stored once, whoever gets the answer.
    [outcome] = await store.append([event("other", 1)], NOW_MS)
    assert outcome.status == "stored"
    assert (await eventually(lambda: tight_store.read("other", NOW_MS))).entries_N.size == 1


async def test_cancelling_is_not_swallowed_and_answers_are_not_mixed_up(
    server: EmbeddedRedis, store: RedisHistoryStore
) -> None:
    await store.append([event(f"user-{i}", i) for i in range(8)], NOW_MS)
    os.kill(pid_of(server), signal.SIGSTOP)
    reads = [asyncio.create_task(store.read(f"user-{i}", NOW_MS)) for i in range(8)]
    await asyncio.sleep(0.02)
    for read in reads:
        read.cancel()
    ends = await asyncio.gather(*reads, return_exceptions=True)
    assert {type(end) for end in ends} == {asyncio.CancelledError}
    os.kill(pid_of(server), signal.SIGCONT)
    histories = await asyncio.gather(*(store.read(f"user-{i}", NOW_MS) for i in range(8)))
    assert [history.seen_keys.tolist() for history in histories] == [[item_key(f"item-{i}")] for i in range(8)]


async def test_more_requests_than_connections_wait_their_turn(server: EmbeddedRedis, opened: Open) -> None:
    store = opened(server.start(), replace(PATIENT, max_connections=3))
    await store.append([event("warm", 0)], NOW_MS)
    histories = await asyncio.gather(*(store.read("warm", NOW_MS) for _ in range(300)))
    assert {history.entries_N.size for history in histories} == {1}
    with redis.Redis.from_url(server.start()) as client:
        assert len([one for one in client.client_list() if one["cmd"] == "mget"]) <= 3


async def test_waiting_for_a_connection_ends_too(server: EmbeddedRedis, opened: Open) -> None:
    store = opened(server.start(), replace(TIGHT, max_connections=1))
    await eventually(lambda: store.read("warm"))
    os.kill(pid_of(server), signal.SIGSTOP)

    async def refused() -> None:
        ends = await asyncio.gather(*(store.read("warm") for _ in range(20)), return_exceptions=True)
        assert {type(end) for end in ends} == {HistoryUnavailable}

    assert await quickest(refused) < 0.6
    os.kill(pid_of(server), signal.SIGCONT)


async def test_forgotten_scripts_are_sent_again(server: EmbeddedRedis, store: RedisHistoryStore) -> None:
    with redis.Redis.from_url(server.start()) as client:
        client.script_flush()
    outcomes = await store.append([event(f"user-{i}", 1) for i in range(5)], NOW_MS)
    assert [out.status for out in outcomes] == ["stored"] * 5


async def test_a_lost_action_gets_its_number_back(
    server: EmbeddedRedis, store: RedisHistoryStore, opened: Open
) -> None:
    like = Event(user_id="u", item_id="a", action="like", timestamp_ms=NOW_MS)
    await store.append([like], NOW_MS)
    with redis.Redis.from_url(server.start()) as client:
        assert client.rpop("{oneslate}:actions:1") == b"like"
    await store.ping()
    replica = opened(server.start(), PATIENT)
    assert (await replica.read("u", NOW_MS)).as_entries()[0].action == "like"
    with redis.Redis.from_url(server.start()) as client:
        client.flushall()
    await replica.append([event("v", 1)], NOW_MS)
    assert (await replica.read("v", NOW_MS)).as_entries()[0].action == "view"


async def test_damaged_histories_are_named(server: EmbeddedRedis, store: RedisHistoryStore) -> None:
    with redis.Redis.from_url(server.start()) as client:
        [key] = client.keys("*h1:warm")
        client.append(key, b"x")
        with pytest.raises(HistoryUnavailable, match="20 bytes does not hold whole items of 19 bytes"):
            await store.read("warm")
        client.set(key, b"\xff" * 19)
        with pytest.raises(HistoryUnavailable, match="names action 255, never registered"):
            await store.read("warm", 0)
        client.delete(key)
        client.lpush(key, b"x")
        with pytest.raises(HistoryUnavailable, match="WRONGTYPE"):
            await store.append([event("warm", 5)], NOW_MS)


@pytest.mark.parametrize(
    ("settings", "durability"),
    [
        ({"appendonly": "yes", "appendfsync": "always"}, "strong"),
        ({"appendonly": "yes", "appendfsync": "everysec"}, "everysec"),
        ({"appendonly": "yes", "appendfsync": "no"}, "none"),
        ({"appendonly": "no", "appendfsync": "always"}, "none"),
    ],
)
async def test_durability_is_what_the_server_does(
    server: EmbeddedRedis, store: RedisHistoryStore, settings: dict[str, str], durability: str
) -> None:
    with redis.Redis.from_url(server.start()) as client:
        for name, value in settings.items():
            client.config_set(name, value)
    assert await store.durability() == durability


async def test_durability_is_unknown_where_it_may_not_be_asked(server: EmbeddedRedis, opened: Open) -> None:
    url = server.start()
    with redis.Redis.from_url(url) as client:
        client.acl_setuser(
            "app", enabled=True, passwords=["+secret"], categories=["+@all"], commands=["-config"], keys="*"
        )
    store = opened(url.replace("unix://", "unix://app:secret@"), PATIENT)
    assert await store.durability() == "unknown"


async def test_errors_do_not_tell_the_password(opened: Open) -> None:
    store = opened("redis://app:hunter2@127.0.0.1:1/0", TIGHT)
    with pytest.raises(HistoryUnavailable, match=r"redis://127\.0\.0\.1:1/0") as caught:
        await store.ping()
    assert "hunter2" not in str(caught.value)


async def test_an_unreachable_cluster_is_unavailable_within_the_timeout(opened: Open) -> None:
    store = opened("redis+cluster://127.0.0.1:1", TIGHT)

    async def refused() -> None:
        with pytest.raises(HistoryUnavailable):
            await store.append([event("u", 1)], NOW_MS)

    assert await quickest(refused) < 1.5


@pytest.mark.parametrize("url", ["http://127.0.0.1:6379", "127.0.0.1:6379", ""])
def test_other_urls_are_refused(url: str) -> None:
    with pytest.raises(ValueError, match="starts with one of redis://, rediss://, unix://, redis\\+cluster://"):
        RedisHistoryStore(url)


def test_without_hiredis_the_store_refuses_with_one_error() -> None:
    program = (
        "import sys; sys.modules['hiredis'] = None\n"
        "from service.errors import HistoryUnavailable\n"
        "from service.history.redis_store import RedisHistoryStore\n"
        "try: RedisHistoryStore('redis://127.0.0.1:6379')\n"
        "except HistoryUnavailable as error: print(error)\n"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ran.stdout.startswith("the history store needs the package hiredis")


@pytest.mark.parametrize("wrong", [{"connect_timeout_ms": 0}, {"num_retries": 2}, {"max_connections": 0}])
def test_wrong_connection_limits_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="must be"):
        ConnectionLimits(**wrong)
