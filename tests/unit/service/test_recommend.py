"""The use case without HTTP: which beam is taken, what counts as seen, and which reason wins."""

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from recommend_kit import CATALOG, MANIFEST, RARE, House

from service.catalog import TagFilter
from service.domain import item_key
from service.errors import RunnerError
from service.inference.features import Kind, RequestInputs
from service.inference.popular import PopularRanking
from service.inference.runner import Batch
from service.metrics import STAGES
from service.query import PastEvent
from service.recommend import Recommendation


@pytest.fixture
async def house() -> AsyncIterator[House]:
    built = House()
    yield built
    built.runner.gate.set()
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
    older_s, newer_s = house.last.history_ages_BT[0, :2].tolist()
    assert older_s - newer_s == 2
    assert newer_s == pytest.approx(time.time() - 3, abs=60)
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


@pytest.mark.parametrize("wish", [{}, {"beam_width": 3}, {"temperature": 1.0}, {"temperature": 1.0, "beam_width": 3}])
async def test_admission_is_asked_for_a_run_of_the_kind_that_the_request_gets(
    house: House, wish: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Kind] = []
    monkeypatch.setattr(house.batcher, "refuse_early", lambda deadline_s, tenant, kind: asked.append(kind))
    await house.ask(**wish)
    assert asked == [Kind(house.last.purpose, wish.get("beam_width"))]
    assert house.last.beam_width == (wish.get("beam_width") or MANIFEST.beam_width)


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


async def test_a_cap_reaches_the_model_and_the_popular_slate(house: House) -> None:
    answer = await house.ask(tag_filter=RARE, max_per_group=1)  # 0 and 100, 200 are of groups 0, 2 and 4
    assert house.last.group_limits_B.tolist() == [1]
    assert sorted(ids(answer)) == ["item-0", "item-100", "item-200"]
    house.runner.fails = True
    popular = await house.ask(exclude=["item-3"], max_per_group=1)
    assert ids(popular) == [f"item-{number}" for number in (0, 1, 2, 4, 5)]
    every = await house.ask(tag_filter=TagFilter(any_of=frozenset({"even"})), max_per_group=1, slate_size=5)
    assert ids(every) == [f"item-{number}" for number in (0, 2, 4, 6, 8)]


async def test_a_drawn_slate_says_its_seed_and_its_propensity(house: House) -> None:
    answers = [(await house.ask(temperature=1.0, seed=seed)).slate for seed in (4, 4, 5)]
    assert house.last.purpose == "sampler"
    assert answers[0] == answers[1]
    assert answers[0].items != answers[2].items
    assert [slate.seed for slate in answers] == [4, 4, 5]
    assert all(slate.propensity is not None and 0 < slate.propensity < 1 for slate in answers)
    shorter = (await house.ask(temperature=1.0, seed=4, slate_size=2)).slate
    assert shorter.items == answers[0].items[:2]
    assert (shorter.propensity or 0) > (answers[0].propensity or 1)
    best = (await house.ask()).slate
    assert (best.seed, best.propensity, house.last.purpose) == (None, None, "generator")
    house.runner.fails = True
    popular = (await house.ask(temperature=1.0, seed=4)).slate
    assert (popular.source, popular.seed, popular.propensity) == ("popular", None, None)


async def test_without_history_store_the_model_answers_and_says_so(house: House) -> None:
    await house.store_events("item-1")
    house.store.is_down = True
    answer = await house.ask(exclude=["item-3"])
    assert (answer.slate.source, answer.slate.reason, answer.slate.degraded) == ("model", "history_unavailable", True)
    assert excluded_ids(house.last) == {"item-3"}
    assert house.metrics.registry.get_sample_value("oneslate_history_errors_total", {"operation": "read"}) == 1


async def test_out_of_time_in_the_model_is_a_popular_slate_that_respects_the_request(house: House) -> None:
    await house.store_events("item-0", "item-1")
    house.runner.hanging = frozenset({"generator"})
    began_s = time.monotonic()
    answer = await house.ask(deadline_ms=60.0, exclude=["item-2"])
    assert time.monotonic() - began_s < 5  # the model would take 30 s
    assert answer.timings.queue_s > 0.03
    assert {stage: house.num_observed(stage) for stage in STAGES} == {
        "history": 1, "features": 0, "queue": 1, "inference": 0, "total": 1,
    }  # fmt: skip
    assert (answer.slate.source, answer.slate.reason, answer.slate.degraded) == ("popular", "deadline", True)
    # The last item is of group 1 of 7.
    assert ids(answer) == [f"item-{number}" for number in (8, 15, 22, 29, 36)]
    assert answer.slate.beam_width == 0


async def test_a_popular_slate_is_filled_up_beyond_the_group_of_the_last_item(house: House) -> None:
    await house.store_events("item-2", "item-107")
    house.runner.fails = True
    assert ids(await house.ask(tag_filter=RARE)) == ["item-100", "item-0", "item-200"]
    capped = await house.ask(max_per_group=1, exclude=["item-9"])
    assert ids(capped) == [f"item-{number}" for number in (16, 0, 1, 3, 4)]


