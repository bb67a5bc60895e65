"""The composition root: settings in, a running application out."""

import asyncio
import gc
import logging
import signal
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from functools import partial
from types import FrameType
from typing import Final

import uvicorn
from fastapi import FastAPI
from fastapi.routing import iter_route_contexts

from service.api import catalog, events, explorer, items, models, operations, recommend, similar, users
from service.api.context import RequestContext
from service.api.examples import DESCRIPTION, TAGS
from service.api.openapi import describe
from service.api.protocol import guarded_protocol
from service.api.replies import add_handlers
from service.api.serving import Serving
from service.background import running
from service.bundle.reader import read_manifest
from service.catalog import CatalogLog
from service.errors import KeyFileError
from service.files import allow_files
from service.history import CopyLimits, GuardedHistoryStore, HistoryStore, ShownRecorder
from service.inference.runner import Runner
from service.keys import KeyRing
from service.logs import configure_logging
from service.metrics import Metrics
from service.models import Models
from service.models.check import check_aside
from service.models.opened import Surroundings, open_registry, open_states, opened_model
from service.opening import open_history, redis_url
from service.problems import PROBLEM_TYPES
from service.recommend import OUTCOMES
from service.settings import Settings
from service.version import package_version

_log = logging.getLogger(__name__)
_KEYS_EVERY_S: Final = 1.0


def create_app(
    settings: Settings,
    *,
    runner: Runner | None = None,
    history: HistoryStore | None = None,
    catalog_log: CatalogLog | None = None,
) -> FastAPI:
    """The application; its lifespan opens what the settings name and closes what it opened.

    Args:
        settings: Read once, here.
        runner: Instead of the one that the settings name; its catalog is the bundle's, or the fake one.
        history: Instead of the store that the settings name; stays open.
        catalog_log: Instead of the one that the settings name; stays open. With `history` and without this one, changes
            of items end with the process.

    Entering the lifespan raises BundleError, CatalogError, RunnerError, HistoryUnavailable or ValueError, each with one
    clear line, when something named cannot be used. A Redis that does not answer is none of these: slates do without.
    """
    metrics = Metrics()
    metrics.default_deadline.set(settings.deadline_ms / 1000)
    metrics.event_log_limit.set(settings.event_log.max_rows)
    metrics.expect(OUTCOMES, (problem.code for problem in PROBLEM_TYPES))

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with _serving(settings, metrics, runner, history, catalog_log) as serving:
            app.state.serving = serving
            yield
            serving.stopping = True
        app.state.serving = None

    app = FastAPI(
        title="OneSlate",
        description=DESCRIPTION,
        openapi_tags=list(TAGS),
        license_info={"name": "Apache 2.0", "identifier": "Apache-2.0"},
        generate_unique_id_function=lambda route: route.name,
        version=package_version(),
        lifespan=lifespan,
        docs_url=None,  # FastAPI's page runs scripts of other hosts; ours is in service.api.explorer
        redoc_url=None,
        telemetry={"tracing": False, "metrics": False, "logs": False},
    )
    app.state.serving = None
    app.state.metrics = metrics
    app.add_middleware(
        RequestContext,
        metrics=metrics,
        max_body_bytes=settings.limits.body_bytes,
        direct={
            ("POST", "/v1/recommend"): recommend.recommend,
            ("POST", "/v1/recommend/batch"): recommend.recommend_batch,
            ("POST", "/v1/events"): events.add_events,
        },
        is_crowded=lambda: app.state.serving is not None and app.state.serving.is_crowded(),
    )
    add_handlers(app, metrics)
    # An item id may hold slashes: what is below an item's own path comes before it.
    for module in (recommend, events, users, similar, items, catalog, models, operations, explorer):
        app.include_router(module.router)
    # FastAPI makes them when the first request comes, which would wait for it, as would all others meanwhile.
    for _ in iter_route_contexts(app.routes):
        pass
    app.openapi = lambda: describe(app)  # type: ignore[method-assign]
    return app


def serve(settings: Settings, *, on_ready: Callable[[str], None] | None = None) -> None:
    """Runs the service until SIGINT or SIGTERM, then finishes what is in flight and returns.

    Args:
        settings: Of the service.
        on_ready: Called with the base URL once requests are answered.

    Raises:
        OneSlateError, ValueError: something that the settings name cannot be used; one clear line.
    """
    configure_logging(settings.log_level, settings.log_format)
    allow_files(settings)
    app = create_app(settings)
    config = uvicorn.Config(
        app, http=guarded_protocol(settings.limits, app.state.metrics), ws="none", loop="uvloop", lifespan="off",
        access_log=False, log_config=None, server_header=False, proxy_headers=False,
        timeout_graceful_shutdown=max(1, round(settings.drain_s)),
    )  # fmt: skip

    async def run() -> None:
        # Outside of uvicorn, so that a bundle that cannot be served ends in its own error and not in a log line.
        async with app.router.lifespan_context(app):
            with _listening(settings.host, settings.port) as listener:
                await _Server(config, listener, on_ready, app).serve(sockets=[listener])

    with asyncio.Runner(loop_factory=config.get_loop_factory()) as event_loop:
        event_loop.run(run())


