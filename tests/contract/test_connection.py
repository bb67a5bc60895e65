"""What a connection leaves behind when calls fail, are cut off, or are still under way as it closes: nothing."""

import asyncio
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import redis
from redis_cluster import cluster

from service.connection import ConnectionLimits, RedisConnection, Script, ScriptCall
from service.errors import HistoryUnavailable

PATIENT = ConnectionLimits(connect_timeout_ms=20_000, read_timeout_ms=20_000)
GET = Script("return redis.call('GET', KEYS[1])")


@pytest.fixture(params=["redis", "cluster"])
def servers_and_url(request: pytest.FixtureRequest) -> tuple[list[str], str]:
    """The URL of each server, and of all together."""
    if request.param == "redis":
        url = request.getfixturevalue("redis_url")
        return [url], url
    ports = request.getfixturevalue("cluster_ports")
    return [f"redis://127.0.0.1:{port}" for port in ports], f"redis+cluster://127.0.0.1:{ports[0]}"


def num_clients(servers: list[str]) -> int:
    """Who is connected, but for the one who asks."""
    total = 0
    for server in servers:
        with redis.Redis.from_url(server) as client:
            total += len(client.client_list()) - 1
    return total


async def assert_nobody_is_left(servers: list[str]) -> None:
    end_s = time.monotonic() + 10
    while num_clients(servers):  # a server may notice a little later
        assert time.monotonic() < end_s, "a connection is still open"
        await asyncio.sleep(0.01)


async def test_closing_waits_for_the_calls_under_way(servers_and_url: tuple[list[str], str]) -> None:
    servers, url = servers_and_url
    connection = RedisConnection(url, PATIENT)
    await connection.command("GET", "warm")
    for server in servers:
        with redis.Redis.from_url(server) as client:
            client.client_pause(300)
    reads = [asyncio.create_task(connection.command("GET", f"nothing-{i}")) for i in range(20)]
    await asyncio.sleep(0.05)
    start_s = time.monotonic()
    await connection.close()
    assert [read.done() for read in reads] == [True] * 20
    assert await asyncio.gather(*reads) == [None] * 20
    assert time.monotonic() - start_s < 10, "it waits for calls, not for their longest time"
    await assert_nobody_is_left(servers)


async def test_a_closed_connection_stays_closed(servers_and_url: tuple[list[str], str]) -> None:
    servers, url = servers_and_url
    connection = RedisConnection(url, PATIENT)
    await connection.command("GET", "warm")
    await connection.close()
    await connection.close()
    with pytest.raises(HistoryUnavailable, match="is closed"):
        await connection.command("GET", "warm")
    await assert_nobody_is_left(servers)


async def test_calls_cut_off_at_any_moment_leave_no_connection(servers_and_url: tuple[list[str], str]) -> None:
    servers, url = servers_and_url
    connection = RedisConnection(url, PATIENT)

    async def cut_off(after_s: float) -> None:
        try:
            async with asyncio.timeout(after_s):
                await connection.scripts([ScriptCall(GET, [f"nothing-{i}"], []) for i in range(8)], may_retry=True)
        except TimeoutError:
            pass

    for _ in range(10):  # one that is cut off closes its connection, so that others have to connect again
        await asyncio.gather(*(cut_off(i * 2e-4) for i in range(40)))
    await connection.close()
    await assert_nobody_is_left(servers)


@pytest.mark.parametrize("num_steps", range(10))
async def test_a_cancelled_call_is_cancelled_whatever_it_is_about(
    servers_and_url: tuple[list[str], str], closing: Callable[[Any], Any], num_steps: int
) -> None:
    connection = closing(RedisConnection(servers_and_url[1], PATIENT))
    await connection.command("GET", "warm")
    call = asyncio.create_task(connection.command("GET", "nothing"))
    for _ in range(num_steps):
        await asyncio.sleep(0)
    if call.cancel():  # else it has ended before
        with pytest.raises(asyncio.CancelledError):
            await call


async def test_a_failed_call_leaves_nothing_running(tmp_path: Path, closing: Callable[[Any], Any]) -> None:
    """One node is gone, which fails at once; another hangs, and nobody may go on waiting for it."""
    with cluster(tmp_path, num_nodes=3) as ports:
        pids = []
        for port in ports:
            with redis.Redis(port=port) as client:
                pids.append(client.info("server")["process_id"])
        limits = ConnectionLimits(connect_timeout_ms=500, read_timeout_ms=500)
        connection = closing(RedisConnection(f"redis+cluster://127.0.0.1:{ports[0]}", limits))
        calls = [ScriptCall(GET, [f"nothing-{i}"], []) for i in range(30)]
        await connection.scripts(calls, may_retry=False)
        before = asyncio.all_tasks()
        os.kill(pids[1], signal.SIGKILL)
        os.kill(pids[2], signal.SIGSTOP)
        for _ in ("connections are lost", "none can be made"):
            with pytest.raises(HistoryUnavailable):
                await connection.scripts(calls, may_retry=False)
            assert asyncio.all_tasks() == before
