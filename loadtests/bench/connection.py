"""One keep-alive HTTP/1.1 connection that costs the load generator as little as possible.

Reads only what the service sends: a status line, headers with Content-Length, a body. A generator that shares the
machine with what it measures must not be the bottleneck; httpx spends more on a request than the service does.
"""

import asyncio
from dataclasses import dataclass
from typing import cast

_HEAD_END = b"\r\n\r\n"
_LENGTH = b"content-length:"
_NO_CONTENT = b"204"


@dataclass(frozen=True, slots=True)
class Response:
    """What came back."""

    status: int
    head: bytes
    """Status line and headers, in lower case."""
    body: bytes


class Connection(asyncio.Protocol):
    """One request at a time."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._buffer = b""
        self._waiting: asyncio.Future[Response] | None = None
        self._lost = asyncio.Event()

    @classmethod
    async def open(cls, host: str, port: int) -> "Connection":
        """A new connection."""
        _, connection = await asyncio.get_running_loop().create_connection(cls, host, port)
        return connection

    async def request(self, request: bytes) -> Response:
        """Sends a whole request and waits for its response. ConnectionError when the other side hangs up."""
        assert self._transport is not None, "not open"
        assert self._waiting is None, "one request at a time"
        if self._lost.is_set():
            raise ConnectionError("the service hung up on an idle connection")
        self._waiting = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        try:
            return await self._waiting
        finally:
            self._waiting = None

    async def close(self) -> None:
        """Hangs up, and waits until that is done: uvloop never closes while a connection is open."""
        assert self._transport is not None, "not open"
        self._transport.close()
        await self._lost.wait()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Of asyncio.Protocol."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's own is no subclass

    def data_received(self, data: bytes) -> None:
        """Of asyncio.Protocol."""
        self._buffer = self._buffer + data if self._buffer else data
        head_end = self._buffer.find(_HEAD_END)
        if head_end < 0:
            return
        head = self._buffer[:head_end].lower()
        length = 0 if head[9:12] == _NO_CONTENT else _length(head)
        body_start = head_end + len(_HEAD_END)
        if len(self._buffer) < body_start + length:
            return
        response = Response(int(head[9:12]), head, self._buffer[body_start : body_start + length])
        self._buffer = b""
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(response)

    def connection_lost(self, error: Exception | None) -> None:
        """Of asyncio.Protocol."""
        self._lost.set()
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_exception(ConnectionError(f"the service hung up: {error or 'end of stream'}"))


def _length(head: bytes) -> int:
    start = head.index(_LENGTH) + len(_LENGTH)
    line_end = head.find(b"\r\n", start)
    return int(head[start:] if line_end < 0 else head[start:line_end])


def post(path: str, body: bytes, host: str) -> bytes:
    """A POST request with a JSON body as it goes over the wire."""
    head = (
        f"POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body
