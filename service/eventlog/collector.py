"""Drains the event log into a folder, again and again."""

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge

from service.errors import HistoryUnavailable
from service.eventlog.dataset import LogDataset
from service.eventlog.rows import SCHEMAS
from service.eventlog.streams import Batch, LogStreams

_log = logging.getLogger(__name__)
_RETRY_S: Final = 1.0
"""After a Redis that did not answer."""


class CollectorMetrics:
    """The metrics of a collector, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.rows = Counter("oneslate_collector_rows", "Rows drained, by kind.", ["kind"], registry=registry)
        for kind in SCHEMAS:
            self.rows.labels(kind)
        self.commits = Counter("oneslate_collector_commits", "Times that rows were written.", registry=registry)
        self.errors = Counter(
            "oneslate_collector_errors", "Times that Redis did not answer the collector.", registry=registry
        )
        self.waiting = Gauge(
            "oneslate_collector_waiting_rows", "Rows that waited in Redis when the last look began.", registry=registry
        )
        self.drained = Gauge(
            "oneslate_collector_drained_timestamp_seconds", "When the streams were last drained to their end.",
            registry=registry,
        )  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class CollectorLimits:
    """How a collector works."""

    every_s: float = 60.0
    """From one look to the next, when there was nothing left."""
    max_rows: int = 100_000
    """Of one commit, about."""


class Collector:
    """Moves rows from streams into a folder: committed there before they are taken from here, and each once."""

    def __init__(
        self,
        streams: LogStreams,
        dataset: LogDataset,
        metrics: CollectorMetrics,
        limits: CollectorLimits | None = None,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._streams = streams
        self._dataset = dataset
        self._metrics = metrics
        self._limits = limits or CollectorLimits()
        self._clock = clock

    async def run(self, stopping: asyncio.Event) -> None:
        """Drains until told to stop. A Redis that does not answer is asked again; what else fails is raised."""
        _log.info("draining the event log every %g s", self._limits.every_s)
        while not stopping.is_set():
            pause_s = self._limits.every_s
            try:
                await self.drain(stopping)
            except HistoryUnavailable as error:
                self._metrics.errors.inc()
                _log.warning("asked again in %.0f s: %s", _RETRY_S, error)
                pause_s = _RETRY_S
            try:
                async with asyncio.timeout(pause_s):
                    await stopping.wait()
            except TimeoutError:
                continue

    async def take_over(self) -> None:
        """Takes the streams from whoever drained them until now."""
        # First, and for good: how far others' streams were drained into this folder once says nothing of them now.
        await asyncio.to_thread(self._dataset.begin_anew, await self._streams.others())
        await self._streams.take_over()

    async def drain(self, stopping: asyncio.Event | None = None) -> int:
        """Moves what waits now, and returns how many rows it was. Raises HistoryUnavailable, EventLogOwned."""
        # Before any is taken away: afterwards hardly one would wait, however full the log had been.
        self._metrics.waiting.set(await self._streams.num_waiting())
        # What a commit before a kill has moved, but not taken away yet.
        if unknown := await self._streams.trim(self._dataset.cursors):
            # Before any of it is read, and for good: whoever is killed in between must not skip it.
            await asyncio.to_thread(self._dataset.begin_anew, unknown)
            _log.warning(
                "%d streams were never drained: another Redis, or one that lost what it had; all of them is taken",
                len(unknown),
            )
        num_rows = 0
        while stopping is None or not stopping.is_set():
            batch = await self._streams.read(self._dataset.cursors, self._limits.max_rows)
            if batch.rows:
                await self._commit(batch)
                num_rows += len(batch.rows)
            if not batch.is_full:  # what came meanwhile waits for the next time, or files would be tiny
                self._metrics.drained.set(self._clock())
                break
        return num_rows

    async def _commit(self, batch: Batch) -> None:
        started_s = time.monotonic()
        await asyncio.to_thread(self._dataset.add, batch.rows, batch.cursors)
        await self._streams.trim(batch.cursors)
        self._metrics.commits.inc()
        for row in batch.rows:
            self._metrics.rows.labels(row.kind).inc()
        waiting = await self._streams.num_waiting()
        _log.info("%d rows in %.2f s; %d wait", len(batch.rows), time.monotonic() - started_s, waiting)
