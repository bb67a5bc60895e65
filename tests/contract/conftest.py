"""Real servers for every contract."""

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack
from typing import Protocol, TypeVar

import pytest
from redis_cluster import cluster

from service.history.embedded import EmbeddedRedis


class Closable(Protocol):
    async def close(self) -> None: ...


C = TypeVar("C", bound=Closable)


@pytest.fixture
async def closing() -> AsyncIterator[Callable[[C], C]]:
    """`closing(store)` is the store, closed however the test ends: a socket left open would fail a later test."""
    async with AsyncExitStack() as stack:

        def close_at_the_end(opened: C) -> C:
            stack.push_async_callback(opened.close)
            return opened

        yield close_at_the_end


@pytest.fixture(scope="session")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with EmbeddedRedis(tmp_path_factory.mktemp("redis")) as url:
        yield url


@pytest.fixture(scope="session")
def cluster_ports(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[int]]:
    with cluster(tmp_path_factory.mktemp("cluster"), num_nodes=3) as ports:
        yield ports
