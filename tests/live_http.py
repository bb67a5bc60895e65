"""A running service for tests: a real uvicorn on loopback, in a thread of this process."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import uvicorn

from service.app import create_app
from service.history import HistoryStore
from service.inference.runner import Runner
from service.settings import HistorySettings, Settings


def fake_settings(redis_url: str = "memory://", **overrides: Any) -> Settings:
    """The fake runner; patient with Redis, because a busy test machine is not what is tested."""
    history = HistorySettings(url=redis_url, read_timeout_ms=20_000, connect_timeout_ms=20_000)  # type: ignore[arg-type]
    return Settings(**{"runner": "fake", "history": history, "deadline_ms": 10_000, **overrides})


def free_port() -> int:
    """On loopback, free a moment ago."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
    return port


@contextmanager
def live_client(
    settings: Settings, *, runner: Runner | None = None, history: HistoryStore | None = None
) -> Iterator[httpx.Client]:
    """A client of a service that is ready."""
    app = create_app(settings, runner=runner, history=history)
    config = uvicorn.Config(app, port=0, http="httptools", loop="uvloop", log_config=None, access_log=False)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive(), "the service did not start"
            time.sleep(0.005)
        port = server.servers[0].sockets[0].getsockname()[1]
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
            yield client
    finally:
        server.should_exit = True
        thread.join(timeout=30)
    assert not thread.is_alive()
