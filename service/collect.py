"""The collector: settings in, rows out of Redis and into a folder until a signal."""

import asyncio
import signal
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from prometheus_client import start_http_server

from service.connection import ConnectionLimits, RedisConnection
from service.eventlog.collector import Collector, CollectorLimits, CollectorMetrics
from service.eventlog.dataset import LogDataset
from service.eventlog.streams import LogStreams
from service.logs import configure_logging
from service.opening import redis_url
from service.settings import CollectSettings

_TIMEOUT_MS: Final = 10_000
"""For one reply: up to a commit's rows, and nobody waits for it."""


def collect(
    settings: CollectSettings,
    folder: Path,
    limits: CollectorLimits,
    *,
    once: bool = False,
    metrics_port: int = 0,
    metrics_host: str = "127.0.0.1",
    take_over: bool = False,
) -> int:
    """Drains the event log into a folder until SIGINT or SIGTERM, or `once`; how many rows it was, of `once`.

    Args:
        settings: Where Redis is.
        folder: See `service.eventlog.dataset`.
        limits: Of the collector.
        once: Drain what waits, then end.
        metrics_port: Of the collector's metrics; 0: none.
        metrics_host: The address where they are served.
        take_over: Take the streams from whoever drained them until now.

    Raises:
        EventLogDamaged: the folder cannot be used, or an entry of the log is no row.
        EventLogOwned: another folder's collector drains them.
        HistoryUnavailable: Redis does not answer; without `once` it is asked again.
        OSError: metrics cannot be served there.
        ValueError: the settings do not name a Redis.
    """
    configure_logging(settings.log_level, settings.log_format)
    with ExitStack() as stack:
        dataset = stack.enter_context(LogDataset.opened(folder))
        metrics = CollectorMetrics()
        if metrics_port:
            server, thread = start_http_server(metrics_port, metrics_host, metrics.registry)
            stack.callback(thread.join)
            stack.callback(server.shutdown)
        return asyncio.run(_collect(settings, dataset, metrics, limits, once=once, take_over=take_over))


async def _collect(
    settings: CollectSettings,
    dataset: LogDataset,
    metrics: CollectorMetrics,
    limits: CollectorLimits,
    *,
    once: bool,
    take_over: bool,
) -> int:
    url = await redis_url(settings.history, keep_fsync=True)
    if url is None:
        raise ValueError("there is nothing to collect: ONESLATE_HISTORY__URL=memory:// keeps no event log")
    connection = RedisConnection(
        url,
        ConnectionLimits(connect_timeout_ms=_TIMEOUT_MS, read_timeout_ms=_TIMEOUT_MS, max_connections=4),
        purpose="event log",
    )
    try:
        streams = LogStreams(connection, dataset.collector)
        collector = Collector(streams, dataset, metrics, limits)
        if take_over:
            await collector.take_over()
        stopping = asyncio.Event()
        for one in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(one, stopping.set)
        if once:
            return await collector.drain(stopping)
        await collector.run(stopping)
        return 0
    finally:
        await connection.close()
