"""Very many requests of every kind, with clients that leave and a Redis that stops answering: nothing piles up."""

import asyncio
import random
import signal
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import orjson
import uvloop
from kit import Redis, Service, complaints, running, until
from measured import Figures

from loadtests.bench.connection import Connection, post

NUM_CONNECTIONS = 24
NUM_USERS = 500
MOST_MIB = 10.0


def request_of(number: int, rng: random.Random) -> bytes:  # noqa: PLR0911  (a table of kinds)
    """One of the mix; a few are wrong on purpose."""
    user = f"user-{rng.randrange(NUM_USERS)}"
    kind = rng.randrange(100)
    if kind < 65:
        slate = {"user_id": user, "slate_size": 1 + number % 5, "exclude": [f"item-{rng.randrange(900)}"]}
        if kind < 3:
            slate["deadline_ms"] = 1
        return post("/v1/recommend", orjson.dumps(slate), "x")
    if kind < 85:
        event = {
            "event_id": f"e{number}", "user_id": user, "item_id": f"item-{rng.randrange(900)}",
            "timestamp": time.time() - rng.randrange(1000), "recommendation_id": f"{number:032x}",
        }  # fmt: skip
        return post("/v1/events", orjson.dumps({"events": [event]}), "x")
    if kind < 88:
        some = [{"user_id": f"user-{rng.randrange(NUM_USERS)}", "slate_size": 3} for _ in range(5)]
        return post("/v1/recommend/batch", orjson.dumps({"requests": some}), "x")
    if kind < 92:
        return f"GET /v1/users/{user}/history HTTP/1.1\r\nHost: x\r\n\r\n".encode()
    if kind < 94:
        return f"DELETE /v1/users/{user}/history HTTP/1.1\r\nHost: x\r\n\r\n".encode()
    if kind < 96:
        return post("/v1/recommend", b'{"user_id": 3' + bytes([rng.randrange(256)]), "x")
    if kind < 98:
        return f"GET /v1/items/item-{rng.randrange(2000)} HTTP/1.1\r\nHost: x\r\n\r\n".encode()
    return post(f"/nowhere/{number}", b"{}", "x")


async def send(port: int, num_requests: int, first: int, seed: int) -> Counter[int]:
    """Statuses of so many requests; one of a thousand clients leaves without waiting for its answer."""
    counts: Counter[int] = Counter()
    numbers = iter(range(first, first + num_requests))

    async def client(rng: random.Random) -> None:
        connection = await Connection.open("127.0.0.1", port)
        for number in numbers:
            request = request_of(number, rng)
            if rng.randrange(1000) == 0:
                left = await Connection.open("127.0.0.1", port)
                asking = asyncio.create_task(left.request(request))
                await asyncio.sleep(rng.random() / 1000)
                asking.cancel()
                await asyncio.gather(asking, return_exceptions=True)
                await left.close()
                counts[499] += 1
                continue
            try:
                answer = await connection.request(request)
            except ConnectionError:  # an answer that says Connection: close
                connection = await Connection.open("127.0.0.1", port)
                continue
            counts[answer.status] += 1
        await connection.close()

    await asyncio.gather(*(client(random.Random(seed * 1000 + number)) for number in range(NUM_CONNECTIONS)))
    return counts


def test_nothing_piles_up(tmp_path: Path, scaled: Callable[[int, int], int], figures: Figures) -> None:
    num_parts, part = scaled(4, 20), scaled(2500, 50_000)
    num_warm_up = num_parts // 4
    server = Redis(tmp_path / "redis", fsync="everysec")
    service = Service(
        tmp_path, server.url, ONESLATE_HISTORY__NUM_ENTRIES=64, ONESLATE_HISTORY__NUM_SEEN=128,
        ONESLATE_HISTORY__COPY_BYTES=1_000_000, ONESLATE_DEADLINE_MS=2000, ONESLATE_LOG_LEVEL="error",
    )  # fmt: skip
    counts: Counter[int] = Counter()
    sizes_mib: list[float] = []
    with running(server, service):
        process = service.process

        def rest() -> tuple[float, int]:
            until(lambda: _num_clients(service) == 0, "clients are gone")
            to_redis = [one for one in process.net_connections("tcp") if one.raddr and one.raddr.port == server.port]
            return process.memory_info().rss / 2**20, process.num_fds() - len(to_redis)

        began_s = time.monotonic()
        most_fds = 0
        for number in range(num_parts):
            if number % 3 == 0:  # a Redis that hangs for a while, and comes back
                server.signal(signal.SIGSTOP)
                counts += uvloop.run(send(service.port, part // 20, number * part + part // 2, 100 + number))
                server.signal(signal.SIGCONT)
            counts += uvloop.run(send(service.port, part, number * part, number))
            size_mib, num_fds = rest()
            sizes_mib.append(size_mib)
            if number < num_warm_up:
                most_fds = max(most_fds, num_fds)
            else:
                assert num_fds <= most_fds
        took_s = time.monotonic() - began_s
        assert service.is_running
    assert complaints(service.log) == []
    assert {status for status in counts if status >= 500} <= {503}
    # What the allocator holds on to swings a little: the end against the warm-up, each at its best moment.
    growth_mib = min(sizes_mib[-max(1, num_warm_up) :]) - min(sizes_mib[:num_warm_up])
    assert growth_mib <= MOST_MIB, sizes_mib
    name = f"{sum(counts.values())} requests of every kind, fake runner"
    figures(name, "service", sizes_mib[num_warm_up - 1], "MiB resident after warm-up")
    figures(name, "service", sizes_mib[-1], "MiB resident at the end")
    figures(name, "service", growth_mib, "MiB of growth")
    figures(name, "service", sum(counts.values()) / took_s, "requests/s, closed loop")
    for status, count in sorted(counts.items()):
        figures(name, f"answers of {status}", count, "")


def _num_clients(service: Service) -> int:
    return sum(
        one.status == "ESTABLISHED" and one.laddr.port == service.port for one in service.process.net_connections("tcp")
    )
