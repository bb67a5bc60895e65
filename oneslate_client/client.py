"""The clients: one that waits, one for asyncio. They differ in how they wait alone; calls and policy are shared."""

import asyncio
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable
from types import TracebackType
from typing import Any, Final, Generic, Self, TypeVar, Unpack

import httpx

from oneslate_client import calls
from oneslate_client.answers import (
    BatchResult,
    Catalog,
    CatalogRollback,
    EventResult,
    History,
    Item,
    ItemResult,
    Models,
    Ready,
    Similar,
    Slate,
    Version,
)
from oneslate_client.calls import Call
from oneslate_client.errors import UnexpectedAnswer, Unreachable
from oneslate_client.policy import Course, RetryPolicy
from oneslate_client.requests import Event, ItemChange, ItemFields, SlateOptions, SlateRequest

T = TypeVar("T")
HttpT = TypeVar("HttpT")
_NOT_SENT: Final = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)
_LIMITS: Final = httpx.Limits(keepalive_expiry=2.0)
"""Shorter than a server's: a request on a connection that is just being closed would be lost."""
_DEFAULT_POLICY: Final = RetryPolicy()


class _Client(ABC, Generic[HttpT]):
    """What both clients are made of."""

    def __init__(
        self,
        url: str,
        *,
        key: str | None = None,
        timeout_s: float = 10.0,
        connect_timeout_s: float = 2.0,
        retries: RetryPolicy = _DEFAULT_POLICY,
    ) -> None:
        """Nothing is connected yet.

        Args:
            url: Of the service: `http://127.0.0.1:8000`.
            key: An API key, where the service asks for one.
            timeout_s: For a whole call, pauses and further tries included; an answer that trickles in may take longer.
            connect_timeout_s: For each connection.
            retries: When a call is sent again.

        Raises:
            ValueError: the URL is none of http or https, or a time is not positive.
        """
        try:
            self._url = httpx.URL(url.rstrip("/"))
        except httpx.InvalidURL as error:
            raise ValueError(f"{url!r} is no URL: {error}") from error
        if self._url.scheme not in {"http", "https"} or not self._url.host:
            raise ValueError(f"{url!r} is no URL of http or https")
        if timeout_s <= 0 or connect_timeout_s <= 0:
            raise ValueError("timeout_s and connect_timeout_s must be positive")
        self._headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        self._timeout_s = timeout_s
        self._connect_timeout_s = connect_timeout_s
        self._retries = retries
        self._http: HttpT = self._opened()

    @abstractmethod
    def _opened(self) -> HttpT:
        """What speaks HTTP."""

    def _course(self, call: Call[Any], begin_s: float) -> Course:
        return Course(self._retries, may_repeat=call.may_repeat, deadline_s=begin_s + self._timeout_s)

    def _request(self, call: Call[Any], left_s: float) -> dict[str, Any]:
        """For httpx."""
        if left_s <= 0:
            raise Unreachable(f"{self._url}: no answer within {self._timeout_s:g} s")
        return {
            "method": call.method,
            "url": f"{self._url}{call.path}",
            "params": call.params,
            "json": call.body,
            "headers": self._headers,
            "timeout": httpx.Timeout(left_s, connect=min(left_s, self._connect_timeout_s)),
        }


class OneSlate(_Client[httpx.Client]):
    """A client that waits. Threads may share it; use it as a context manager, or close it.

    Every method raises ApiError (TryLater: it was tried as long as time allowed), Unreachable, or UnexpectedAnswer.

    Example:
        >>> with OneSlate("http://127.0.0.1:8000") as client:  # doctest: +SKIP
        ...     slate = client.recommend("ann", 5)
    """

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _opened(self) -> httpx.Client:
        return httpx.Client(limits=_LIMITS)

    def close(self) -> None:
        """Lets go of connections."""
        self._http.close()

    def _send(self, call: Call[T]) -> T:
        begin_s = time.monotonic()
        course = self._course(call, begin_s)
        while True:
            try:
                answer = self._http.request(**self._request(call, begin_s + self._timeout_s - time.monotonic()))
            except httpx.RequestError as error:
                pause_s = course.no_answer(error, time.monotonic(), was_sent=not isinstance(error, _NOT_SENT))
            else:
                if answer.status_code in call.statuses:
                    try:
                        return call.read(_json(answer))
                    except UnexpectedAnswer:
                        if answer.is_success:
                            raise
                        # A gateway says 503, too, and a service that has too many connections.
                pause_s = course.problem(answer.status_code, answer.headers, _problem(answer), time.monotonic())
            time.sleep(pause_s)

    def recommend(self, user_id: str, slate_size: int, **options: Unpack[SlateOptions]) -> Slate:
        """A user's next slate."""
        return self._send(calls.recommend(user_id, slate_size, options))

    def recommend_batch(self, requests: Iterable[SlateRequest]) -> list[BatchResult]:
        """Slates of many users; each is answered, and fails, alone."""
        return self._send(calls.recommend_batch(requests))

    def send_events(self, events: Iterable[Event]) -> list[EventResult]:
        """Stores what users did; `stored`, `duplicate` or `refused`, one result an event."""
        return self._send(calls.send_events(events))

    def history(self, user_id: str) -> History:
        """What is stored of a user."""
        return self._send(calls.history(user_id))

    def forget(self, user_id: str) -> None:
        """Deletes what is stored of a user."""
        self._send(calls.forget(user_id))

    def some_users(self, limit: int = 20) -> list[str]:
        """A few users who have a history, at random."""
        return self._send(calls.some_users(limit))

    def item(self, item_id: str) -> Item:
        """An item of the catalog."""
        return self._send(calls.item(item_id))

    def put_item(self, item_id: str, **fields: Unpack[ItemFields]) -> ItemResult:
        """Adds an item, brings it back, or replaces what is known of it."""
        return self._send(calls.put_item(item_id, fields))

    def remove_item(self, item_id: str) -> None:
        """Takes an item out: it is not recommended again."""
        self._send(calls.remove_item(item_id))

    def change_items(self, changes: Iterable[ItemChange]) -> list[ItemResult]:
        """Changes many items; members left out stay as they are."""
        return self._send(calls.change_items(changes))

    def similar(self, item_id: str, k: int = 10) -> Similar:
        """The items nearest to one."""
        return self._send(calls.similar(item_id, k))

    def catalog(self, limit: int = 20) -> Catalog:
        """The catalog in service, and so many versions before it."""
        return self._send(calls.catalog(limit))

    def roll_back_catalog(self, catalog_version: str) -> CatalogRollback:
        """Back to the items of a version."""
        return self._send(calls.roll_back_catalog(catalog_version))

    def models(self) -> Models:
        """Which models are in service, and which may be."""
        return self._send(calls.models())

    def activate(self, model_version: str, share: float = 1.0) -> Models:
        """Puts a model into service, for all or a share of users."""
        return self._send(calls.activate(model_version, share))

    def roll_back_model(self, leaving: str | None = None) -> Models:
        """Leaves a model for the one before it."""
        return self._send(calls.roll_back_model(leaving))

    def ready(self) -> Ready:
        """Whether requests should come here."""
        return self._send(calls.ready())

    def version(self) -> Version:
        """What runs."""
        return self._send(calls.version())


