"""Models, opened: what may be activated, what is, and one model with its engine, catalog and queue."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from service.bundle.manifest import Purpose
from service.catalog import CatalogLog, LiveCatalog
from service.errors import CatalogError, CatalogUnavailable, ModelsUnavailable
from service.history import GuardedHistoryStore, ShownRecorder
from service.inference.batcher import Batcher
from service.inference.runner import Runner
from service.items import CatalogFollower, ItemWriter
from service.metrics import Metrics
from service.models.model import Model
from service.models.registry import Registry
from service.models.state import MemoryModelStates, ModelStates
from service.opening import open_catalog_log, open_model, warm_up
from service.recommend import Recommender
from service.settings import CatalogSettings, Settings

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """What all models of a process share."""

    settings: Settings
    metrics: Metrics
    store: GuardedHistoryStore
    shown: ShownRecorder | None
    redis_url: str | None
    """Where the catalog's log is; None: in this process."""
    runner: Runner | None = None
    """Instead of the one that the settings name."""
    catalog_log: CatalogLog | None = None
    """Instead of one of the model's own; stays open."""


def open_registry(settings: Settings, url: str | None) -> Registry | None:
    """What may be activated; None: nothing but what the settings name.

    Raises:
        ValueError: no such folder, or nowhere to keep what is active.
    """
    if settings.models_dir is None:
        return None
    if url is None:
        raise ValueError("ONESLATE_MODELS_DIR needs a Redis: what is active must outlive the process")
    return Registry(settings.models_dir)


def open_states(settings: Settings, url: str | None) -> ModelStates:
    """Where it is kept which model is active; nothing is connected yet."""
    if url is None:
        return MemoryModelStates()
    # Without Redis nothing of it is loaded.
    from service.connection import ConnectionLimits, RedisConnection  # noqa: PLC0415
    from service.models.redis_states import RedisModelStates  # noqa: PLC0415

    limits = ConnectionLimits(
        connect_timeout_ms=settings.history.connect_timeout_ms,
        read_timeout_ms=max(settings.catalog.read_timeout_ms, settings.history.read_timeout_ms),
        max_connections=2,
    )
    return RedisModelStates(RedisConnection(url, limits, purpose="state of the models", unavailable=ModelsUnavailable))


@asynccontextmanager
async def opened_model(around: Surroundings, path: Path | None) -> AsyncIterator[Model]:
    """The model of a bundle, warm and at the end of the catalog's log; lets go of all that it opened.

    `path`: of the bundle; None: the one that the settings name.

    Raises:
        BundleError, CatalogError, RunnerError: it cannot be used.
    """
    settings, metrics = around.settings, around.metrics
    if path is not None:
        settings = settings.model_copy(update={"bundle": path})
    async with AsyncExitStack() as stack:
        runner, live = await asyncio.to_thread(open_model, settings, around.runner)
        purposes = get_args(Purpose) if settings.load_graphs == "start" else ("generator",)
        min_beam_width = settings.batch.min_beam_width(runner.manifest.beam_width)
        pace = await asyncio.to_thread(
            warm_up, runner, live.snapshot, settings.batch.max_size, purposes, min_beam_width
        )
        log = around.catalog_log
        if log is None:
            log = open_catalog_log(settings, around.redis_url, runner.manifest.model_version)
            stack.push_async_callback(log.close)
        items = await stack.enter_async_context(_following(settings.catalog, log, live, runner, metrics))
        batcher = Batcher(
            runner,
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
            store=around.store,
            batcher=batcher,
            manifest=runner.manifest,
            catalog=lambda: live.snapshot,
            metrics=metrics,
            shown=around.shown,
        )
        _log.info("model %s, catalog %s", runner.manifest.model_version, live.snapshot.version)
        yield Model(runner=runner, live=live, items=items, batcher=batcher, recommender=recommender)


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
