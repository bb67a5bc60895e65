"""The load generator of the benches: slates asked for as fast as they are answered, or on schedule."""

import asyncio
import random
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import httpx

from loadtests.bench.connection import Connection
from loadtests.bench.errors import BenchError


@dataclass(slots=True, kw_only=True)
class Answered:
    """What came of a load."""

    latencies_s: list[float] = field(default_factory=list)
    lags_s: list[float] = field(default_factory=list)
    """Open loop: how much later than intended the generator itself woke up."""

    @property
    def num_requests(self) -> int:
        """Answered."""
        return len(self.latencies_s)


class Generator:
    """Sends requests of a list, drawn at random, to one service."""

    def __init__(self, host: str, port: int, requests: Sequence[bytes], rng: random.Random) -> None:
        self._host, self._port = host, port
        self._requests = requests
        self._random = rng
        self._connections: list[Connection] = []

    @asynccontextmanager
    async def connected(self, num_connections: int) -> AsyncIterator[None]:
        """New connections for a load: the service hangs up on one that was idle for seconds."""
        self._connections = []
        try:
            for _ in range(num_connections):
                self._connections.append(await Connection.open(self._host, self._port))
            yield
        finally:
            for connection in self._connections:
                await connection.close()

    async def closed_loop(self, into: Answered, num_connections: int, seconds: float) -> None:
        """Every one of so many connections asks again as soon as it is answered."""
        until_s = time.perf_counter() + seconds

        async def drive(connection: Connection) -> None:
            while (sent_s := time.perf_counter()) < until_s:
                await self._ask(connection)
                into.latencies_s.append(time.perf_counter() - sent_s)

        async with asyncio.TaskGroup() as tasks:
            for connection in self._connections[:num_connections]:
                tasks.create_task(drive(connection))

    async def open_loop(self, into: Answered, rate: float, seconds: float) -> None:
        """Poisson arrivals at `rate` a second; a request that finds no free connection waits, and its clock runs."""
        free: asyncio.Queue[Connection] = asyncio.Queue()
        for connection in self._connections:
            free.put_nowait(connection)

        async def send(intended_s: float) -> None:
            connection = await free.get()
            await self._ask(connection)
            free.put_nowait(connection)
            into.latencies_s.append(time.perf_counter() - intended_s)

        intended_s = time.perf_counter()
        until_s = intended_s + seconds
        async with asyncio.TaskGroup() as tasks:
            while (intended_s := intended_s + self._random.expovariate(rate)) < until_s:
                if (rest_s := intended_s - time.perf_counter()) > 0:
                    await asyncio.sleep(rest_s)
                into.lags_s.append(time.perf_counter() - intended_s)
                tasks.create_task(send(intended_s))

    async def _ask(self, connection: Connection) -> None:
        response = await connection.request(self._random.choice(self._requests))
        # Parsing every answer would cost the generator its core.
        if response.status != httpx.codes.OK or b'"source":"model"' not in response.body:
            raise BenchError(f"answer {response.status}: {response.body[:300].decode(errors='replace')}")
