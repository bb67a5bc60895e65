"""A store behind a circuit breaker: what it costs when the store fails, and which copies stand in."""

import asyncio
from collections.abc import Sequence

import pytest
from impressions import an_impression

from service.background import running
from service.domain import Event
from service.errors import EventLogFull, HistoryDamaged, HistoryUnavailable
from service.history import CopyLimits, EventOutcome, GuardedHistoryStore, MemoryHistoryStore, UserHistory
from service.history.breaker import NUM_FAILURES, OPEN_S
from service.history.shown import shown_of

NOW_MS = 1_790_000_000_000


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


class FailingStore(MemoryHistoryStore):
    """Fails as told, and counts who asks."""

    def __init__(self) -> None:
        super().__init__()
        self.num_reads = self.num_appends = 0
        self.reads_fail: Exception | None = None
        self.appends_fail: Exception | None = None
        self.gate = asyncio.Event()
        self.gate.set()

    async def read(self, user_id: str, now_ms: int | None = None, *, with_shown: bool = False) -> UserHistory:
        self.num_reads += 1
        history = await super().read(user_id, now_ms, with_shown=with_shown)
        await self.gate.wait()
        if self.reads_fail is not None:
            raise self.reads_fail
        return history

    async def append(self, events: Sequence[Event], now_ms: int) -> list[EventOutcome]:
        self.num_appends += 1
        if self.appends_fail is not None:
            raise self.appends_fail
        return await super().append(events, now_ms)


class Rig:
    """A guarded store, what it guards, and a clock."""

    def __init__(self, limits: CopyLimits | None = None) -> None:
        self.clock, self.inner = Clock(), FailingStore()
        self.store = GuardedHistoryStore(self.inner, clock=self.clock, limits=limits)

    async def see(self, user_id: str, *item_ids: str) -> None:
        events = [
            Event(user_id=user_id, item_id=item_id, action="view", timestamp_ms=NOW_MS, event_id=item_id)
            for item_id in item_ids
        ]
        await self.store.append(events, NOW_MS)

    def fail(self, error: Exception | None = None) -> None:
        self.inner.reads_fail = error or HistoryUnavailable("down")


async def test_a_failing_store_is_left_alone_and_found_again() -> None:
    rig = Rig()
    rig.fail()
    for _ in range(3 * NUM_FAILURES):
        with pytest.raises(HistoryUnavailable):
            await rig.store.read("ann")
    assert rig.inner.num_reads == NUM_FAILURES
    assert not rig.store.is_asked
    rig.inner.reads_fail = None
    with pytest.raises(HistoryUnavailable, match="not asked"):
        await rig.store.read("ann")
    rig.clock.now_s += OPEN_S
    assert (await rig.store.read("ann")).stale_s == 0
    assert rig.store.is_asked


async def test_a_store_that_takes_no_writes_is_still_read() -> None:
    rig = Rig()
    rig.inner.appends_fail = HistoryUnavailable("full")
    for _ in range(2 * NUM_FAILURES):
        with pytest.raises(HistoryUnavailable):
            await rig.see("ann", "a")
    assert rig.inner.num_appends == NUM_FAILURES
    assert not rig.store.is_asked
    assert len((await rig.store.read("ann")).entries_N) == 0


async def test_a_store_that_takes_no_writes_still_forgets() -> None:
    rig = Rig()
    await rig.see("ann", "a")
    rig.inner.appends_fail = HistoryUnavailable("full")
    for _ in range(2 * NUM_FAILURES):
        with pytest.raises(HistoryUnavailable):
            await rig.see("ann", "b")
    assert await rig.store.delete("ann")


async def test_a_store_that_hangs_is_left_alone_too_however_short_the_time() -> None:
    rig = Rig()
    await rig.see("ann", "a")
    await rig.store.read("ann", NOW_MS)
    rig.clock.now_s += 1
    rig.inner.gate.clear()
    for _ in range(3 * NUM_FAILURES):
        copy = await rig.store.read_or_copy("ann", NOW_MS, timeout_s=0.005)
        assert (len(copy.entries_N), copy.stale_s) == (1, 1)
    assert rig.inner.num_reads == 1 + NUM_FAILURES
    with pytest.raises(HistoryUnavailable):
        await rig.store.read_or_copy("bob", NOW_MS, timeout_s=0.005)


@pytest.mark.parametrize("timeout_s", [-1.0, 0.0, 0.001])
async def test_requests_without_time_say_nothing_of_the_store(timeout_s: float) -> None:
    rig = Rig()
    await rig.see("ann", "a")
    await rig.store.read("ann", NOW_MS)
    rig.clock.now_s += 1
    rig.inner.gate.clear()
    for _ in range(3 * NUM_FAILURES):
        copy = await rig.store.read_or_copy("ann", NOW_MS, timeout_s=timeout_s)
        assert (len(copy.entries_N), copy.stale_s) == (1, 1)
        with pytest.raises(HistoryUnavailable):
            await rig.store.read_or_copy("bob", NOW_MS, timeout_s=timeout_s)
    assert rig.store.is_asked
    rig.inner.gate.set()
    assert (await rig.store.read("ann", NOW_MS)).stale_s == 0


async def test_a_copy_keeps_what_was_shown_and_counts_it() -> None:
    rig = Rig(CopyLimits(max_bytes=100_000))
    shown = [an_impression("ann", n, *map(str, range(20))) for n in range(10)]
    await rig.store.remember(shown)
    await rig.store.read("ann", with_shown=True)
    await rig.store.read("ann")
    rig.fail()
    rig.clock.now_s += 1
    assert (await rig.store.read_or_copy("ann", with_shown=True, timeout_s=5)).shown == tuple(map(shown_of, shown))
    assert rig.store._num_bytes > 10 * 20 * 40


