"""The composition root: settings in, a running application out."""

import asyncio
import gc
import logging
import signal
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from typing import get_args

import uvicorn
from fastapi import FastAPI

from service.api import catalog, events, items, operations, recommend, similar, users
from service.api.context import RequestContext
from service.api.openapi import describe
from service.api.operations import package_version
from service.api.replies import add_handlers
from service.api.serving import Serving
from service.bundle.manifest import Purpose
from service.catalog import CatalogLog, LiveCatalog
from service.errors import CatalogError, CatalogUnavailable
from service.history import CopyLimits, GuardedHistoryStore, HistoryStore, ShownRecorder
from service.inference.batcher import Batcher
from service.inference.runner import Runner
from service.items import CatalogFollower, ItemWriter
from service.logs import configure_logging
from service.metrics import Metrics
from service.opening import open_catalog_log, open_history, open_model, redis_url, warm_up
from service.recommend import Recommender
from service.settings import CatalogSettings, Settings

_log = logging.getLogger(__name__)


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

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with _serving(settings, metrics, runner, history, catalog_log) as serving:
            app.state.serving = serving
            yield
            serving.stopping = True
        app.state.serving = None

    app = FastAPI(
        title="OneSlate",
        description="What should this user see next, as a whole slate?",
        version=package_version(),
        lifespan=lifespan,
        redoc_url=None,
        swagger_ui_oauth2_redirect_url=None,
        telemetry={"tracing": False, "metrics": False, "logs": False},
    )
    app.state.serving = None
    app.state.metrics = metrics
    app.add_middleware(RequestContext, metrics=metrics, max_body_bytes=settings.limits.body_bytes)
    add_handlers(app, metrics)
    # An item id may hold slashes: what is below an item's own path comes before it.
    for module in (recommend, events, users, similar, items, catalog, operations):
        app.include_router(module.router)
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
    app = create_app(settings)
    config = uvicorn.Config(
        app, http="httptools", loop="uvloop", lifespan="off", access_log=False, log_config=None, server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=max(1, round(settings.drain_s)),
    )  # fmt: skip

    async def run() -> None:
        # Outside of uvicorn, so that a bundle that cannot be served ends in its own error and not in a log line.
        async with app.router.lifespan_context(app):
            with _listening(settings.host, settings.port) as listener:
                await _Server(config, listener, on_ready).serve(sockets=[listener])

    with asyncio.Runner(loop_factory=config.get_loop_factory()) as event_loop:
        event_loop.run(run())


class _Server(uvicorn.Server):
    """Tells when it is up, and returns on a signal instead of passing the signal on."""

    def __init__(self, config: uvicorn.Config, listener: socket.socket, on_ready: Callable[[str], None] | None) -> None:
        super().__init__(config)
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
        opened, live = await asyncio.to_thread(open_model, settings, runner)
        purposes = get_args(Purpose) if settings.load_graphs == "start" else ("generator",)
        min_beam_width = settings.batch.min_beam_width(opened.manifest.beam_width)
        pace = await asyncio.to_thread(
            warm_up, opened, live.snapshot, settings.batch.max_size, purposes, min_beam_width
        )
        url = await redis_url(settings.history) if history is None else None
        if history is None:
            history = open_history(settings.history, url)
            stack.push_async_callback(history.close)
        guarded = GuardedHistoryStore(
            history, limits=CopyLimits(max_age_s=settings.history.stale_s, max_bytes=settings.history.copy_bytes)
        )
        if catalog_log is None:
            catalog_log = open_catalog_log(settings, url, opened.manifest.model_version)
            stack.push_async_callback(catalog_log.close)
        items = await stack.enter_async_context(_following(settings.catalog, catalog_log, live, opened, metrics))
        shown = ShownRecorder(guarded, metrics) if settings.history.shown_ttl_s else None
        if shown is not None:
            stack.push_async_callback(shown.close)
        batcher = Batcher(
            opened,
            lambda: live.snapshot,
            metrics,
            pace=pace,
            max_batch_size=settings.batch.max_size,
            max_wait_s=settings.batch.max_wait_ms / 1000,
            queue_limit=settings.batch.queue_limit,
            min_beam_width=min_beam_width,
        )
        stack.push_async_callback(batcher.close, settings.drain_s)
        recommender = Recommender(
            store=guarded,
            batcher=batcher,
            manifest=opened.manifest,
            catalog=lambda: live.snapshot,
            metrics=metrics,
            shown=shown,
        )
        serving = Serving(
            settings=settings,
            runner=opened,
            live=live,
            items=items,
            store=guarded,
            batcher=batcher,
            recommender=recommender,
            metrics=metrics,
            filters={name: named.tag_filter() for name, named in settings.filters.items()},
        )
        metrics.watch(lambda: batcher.queue_depth, lambda: guarded.is_asked, lambda: not serving.not_ready_reasons())
        metrics.build.labels(package_version(), opened.manifest.model_version, opened.provider).set(1)
        _log.info("model %s, catalog %s", opened.manifest.model_version, live.snapshot.version)
        yield serving


@asynccontextmanager
async def _following(
    settings: CatalogSettings, log: CatalogLog, live: LiveCatalog, runner: Runner, metrics: Metrics
) -> AsyncIterator[ItemWriter]:
    """Brings the catalog to the end of its log, keeps it there, and gives what writes to it."""
    follower = CatalogFollower(log, live, metrics, poll_s=settings.poll_ms / 1000, merge_s=settings.merge_ms / 1000)
    writer = ItemWriter(log, live, follower, runner.manifest.max_branch, metrics)
    follower.adopt = writer.adopt
    try:
        await follower.catch_up()
    except (CatalogUnavailable, CatalogError) as error:
        # Slates of the bundle's own items are better than none; the follower keeps trying.
        _log.warning("starting with the bundle's own items: %s", error)
    task = asyncio.create_task(follower.run(), name="catalog follower")
    try:
        yield writer
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await follower.close()