class _Server(uvicorn.Server):
    """Tells when it is up, and returns on a signal instead of passing the signal on."""

    def __init__(
        self,
        config: uvicorn.Config,
        listener: socket.socket,
        on_ready: Callable[[str], None] | None,
        app: FastAPI,
    ) -> None:
        super().__init__(config)
        self._app = app
        self._listener = listener
        self._on_ready = on_ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        # What is loaded by now stays: the collector need not look at a catalog of a million items again and again.
        gc.collect()
        gc.freeze()
        host, port = self._listener.getsockname()[:2]
        url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
        _log.info("serving on %s", url)
        if self._on_ready is not None:
            self._on_ready(url)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self._app.state.serving is not None:
            self._app.state.serving.stopping = True
        super().handle_exit(sig, frame)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        signals = (signal.SIGINT, signal.SIGTERM)
        for one in signals:
            loop.add_signal_handler(one, self.handle_exit, one, None)
        try:
            yield
        finally:
            for one in signals:
                loop.remove_signal_handler(one)


@contextmanager
def _listening(host: str, port: int) -> Iterator[socket.socket]:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        raise ValueError(f"cannot listen on {host}:{port}: {error.strerror or error}") from error
    with listener:
        yield listener


@asynccontextmanager
async def _serving(
    settings: Settings,
    metrics: Metrics,
    runner: Runner | None,
    history: HistoryStore | None,
    catalog_log: CatalogLog | None,
) -> AsyncIterator[Serving]:
    async with AsyncExitStack() as stack:
        keys = None if settings.keys_file is None else KeyRing(settings.keys_file)
        if keys is not None:
            await stack.enter_async_context(_refreshed(keys, metrics))
        if settings.bundle is not None:  # before a Redis is started for nothing
            await asyncio.to_thread(read_manifest, settings.bundle / "manifest.json")
        url = await redis_url(settings.history) if history is None else None
        registry = open_registry(settings, url)
        if history is None:
            history = open_history(settings.history, url, settings.event_log.max_rows)
            stack.push_async_callback(history.close)
        guarded = GuardedHistoryStore(
            history, limits=CopyLimits(max_age_s=settings.history.stale_s, max_bytes=settings.history.copy_bytes)
        )
        recorded = settings.history.shown_ttl_s or settings.event_log.max_rows
        shown = ShownRecorder(guarded, metrics) if recorded else None
        if shown is not None:
            stack.push_async_callback(shown.close)
        around = Surroundings(
            settings=settings,
            metrics=metrics,
            store=guarded,
            shown=shown,
            redis_url=url,
            runner=runner,
            catalog_log=catalog_log,
        )
        states = open_states(settings, url)
        stack.push_async_callback(states.close)
        in_service = await stack.enter_async_context(
            Models.opened(registry, states, partial(opened_model, around), partial(check_aside, settings), metrics)
        )
        serving = Serving(
            settings=settings,
            models=in_service,
            store=guarded,
            metrics=metrics,
            shown=shown,
            keys=keys,
            filters={name: named.tag_filter() for name, named in settings.filters.items()},
        )
        metrics.watch(
            queue_depth=lambda: sum(model.batcher.queue_depth for model in in_service.loaded()),
            history_asked=lambda: guarded.is_asked,
            ready=lambda: not serving.not_ready_reasons(),
            shown_lately=lambda: in_service.active.health.num_shown_lately,
            available=lambda: in_service.active.catalog().num_available,
        )
        async with running(serving.lag.measure(), "loop lag"), running(guarded.follow_forgotten(), "forgotten users"):
            yield serving


@asynccontextmanager
async def _refreshed(keys: KeyRing, metrics: Metrics) -> AsyncIterator[None]:
    """Keeps the keys as their file has them."""

    async def refresh() -> None:
        while True:
            await asyncio.sleep(_KEYS_EVERY_S)
            try:
                await asyncio.to_thread(keys.refresh)
            except KeyFileError as error:
                _log.error("the API keys of before stay in force: %s", error)
            except Exception:  # noqa: BLE001 - of a task that nobody waits for; the next look may go well
                _log.exception("the file of API keys is not looked at now")
            metrics.key_file_current.set(keys.is_current)

    async with running(refresh(), "API keys"):
        yield
