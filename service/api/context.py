"""What stands around every request, as one pure ASGI layer: its id, the body limit, metrics, the last error handler.

Routes that take most of the traffic are called from here, past the framework's own layers: those cost as much as the
work that they stand around (docs/decisions/0026). Descriptions and errors are those of every other route.
"""

import logging
import re
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Final

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.api.replies import noted_response, problem_response
from service.errors import OneSlateError
from service.logs import request_id
from service.metrics import Metrics
from service.problems import BODY_TOO_LARGE, INTERNAL_ERROR, OVERLOADED, Problem, ProblemError
from service.randomness import random_hex

_log = logging.getLogger("service.requests")
_SANE_ID: Final = re.compile(r"[A-Za-z0-9._-]{1,128}")
_CONVERTOR: Final = re.compile(r":\w+}")
_SECURITY: Final = (
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cache-control", b"no-store"),
)
"""Of every answer: it is what it says it is, in no frame, tells no other site its address, and is in no cache."""
_METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_SLATES: Final = frozenset({"/v1/recommend", "/v1/recommend/batch"})
"""What is refused at the door: to say no there costs a fraction of reading the request first. Events are not."""
_CROWDED: Final = Problem(OVERLOADED, "More comes than can be read.", headers={"Retry-After": "1"})
Endpoint = Callable[[Request], Awaitable[Response]]


class RequestContext:
    """Wraps the application."""

    def __init__(
        self,
        app: ASGIApp,
        metrics: Metrics,
        max_body_bytes: int,
        direct: Mapping[tuple[str, str], Endpoint],
        is_crowded: Callable[[], bool],
    ) -> None:
        """Around `app`.

        Args:
            app: The application.
            metrics: Requests and errors are counted there.
            max_body_bytes: Larger bodies are refused.
            direct: What is called past the framework, by method and path.
            is_crowded: Whether slates are refused at the door.
        """
        self._app = app
        self._direct = {place: self._called(endpoint) for place, endpoint in direct.items()}
        self._is_crowded = is_crowded
        self._metrics = metrics
        self._max_body_bytes = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handles one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        exchange = _Exchange(scope, send)
        request_id.set(exchange.request_id)
        app = self._direct.get((scope["method"], scope["path"]), self._app)
        try:
            if scope["path"] in _SLATES and self._is_crowded():
                await problem_response(_CROWDED, self._metrics)(scope, receive, exchange.send)
            elif exchange.content_length is None:
                await app(scope, self._counted(receive), exchange.send)
            elif exchange.content_length > self._max_body_bytes:
                await problem_response(self._too_large(), self._metrics)(scope, receive, exchange.send)
            else:  # the server holds the body to its announced length
                await app(scope, receive, exchange.send)
        except ClientDisconnect:
            pass  # half a body; the metrics say 499
        except Exception:
            _log.exception("unexpected error")
            if exchange.status:  # half an answer is out: only a broken connection can tell the client
                raise
            problem = Problem(INTERNAL_ERROR, "The error is logged under the request id.")
            await problem_response(problem, self._metrics)(scope, receive, exchange.send)
        finally:
            self._record(scope, exchange)

    def _called(self, endpoint: Endpoint) -> ASGIApp:
        async def call(scope: Scope, receive: Receive, send: Send) -> None:
            try:
                response = await endpoint(Request(scope, receive))
            except OneSlateError as error:
                response = noted_response(error, self._metrics)
            await response(scope, receive, send)

        return call

    def _counted(self, receive: Receive) -> Receive:
        """For a body of unannounced length: ends the request when it grows too large."""
        num_bytes = 0

        async def counted() -> Message:
            nonlocal num_bytes
            message = await receive()
            num_bytes += len(message.get("body", b""))
            if num_bytes > self._max_body_bytes:
                raise ProblemError(self._too_large())
            return message

        return counted

    def _too_large(self) -> Problem:
        return Problem(BODY_TOO_LARGE, f"At most {self._max_body_bytes} bytes.", headers={"Connection": "close"})

    def _record(self, scope: Scope, exchange: "_Exchange") -> None:
        took_s = time.perf_counter() - exchange.started_s
        # Only names that we gave may become labels, or a client could make as many as it likes.
        is_direct = (scope["method"], scope["path"]) in self._direct
        route = scope["path"] if is_direct else _CONVERTOR.sub("}", getattr(scope.get("route"), "path", "unmatched"))
        method = scope["method"] if scope["method"] in _METHODS else "other"
        self._metrics.requests.labels(method, route, exchange.status or 499).inc()
        self._metrics.request_seconds.labels(route).observe(took_s)
        if _log.isEnabledFor(logging.DEBUG) or exchange.status >= 500:
            level = logging.WARNING if exchange.status >= 500 else logging.DEBUG
            _log.log(level, "%s %s %d in %.1f ms", method, route, exchange.status, took_s * 1000)


class _Exchange:
    """One request and its answer."""

    __slots__ = ("_send", "content_length", "request_id", "started_s", "status")

    def __init__(self, scope: Scope, send: Send) -> None:
        self.started_s = time.perf_counter()
        self.status = 0
        self.content_length: int | None = None
        self.request_id = ""
        self._send = send
        is_chunked = False
        for name, value in scope["headers"]:
            if name == b"content-length":
                self.content_length = int(value)
            elif name == b"transfer-encoding":
                is_chunked = True
            elif name == b"x-request-id" and _SANE_ID.fullmatch(given := value.decode("latin-1")):
                self.request_id = given
        if self.content_length is None and not is_chunked:
            self.content_length = 0
        self.request_id = self.request_id or random_hex(16)

    async def send(self, message: Message) -> None:
        """Notes the status and adds the request's id."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            message["headers"] = [*message["headers"], *_SECURITY, (b"x-request-id", self.request_id.encode())]
        await self._send(message)
