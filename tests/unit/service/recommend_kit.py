"""A recommender with all its parts, and parts that can be told to fail."""

import asyncio
import threading
import time
from typing import Any

from service.catalog import TagFilter
from service.domain import Event
from service.errors import HistoryUnavailable
from service.health import SlateHealth
from service.history import GuardedHistoryStore, MemoryHistoryStore, ShownRecorder, UserHistory
from service.inference.batcher import Batcher
from service.inference.fake_runner import FakeRunner, fake_catalog, fake_manifest
from service.inference.runner import Batch, Decoded
from service.metrics import Metrics
from service.query import RecommendQuery
from service.recommend import Recommendation, Recommender

CATALOG = fake_catalog(300)
MANIFEST = fake_manifest(slate_size=5)
RARE = TagFilter(all_of=frozenset({"rare"}))  # three items: 0, 100, 200


class SpyRunner(FakeRunner):
    """Keeps its batches; hangs or fails when told to."""

    def __init__(self) -> None:
        super().__init__(MANIFEST)
        self.batches: list[Batch] = []
        self.fails = False
        self.fails_to_explain = False
        self.gate = threading.Event()
        """Runs wait for it, of the purposes that hang."""
        self.hanging: frozenset[str] = frozenset()

    def run(self, batch: Batch) -> Decoded:
        self.batches.append(batch)
        if batch.purpose in self.hanging:
            assert self.gate.wait(30), "nobody opens the gate"
        if self.fails or (self.fails_to_explain and batch.purpose == "explain"):
            raise RuntimeError("broken")
        return super().run(batch)


class SlowStore(MemoryHistoryStore):
    """Answers after a while, or not at all."""

    sleeps_s = 0.0
    is_down = False

    async def read(self, user_id: str, now_ms: int | None = None, *, with_shown: bool = False) -> UserHistory:
        await asyncio.sleep(self.sleeps_s)
        if self.is_down:
            raise HistoryUnavailable("down")
        return await super().read(user_id, now_ms, with_shown=with_shown)


class House:
    """A recommender with all its parts."""

    def __init__(self) -> None:
        self.runner, self.store, self.metrics = SpyRunner(), SlowStore(), Metrics()
        self.catalog = CATALOG
        """In service."""
        self.batcher = Batcher(self.runner, lambda: self.catalog, self.metrics)
        self.recommender = Recommender(
            store=GuardedHistoryStore(self.store),
            batcher=self.batcher,
            manifest=MANIFEST,
            catalog=lambda: self.catalog,
            metrics=self.metrics,
            shown=ShownRecorder(self.store, self.metrics),
            health=SlateHealth(MANIFEST, CATALOG, self.metrics),
        )

    async def store_events(self, *item_ids: str, user_id: str = "ann", action: str = "view") -> None:
        now_ms = time.time_ns() // 1_000_000
        events = [
            Event(user_id=user_id, item_id=item_id, action=action, timestamp_ms=now_ms - 1000 + place, value=2.5)
            for place, item_id in enumerate(item_ids)
        ]
        assert {outcome.status for outcome in await self.store.append(events, now_ms)} == {"stored"}

    async def ask(self, **query: Any) -> Recommendation:
        query = {"user_id": "ann", "slate_size": 5, "deadline_ms": 5000.0, **query}
        return await self.recommender.recommend(RecommendQuery(**query), time.monotonic())

    def num_observed(self, stage: str) -> int:
        """Slates whose time in the stage was noted."""
        name = "oneslate_recommend_stage_seconds_count"
        return int(self.metrics.registry.get_sample_value(name, {"stage": stage}) or 0)

    @property
    def last(self) -> Batch:
        return self.runner.batches[-1]
