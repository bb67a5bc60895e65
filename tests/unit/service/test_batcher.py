"""The micro-batcher: who shares a batch, who is dropped, and what happens when the runner fails."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import pytest
from batcher_kit import CATALOG, MANIFEST, ONE_GRAPH, GatedRunner, Killed, batcher_of, entered, request, soon, submitted
from hypothesis import given, settings
from hypothesis import strategies as st

from service.bundle.manifest import Purpose
from service.catalog import TagFilter
from service.errors import DeadlineExceeded, Overloaded, RunnerError
from service.inference import features
from service.inference.batch_run import Answer
from service.inference.batcher import Batcher
from service.inference.fake_runner import FakeRunner, fake_catalog
from service.inference.features import RequestInputs
from service.inference.runner import Batch
from service.metrics import Metrics


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


class FlakyRunner(GatedRunner):
    """Fails to load a graph so many times."""

    def __init__(self, num_failures: int) -> None:
        super().__init__()
        self.num_failures = num_failures
        self.num_tried = 0
        self.gate.release(20)

    def load(self, purpose: Purpose) -> None:
        self.num_tried += 1
        super().load(purpose)
        if self.num_tried <= self.num_failures:
            raise RunnerError("no memory left")


async def test_a_graph_that_did_not_load_is_tried_again_once_for_all_who_wait() -> None:
    runner = FlakyRunner(2)
    async with batcher_of(runner) as batcher:
        for attempt in (1, 2, 3):
            tasks = await submitted(batcher, *[request(2, purpose="explain")] * 4)
            [gone] = await submitted(batcher, request(2, purpose="explain"))
            gone.cancel()
            with pytest.raises(DeadlineExceeded):
                await batcher.submit(request(2, purpose="explain"), time.monotonic() + 0.02)
            runner.loading.release()
            outcomes = await asyncio.gather(*tasks, return_exceptions=True)
            assert [type(outcome) for outcome in outcomes] == [RunnerError if attempt < 3 else Answer] * 4
            assert runner.num_tried == attempt
        assert isinstance(await batcher.submit(request(2, purpose="explain"), soon()), Answer)
    assert runner.num_tried == 3


async def test_a_graph_that_did_not_load_when_nobody_waited_any_more_is_tried_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    runner = FlakyRunner(1)
    async with batcher_of(runner) as batcher:
        with pytest.raises(DeadlineExceeded, match="still being loaded"):
            await batcher.submit(request(2, purpose="explain"), time.monotonic() + 0.02)
        runner.loading.release(2)
        async with asyncio.timeout(10):
            while "'explain' does not load" not in caplog.text:  # noqa: ASYNC110 - nothing else tells of it
                await asyncio.sleep(0.001)
        assert isinstance(await batcher.submit(request(2, purpose="explain"), soon()), Answer)


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
