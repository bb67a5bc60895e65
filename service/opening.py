"""What the settings name, opened: the model with its catalog, and where histories and changes of items are kept."""

import asyncio
import logging
import time
from collections.abc import Sequence
from itertools import product
from typing import Final, get_args

import numpy as np

from service.bundle import Bundle
from service.bundle.manifest import Engine, Precision, Purpose
from service.catalog import CatalogLog, CatalogSnapshot, LiveCatalog, MemoryCatalogLog, NewItemEncoder
from service.errors import BundleError, RunnerError
from service.history import HistoryLimits, HistoryStore, MemoryHistoryStore
from service.inference.fake_runner import FakeRunner, fake_catalog, fake_encoder, fake_manifest
from service.inference.features import RequestInputs, build_batch
from service.inference.pace import Pace
from service.inference.runner import Runner
from service.settings import HistorySettings, Settings

_log = logging.getLogger(__name__)
_DAY_MS: Final = 24 * 3600 * 1000


def open_model(settings: Settings, runner: Runner | None) -> tuple[Runner, LiveCatalog]:
    """The runner and the catalog that it decodes against; blocks.

    Raises:
        BundleError, CatalogError, RunnerError: the bundle, its items or its graph cannot be used.
    """
    if settings.bundle is None:
        runner = runner or FakeRunner(fake_manifest(), settings.fake.service_time_ms / 1000)
        return runner, LiveCatalog(
            fake_catalog(settings.fake.num_items, runner.manifest.num_levels), fake_encoder(runner.manifest.num_levels)
        )
    bundle = Bundle.open(settings.bundle)
    bundled = bundle.catalog()
    snapshot = CatalogSnapshot.build(
        bundled.items,
        bundled.sids_NL,
        bundled.num_events_N,
        max_branch=bundle.manifest.max_branch,
        vectors_ND=bundled.vectors_ND,
        embeddings_NE=bundled.embeddings_NE,
    )
    if runner is None and settings.runner == "fake":
        runner = FakeRunner(bundle.manifest, settings.fake.service_time_ms / 1000)
    if runner is None:
        runner = _load_graph(settings, bundle, snapshot)
    return runner, LiveCatalog(snapshot, NewItemEncoder.load(bundle))


def _load_graph(settings: Settings, bundle: Bundle, snapshot: CatalogSnapshot) -> Runner:
    """The engine that the settings name, or the fastest of the bundle's that is here and passes the golden cases."""
    # The fake runner and its tests do without onnxruntime.
    from service.inference.golden import check_golden  # noqa: PLC0415

    wanted: list[tuple[Engine, Precision]] = [("onnxruntime", "float32")]
    if settings.runner == "openvino":
        wanted = [("openvino", settings.precision)]
    elif settings.runner == "auto":
        wanted = [(variant.engine, variant.precision) for variant in bundle.manifest.variants] or wanted
    for number, (engine, precision) in enumerate(wanted, start=1):
        try:
            runner = _load_engine(settings, bundle, engine, precision)
            num_cases = check_golden(bundle, runner, snapshot)
        except (RunnerError, BundleError) as error:
            if number == len(wanted):
                raise
            _log.warning("%s in %s is passed over: %s", engine, precision, error)
            continue
        _log.info("%s agrees with its %d golden cases: %s in %s", settings.bundle, num_cases, engine, precision)
        return runner
    raise AssertionError("the last one returned or raised")


def _load_engine(settings: Settings, bundle: Bundle, engine: Engine, precision: Precision) -> Runner:
    """One engine; each is an extra of its own, and only that one is imported."""
    threads = settings.intra_op_threads
    extra = "openvino" if engine == "openvino" else "cpu"
    try:
        if engine == "openvino":
            from service.inference.openvino_runner import OpenVinoRunner  # noqa: PLC0415

            return OpenVinoRunner(bundle.manifest, bundle.path, precision=precision, num_threads=threads)
        from service.inference.ort_runner import CPU_PROVIDER, CUDA_PROVIDER, OrtRunner  # noqa: PLC0415
    except ImportError as error:
        raise RunnerError(f"{engine} needs its extra: pip install 'oneslate[{extra}]' ({error})") from error
    provider = CUDA_PROVIDER if settings.provider == "cuda" else CPU_PROVIDER
    runner = OrtRunner(bundle.manifest, bundle.path, provider=provider, num_threads=threads)
    if runner.precision != precision:
        raise RunnerError(f"{bundle.path}: ONNX Runtime runs it in {runner.precision}, not in {precision}")
    return runner


