"""The popular ranking by itself: of which catalog a slate is, and who waits for which ranking."""

import asyncio
import threading
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.catalog import CatalogSnapshot, NewItems, TagFilter
from service.domain import Item, item_key
from service.inference.fake_runner import fake_catalog
from service.inference.features import RequestInputs
from service.inference.popular import PopularRanking

CATALOG = fake_catalog(300)
FRESH = TagFilter(any_of=frozenset({"fresh"}))


def request_of(*item_ids: str, excluded: tuple[str, ...] = (), tag_filter: TagFilter | None = None) -> RequestInputs:
    return RequestInputs(
        item_keys_E=np.array([item_key(item_id) for item_id in item_ids], dtype=np.uint64),
        timestamps_ms_E=np.zeros(len(item_ids), dtype=np.int64),
        actions_E=np.ones(len(item_ids), dtype=np.int32),
        values_E=np.zeros(len(item_ids), dtype=np.float32),
        excluded_keys_S=np.array([item_key(item_id) for item_id in excluded], dtype=np.uint64),
        tag_filter=tag_filter,
        now_ms=0,
    )


class GatedRanking(PopularRanking):
    """Of a catalog that can be changed; who ranks it waits for the gate, and fails when told to."""

    def __init__(self, catalog: CatalogSnapshot) -> None:
        super().__init__(self.in_service)
        self.catalog = catalog
        self.gate = threading.Semaphore(0)
        self.num_begun = 0
        self.fails_with: Exception | None = None

    def in_service(self) -> CatalogSnapshot:
        catalog = self.catalog
        if threading.current_thread() is not threading.main_thread():  # it is going to be ranked
            self.num_begun += 1
            assert self.gate.acquire(timeout=10)
            if self.fails_with is not None:
                raise self.fails_with
        return catalog

    def slate_ids(self, request: RequestInputs, slate_size: int = 5) -> list[str]:
        snapshot, ranked = self.slate(request, slate_size)
        assert snapshot is self.catalog
        return [snapshot.items[row].item_id for row, _ in ranked]

    async def ranked(self) -> None:
        """Asks until the catalog in service now has been ranked."""
        async with asyncio.timeout(10):
            while not self.is_ranked:
                await self.ready()
                await asyncio.sleep(0.001)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - nothing tells of it
            await asyncio.sleep(0.001)


def spaced_catalog(num_items: int = 30) -> CatalogSnapshot:
    """A catalog with room for new items between all others; those that come first have most events."""
    items = [Item(item_id=f"item-{number}", group=f"group-{number % 3}") for number in range(num_items)]
    sids_NL = np.array([(number, 1) for number in range(num_items)], dtype=np.int32)
    return CatalogSnapshot.build(items, sids_NL, popularity_N=num_items - np.arange(num_items))


def changed(snapshot: CatalogSnapshot, version: str, *replaced: Item, added: tuple[Item, ...] = ()) -> CatalogSnapshot:
    """What is added stands in front of the spaced catalog's first items."""
    sids_AL = np.array([(number, 0) for number in range(len(added))], dtype=np.int32)
    return snapshot.changed(version, replaced, NewItems(items=added, sids_AL=sids_AL) if added else None)


def test_a_popular_slate_is_of_one_catalog_whatever_comes_meanwhile() -> None:
    """Another snapshot is put in its place in the middle: rows of one mean nothing in the other."""
    catalogs = iter([CATALOG, fake_catalog(310), fake_catalog(320)])
    last = [CATALOG]

    def changing() -> CatalogSnapshot:
        last[0] = next(catalogs, last[0])
        return last[0]

    ranking = PopularRanking(changing)
    snapshot, ranked = ranking.slate(request_of("item-5", "of no catalog"), 5)
    assert [snapshot.items[row].item_id for row, _ in ranked] == [f"item-{number}" for number in (5, 12, 19, 26, 33)]


async def test_all_who_come_before_the_first_ranking_share_it() -> None:
    ranking = GatedRanking(CATALOG)
    tasks = [asyncio.create_task(ranking.ready()) for _ in range(50)]
    await asyncio.sleep(0.02)
    assert not any(task.done() for task in tasks)
    ranking.gate.release(50)
    await asyncio.wait_for(asyncio.gather(*tasks), 10)
    await ranking.ready()
    assert ranking.num_begun == 1
    assert ranking.is_ranked


