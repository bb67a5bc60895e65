"""The micro-batcher under load: who is admitted, in whose turn, with how wide beams, by what pace."""

import asyncio
import time
from dataclasses import replace

import pytest
from batcher_kit import MANIFEST, GatedRunner, batcher_of, entered, request, soon, submitted

from service.bundle import Manifest
from service.errors import DeadlineExceeded, Overloaded
from service.inference.batch_run import Answer
from service.inference.fake_runner import FakeRunner, fake_manifest
from service.inference.features import Kind
from service.inference.pace import Pace


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


async def test_what_is_ahead_takes_a_run_for_each_kind_of_it() -> None:
    """Requests that name fifteen widths need fifteen runs, of which twelve are all that the deadline has time for.

    It is far away, and runs take next to nothing here: what counts is how many of them the admitted need.
    """
    runner = GatedRunner(fake_manifest(slate_size=4, beam_width=32))
    pace = known_pace(10.0, 32, runner.manifest)
    async with batcher_of(runner, max_batch_size=32, pace=pace) as batcher:
        tasks = await submitted(batcher, replace(request(), beam_width=1), deadline_s=time.monotonic() + 125)
        await entered(runner)
        of_widths = [replace(request(), beam_width=1 + number % 15) for number in range(1, 33)]
        tasks += await submitted(batcher, *of_widths, deadline_s=time.monotonic() + 125)
        runner.gate.release(40)
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    answers = [outcome for outcome in outcomes if isinstance(outcome, Answer)]
    refused = [outcome for outcome in outcomes if isinstance(outcome, Overloaded)]
    assert len(answers) + len(refused) == 33
    # Eight runs of 10 s fit seven tenths of 125 s, nine do not: the first, and seven of two or three requests each.
    assert runner.widths == list(range(1, 9))
    assert len(answers) == 17
    assert all(0 < error.retry_after_s <= 2.5 for error in refused)


async def test_a_run_of_another_kind_takes_what_so_few_take_and_what_its_graph_takes() -> None:
    runner = GatedRunner()
    runner.loading.release()
    pace = known_pace(10.0, 8)
    pace.learn("generator", 8, 2, 30.0)
    pace.learn("explain", 1, 2, 2.0)
    async with batcher_of(runner, max_batch_size=8, pace=pace) as batcher:
        runner.gate.release()
        await batcher.submit(request(purpose="explain"), soon())  # its graph is loaded by now
        await entered(runner)
        tasks = await submitted(batcher, request())
        await entered(runner)
        tasks += await submitted(batcher, request(purpose="explain"))
        # 10 s of the run in flight, 2 at most of the explanation, 10 of its own.
        with pytest.raises(Overloaded) as refused:
            batcher.refuse_early(time.monotonic() + 20 / 0.7)
        assert 0 < refused.value.retry_after_s <= 2
        batcher.refuse_early(time.monotonic() + 22.5 / 0.7)
        # Another explanation shares the run of the one that waits.
        batcher.refuse_early(time.monotonic() + 14.5 / 0.7, kind=Kind("explain"))
        runner.gate.release(2)
        await asyncio.gather(*tasks)


async def test_kinds_that_a_flood_brings_for_later_keep_no_other_tenant_away() -> None:
    runner = GatedRunner(fake_manifest(slate_size=4, beam_width=32))
    pace = known_pace(10.0, 32, runner.manifest)
    async with batcher_of(runner, max_batch_size=32, pace=pace) as batcher:
        tasks = await submitted(batcher, request(), tenant="flood")
        await entered(runner)
        of_widths = [replace(request(), beam_width=width) for width in range(1, 11)]
        tasks += await submitted(batcher, *of_widths, deadline_s=time.monotonic() + 200, tenant="flood")
        with pytest.raises(Overloaded):
            batcher.refuse_early(time.monotonic() + 100, "flood")
        # The run in flight, the first of the flood and the own one.
        tasks += await submitted(batcher, request(9), deadline_s=time.monotonic() + 45, tenant="calm")
        with pytest.raises(Overloaded):
            batcher.refuse_early(time.monotonic() + 45, "calm", Kind(beam_width=12))  # it is behind that of its tenant
        runner.gate.release(20)
        await asyncio.gather(*tasks)
    assert [9] in runner.lengths[:3]


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


async def test_requests_that_name_a_width_keep_it_and_share_runs_with_their_like() -> None:
    manifest = fake_manifest(slate_size=4, beam_width=16)
    runner = GatedRunner(manifest)
    async with batcher_of(runner, max_batch_size=2, min_beam_width=2) as batcher:
        tasks = await submitted(batcher, request(1))
        await entered(runner)
        wide, narrow = replace(request(2), beam_width=40), replace(request(2), beam_width=3)
        tasks += await submitted(batcher, wide, narrow, request(2), wide, narrow, request(2), wide)
        runner.gate.release(20)
        answers = await asyncio.gather(*tasks)
    assert [answer.beam_width for answer in answers] == [16, 40, 3, 16, 40, 3, 16, 40]
    assert [len(answer.beams.scores_W) for answer in answers] == [16, 40, 3, 16, 40, 3, 16, 40]
    assert runner.widths == [16, 40, 3, 16, 40]


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
        tasks += await submitted(batcher, request(2), deadline_s=began_s + 2.5)
        answers = await asyncio.wait_for(asyncio.gather(*tasks), 15)
        # 2.5 s less the run of half a second and a reserve; a machine that is busy may add to it.
        assert 1.5 < answers[0].queue_s < 2.5
    assert runner.lengths == [[1, 2]]


async def test_company_is_waited_for_only_as_long_as_runs_of_all_kinds_leave_it() -> None:
    runner = FakeRunner(MANIFEST, 0.5)
    async with batcher_of(runner, max_batch_size=8, max_wait_s=20.0, pace=known_pace(0.5, 8)) as batcher:
        tasks = await submitted(batcher, request(1), replace(request(2), beam_width=1))
        tasks += await submitted(batcher, replace(request(3), beam_width=2), deadline_s=time.monotonic() + 3.5)
        answers = await asyncio.wait_for(asyncio.gather(*tasks), 15)
        # 3.5 s less three runs and a reserve; the last of them would be late otherwise.
        assert 0.5 < answers[0].queue_s < 2.0
