"""HTTP as uvicorn speaks it, with an end to what a client may take: of time, of head, of connections.

uvicorn waits for the rest of a request for as long as the client likes, keeps all of its head, and waits as long for a
client that does not read its answers.
"""

import asyncio
from collections.abc import Mapping
from functools import partial
from typing import Any, Final

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from service.metrics import Metrics
from service.problems import (
    HEAD_TOO_LARGE,
    MALFORMED_REQUEST,
    MEDIA_TYPE,
    REQUEST_TIMEOUT,
    TOO_MANY_CONNECTIONS,
    Problem,
    ProblemType,
)
from service.settings import LimitSettings

_DETAILS: Final[Mapping[ProblemType, str]] = {
    MALFORMED_REQUEST: "This is no HTTP request.",
    REQUEST_TIMEOUT: "The rest of the request did not come in time.",
    HEAD_TOO_LARGE: "The request line and the headers take too many bytes.",
    TOO_MANY_CONNECTIONS: "This replica has as many connections as it may; close idle ones.",
}


class GuardedProtocol(HttpToolsProtocol):
    """One connection."""

    def __init__(self, *args: Any, limits: LimitSettings, metrics: Metrics, **options: Any) -> None:
        super().__init__(*args, **options)
        self._limits = limits
        self._metrics = metrics
        self._timer: asyncio.TimerHandle | None = None
        """Runs while a request, or the first byte of one, is due."""
        self._begun = False
        """A request has begun, and its last byte is not here."""
        self._head_bytes = 0
        """Of the head that is being read, as far as its lines are complete."""
        self._idle_bytes = 0
        """That came since the request began, or since its last byte of body: of an unfinished head, or of trailers."""
        self._is_counted = False
        """Whether what the parser reads now counts for `_idle_bytes`."""
        self._write_timer: asyncio.TimerHandle | None = None
        """Runs while the client is to take what was written."""
        self._cycles: list[RequestResponseCycle] = []
        """Requests that are not answered yet, the oldest first: uvicorn's `cycle` is the last of those pipelined."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Of asyncio.Protocol."""
        super().connection_made(transport)
        if len(self.connections) > self._limits.connections:
            self._refuse(TOO_MANY_CONNECTIONS)
            return
        self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        """Of asyncio.Protocol."""
        self._stop_waiting()
        self._stop_waiting_for_reader()
        for cycle in self._cycles:  # uvicorn tells one; an earlier one would write to a connection that is closed
            cycle.disconnected = cycle.disconnected or not cycle.response_complete
            cycle.message_event.set()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """Of asyncio.Protocol: the client takes less than it asks for."""
        super().pause_writing()
        self._wait_for_reader()

    def resume_writing(self) -> None:
        """Of asyncio.Protocol."""
        self._stop_waiting_for_reader()
        super().resume_writing()

    def shutdown(self) -> None:
        """Of uvicorn: the service ends."""
        super().shutdown()
        self._finish()

    def timeout_keep_alive_handler(self) -> None:
        """Of uvicorn: nothing was asked for a while."""
        super().timeout_keep_alive_handler()
        self._finish()

    def on_response_complete(self) -> None:
        """Of uvicorn: an answer is written."""
        super().on_response_complete()
        self._finish()

    def data_received(self, data: bytes) -> None:
        """Of asyncio.Protocol."""
        if self.transport.is_closing():
            return
        self._is_counted = True
        super().data_received(data)
        if self.transport.is_closing():
            return
        if self._begun and self._is_counted:
            self._idle_bytes += len(data)
            if self._idle_bytes > self._limits.head_bytes:
                self._refuse(HEAD_TOO_LARGE)
                return
        # After an answer uvicorn closes idle connections itself, until anything at all comes: line ends, for example.
        if self._timer is None and (self._begun or self.cycle is None or self.cycle.response_complete):
            self._wait()

    def on_message_begin(self) -> None:
        """Of the parser."""
        self._begun = True
        self._head_bytes = self._idle_bytes = 0
        self._is_counted = False  # of what came at once with it, an earlier request's part is not its own
        self._stop_waiting()
        self._wait()
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        """Of the parser."""
        self._head_bytes += len(url)
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Of the parser."""
        self._head_bytes += len(name) + len(value)
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Of the parser; what is raised here ends in `send_400_response`."""
        if self._head_bytes > self._limits.head_bytes:
            raise ValueError("the head is too large")
        super().on_headers_complete()
        self._cycles = [cycle for cycle in self._cycles if not cycle.response_complete]
        if self.cycle is not None:
            self._cycles.append(self.cycle)

    def on_body(self, body: bytes) -> None:
        """Of the parser."""
        self._idle_bytes = 0
        self._is_counted = False
        super().on_body(body)

    def on_message_complete(self) -> None:
        """Of the parser."""
        self._begun = False
        self._stop_waiting()
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002  (said in our words)
        """Of uvicorn."""
        self._refuse(HEAD_TOO_LARGE if self._head_bytes > self._limits.head_bytes else MALFORMED_REQUEST)

    def _has_head(self) -> bool:
        """Whether the request that is being read has got as far as its body."""
        return self.cycle is not None and self.cycle.more_body and self.cycle.scope is self.scope

    def _wait(self) -> None:
        self._timer = self.loop.call_later(self._limits.read_s, self._too_slow)

    def _stop_waiting(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _too_slow(self) -> None:
        self._timer = None
        if self.transport.is_closing():
            return
        if self.flow.read_paused:  # it is us who do not read on
            self._wait()
        elif self._begun:
            self._refuse(REQUEST_TIMEOUT)
        else:
            self.transport.close()  # nothing was asked
            self._finish()

    def _wait_for_reader(self) -> None:
        if self._write_timer is None:
            self._write_timer = self.loop.call_later(self._limits.read_s, self.transport.abort)

    def _stop_waiting_for_reader(self) -> None:
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None

    def _finish(self) -> None:
        """A connection that closes stays until its client has taken the rest: not for ever."""
        if self.transport.is_closing() and self.transport.get_write_buffer_size():
            self._wait_for_reader()

    def _refuse(self, kind: ProblemType) -> None:
        """Says so and closes; where that would stand for the answer to another request, it only closes."""
        self._metrics.errors.labels(kind.code).inc()
        if self._begun and self._has_head():
            may_answer = not self.cycle.response_started
        else:
            may_answer = self.cycle is None or self.cycle.response_complete
        if may_answer and not self.pipeline:
            body = Problem(kind, _DETAILS[kind]).body()
            head = f"content-type: {MEDIA_TYPE}\r\ncontent-length: {len(body)}\r\nconnection: close\r\n\r\n"
            self.transport.write(STATUS_LINE[kind.status] + head.encode() + body)
        self.transport.close()
        self._finish()


def guarded_protocol(limits: LimitSettings, metrics: Metrics) -> Any:
    """What uvicorn takes for `http`."""
    return partial(GuardedProtocol, limits=limits, metrics=metrics)
