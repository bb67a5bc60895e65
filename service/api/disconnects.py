"""Nobody works for a client that has gone."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from starlette.requests import Request

_PATIENCE_S = 0.01
"""Shorter work is not watched: watching costs more than what it saves."""

Result = TypeVar("Result")


class ClientGone(Exception):
    """The client closed the connection before its answer."""


async def while_connected(request: Request, work: Coroutine[Any, Any, Result]) -> Result:
    """The result of `work`, which is cancelled when the client disconnects. The body must have been read.

    Raises:
        ClientGone: the client has gone.
    """
    task = asyncio.current_task()
    assert task is not None
    watch = _Watch(request, task)
    timer = asyncio.get_running_loop().call_later(_PATIENCE_S, watch.start)
    try:
        return await work
    except asyncio.CancelledError:
        if watch.saw_end and task.uncancel() == 0:
            raise ClientGone from None
        raise
    finally:
        timer.cancel()
        watch.stop()


class _Watch:
    def __init__(self, request: Request, worker: "asyncio.Task[Any]") -> None:
        self._request = request
        self._worker = worker
        self._watcher: asyncio.Task[None] | None = None
        self.saw_end = False

    def start(self) -> None:
        self._watcher = asyncio.create_task(self._wait())

    def stop(self) -> None:
        if self._watcher is not None:
            self._watcher.cancel()

    async def _wait(self) -> None:
        while (await self._request.receive())["type"] != "http.disconnect":
            pass
        self.saw_end = True
        self._worker.cancel()
