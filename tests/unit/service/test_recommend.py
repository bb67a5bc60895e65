"""The use case without HTTP: which beam is taken, what counts as seen, and which reason wins."""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.catalog import TagFilter
from service.domain import Event
from service.errors import HistoryUnavailable, RunnerError
from service.history import MemoryHistoryStore, UserHistory
from service.inference.batcher import Answer, Batcher
from service.inference.fake_runner import FakeRunner, fake_catalog, fake_manifest
from service.inference.popular import PopularRanking
from service.inference.runner import DEAD_SCORE, Batch, Decoded
from service.metrics import Metrics
from service.recommend import PastEvent, Recommendation, Recommender, RecommendQuery, items_of

CATALOG = fake_catalog(300)
MANIFEST = fake_manifest(slate_size=5)
RARE = TagFilter(all_of=frozenset({"rare"}))  # three items: 0, 100, 200


class SpyRunner(FakeRunner):
    """Keeps its batches; sleeps or fails when told to."""

    def __init__(self) -> None:
        super().__init__(MANIFEST)
        self.batches: list[Batch] = []
        self.sleeps_s = 0.0
        self.fails = False

    def run(self, batch: Batch) -> Decoded:
        self.batches.append(batch)
        time.sleep(self.sleeps_s)
        if self.fails:
            raise RuntimeError("broken")
        return super().run(batch)


class SlowStore(MemoryHistoryStore):
    """Answers after a while, or not at all."""

    sleeps_s = 0.0
    is_down = False

    async def read(self, user_id: str, now_ms: int | None = None) -> UserHistory:
        await asyncio.sleep(self.sleeps_s)
        if self.is_down:
            raise HistoryUnavailable("down")
        return await super().read(user_id, now_ms)


