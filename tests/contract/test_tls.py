"""Redis behind TLS: reached with the right authority, refused with another one, by another name, or in the clear.

The server's certificate and the authority in `tls/` are for these tests alone, and good until 2126.
"""

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from service.connection import ConnectionLimits
from service.domain import Event
from service.errors import HistoryUnavailable
from service.history.redis_store import RedisHistoryStore

TLS = Path(__file__).parent / "tls"
NOW_MS = 1_790_000_000_000
PATIENT = ConnectionLimits(connect_timeout_ms=5000, read_timeout_ms=5000)


@pytest.fixture
async def tls_port(redis_url: str) -> AsyncIterator[int]:
    """What speaks TLS to clients and nothing of it to Redis: the servers that packages bring may lack it."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(TLS / "server.pem", TLS / "server.key")
    parts = urlsplit(redis_url)

    async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while chunk := await reader.read(65536):
                writer.write(chunk)
                await writer.drain()
        finally:  # also where the other side hung up, or the test is over
            writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if parts.scheme == "unix":
            there = await asyncio.open_unix_connection(parts.path)
        else:
            there = await asyncio.open_connection(parts.hostname, parts.port)
        await asyncio.gather(copy(reader, there[1]), copy(there[0], writer), return_exceptions=True)

    async with await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context) as server:
        port = server.sockets[0].getsockname()[1]
        # An address that the certificate does not name.
        async with await asyncio.start_server(serve, "127.0.0.2", port, ssl=context):
            yield port


def an_event() -> Event:
    return Event(user_id="tls", item_id="item", action="view", timestamp_ms=NOW_MS)


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])
async def test_the_right_authority_is_trusted(tls_port: int, host: str, closing: Callable[[Any], Any]) -> None:
    store = closing(RedisHistoryStore(f"rediss://{host}:{tls_port}?ssl_ca_certs={TLS / 'ca.pem'}", None, PATIENT))
    assert [outcome.status for outcome in await store.append([an_event()], NOW_MS)] == ["stored"]
    assert len((await store.read("tls", NOW_MS)).entries_N) >= 1
    assert await store.delete("tls")


async def test_names_may_be_left_unchecked(tls_port: int, closing: Callable[[Any], Any]) -> None:
    url = f"rediss://127.0.0.2:{tls_port}?ssl_ca_certs={TLS / 'ca.pem'}&ssl_check_hostname=false"
    store = closing(RedisHistoryStore(url, None, PATIENT))
    assert [outcome.status for outcome in await store.append([an_event()], NOW_MS)] == ["stored"]


@pytest.mark.parametrize(
    "url",
    [
        "rediss://localhost:{port}?ssl_ca_certs={tls}/other-ca.pem",
        "rediss://localhost:{port}",  # what the system trusts
        "rediss://127.0.0.2:{port}?ssl_ca_certs={tls}/ca.pem",
        "redis://localhost:{port}",
    ],
    ids=["another authority", "no authority", "another name", "in the clear"],
)
async def test_whoever_cannot_be_trusted_is_told_nothing(
    tls_port: int, url: str, closing: Callable[[Any], Any]
) -> None:
    store = closing(RedisHistoryStore(url.format(port=tls_port, tls=TLS), None, PATIENT))
    with pytest.raises(HistoryUnavailable):
        await store.append([an_event()], NOW_MS)
