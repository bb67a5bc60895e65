"""The composition root: settings in, a running application out."""

import asyncio
import gc
import logging
import signal
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager

import numpy as np
import uvicorn
from fastapi import FastAPI

from service.api import events, operations, recommend, users
from service.api.context import RequestContext
from service.api.openapi import describe
from service.api.operations import package_version
from service.api.replies import add_handlers
from service.api.serving import Serving
from service.bundle import Bundle
from service.catalog import CatalogSnapshot
from service.history import HistoryLimits, HistoryStore, MemoryHistoryStore
from service.inference.batcher import Batcher
from service.inference.fake_runner import FakeRunner, fake_catalog, fake_manifest
from service.inference.features import RequestInputs, build_batch
from service.inference.runner import Runner
from service.logs import configure_logging
from service.metrics import Metrics
from service.recommend import Recommender
from service.settings import HistorySettings, Settings

_log = logging.getLogger(__name__)
_DAY_MS = 24 * 3600 * 1000


def create_app(settings: Settings, *, runner: Runner | None = None, history: HistoryStore | None = None) -> FastAPI:
    """The application; its lifespan opens what the settings name and closes what it opened.

    Args:
        settings: Read once, here.
        runner: Instead of the one that the settings name; its catalog is the bundle's, or the fake one.
        history: Instead of the store that the settings name; stays open.

    Entering the lifespan raises BundleError, CatalogError, RunnerError, HistoryUnavailable or ValueError, each with one
    clear line, when something named cannot be used. A Redis that does not answer is none of these: slates do without.
    """
    metrics = Metrics()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with _serving(settings, metrics, runner, history) as serving:
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
    for module in (recommend, events, users, operations):
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
    settings: Settings, metrics: Metrics, runner: Runner | None, history: HistoryStore | None
) -> AsyncIterator[Serving]:
    async with AsyncExitStack() as stack:
        opened, snapshot = await asyncio.to_thread(_open_model, settings, runner)
        await asyncio.to_thread(_warm_up, opened, snapshot, settings.batch.max_size)
        if history is None:
            history = await _open_history(settings.history)
            stack.push_async_callback(history.close)
        batcher = Batcher(
            opened,
            lambda: snapshot,
            metrics,
            max_batch_size=settings.batch.max_size,
            max_wait_s=settings.batch.max_wait_ms / 1000,
            queue_limit=settings.batch.queue_limit,
        )
        stack.push_async_callback(batcher.close, settings.drain_s)
        recommender = Recommender(
            store=history, batcher=batcher, manifest=opened.manifest, catalog=lambda: snapshot, metrics=metrics
        )
        serving = Serving(
            settings=settings,
            runner=opened,
            catalog=lambda: snapshot,
            store=history,
            batcher=batcher,
            recommender=recommender,
            metrics=metrics,
            filters={name: named.tag_filter() for name, named in settings.filters.items()},
        )
        metrics.watch(lambda: batcher.queue_depth, lambda: not serving.not_ready_reasons())
        metrics.build.labels(package_version(), opened.manifest.model_version, opened.provider).set(1)
        _log.info("model %s, catalog %s", opened.manifest.model_version, snapshot.version)
        yield serving


def _open_model(settings: Settings, runner: Runner | None) -> tuple[Runner, CatalogSnapshot]:
    """The runner and the catalog that it decodes against."""
    if settings.bundle is None:
        runner = runner or FakeRunner(fake_manifest(), settings.fake.service_time_ms / 1000)
        return runner, fake_catalog(settings.fake.num_items, runner.manifest.num_levels)
    bundle = Bundle.open(settings.bundle)
    bundled = bundle.catalog()
    snapshot = CatalogSnapshot.build(
        bundled.items,
        bundled.sids_NL,
        bundled.num_events_N,
        max_branch=bundle.manifest.max_branch,
        vectors_ND=bundled.vectors_ND,
    )
    if runner is None and settings.runner == "fake":
        runner = FakeRunner(bundle.manifest, settings.fake.service_time_ms / 1000)
    if runner is None:
        # The fake runner and its tests do without onnxruntime.
        from service.inference.golden import check_golden  # noqa: PLC0415
        from service.inference.ort_runner import OrtRunner  # noqa: PLC0415

        runner = OrtRunner(bundle.manifest, bundle.graph_path(), num_threads=settings.intra_op_threads)
        num_cases = check_golden(bundle, runner, snapshot)
        _log.info("%s agrees with its %d golden cases", settings.bundle, num_cases)
    return runner, snapshot


def _warm_up(runner: Runner, snapshot: CatalogSnapshot, max_batch_size: int) -> None:
    """Runs the smallest and the largest shapes once, so that no request pays for first allocations."""
    for num_events in (0, runner.manifest.history_length):
        events = RequestInputs(
            item_keys_E=np.zeros(num_events, dtype=np.uint64),
            timestamps_ms_E=np.zeros(num_events, dtype=np.int64),
            actions_E=np.ones(num_events, dtype=np.int32),
            values_E=np.full(num_events, np.nan, dtype=np.float32),
            now_ms=0,
        )
        for batch_size in (1, max_batch_size):
            runner.run(build_batch([events] * batch_size, snapshot, runner.manifest, max_batch_size))


async def _open_history(settings: HistorySettings) -> HistoryStore:
    limits = HistoryLimits(
        num_entries=settings.num_entries, num_seen=settings.num_seen, max_age_ms=settings.max_age_days * _DAY_MS
    )
    if settings.url is None and settings.data_dir is None:
        raise ValueError("ONESLATE_HISTORY__URL or ONESLATE_HISTORY__DATA_DIR must say where histories are kept")
    if settings.url is not None and settings.url.get_secret_value() == "memory://":
        return MemoryHistoryStore(limits)
    # Without Redis nothing of it is loaded.
    from service.history.connection import ConnectionLimits  # noqa: PLC0415
    from service.history.embedded import EmbeddedRedis  # noqa: PLC0415
    from service.history.redis_store import RedisHistoryStore  # noqa: PLC0415

    if settings.data_dir is not None:
        embedded = EmbeddedRedis(settings.data_dir, appendfsync=settings.fsync)
        url = await asyncio.to_thread(embedded.start)
    else:
        assert settings.url is not None
        url = settings.url.get_secret_value()
    connection_limits = ConnectionLimits(
        connect_timeout_ms=settings.connect_timeout_ms,
        read_timeout_ms=settings.read_timeout_ms,
        max_connections=settings.max_connections,
    )
    return RedisHistoryStore(url, limits, connection_limits)
