"""What was shown: its packed form, what a continuation leaves out, and the writer behind the answers."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from impressions import an_impression

from service.domain import Impression
from service.errors import HistoryUnavailable
from service.history import MemoryHistoryStore, ShownRecorder, ShownSlate, shown_until
from service.history.shown import decode_shown, encode_shown, shown_of
from service.metrics import Metrics

IDS = [f"{number:032x}" for number in (1, 2, 3, 2**128 - 1)]
SLATES = st.builds(
    ShownSlate,
    user_id=st.just("ann"),
    recommendation_id=st.sampled_from(IDS),
    continued_from=st.sampled_from([None, *IDS]),
    item_keys=st.lists(st.integers(0, 2**64 - 1), max_size=4).map(tuple),
)


@given(st.lists(SLATES, max_size=5))
def test_records_come_back_and_half_ones_are_refused(slates: list[ShownSlate]) -> None:
    packed = b"".join(map(encode_shown, slates))
    assert decode_shown("ann", packed) == tuple(slates)
    ends = [len(b"".join(map(encode_shown, slates[:count]))) for count in range(len(slates) + 1)]
    for length in set(range(len(packed))) - set(ends):
        with pytest.raises(ValueError, match="whole records"):
            decode_shown("ann", packed[:length])


def test_of_more_items_than_a_byte_counts_the_first_are_kept() -> None:
    slate = ShownSlate(user_id="ann", recommendation_id=IDS[0], continued_from=None, item_keys=tuple(range(300)))
    [kept] = decode_shown("ann", encode_shown(slate))
    assert kept.item_keys == tuple(range(255))


@given(st.lists(SLATES, max_size=6, unique_by=lambda slate: slate.recommendation_id), st.sampled_from(IDS))
def test_a_continuation_leaves_out_the_slate_and_all_that_it_continued(slates: list[ShownSlate], asked: str) -> None:
    by_id = {slate.recommendation_id: slate for slate in slates}
    expected: set[int] = set()
    visited: list[str] = []
    place: str | None = asked
    while place in by_id and place not in visited:
        visited.append(place)
        expected |= set(by_id[place].item_keys)
        place = by_id[place].continued_from
    found = shown_until(slates, asked)
    if not visited:
        assert found is None
    else:
        assert found is not None
        assert set(found.tolist()) == expected


class Store(MemoryHistoryStore):
    """Waits for its gate; fails when told to."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = asyncio.Event()
        self.is_down = False
        self.sizes: list[int] = []
        self.num_unlogged = 0

    async def remember(self, impressions: Sequence[Impression]) -> int:
        self.sizes.append(len(impressions))
        await self.gate.wait()
        if self.is_down:
            raise HistoryUnavailable("down")
        await super().remember(impressions)
        return self.num_unlogged


def slate(number: int) -> Impression:
    return an_impression("ann", number, f"item-{number}")


def num_lost(metrics: Metrics) -> float:
    value: float = metrics.history_errors.labels("remember")._value.get()
    return value


async def test_what_comes_during_a_write_goes_with_the_next_and_the_end_waits_for_it() -> None:
    store, metrics = Store(), Metrics()
    recorder = ShownRecorder(store, metrics)
    recorder.add(slate(1))
    await asyncio.sleep(0.01)
    for number in (2, 3, 4):
        recorder.add(slate(number))
    store.gate.set()
    await recorder.close()
    assert store.sizes == [1, 3]
    shown = (await store.read("ann", with_shown=True)).shown
    assert shown == tuple(shown_of(slate(number)) for number in (1, 2, 3, 4))
    assert num_lost(metrics) == 0


async def test_what_the_store_does_not_take_is_counted_and_the_next_is_written() -> None:
    store, metrics = Store(), Metrics()
    store.gate.set()
    store.is_down = True
    recorder = ShownRecorder(store, metrics)
    recorder.add(slate(1))
    await asyncio.sleep(0.01)
    store.is_down = False
    recorder.add(slate(2))
    await recorder.close()
    assert num_lost(metrics) == 1
    assert (await store.read("ann", with_shown=True)).shown == (shown_of(slate(2)),)