async def test_a_copy_of_the_history_stands_in_and_the_answer_says_so(house: House) -> None:
    await house.store_events("item-1", "item-4")
    await house.ask()
    house.store.is_down = True
    answer = await house.ask(exclude=["item-3"])
    assert (answer.slate.source, answer.slate.reason, answer.slate.degraded) == ("model", "stale_history", True)
    assert excluded_ids(house.last) == {"item-1", "item-3", "item-4"}
    assert house.metrics.registry.get_sample_value("oneslate_stale_histories_total") == 1


async def test_a_history_that_takes_too_long_costs_half_of_the_time_and_the_model_answers(house: House) -> None:
    house.store.sleeps_s = 30
    began_s = time.monotonic()
    answer = await house.ask(deadline_ms=2000.0, tag_filter=RARE)
    assert 0.95 < time.monotonic() - began_s < 1.95
    assert (answer.slate.source, answer.slate.reason, answer.slate.degraded) == ("model", "history_unavailable", True)
    assert sorted(ids(answer)) == ["item-0", "item-100", "item-200"]


async def test_a_broken_model_is_a_popular_slate(house: House) -> None:
    house.runner.fails = True
    answer = await house.ask()
    assert (answer.slate.source, answer.slate.reason, answer.slate.degraded) == ("popular", "model_unavailable", True)
    assert house.num_observed("queue") == 0, "it did not wait there in vain, and not for nothing either"
    assert ids(answer) == [f"item-{number}" for number in range(5)]


