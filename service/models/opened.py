"""Models, opened: what may be activated, what is, and one model with its engine, catalog and queue."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from service.background import running
from service.catalog import CatalogLog
from service.errors import CatalogError, CatalogUnavailable, ModelsUnavailable
from service.health import SlateHealth
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
from service.settings import Settings

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
async def opened_model(around: Surroundings, path: Path | None, beside_another: bool) -> AsyncIterator[Model]:
    """The model of a bundle, warm and at the end of the catalog's log; lets go of all that it opened.

    Args:
        around: What it shares with others.
        path: Of a registered bundle; None: the one that the settings name, which begins with its own items where the
            log does not answer: slates of those are better than none.
        beside_another: Another model answers requests meanwhile.

    Raises:
        BundleError, CatalogError, RunnerError: it cannot be used.
        CatalogUnavailable: a registered one's items cannot be brought up to date: it would show what was removed.
    """
    settings, metrics = around.settings, around.metrics
    if path is not None:
        settings = settings.model_copy(update={"bundle": path})
    async with AsyncExitStack() as stack:
        runner, live = await asyncio.to_thread(open_model, settings, around.runner)
        pace = await asyncio.to_thread(warm_up, settings, runner, live.snapshot, beside_another=beside_another)
        log = around.catalog_log
        if log is None:
            log = open_catalog_log(settings, around.redis_url, runner.manifest.model_version)
            stack.push_async_callback(log.close)
        follower = CatalogFollower(
            log,
            live,
            metrics,
            poll_s=settings.catalog.poll_ms / 1000,
            merge_s=settings.catalog.merge_ms / 1000,
        )
        items = ItemWriter(log, live, follower, runner.manifest.max_branch, metrics)
        follower.adopt = items.adopt
        follower.is_observed = not beside_another
        # Else follower and writer hold each other, and with them a catalog that the collector was told to leave alone.
        stack.callback(setattr, follower, "adopt", None)
        stack.push_async_callback(follower.close)
        try:
            await follower.catch_up()
            if path is not None:  # what came live has its place before it is missed
                await follower.adopted()
                await follower.catch_up()
        except (CatalogUnavailable, CatalogError) as error:
            if path is not None:
                raise
            _log.warning("starting with the bundle's own items: %s", error)  # the follower keeps trying
        await stack.enter_async_context(running(follower.run(), "catalog follower"))
        batcher = Batcher(
            runner,
            lambda: live.snapshot,
            metrics,
            pace=pace,
            max_batch_size=settings.batch.max_size,
            max_wait_s=settings.batch.max_wait_ms / 1000,
            queue_limit=settings.batch.queue_limit,
            min_beam_width=settings.batch.min_beam_width(runner.manifest.beam_width),
        )
        stack.push_async_callback(batcher.close, settings.drain_s)
        # A large catalog takes a while to look at: not on the event loop.
        health = await asyncio.to_thread(SlateHealth, runner.manifest, live.snapshot, metrics)
        recommender = Recommender(
            store=around.store,
            batcher=batcher,
            manifest=runner.manifest,
            catalog=lambda: live.snapshot,
            metrics=metrics,
            shown=around.shown,
            health=health,
        )
        _log.info("model %s, catalog %s", runner.manifest.model_version, live.snapshot.version)
        yield Model(
            runner=runner, live=live, items=items, follower=follower, batcher=batcher, recommender=recommender,
            health=health,
        )  # fmt: skip