async def test_no_error_ends_the_writing(caplog: pytest.LogCaptureFixture) -> None:
    store, metrics = Store(), Metrics()
    store.gate.set()
    recorder = ShownRecorder(store, metrics)
    recorder.add(replace(slate(1), recommendation_id="no number"))
    await asyncio.sleep(0.01)
    recorder.add(slate(2))
    await recorder.close()
    assert num_lost(metrics) == 1
    assert "1 shown slates are not remembered" in caplog.text
    assert (await store.read("ann", with_shown=True)).shown == (shown_of(slate(2)),)


async def test_more_than_may_wait_is_counted_and_dropped() -> None:
    store, metrics = Store(), Metrics()
    recorder = ShownRecorder(store, metrics, queue_limit=2)
    for number in range(5):
        recorder.add(slate(number))
    store.gate.set()
    await recorder.close()
    assert num_lost(metrics) == 3
    recorder.add(slate(9))  # nobody writes any more
    assert num_lost(metrics) == 4


async def test_what_the_log_has_no_room_for_is_counted() -> None:
    store, metrics = Store(), Metrics()
    store.gate.set()
    store.num_unlogged = 2
    recorder = ShownRecorder(store, metrics)
    for number in range(3):
        recorder.add(slate(number))
    await recorder.close()
    assert metrics.impressions_unlogged._value.get() == 2
    assert num_lost(metrics) == 0


async def test_who_is_forgotten_is_not_remembered_afterwards() -> None:
    store, metrics = Store(), Metrics()
    recorder = ShownRecorder(store, metrics)
    recorder.add(slate(1))
    await asyncio.sleep(0.01)  # is being written
    recorder.add(slate(2))  # waits
    recorder.add(an_impression("bob", 3, "x"))
    forgetting = asyncio.create_task(recorder.forget("ann"))
    await asyncio.sleep(0.01)
    assert not forgetting.done()
    store.gate.set()
    await forgetting
    await store.delete("ann")
    await recorder.close()
    assert (await store.read("ann", with_shown=True)).shown == ()
    assert len((await store.read("bob", with_shown=True)).shown) == 1


async def test_a_slate_that_was_begun_before_its_user_was_forgotten_is_not_remembered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now_ms = an_impression("ann", 1, "x").timestamp_ms
    monkeypatch.setattr("service.history.shown.time.time_ns", lambda: now_ms * 1_000_000)
    store, metrics = Store(), Metrics()
    store.gate.set()
    recorder = ShownRecorder(store, metrics)
    await recorder.forget("ann")
    recorder.add(an_impression("ann", 1, "x"))  # its request was under way
    recorder.add(an_impression("bob", 1, "x"))
    await recorder.written("ann")
    assert (await store.read("ann", with_shown=True)).shown == ()
    recorder.add(replace(an_impression("ann", 2, "y"), timestamp_ms=now_ms + 1))  # she came back
    await recorder.close()
    assert [len((await store.read(name, with_shown=True)).shown) for name in ("ann", "bob")] == [1, 1]
    assert num_lost(metrics) == 0
    # Whose requests have all ended is not kept.
    now_ms += 60_001
    await recorder.forget("eve")
    assert list(recorder._forgotten_ms) == ["eve"]


async def test_whoever_asks_for_more_waits_for_what_was_shown_to_be_written() -> None:
    store, metrics = Store(), Metrics()
    recorder = ShownRecorder(store, metrics)
    async with asyncio.timeout(5):
        await recorder.written("ann")  # nothing was shown
        recorder.add(slate(1))
        await asyncio.sleep(0.01)  # is being written
        recorder.add(slate(2))  # waits
        asking = asyncio.create_task(recorder.written("ann"))
        await asyncio.sleep(0.01)
        assert not asking.done()
        store.gate.set()
        await asking
        assert len((await store.read("ann", with_shown=True)).shown) == 2
        recorder.add(slate(3))
        await recorder.written("ann")  # before the writer has had its turn
        assert len((await store.read("ann", with_shown=True)).shown) == 3
        await recorder.close()
        await recorder.written("ann")