def warm_up(settings: Settings, runner: Runner, snapshot: CatalogSnapshot, *, beside_another: bool = False) -> Pace:
    """Loads graphs and runs the smallest and the largest shapes, so that no request pays for first allocations.

    Args:
        settings: Of the service.
        runner: Of the model.
        snapshot: Of its catalog.
        beside_another: Another model answers requests meanwhile: after each run it has the cores for as long.

    Returns:
        How long those runs took, the second time.
    """
    manifest, max_batch_size = runner.manifest, settings.batch.max_size
    pace = Pace(max_batch_size)
    min_beam_width = settings.batch.min_beam_width(manifest.beam_width)
    purposes: Sequence[Purpose] = get_args(Purpose) if settings.load_graphs == "start" else ("generator",)
    for purpose in [purpose for purpose in purposes if purpose in manifest.graphs]:
        widths = [manifest.beam_width]
        while purpose == "generator" and widths[-1] > min_beam_width:
            widths.append(max(min_beam_width, widths[-1] // 2))
        for beam_width, batch_size in product(widths, sorted({1, max_batch_size})):
            for num_events in (0, manifest.history_length, manifest.history_length):
                batch = build_batch(
                    [_request(num_events, purpose)] * batch_size,
                    snapshot,
                    manifest,
                    max_batch_size,
                    beam_width=beam_width,
                )
                started_s = time.monotonic()
                runner.run(batch)
                took_s = time.monotonic() - started_s
                if beside_another:
                    time.sleep(took_s)
            pace.learn(purpose, batch_size, beam_width, took_s)
    return pace


def _request(num_events: int, purpose: Purpose) -> RequestInputs:
    return RequestInputs(
        item_keys_E=np.zeros(num_events, dtype=np.uint64),
        timestamps_ms_E=np.zeros(num_events, dtype=np.int64),
        actions_E=np.ones(num_events, dtype=np.int32),
        values_E=np.full(num_events, np.nan, dtype=np.float32),
        now_ms=0,
        purpose=purpose,
    )


async def redis_url(settings: HistorySettings, *, keep_fsync: bool = False) -> str | None:
    """Where histories and the catalog's log are kept; None: in this process alone. Starts an embedded Redis.

    `keep_fsync`: leave that of one that runs as it is; it is the service's to say.

    Raises:
        ValueError: the settings do not say.
        HistoryUnavailable: the embedded Redis does not start.
    """
    if settings.url is None and settings.data_dir is None:
        raise ValueError("ONESLATE_HISTORY__URL or ONESLATE_HISTORY__DATA_DIR must say where histories are kept")
    if settings.data_dir is None:
        assert settings.url is not None
        url = settings.url.get_secret_value()
        return None if url == "memory://" else url
    # Without Redis nothing of it is loaded.
    from service.history.embedded import EmbeddedRedis  # noqa: PLC0415

    redis = EmbeddedRedis(settings.data_dir, appendfsync=settings.fsync, keep_fsync=keep_fsync)

    return await asyncio.to_thread(redis.start)


def open_history(settings: HistorySettings, url: str | None, log_rows: int = 0) -> HistoryStore:
    """Where histories are kept; nothing is connected yet. `log_rows`: as `HistoryLimits.log_rows`."""
    limits = HistoryLimits(
        num_entries=settings.num_entries,
        num_seen=settings.num_seen,
        max_age_ms=settings.max_age_days * _DAY_MS,
        shown_bytes=settings.shown_bytes if settings.shown_ttl_s else 0,
        shown_ms=max(1, settings.shown_ttl_s * 1000),
        log_rows=log_rows,
    )
    if url is None:
        if log_rows:
            raise ValueError("the event log needs a Redis, and histories are kept in this process alone (memory://)")
        return MemoryHistoryStore(limits)
    from service.connection import ConnectionLimits  # noqa: PLC0415  (as above)
    from service.history.redis_store import RedisHistoryStore  # noqa: PLC0415

    connection_limits = ConnectionLimits(
        connect_timeout_ms=settings.connect_timeout_ms,
        read_timeout_ms=settings.read_timeout_ms,
        max_connections=settings.max_connections,
    )
    return RedisHistoryStore(url, limits, connection_limits)


def open_catalog_log(settings: Settings, url: str | None, model_version: str) -> CatalogLog:
    """Where changes of items are kept; nothing is connected yet."""
    max_entries = settings.catalog.log_entries
    if url is None:
        return MemoryCatalogLog(max_entries)
    from service.catalog.redis_log import RedisCatalogLog  # noqa: PLC0415  (as above)
    from service.connection import ConnectionLimits  # noqa: PLC0415

    # Whole catalogs are read here, and no slate waits for it.
    limits = ConnectionLimits(
        connect_timeout_ms=settings.history.connect_timeout_ms,
        read_timeout_ms=max(settings.catalog.read_timeout_ms, settings.history.read_timeout_ms),
        max_connections=4,
    )
    return RedisCatalogLog(url, model_version, limits, max_entries=max_entries)
