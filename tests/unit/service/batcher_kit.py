"""What tests of the batcher share: a runner that waits to be let go, requests, a batcher that ends with its test."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import numpy as np

from service.bundle import Manifest
from service.bundle.manifest import Purpose
from service.catalog import CatalogSnapshot
from service.domain import item_key
from service.inference.batcher import Batcher
from service.inference.fake_runner import FakeRunner, fake_catalog, fake_manifest
from service.inference.features import RequestInputs
from service.inference.runner import Batch, Decoded
from service.metrics import Metrics

CATALOG = fake_catalog(50)


MANIFEST = fake_manifest(slate_size=4, beam_width=2)


ONE_GRAPH = MANIFEST.model_copy(update={"graphs": {"generator": MANIFEST.graphs["generator"]}})


class Killed(BaseException):
    """Not an Exception: no batch may swallow it."""


class GatedRunner(FakeRunner):
    """Waits for the gate before each run, and notes the sizes and catalogs of its batches."""

    def __init__(self, manifest: Manifest = MANIFEST) -> None:
        super().__init__(manifest)
        self.gate = threading.Semaphore(0)
        self.entered = threading.Semaphore(0)
        self.lengths: list[list[int]] = []
        self.loading = threading.Semaphore(0)
        self.catalogs: list[CatalogSnapshot] = []
        self.widths: list[int] = []
        self.fails_with: BaseException | None = None

    def load(self, purpose: Purpose) -> None:
        assert self.loading.acquire(timeout=10)
        super().load(purpose)

    def run(self, batch: Batch) -> Decoded:
        self.entered.release()
        assert self.gate.acquire(timeout=10)
        self.lengths.append(batch.history_lengths_B.tolist())
        self.catalogs.append(batch.catalog)
        self.widths.append(batch.beam_width)
        if self.fails_with is not None:
            error, self.fails_with = self.fails_with, None
            raise error
        return super().run(batch)


def request(num_events: int = 1, now_ms: int = 10**12, purpose: Purpose = "generator") -> RequestInputs:
    return RequestInputs(
        item_keys_E=np.array([item_key(f"item-{number}") for number in range(num_events)], dtype=np.uint64),
        timestamps_ms_E=np.zeros(num_events, dtype=np.int64),
        actions_E=np.ones(num_events, dtype=np.int32),
        values_E=np.full(num_events, np.nan, dtype=np.float32),
        now_ms=now_ms,
        purpose=purpose,
    )


@asynccontextmanager
async def batcher_of(runner: FakeRunner, **options: Any) -> AsyncIterator[Batcher]:
    batcher = Batcher(runner, options.pop("catalog", lambda: CATALOG), Metrics(), **options)
    try:
        yield batcher
    finally:
        await batcher.close(grace_s=2.0)


def soon() -> float:
    return time.monotonic() + 30


async def entered(runner: GatedRunner) -> None:
    assert await asyncio.to_thread(runner.entered.acquire, timeout=10)


async def submitted(
    batcher: Batcher, *requests: RequestInputs, deadline_s: float | None = None, tenant: str = ""
) -> list[Any]:
    """Tasks whose requests wait in the queue."""
    tasks = [asyncio.create_task(batcher.submit(one, deadline_s or soon(), tenant)) for one in requests]
    await asyncio.sleep(0)
    return tasks
