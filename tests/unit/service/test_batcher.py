"""The micro-batcher: who shares a batch, who is dropped, and what happens when the runner fails."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.bundle import Manifest
from service.bundle.manifest import Purpose
from service.catalog import CatalogSnapshot, TagFilter
from service.domain import item_key
from service.errors import DeadlineExceeded, Overloaded, RunnerError
from service.inference import features
from service.inference.batch_run import Answer
from service.inference.batcher import Batcher
from service.inference.fake_runner import FakeRunner, fake_catalog, fake_manifest
from service.inference.features import RequestInputs
from service.inference.pace import Pace
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


async def test_arrivals_during_a_run_share_the_next_one() -> None:
    runner = GatedRunner()
    async with batcher_of(runner, max_batch_size=3) as batcher:
        [first] = await submitted(batcher, request(1))
        await entered(runner)
        others = await submitted(batcher, *(request(length) for length in (2, 3, 4, 5)))
        assert batcher.queue_depth == 4
        for _ in range(3):
            runner.gate.release()
        answers = await asyncio.gather(first, *others)
    assert runner.lengths == [[1], [2, 3, 4], [5]]
    assert all(answer.queue_s >= 0 and answer.inference_s > 0 for answer in answers)


async def test_a_run_takes_the_oldest_and_what_waits_for_the_same_graph() -> None:
    runner = GatedRunner()
    runner.loading.release()
    runner.gate.release()
    async with batcher_of(runner, max_batch_size=3) as batcher:
        await batcher.submit(request(7, purpose="explain"), soon())  # its graph is loaded by now
        await entered(runner)
        [first] = await submitted(batcher, request(1))
        await entered(runner)
        asked = [request(2, purpose="explain"), request(3), request(4, purpose="explain"), request(5), request(6)]
        others = await submitted(batcher, *asked)
        runner.gate.release(3)
        await asyncio.gather(first, *others)
    assert runner.lengths == [[7], [1], [2, 4], [3, 5, 6]]


async def test_a_run_brings_no_more_filters_than_its_catalog_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "_MOST_FILTER_CELLS", 2 * (CATALOG.num_items + 1) + 1)
    filters = [TagFilter(any_of=frozenset({tag})) for tag in ("even", "odd", "rare")]
    runner = GatedRunner()
    async with batcher_of(runner, max_batch_size=8) as batcher:
        waiting = [asyncio.create_task(batcher.submit(request(9), soon()))]
        await entered(runner)
        asked = [replace(request(number), tag_filter=filters[number % 3]) for number in range(6)]
        waiting += [asyncio.create_task(batcher.submit(one, soon())) for one in asked]
        await asyncio.sleep(0)
        for _ in range(3):
            runner.gate.release()
        answers = await asyncio.gather(*waiting)
    assert runner.lengths == [[9], [0, 1, 3, 4], [2, 5]]
    assert all(isinstance(answer, Answer) for answer in answers)


def test_the_filters_of_a_batch_fit_a_budget_and_32_bits() -> None:
    assert features.most_filters(50) > 10**6
    assert features.most_filters(10**6) == 256
    assert features.most_filters(10**7) == 16
    assert features.most_filters(10**9) == 1
    for num_items in (1, 1000, 2**20, 10**7, 2**28):
        assert features.most_filters(num_items) * (num_items + 1) < 2**31


async def test_nobody_waits_for_a_graph_that_another_request_needs() -> None:
    runner = GatedRunner()
    runner.gate.release(3)
    async with batcher_of(runner) as batcher:
        [explained] = await submitted(batcher, request(2, purpose="explain"))
        assert isinstance(await batcher.submit(request(1), soon()), Answer)
        with pytest.raises(DeadlineExceeded, match="still being loaded"):
            await batcher.submit(request(3, purpose="explain"), time.monotonic() + 0.02)
        assert not explained.done()
        runner.loading.release()
        assert isinstance(await explained, Answer)
        assert isinstance(await batcher.submit(request(3, purpose="explain"), soon()), Answer)
    assert runner.lengths == [[1], [2], [3]]


async def test_a_graph_that_does_not_load_fails_those_who_need_it() -> None:
    runner = GatedRunner(ONE_GRAPH)
    runner.loading.release()
    runner.gate.release()
    async with batcher_of(runner) as batcher:
        for _ in range(2):  # it is not tried again and again
            with pytest.raises(RunnerError, match="no graph 'explain'"):
                await batcher.submit(request(2, purpose="explain"), soon())
        assert isinstance(await batcher.submit(request(1), soon()), Answer)


async def test_an_idle_worker_waits_for_company_when_told_to() -> None:
    runner = GatedRunner()
    runner.gate.release()
    async with batcher_of(runner, max_batch_size=2, max_wait_s=5.0) as batcher:
        tasks = await submitted(batcher, request(1))
        await asyncio.sleep(0.05)
        tasks += await submitted(batcher, request(2))
        await asyncio.wait_for(asyncio.gather(*tasks), 2.0)  # a full batch does not wait any longer
    assert runner.lengths == [[1, 2]]


async def test_company_that_does_not_come_is_not_waited_for() -> None:
    async with batcher_of(FakeRunner(MANIFEST), max_batch_size=8, max_wait_s=0.05) as batcher:
        began_s = time.monotonic()
        answer = await batcher.submit(request(), soon())
        assert 0.04 <= answer.queue_s <= time.monotonic() - began_s


async def test_the_expired_are_told_at_once_and_never_computed() -> None:
    runner = GatedRunner()
    async with batcher_of(runner) as batcher:
        [first] = await submitted(batcher, request(1))
        await entered(runner)
        [late] = await submitted(batcher, request(2), deadline_s=time.monotonic() + 0.02)
        with pytest.raises(DeadlineExceeded):
            await late
        assert batcher.queue_depth == 0
        [last] = await submitted(batcher, request(3))
        runner.gate.release(2)
        await asyncio.gather(first, last)
    assert runner.lengths == [[1], [3]]


async def test_a_deadline_that_is_over_already_is_not_run() -> None:
    runner = GatedRunner()
    async with batcher_of(runner) as batcher:
        with pytest.raises(DeadlineExceeded):
            await batcher.submit(request(), time.monotonic() - 1)
    assert runner.lengths == []


async def test_a_deadline_during_the_run_leaves_the_others_their_answer() -> None:
    runner = GatedRunner()
    async with batcher_of(runner) as batcher:
        [hurried] = await submitted(batcher, request(1), deadline_s=time.monotonic() + 0.3)
        await entered(runner)
        [patient] = await submitted(batcher, request(2))
        with pytest.raises(DeadlineExceeded):
            await hurried
        runner.gate.release(2)
        assert isinstance(await patient, Answer)


async def test_a_cancelled_request_leaves_the_queue() -> None:
    runner = GatedRunner()
    async with batcher_of(runner) as batcher:
        [first] = await submitted(batcher, request(1))
        await entered(runner)
        gone, stays = await submitted(batcher, request(2), request(3))
        gone.cancel()
        await asyncio.sleep(0)
        assert batcher.queue_depth == 1
        runner.gate.release(2)
        await asyncio.gather(first, stays)
    assert runner.lengths == [[1], [3]]


async def test_a_failed_run_fails_its_batch_and_no_other() -> None:
    runner = GatedRunner()
    runner.fails_with = ValueError("a broken graph")
    async with batcher_of(runner) as batcher:
        [first] = await submitted(batcher, request(1))
        await entered(runner)
        [second] = await submitted(batcher, request(2))
        runner.gate.release(2)
        with pytest.raises(RunnerError, match="a broken graph"):
            await first
        assert isinstance(await second, Answer)
        assert batcher.alive


async def test_a_bad_request_fails_alone() -> None:
    runner = GatedRunner()
    bad = request(2, now_ms=10**30)  # does not fit the array
    async with batcher_of(runner) as batcher:
        [first] = await submitted(batcher, request(1))
        await entered(runner)
        tasks = await submitted(batcher, request(3), bad, request(4), bad)
        runner.gate.release(2)
        await first
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [Answer, OverflowError, Answer, OverflowError]
    assert runner.lengths == [[1], [3, 4]]


async def test_a_full_queue_admits_nobody_and_says_when_to_return() -> None:
    runner = GatedRunner()
    async with batcher_of(runner, queue_limit=2, max_batch_size=1) as batcher:
        tasks = await submitted(batcher, request())
        await entered(runner)
        tasks += await submitted(batcher, request(), request())
        with pytest.raises(Overloaded) as unknown_rate:
            await batcher.submit(request(), soon())
        assert unknown_rate.value.retry_after_s == 1.0
        await asyncio.sleep(0.2)
        runner.gate.release()  # one run of 0.2 s: about ten a second would be two in 0.4 s
        await tasks[0]
        await entered(runner)
        tasks += await submitted(batcher, request())
        with pytest.raises(Overloaded) as known_rate:
            await batcher.submit(request(), soon())
        assert 0.3 < known_rate.value.retry_after_s < 5.0
        runner.gate.release(3)
        await asyncio.gather(*tasks)


async def test_a_dead_worker_fails_what_waits_and_all_that_comes(caplog: pytest.LogCaptureFixture) -> None:
    runner = GatedRunner()
    runner.fails_with = Killed()
    async with batcher_of(runner) as batcher:
        [first] = await submitted(batcher, request())
        await entered(runner)
        [waiting] = await submitted(batcher, request())
        runner.gate.release()
        for task in (first, waiting):
            with pytest.raises(RunnerError, match="worker is gone"):
                await asyncio.wait_for(task, 5)
        assert not batcher.alive
        with pytest.raises(RunnerError):
            await batcher.submit(request(), soon())
    assert "worker died" in caplog.text


async def test_a_dead_worker_is_replaced() -> None:
    runner = GatedRunner()
    runner.fails_with = Killed()
    async with batcher_of(runner, restart_pause_s=0.01) as batcher:
        [first] = await submitted(batcher, request())
        runner.gate.release(2)
        with pytest.raises(RunnerError, match="worker is gone"):
            await asyncio.wait_for(first, 5)
        assert not batcher.alive
        await asyncio.sleep(0.1)
        assert isinstance(await asyncio.wait_for(batcher.submit(request(), soon()), 5), Answer)


def known_pace(run_s: float, max_batch_size: int = 1, manifest: Manifest = MANIFEST) -> Pace:
    pace = Pace(max_batch_size)
    for num_requests in {1, max_batch_size}:
        pace.learn("generator", num_requests, manifest.beam_width, run_s)
    return pace


async def test_who_would_be_late_behind_the_queue_is_sent_away_at_once() -> None:
    runner = GatedRunner()
    async with batcher_of(runner, max_batch_size=1, pace=known_pace(10.0)) as batcher:
        tasks = await submitted(batcher, request())
        await entered(runner)
        tasks += await submitted(batcher, request())  # would end after 20 s
        began_s = time.monotonic()
        with pytest.raises(Overloaded, match="too long for the deadline") as refused:
            await batcher.submit(request(), began_s + 40)
        assert time.monotonic() - began_s < 1
        assert 1 < refused.value.retry_after_s <= 2  # the third would end after 30 s, and may be expected to take 28
        tasks += await submitted(batcher, request(), deadline_s=began_s + 44)
        runner.gate.release(3)
        await asyncio.gather(*tasks)


async def test_who_has_less_time_than_a_run_takes_is_told_at_once() -> None:
    runner = GatedRunner()
    async with batcher_of(runner, max_batch_size=1, pace=known_pace(10.0)) as batcher:
        [first] = await submitted(batcher, request(1))
        await entered(runner)
        with pytest.raises(DeadlineExceeded, match="no run is as short"):
            await batcher.submit(request(2), time.monotonic() + 5)
        runner.gate.release()
        await first
    assert runner.lengths == [[1]]


async def test_an_idle_batcher_tries_whatever_it_thinks_of_its_pace() -> None:
    """A pace that was once bad would else never be learnt anew."""
    async with batcher_of(FakeRunner(MANIFEST), max_batch_size=1, pace=known_pace(1000.0)) as batcher:
        for _ in range(60):
            assert isinstance(await batcher.submit(request(), time.monotonic() + 5), Answer)
        answers = await asyncio.gather(*(batcher.submit(request(), time.monotonic() + 5) for _ in range(3)))
        assert all(isinstance(answer, Answer) for answer in answers)


async def test_beams_are_narrow_while_full_batches_wait_and_wide_again() -> None:
    manifest = fake_manifest(slate_size=4, beam_width=16)
    runner = GatedRunner(manifest)
    async with batcher_of(runner, max_batch_size=2, min_beam_width=4) as batcher:
        tasks = await submitted(batcher, request(1))
        await entered(runner)
        tasks += await submitted(batcher, *[request(2)] * 9)
        runner.gate.release(20)
        answers = await asyncio.gather(*tasks)
        await batcher.submit(request(3), soon())
    assert runner.widths == [16, 4, 4, 8, 16, 16, 16]
    assert [answer.beam_width for answer in answers] == [16, 4, 4, 4, 4, 8, 8, 16, 16, 16]
    assert all(len(answer.beams.scores_W) == answer.beam_width for answer in answers)


async def test_beams_hold_the_slates_that_are_asked_for_and_those_of_drawn_slates_stay() -> None:
    manifest = fake_manifest(slate_size=4, beam_width=16)
    runner = GatedRunner(manifest)
    runner.loading.release()
    runner.gate.release()
    async with batcher_of(runner, max_batch_size=1, min_beam_width=2) as batcher:
        await batcher.submit(request(1, purpose="sampler"), soon())  # its graph is loaded by now
        await entered(runner)
        tasks = await submitted(batcher, request(1))
        await entered(runner)
        tasks += await submitted(
            batcher, request(2), replace(request(3), num_slates=7), request(4, purpose="sampler"), *[request(5)] * 5
        )
        runner.gate.release(20)
        await asyncio.gather(*tasks)
    assert runner.widths[1:5] == [16, 2, 7, 16]


async def test_no_other_wish_of_a_flood_makes_a_tenant_wait_for_more_than_a_run() -> None:
    """Neither its graph, nor shorter histories, nor more tenants than a batch has places."""
    runner = GatedRunner()
    runner.loading.release()
    runner.gate.release(100)
    async with batcher_of(runner, max_batch_size=2) as batcher:
        await batcher.submit(request(1, purpose="sampler"), soon())  # its graph is loaded by now
    for flood, calm in ((request(1, purpose="sampler"), request(50)), (request(1), request(50))):
        runner = GatedRunner()
        runner.loading.release()
        async with batcher_of(runner, max_batch_size=2) as batcher:
            tasks = await submitted(batcher, *[flood] * 20, tenant="flood")
            await entered(runner)
            [late] = await submitted(batcher, calm, tenant="calm")
            runner.gate.release(30)
            await asyncio.gather(*tasks, late)
        served = [50 in lengths for lengths in runner.lengths]
        assert served.index(True) <= 2


async def test_a_run_that_was_slow_once_locks_no_size_out() -> None:
    runner = FakeRunner(MANIFEST, 0.005)
    pace = Pace(8)
    for size in (1, 8):
        pace.learn("generator", size, MANIFEST.beam_width, 0.005)
    pace.learn("generator", 2, MANIFEST.beam_width, 2.0)
    async with batcher_of(runner, max_batch_size=8, pace=pace) as batcher:
        answers = await asyncio.gather(
            *(batcher.submit(request(), time.monotonic() + 0.5) for _ in range(40)), return_exceptions=True
        )
    assert all(isinstance(answer, Answer) for answer in answers)


async def test_a_batch_that_cannot_be_built_though_each_of_it_can_fails_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def build(requests: list[RequestInputs], *arguments: Any, **options: Any) -> Batch:
        if len(requests) > 1:
            raise MemoryError("too many filters")
        return features.build_batch(requests, *arguments, **options)

    monkeypatch.setattr("service.inference.batch_run.build_batch", build)
    runner = GatedRunner()
    async with batcher_of(runner) as batcher:
        [first] = await submitted(batcher, request(1))
        await entered(runner)
        others = await submitted(batcher, request(2), request(3))
        runner.gate.release(2)
        assert isinstance(await first, Answer)
        for one in others:
            with pytest.raises(RunnerError, match="cannot be built"):
                await one
        assert batcher.alive
        assert isinstance(await batcher.submit(request(4), soon()), Answer)


async def test_who_comes_before_the_queue_is_known_to_be_too_long_is_refused_early() -> None:
    runner = GatedRunner()
    async with batcher_of(runner, max_batch_size=1, pace=known_pace(10.0)) as batcher:
        batcher.refuse_early(time.monotonic() + 1)  # nobody is there
        tasks = await submitted(batcher, request())
        await entered(runner)
        tasks += await submitted(batcher, request())
        with pytest.raises(Overloaded):
            batcher.refuse_early(time.monotonic() + 20)
        batcher.refuse_early(time.monotonic() + 60)
        batcher.refuse_early(time.monotonic() + 1)  # it gets a lesser answer
        runner.gate.release(2)
        await asyncio.gather(*tasks)


async def test_tenants_take_turns_and_one_that_floods_makes_room() -> None:
    runner = GatedRunner()
    async with batcher_of(runner, max_batch_size=2, queue_limit=4) as batcher:
        [first] = await submitted(batcher, request(1), tenant="flood")
        await entered(runner)
        flood = await submitted(batcher, *(request(length) for length in (2, 3, 4, 5)), tenant="flood")
        with pytest.raises(Overloaded, match="too many requests"):
            await batcher.submit(request(6), soon(), "flood")
        calm = await submitted(batcher, request(7), tenant="calm")
        with pytest.raises(Overloaded, match="fewer requests"):
            await flood[3]
        calm += await submitted(batcher, request(8), tenant="calm")
        with pytest.raises(Overloaded, match="fewer requests"):
            await flood[2]
        with pytest.raises(Overloaded, match="too many requests"):
            await batcher.submit(request(9), soon(), "calm")
        runner.gate.release(3)
        await asyncio.gather(first, *flood[:2], *calm)
    assert runner.lengths == [[1], [7, 2], [8, 3]]


async def test_histories_that_pad_nobody_share_a_run_first() -> None:
    runner = GatedRunner()
    async with batcher_of(runner, max_batch_size=3) as batcher:
        tasks = await submitted(batcher, request(1))
        await entered(runner)
        tasks += await submitted(batcher, *(request(length) for length in (9, 40, 3, 41, 16, 42)))
        runner.gate.release(3)
        await asyncio.gather(*tasks)
    # 9 pads to 16; the next to be served is 40, and with it those of up to 64.
    assert runner.lengths == [[1], [9, 3, 16], [40, 41, 42]]


async def test_company_is_waited_for_only_as_long_as_the_deadlines_allow() -> None:
    runner = GatedRunner()
    async with batcher_of(runner, max_batch_size=8, max_wait_s=20.0, pace=known_pace(0.5, 8)) as batcher:
        runner.gate.release()
        began_s = time.monotonic()
        tasks = await submitted(batcher, request(1))
        await asyncio.sleep(0.05)
        tasks += await submitted(batcher, request(2), deadline_s=began_s + 1.5)
        answers = await asyncio.wait_for(asyncio.gather(*tasks), 5)
        assert 0.5 < answers[0].queue_s < 1.2  # 1.5 s less the run of half a second and a reserve
    assert runner.lengths == [[1, 2]]


async def test_one_batch_has_one_catalog() -> None:
    other = fake_catalog(60)
    catalogs = iter([CATALOG, other])
    runner = GatedRunner()
    async with batcher_of(runner, catalog=lambda: next(catalogs)) as batcher:
        [first] = await submitted(batcher, request(1))
        await entered(runner)
        others = await submitted(batcher, request(2), request(3))
        runner.gate.release(2)
        answers = await asyncio.gather(first, *others)
    assert [answer.snapshot for answer in answers] == [CATALOG, other, other]
    assert runner.catalogs == [CATALOG, other]


async def test_closing_finishes_what_was_admitted_and_admits_no_more() -> None:
    runner = GatedRunner()
    batcher = Batcher(runner, lambda: CATALOG, Metrics())
    [first] = await submitted(batcher, request(1))
    await entered(runner)
    [second] = await submitted(batcher, request(2))
    closing = asyncio.create_task(batcher.close(grace_s=10))
    await asyncio.sleep(0)
    with pytest.raises(RunnerError):
        await batcher.submit(request(3), soon())
    runner.gate.release(2)
    await asyncio.gather(closing, first, second)
    assert runner.lengths == [[1], [2]]


async def test_closing_fails_what_does_not_finish_in_time() -> None:
    runner = GatedRunner()
    batcher = Batcher(runner, lambda: CATALOG, Metrics())
    [stuck] = await submitted(batcher, request(1))
    await entered(runner)
    await batcher.close(grace_s=0.05)
    with pytest.raises(RunnerError, match="gone"):
        await stuck
    runner.gate.release()


@settings(deadline=None, max_examples=25)
@given(st.lists(st.tuples(st.integers(0, 40), st.integers(0, 3)), min_size=1, max_size=24), st.integers(1, 8))
def test_answers_are_those_of_each_request_alone(arrivals: list[tuple[int, int]], max_batch_size: int) -> None:
    """Whatever the order and the grouping, every request gets what it would get alone."""

    async def each(one: Callable[[RequestInputs], Awaitable[Answer]], pause: int, inputs: RequestInputs) -> list[int]:
        for _ in range(pause):
            await asyncio.sleep(0)
        return (await one(inputs)).beams.item_rows_WK.ravel().tolist()

    async def run() -> None:
        inputs = [request(length) for length, _ in arrivals]
        async with batcher_of(FakeRunner(MANIFEST), max_batch_size=1) as alone:
            expected = [await each(lambda i: alone.submit(i, soon()), 0, one) for one in inputs]
        async with batcher_of(FakeRunner(MANIFEST), max_batch_size=max_batch_size) as shared:
            work = [
                each(lambda i: shared.submit(i, soon()), pause, one)
                for (_, pause), one in zip(arrivals, inputs, strict=True)
            ]
            assert await asyncio.gather(*work) == expected

    asyncio.run(run())