class AsyncOneSlate(_Client[httpx.AsyncClient]):
    """As OneSlate, for asyncio."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def _opened(self) -> httpx.AsyncClient:
        return httpx.AsyncClient(limits=_LIMITS)

    async def close(self) -> None:
        """Lets go of connections."""
        await self._http.aclose()

    async def _send(self, call: Call[T]) -> T:
        begin_s = time.monotonic()
        course = self._course(call, begin_s)
        while True:
            try:
                answer = await self._http.request(**self._request(call, begin_s + self._timeout_s - time.monotonic()))
            except httpx.RequestError as error:
                pause_s = course.no_answer(error, time.monotonic(), was_sent=not isinstance(error, _NOT_SENT))
            else:
                if answer.status_code in call.statuses:
                    try:
                        return call.read(_json(answer))
                    except UnexpectedAnswer:
                        if answer.is_success:
                            raise
                        # A gateway says 503, too, and a service that has too many connections.
                pause_s = course.problem(answer.status_code, answer.headers, _problem(answer), time.monotonic())
            await asyncio.sleep(pause_s)

    async def recommend(self, user_id: str, slate_size: int, **options: Unpack[SlateOptions]) -> Slate:
        """See OneSlate."""
        return await self._send(calls.recommend(user_id, slate_size, options))

    async def recommend_batch(self, requests: Iterable[SlateRequest]) -> list[BatchResult]:
        """See OneSlate."""
        return await self._send(calls.recommend_batch(requests))

    async def send_events(self, events: Iterable[Event]) -> list[EventResult]:
        """See OneSlate."""
        return await self._send(calls.send_events(events))

    async def history(self, user_id: str) -> History:
        """See OneSlate."""
        return await self._send(calls.history(user_id))

    async def forget(self, user_id: str) -> None:
        """See OneSlate."""
        await self._send(calls.forget(user_id))

    async def some_users(self, limit: int = 20) -> list[str]:
        """See OneSlate."""
        return await self._send(calls.some_users(limit))

    async def item(self, item_id: str) -> Item:
        """See OneSlate."""
        return await self._send(calls.item(item_id))

    async def put_item(self, item_id: str, **fields: Unpack[ItemFields]) -> ItemResult:
        """See OneSlate."""
        return await self._send(calls.put_item(item_id, fields))

    async def remove_item(self, item_id: str) -> None:
        """See OneSlate."""
        await self._send(calls.remove_item(item_id))

    async def change_items(self, changes: Iterable[ItemChange]) -> list[ItemResult]:
        """See OneSlate."""
        return await self._send(calls.change_items(changes))

    async def similar(self, item_id: str, k: int = 10) -> Similar:
        """See OneSlate."""
        return await self._send(calls.similar(item_id, k))

    async def catalog(self, limit: int = 20) -> Catalog:
        """See OneSlate."""
        return await self._send(calls.catalog(limit))

    async def roll_back_catalog(self, catalog_version: str) -> CatalogRollback:
        """See OneSlate."""
        return await self._send(calls.roll_back_catalog(catalog_version))

    async def models(self) -> Models:
        """See OneSlate."""
        return await self._send(calls.models())

    async def activate(self, model_version: str, share: float = 1.0) -> Models:
        """See OneSlate."""
        return await self._send(calls.activate(model_version, share))

    async def roll_back_model(self, leaving: str | None = None) -> Models:
        """See OneSlate."""
        return await self._send(calls.roll_back_model(leaving))

    async def ready(self) -> Ready:
        """See OneSlate."""
        return await self._send(calls.ready())

    async def version(self) -> Version:
        """See OneSlate."""
        return await self._send(calls.version())


def _json(answer: httpx.Response) -> Any:
    if not answer.content:
        return None
    try:
        return answer.json()
    except ValueError as error:
        raise UnexpectedAnswer(f"{answer.url}: the answer is no JSON: {answer.text[:100]!r}") from error


def _problem(answer: httpx.Response) -> dict[str, Any]:
    """Of an answer that is none of the call's own; a proxy's page is told in its own words."""
    try:
        members = answer.json()
    except ValueError:
        members = None
    if isinstance(members, dict):
        return members
    return {"title": answer.reason_phrase, "detail": answer.text[:200].strip()}