async def test_popular_slates_are_of_the_catalog_in_service_and_share_its_ranking(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    num_ranked = 0
    rank = PopularRanking.rank

    def slowly(ranking: PopularRanking) -> None:
        nonlocal num_ranked
        num_ranked += 1
        time.sleep(0.1)
        rank(ranking)

    monkeypatch.setattr(PopularRanking, "rank", slowly)
    house.runner.fails = True
    answers = await asyncio.gather(*(house.ask(user_id=f"user {number}") for number in range(30)))
    assert num_ranked == 1
    assert {(*ids(answer),) for answer in answers} == {tuple(f"item-{number}" for number in range(5))}
    house.catalog = CATALOG.changed("next", [replace(CATALOG.items[1], removed=True)])
    answers = await asyncio.gather(*(house.ask(user_id=f"user {number}") for number in range(30)))
    assert {(*ids(answer),) for answer in answers} == {tuple(f"item-{number}" for number in (0, 2, 3, 4, 5))}
    assert {answer.slate.catalog_version for answer in answers} == {"next"}
    await asyncio.sleep(0.3)  # nobody waited for what was begun meanwhile
    assert num_ranked == 2


async def test_a_next_slate_leaves_out_what_the_ones_before_it_showed(house: House) -> None:
    await house.store_events("item-1")
    pages = [await house.ask(exclude=["item-9"])]
    for _ in range(3):
        await asyncio.sleep(0.01)  # what was shown is written behind the answer
        pages.append(await house.ask(exclude=["item-9"], continue_from=pages[-1].recommendation_id))
        assert (pages[-1].slate.reason, pages[-1].slate.degraded) == (None, False)
        shown = {item_id for page in pages[:-1] for item_id in ids(page)}
        assert excluded_ids(house.last) == {"item-1", "item-9"} | shown
        assert not shown & set(ids(pages[-1]))
    # From the first page on again: only that one counts. And with a history of the request's own.
    again = await house.ask(continue_from=pages[0].recommendation_id, history=[])
    assert excluded_ids(house.last) == set(ids(pages[0]))
    assert again.slate.reason == "cold_start"


async def test_a_slate_that_is_not_known_any_more_cannot_be_continued_and_is_said(house: House) -> None:
    await house.store_events("item-1")
    theirs = await house.ask(user_id="bob")
    await asyncio.sleep(0.01)
    for unknown in ("0" * 32, theirs.recommendation_id):
        answer = await house.ask(continue_from=unknown)
        assert len(answer.slate.items) == 5
        assert (answer.slate.reason, answer.slate.degraded) == ("unknown_continuation", True)
    house.store.is_down = True
    assert (await house.ask(continue_from="0" * 32)).slate.reason == "stale_history"
    assert (await house.ask(continue_from="0" * 32, user_id="eve")).slate.reason == "history_unavailable"
    assert (await house.ask(continue_from="0" * 32, history=[])).slate.reason == "stale_history"


async def test_a_popular_slate_is_continued_as_well(house: House) -> None:
    house.runner.fails = True
    first = await house.ask()
    await asyncio.sleep(0.01)
    second = await house.ask(continue_from=first.recommendation_id)
    assert second.slate.source == "popular"
    assert not set(ids(first)) & set(ids(second))


async def test_a_slate_is_explained_by_a_second_run(house: House) -> None:
    await house.store_events("item-1")
    answer = await house.ask(slate_size=3, explain=True, exclude=["item-9"])
    assert answer.slate.explanation is not None
    assert [item.item_id for item in answer.slate.explanation] == ids(answer)
    first, second = house.runner.batches
    assert (first.purpose, second.purpose) == ("generator", "explain")
    assert second.forced_rows_BK is not None
    assert [CATALOG.items[row].item_id for row in second.forced_rows_BK[0, :3]] == ids(answer)
    assert (second.forced_rows_BK[0, 3:] == -1).all()
    assert excluded_ids(second) == excluded_ids(first) == {"item-1", "item-9"}
    assert (answer.slate.reason, answer.slate.degraded) == (None, False)
    assert (await house.ask()).slate.explanation is None


@pytest.mark.parametrize("trouble", ["fails", "hangs"])
async def test_what_cannot_be_explained_in_time_is_answered_all_the_same(house: House, trouble: str) -> None:
    await house.store_events("item-1")
    house.runner.fails_to_explain = trouble == "fails"
    house.runner.hanging = frozenset({"explain"} if trouble == "hangs" else ())
    answer = await house.ask(explain=True, deadline_ms=1000.0)
    assert len(answer.slate.items) == 5
    assert (answer.slate.source, answer.slate.explanation) == ("model", None)
    assert (answer.slate.reason, answer.slate.degraded) == ("not_explained", False)
    assert answer.timings.total_s < 5  # its explanation would take 30 s


async def test_a_popular_slate_has_its_own_reason_and_no_explanation(house: House) -> None:
    house.runner.fails = True
    answer = await house.ask(explain=True)
    assert (answer.slate.source, answer.slate.reason) == ("popular", "model_unavailable")
    assert answer.slate.explanation is None
    assert len(house.runner.batches) == 1


async def test_ids_are_unique_and_ascend(house: House) -> None:
    answers = [await house.ask() for _ in range(3)]
    got = [answer.recommendation_id for answer in answers]
    assert len(set(got)) == 3
    assert [one[:12] for one in got] == sorted(one[:12] for one in got)


@settings(deadline=None, max_examples=150)
@given(
    st.lists(st.integers(0, 399), max_size=350),
    st.sampled_from([None, RARE, TagFilter(any_of=frozenset({"odd"}))]),
    st.integers(1, 20),
    st.sampled_from([0, 1, 2, 9]),
)
def test_popular_slates_are_the_most_popular_that_are_allowed(
    excluded: list[int], tag_filter: TagFilter | None, slate_size: int, limit: int
) -> None:
    inputs = _popular_request([f"item-{number}" for number in excluded], tag_filter, limit)
    snapshot, ranked = PopularRanking(lambda: CATALOG).slate(inputs, slate_size)
    allowed = np.diff(snapshot.allowed_cumsum(tag_filter)) > 0
    # In the fake catalog a lower number is more popular, and rows stand in the order of numbers.
    expected: list[int] = []
    for row in (row for row in range(300) if allowed[row] and row not in set(excluded)):
        if not limit or [other % 7 for other in expected].count(row % 7) < limit:
            expected.append(row)
    assert [row for row, _ in ranked] == expected[:slate_size]
    assert [score for _, score in ranked] == sorted((score for _, score in ranked), reverse=True)


def _popular_request(excluded: list[str], tag_filter: TagFilter | None, limit: int = 0) -> Any:

    return RequestInputs(
        item_keys_E=np.zeros(0, np.uint64),
        timestamps_ms_E=np.zeros(0, np.int64),
        actions_E=np.zeros(0, np.int32),
        values_E=np.zeros(0, np.float32),
        excluded_keys_S=np.array([item_key(item_id) for item_id in excluded], dtype=np.uint64),
        tag_filter=tag_filter,
        max_per_group=limit,
        now_ms=0,
    )


async def test_a_worker_that_is_gone_is_a_broken_model(house: House) -> None:
    await house.batcher.close(grace_s=0)
    with pytest.raises(RunnerError):
        await house.batcher.submit(_popular_request([], None), time.monotonic() + 1)
    assert (await house.ask()).slate.reason == "model_unavailable"


async def test_only_slates_made_as_at_export_are_compared_with_it(house: House) -> None:
    def compared() -> float:
        return house.metrics.registry.get_sample_value("oneslate_slate_beam_entropy_nats_count") or 0.0

    await house.store_events("item-1")
    first = await house.ask()
    assert compared() == 1
    atypical: list[dict[str, Any]] = [
        {"temperature": 1.0}, {"tag_filter": RARE}, {"max_per_group": 2}, {"diversity": 0.5}, {"beam_width": 2},
        {"continue_from": first.recommendation_id}, {"user_id": "new"}, {"exclude": ["item-9"]},
    ]  # fmt: skip
    for query in atypical:
        assert (await house.ask(**query)).slate.source == "model"
        assert compared() == 1, query
    house.runner.fails = True
    assert (await house.ask()).slate.source == "popular"
    house.runner.fails = False
    await house.ask(slate_size=2, num_slates=3)
    assert compared() == 2
    shown = sum(
        house.metrics.registry.get_sample_value("oneslate_items_shown_total", {"popularity": kind}) or 0
        for kind in ("cold", "other", "popular")
    )
    # Five items each but the three that are rare, and the last two: of the best slates alone, and of no popular one.
    assert shown == 5 * 8 + 3 + 2