async def test_until_a_changed_catalog_is_ranked_the_last_ranking_serves_it() -> None:
    """Nobody waits, and what is shown is what the catalog in service holds and allows."""
    ranking = GatedRanking(spaced_catalog())
    ranking.gate.release()
    await ranking.ready()
    before = ranking.catalog
    ranking.catalog = changed(
        before,
        "2",
        replace(before.items[0], removed=True),
        replace(before.items[3], available=False),
        replace(before.items[9], tags=("fresh",)),
        added=(Item(item_id="new", tags=("fresh",)),),
    )
    assert ranking.catalog.row_of("item-0") == 1  # rows have moved
    for _ in range(20):
        await asyncio.wait_for(ranking.ready(), 5)
    assert not ranking.is_ranked
    assert ranking.slate_ids(request_of()) == ["item-1", "item-2", "item-4", "item-5", "item-6"]
    # Of the group of the last one: neither what was removed nor what cannot be had.
    alike = ranking.slate_ids(request_of("item-12", excluded=("item-12", "item-6")), 3)
    assert alike == ["item-9", "item-15", "item-18"]
    assert ranking.slate_ids(request_of(tag_filter=FRESH)) == ["item-9", "new"]
    ranking.gate.release()
    await ranking.ranked()
    assert ranking.num_begun == 2
    await ranking.ready()
    assert ranking.num_begun == 2


async def test_a_catalog_that_changed_while_it_was_ranked_is_ranked_again() -> None:
    ranking = GatedRanking(spaced_catalog())
    ranking.gate.release()
    await ranking.ready()
    for version, item in (("2", 2), ("3", 3), ("4", 4)):
        ranking.catalog = changed(ranking.catalog, version, replace(ranking.catalog.items[item], group="other"))
        await ranking.ready()
        await until(lambda: ranking.num_begun == 2)  # one at a time
    ranking.gate.release(2)
    await ranking.ranked()
    assert ranking.num_begun == 3
    assert ranking.slate_ids(request_of("item-4"), 4) == ["item-2", "item-3", "item-4", "item-0"]


async def test_who_is_cancelled_leaves_the_ranking_to_the_others() -> None:
    ranking = GatedRanking(CATALOG)
    first, second = (asyncio.create_task(ranking.ready()) for _ in range(2))
    await asyncio.sleep(0)
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    assert first.cancelled()
    ranking.gate.release()
    await asyncio.wait_for(second, 10)
    assert ranking.num_begun == 1


async def test_a_ranking_that_failed_is_told_to_who_waits_and_tried_again(caplog: pytest.LogCaptureFixture) -> None:
    ranking = GatedRanking(CATALOG)
    ranking.fails_with = MemoryError("too large")
    tasks = [asyncio.create_task(ranking.ready()) for _ in range(3)]
    await asyncio.sleep(0)
    ranking.gate.release(10)
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [MemoryError] * 3
    assert ranking.num_begun == 1
    assert caplog.text.count("could not be ranked") == 1
    ranking.fails_with = None
    await asyncio.wait_for(ranking.ready(), 10)
    assert ranking.num_begun == 2
    # Once there is one, nobody waits for the next, and nobody is told of it.
    ranking.catalog, ranking.fails_with = changed(CATALOG, "2", replace(CATALOG.items[0], removed=True)), MemoryError()
    await ranking.ready()
    assert ranking.slate_ids(request_of(), 2) == ["item-1", "item-2"]
    await until(lambda: caplog.text.count("could not be ranked") == 2)
    ranking.fails_with = None
    await ranking.ranked()


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.tuples(st.integers(0, 29), st.sampled_from(["removed", "gone", "tag", "group"])), max_size=20),
    st.integers(0, 2),
    st.lists(st.integers(0, 29), max_size=6),
    st.booleans(),
    st.integers(1, 40),
)
def test_the_age_of_a_ranking_says_only_which_of_a_group_come_first(
    changes: list[tuple[int, str]], num_new: int, excluded: list[int], filtered: bool, slate_size: int
) -> None:
    """Without a history the slate is that of a ranking of now; with one it holds the same items, if there is room."""
    old = PopularRanking(lambda: catalog)
    catalog = spaced_catalog()
    old.rank()
    now = {number: catalog.items[number] for number, _ in changes}
    for number, what in changes:
        now[number] = replace(
            now[number],
            **{"removed": {"removed": True}, "gone": {"available": False}, "tag": {"tags": ("fresh",)},
               "group": {"group": "group-2"}}[what],
        )  # fmt: skip
    new = tuple(Item(item_id=f"new-{number}", tags=("fresh",), group="group-1") for number in range(num_new))
    catalog = changed(catalog, "2", *now.values(), added=new)
    fresh = PopularRanking(lambda: catalog)
    fresh.rank()
    assert not old.is_ranked
    asked = {"excluded": tuple(f"item-{number}" for number in excluded), "tag_filter": FRESH if filtered else None}
    assert old.slate(request_of(**asked), slate_size) == fresh.slate(request_of(**asked), slate_size)
    alike = request_of("item-4", **asked)
    assert sorted(old.slate(alike, 40)[1]) == sorted(fresh.slate(alike, 40)[1])
    rows = [row for row, _ in old.slate(alike, slate_size)[1]]
    allowed = np.diff(catalog.allowed_cumsum(alike.tag_filter)) > 0
    assert len(set(rows)) == len(rows)
    assert all(allowed[row] and catalog.items[row].item_id not in asked["excluded"] for row in rows)