class House:
    """A recommender with all its parts."""

    def __init__(self) -> None:
        self.runner, self.store, self.metrics = SpyRunner(), SlowStore(), Metrics()
        self.batcher = Batcher(self.runner, lambda: CATALOG, self.metrics)
        self.recommender = Recommender(
            store=self.store, batcher=self.batcher, manifest=MANIFEST, catalog=lambda: CATALOG, metrics=self.metrics
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

    @property
    def last(self) -> Batch:
        return self.runner.batches[-1]


@pytest.fixture
async def house() -> AsyncIterator[House]:
    built = House()
    yield built
    await built.batcher.close(grace_s=2)


def ids(answer: Recommendation) -> list[str]:
    return [item.item_id for item in answer.slate.items]


def excluded_ids(batch: Batch) -> set[str]:
    return {CATALOG.items[row].item_id for row in batch.excluded_rows_BX[0] if row >= 0}


async def test_a_stored_history_reaches_the_model_and_counts_as_seen(house: House) -> None:
    await house.store_events("item-1", "item-2", "gone")
    answer = await house.ask(exclude=["item-9"])
    assert (answer.slate.source, answer.slate.reason, answer.slate.degraded) == ("model", None, False)
    assert len(answer.slate.items) == 5
    assert house.last.history_lengths_B.tolist() == [3]
    assert house.last.history_values_BT[0, :3].tolist() == [2.5] * 3
    assert excluded_ids(house.last) == {"item-1", "item-2", "item-9"}
    for item in answer.slate.items:
        row = CATALOG.row_of(item.item_id)
        assert row is not None
        assert item.sid == tuple(CATALOG.sids_NL[row].tolist())
    assert answer.timings.total_s >= answer.timings.history_s + answer.timings.queue_s


async def test_what_counts_as_seen_can_be_chosen(house: House) -> None:
    await house.store_events("item-1", action="view")
    await house.store_events("item-2", action="watch")
    await house.ask(exclude_seen=False)
    assert excluded_ids(house.last) == set()
    await house.ask(seen_actions=frozenset({"watch"}))
    assert excluded_ids(house.last) == {"item-2"}
    await house.ask(seen_actions=frozenset())
    assert excluded_ids(house.last) == set()
    await house.ask(seen_actions=frozenset({"watch"}), exclude=["item-7", "never heard of"])
    assert excluded_ids(house.last) == {"item-2", "item-7"}


async def test_a_history_in_the_request_replaces_the_stored_one_in_time_order(house: House) -> None:
    await house.store_events("item-1")
    house.store.is_down = True  # it must not even be asked
    history = [
        PastEvent(item_id="item-5", action="watch", timestamp_ms=3000, value=1.5),
        PastEvent(item_id="item-4", action="view", timestamp_ms=1000),
    ]
    answer = await house.ask(history=history)
    assert answer.slate.reason is None
    assert excluded_ids(house.last) == {"item-4", "item-5"}
    assert house.last.history_times_BT[0, :2].tolist() == [1000, 3000]
    assert house.last.history_actions_BT[0, :2].tolist() == [1, 2]
    assert np.isnan(house.last.history_values_BT[0, 0])
    assert house.last.history_values_BT[0, 1] == 1.5
    await house.ask(history=history, seen_actions=frozenset({"view"}))
    assert excluded_ids(house.last) == {"item-4"}


async def test_events_of_actions_that_the_model_does_not_know_are_seen_but_not_read(house: House) -> None:
    await house.store_events("item-1", action="retired")
    await house.store_events("item-2")
    await house.ask()
    assert house.last.history_lengths_B.tolist() == [1]
    assert excluded_ids(house.last) == {"item-1", "item-2"}


@pytest.mark.parametrize("query", [{}, {"history": []}])
async def test_no_history_is_a_cold_start(house: House, query: dict[str, Any]) -> None:
    answer = await house.ask(**query)
    assert (answer.slate.source, answer.slate.reason, answer.slate.degraded) == ("model", "cold_start", False)
    assert house.last.history_lengths_B.tolist() == [0]


async def test_a_filter_that_leaves_too_few_says_so(house: House) -> None:
    await house.store_events("item-100")
    answer = await house.ask(tag_filter=RARE)
    assert sorted(ids(answer)) == ["item-0", "item-200"]
    assert (answer.slate.reason, answer.slate.degraded) == ("too_few_items", False)


async def test_without_history_store_the_model_answers_and_says_so(house: House) -> None:
    await house.store_events("item-1")
    house.store.is_down = True
    answer = await house.ask(exclude=["item-3"])
    assert (answer.slate.source, answer.slate.reason, answer.slate.degraded) == ("model", "history_unavailable", True)
    assert excluded_ids(house.last) == {"item-3"}
    assert house.metrics.registry.get_sample_value("oneslate_history_errors_total", {"operation": "read"}) == 1


async def test_out_of_time_in_the_model_is_a_popular_slate_that_respects_the_request(house: House) -> None:
    await house.store_events("item-0", "item-1")
    house.runner.sleeps_s = 0.5
    began_s = time.monotonic()
    answer = await house.ask(deadline_ms=60.0, exclude=["item-2"])
    assert time.monotonic() - began_s < 0.4
    assert (answer.slate.source, answer.slate.reason, answer.slate.degraded) == ("popular", "deadline", True)
    assert ids(answer) == [f"item-{number}" for number in (3, 4, 5, 6, 7)]
    assert answer.slate.beam_width == 0


async def test_out_of_time_in_the_history_is_a_popular_slate(house: House) -> None:
    house.store.sleeps_s = 5
    answer = await house.ask(deadline_ms=40.0, tag_filter=RARE)
    assert (answer.slate.source, answer.slate.reason, answer.slate.degraded) == ("popular", "deadline", True)
    assert ids(answer) == ["item-0", "item-100", "item-200"]
    assert house.runner.batches == []


async def test_a_broken_model_is_a_popular_slate(house: House) -> None:
    house.runner.fails = True
    answer = await house.ask()
    assert (answer.slate.source, answer.slate.reason, answer.slate.degraded) == ("popular", "model_unavailable", True)
    assert ids(answer) == [f"item-{number}" for number in range(5)]


async def test_ids_are_unique_and_ascend(house: House) -> None:
    answers = [await house.ask() for _ in range(3)]
    got = [answer.recommendation_id for answer in answers]
    assert len(set(got)) == 3
    assert [one[:12] for one in got] == sorted(one[:12] for one in got)


def _answer(logprobs_WK: Sequence[Sequence[float]], valid_WK: Sequence[Sequence[bool]]) -> Answer:
    logprobs = np.array(logprobs_WK, dtype=np.float32)
    valid = np.array(valid_WK)
    scores_W = np.where(valid[:, 0], logprobs.sum(axis=1), DEAD_SCORE)
    rows_WK = np.where(valid, np.arange(valid.size).reshape(valid.shape), -1).astype(np.int32)
    return Answer(
        snapshot=CATALOG,
        beam_width=len(logprobs),
        item_rows_WK=rows_WK,
        item_valid_WK=valid,
        level_logprobs_WKL=np.where(valid, logprobs, 0)[:, :, None] * np.array([0.5, 0.25, 0.25], dtype=np.float32),
        scores_W=scores_W,
        queue_s=0,
        features_s=0,
        inference_s=0,
    )


def test_a_shorter_slate_is_the_best_prefix_of_any_beam() -> None:
    every = [True, True, True]
    answer = _answer([[-3, -1, -1], [-1, -2, -4], [-2, -0.5, -9]], [every, every, every])
    assert [item.score for item in items_of(answer, 3)] == [-3, -1, -1]
    assert [item.score for item in items_of(answer, 2)] == [-2, -0.5]
    assert [item.score for item in items_of(answer, 1)] == [-1]


def test_dead_beams_and_empty_places_are_never_taken() -> None:
    answer = _answer([[-3, -1], [0, 0]], [[True, False], [False, False]])
    assert [item.score for item in items_of(answer, 1)] == [-3]
    assert [item.score for item in items_of(answer, 2)] == [-3]
    assert items_of(_answer([[0, 0]], [[False, False]]), 2) == ()


@settings(deadline=None, max_examples=150)
@given(
    st.lists(st.integers(0, 399), max_size=350),
    st.sampled_from([None, RARE, TagFilter(any_of=frozenset({"odd"}))]),
    st.integers(1, 20),
)
def test_popular_slates_are_the_most_popular_that_are_allowed(
    excluded: list[int], tag_filter: TagFilter | None, slate_size: int
) -> None:
    inputs = _popular_request([f"item-{number}" for number in excluded], tag_filter)
    snapshot, ranked = PopularRanking(lambda: CATALOG).slate(inputs, slate_size)
    allowed = np.diff(snapshot.allowed_cumsum(tag_filter)) > 0
    # In the fake catalog a lower number is more popular, and rows stand in the order of numbers.
    expected = [row for row in range(300) if allowed[row] and row not in set(excluded)][:slate_size]
    assert [row for row, _ in ranked] == expected
    assert [score for _, score in ranked] == sorted((score for _, score in ranked), reverse=True)


def _popular_request(excluded: list[str], tag_filter: TagFilter | None) -> Any:
    from service.domain import item_key
    from service.inference.features import RequestInputs

    return RequestInputs(
        item_keys_E=np.zeros(0, np.uint64),
        timestamps_ms_E=np.zeros(0, np.int64),
        actions_E=np.zeros(0, np.int32),
        values_E=np.zeros(0, np.float32),
        excluded_keys_S=np.array([item_key(item_id) for item_id in excluded], dtype=np.uint64),
        tag_filter=tag_filter,
        now_ms=0,
    )


async def test_a_worker_that_is_gone_is_a_broken_model(house: House) -> None:
    await house.batcher.close(grace_s=0)
    with pytest.raises(RunnerError):
        await house.batcher.submit(_popular_request([], None), time.monotonic() + 1)
    assert (await house.ask()).slate.reason == "model_unavailable"