async def test_one_damaged_history_does_not_cut_off_the_others() -> None:
    rig = Rig()
    rig.fail(HistoryDamaged("not a history"))
    for _ in range(3 * NUM_FAILURES):
        with pytest.raises(HistoryDamaged):
            await rig.store.read("ann")
    assert rig.store.is_asked


async def test_a_young_copy_stands_in_and_says_how_old_it_is() -> None:
    rig = Rig()
    await rig.see("ann", "a", "b")
    fresh = await rig.store.read("ann", NOW_MS)
    rig.clock.now_s += 59
    rig.fail()
    copy = await rig.store.read_or_copy("ann", NOW_MS, timeout_s=5)
    assert copy.stale_s == 59
    with pytest.raises(HistoryUnavailable):
        await rig.store.read("ann", NOW_MS)
    assert copy.as_entries() == fresh.as_entries()
    with pytest.raises(HistoryUnavailable):
        await rig.store.read_or_copy("bob", NOW_MS, timeout_s=5)
    rig.clock.now_s += 1
    with pytest.raises(HistoryUnavailable):
        await rig.store.read_or_copy("ann", NOW_MS, timeout_s=5)
    assert rig.store.num_copies == 0


async def test_what_is_read_anew_replaces_the_copy() -> None:
    rig = Rig()
    await rig.see("ann", "a")
    await rig.store.read("ann", NOW_MS)
    await rig.see("ann", "b")
    rig.clock.now_s += 30
    await rig.store.read("ann", NOW_MS)
    rig.fail()
    rig.clock.now_s += 31
    copy = await rig.store.read_or_copy("ann", NOW_MS, timeout_s=5)
    assert (len(copy.entries_N), copy.stale_s) == (2, 31)


async def test_the_copy_of_who_is_forgotten_is_gone() -> None:
    rig = Rig()
    for user_id in ("ann", "bob"):
        await rig.see(user_id, "a")
        await rig.store.read(user_id, NOW_MS)
    assert await rig.store.delete("ann")
    rig.fail()
    with pytest.raises(HistoryUnavailable):
        await rig.store.read_or_copy("ann", NOW_MS, timeout_s=5)
    assert (await rig.store.read_or_copy("bob", NOW_MS, timeout_s=5)).entries_N["item_key"].size == 1


async def test_a_read_under_way_brings_nobody_back_who_is_forgotten() -> None:
    rig = Rig()
    await rig.see("ann", "a")
    rig.inner.gate.clear()
    reading = asyncio.create_task(rig.store.read("ann", NOW_MS))
    await asyncio.sleep(0)
    await rig.store.delete("ann")
    rig.inner.gate.set()
    assert len((await reading).entries_N) == 1  # it was asked before
    rig.fail()
    with pytest.raises(HistoryUnavailable):
        await rig.store.read_or_copy("ann", NOW_MS, timeout_s=5)


async def test_copies_have_a_size_and_the_oldest_go_first() -> None:
    rig = Rig(CopyLimits(max_bytes=7000))
    for number in range(100):
        await rig.see(f"user-{number}", *(f"item-{item}" for item in range(number % 7)))
        await rig.store.read(f"user-{number}", NOW_MS)
    assert 5 <= rig.store.num_copies <= 7000 // 600
    rig.fail()
    assert (await rig.store.read_or_copy("user-99", NOW_MS, timeout_s=5)).entries_N.size == 99 % 7
    with pytest.raises(HistoryUnavailable):
        await rig.store.read_or_copy("user-0", NOW_MS, timeout_s=5)


async def test_without_copies_nothing_is_kept_that_could_stand_in() -> None:
    rig = Rig(CopyLimits(max_age_s=0))
    await rig.see("ann", "a")
    await rig.store.read("ann", NOW_MS)
    rig.fail()
    with pytest.raises(HistoryUnavailable):
        await rig.store.read_or_copy("ann", NOW_MS, timeout_s=5)


async def test_a_full_event_log_cuts_nobody_off() -> None:
    rig = Rig()
    rig.inner.appends_fail = EventLogFull("full")
    for _ in range(3 * NUM_FAILURES):
        with pytest.raises(EventLogFull):
            await rig.see("ann", "x")
    assert rig.inner.num_appends == 3 * NUM_FAILURES
    assert rig.store.is_asked


async def test_a_user_whom_another_process_forgets_has_no_copy_left_here() -> None:
    rig = Rig()
    elsewhere = GuardedHistoryStore(rig.inner)
    for user_id in ("ann", "bob"):
        await rig.see(user_id, "x")
        await rig.store.read(user_id)
    async with running(rig.store.follow_forgotten(0.001), "follower"):
        await asyncio.sleep(0.01)
        await elsewhere.delete("ann")
        # One who reads just now, and has not got the answer yet: of before, or of after?
        rig.inner.gate.clear()
        slow = asyncio.create_task(rig.store.read("bob"))
        await asyncio.sleep(0.01)
        await elsewhere.delete("bob")
        await asyncio.sleep(0.02)
        rig.inner.gate.set()
        await slow
        assert rig.store.num_copies == 0
        rig.fail()
        for user_id in ("ann", "bob"):
            with pytest.raises(HistoryUnavailable):
                await rig.store.read_or_copy(user_id, timeout_s=5)
