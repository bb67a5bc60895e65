"""Examples of what else was close, and what is similar, against brute force over small random catalogs."""

from dataclasses import replace

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from service.catalog import CatalogSnapshot, TagFilter
from service.domain import Item, item_key
from service.inference.explain import explanation_of
from service.inference.features import RequestInputs
from service.inference.runner import DEAD_SCORE, NO_ROW, Beams
from service.inference.similar import similar_rows

WARM = TagFilter(any_of=frozenset({"warm"}))
SIZES = (3, 2, 3)


@st.composite
def catalogs(draw: st.DrawFn, *, with_vectors: bool = False) -> CatalogSnapshot:
    sid = st.tuples(*(st.integers(0, size - 1) for size in SIZES))
    sids = draw(st.lists(sid, min_size=1, max_size=14, unique=True))
    flags = st.lists(st.booleans(), min_size=len(sids), max_size=len(sids))
    items = [
        Item(
            item_id=f"item-{number}",
            tags=("warm",) if is_warm else (),
            group=("", "a", "b")[number % 3],
            available=is_available or number == 0,
        )
        for number, (is_warm, is_available) in enumerate(zip(draw(flags), draw(flags), strict=True))
    ]
    popularity = draw(st.permutations(range(len(sids))))
    # Small whole numbers: cosines, of vectors that are not of length 1 here, may tie.
    vectors = draw(st.lists(st.tuples(*[st.integers(-1, 1)] * 2), min_size=len(sids), max_size=len(sids)))
    return CatalogSnapshot.build(
        items,
        np.array(sids, dtype=np.int32),
        np.array(popularity),
        vectors_ND=np.array(vectors, dtype=np.float32) if with_vectors else None,
    )


@settings(deadline=None, max_examples=200)
@given(catalogs(), st.sampled_from([None, WARM]), st.data())
def test_an_example_is_the_most_popular_item_that_may_be_shown_there(
    catalog: CatalogSnapshot, tag_filter: TagFilter | None, data: st.DataObject
) -> None:
    rows = list(range(catalog.num_items))
    slate = data.draw(st.lists(st.sampled_from(rows), min_size=1, max_size=3, unique=True))
    excluded = set(data.draw(st.lists(st.sampled_from(rows), max_size=4))) - set(slate)
    codes_KLR = np.array([[[data.draw(st.integers(-1, 2)) for _ in range(2)] for _ in SIZES] for _ in slate])
    logprobs_KL = -1 - np.arange(len(slate) * len(SIZES), dtype=np.float32).reshape(len(slate), len(SIZES))
    beams = Beams(
        item_rows_WK=np.array([[*slate, NO_ROW]], dtype=np.int32),
        item_valid_WK=np.array([[True] * len(slate) + [False]]),
        level_logprobs_WKL=logprobs_KL[None],
        scores_W=logprobs_KL.sum()[None],
        runner_up_codes_KLR=codes_KLR.astype(np.int32),
        runner_up_logprobs_KLR=np.where(codes_KLR >= 0, np.float32(-0.5), DEAD_SCORE),
    )
    cap = data.draw(st.integers(0, 2))
    explained = explanation_of(
        beams, catalog, replace(_request(catalog, slate, excluded, tag_filter), max_per_group=cap)
    )
    assert explained is not None
    sids = [tuple(sid) for sid in catalog.sids_NL.tolist()]

    def is_full(group: str, before: list[int]) -> bool:
        return bool(cap and group) and [catalog.items[row].group for row in before].count(group) >= cap

    for place, (row, item) in enumerate(zip(slate, explained, strict=True)):
        assert item.item_id == catalog.items[row].item_id
        assert tuple(level.code for level in item.levels) == sids[row]
        assert [level.logprob for level in item.levels] == logprobs_KL[place].tolist()
        for depth, level in enumerate(item.levels):
            assert [up.code for up in level.runner_ups] == [code for code in codes_KLR[place, depth] if code >= 0]
            for up in level.runner_ups:
                below = [
                    other
                    for other in rows
                    if sids[other][: depth + 1] == (*sids[row][:depth], up.code)
                    and other not in excluded
                    and other not in slate[:place]
                    and catalog.items[other].available
                    and (tag_filter is None or "warm" in catalog.items[other].tags)
                    and not is_full(catalog.items[other].group, slate[:place])
                ]
                best = max(below, key=lambda other: catalog.popularity_N[other], default=None)
                assert up.item_id == (None if best is None else catalog.items[best].item_id)


def test_a_slate_of_which_the_catalog_lost_an_item_is_not_explained() -> None:
    catalog = CatalogSnapshot.build([Item(item_id="a"), Item(item_id="b")], np.array([[0, 0, 0], [0, 0, 1]]))
    beams = Beams(
        item_rows_WK=np.array([[0, NO_ROW]]),
        item_valid_WK=np.array([[True, False]]),
        level_logprobs_WKL=np.zeros((1, 2, 3), dtype=np.float32),
        scores_W=np.zeros(1, dtype=np.float32),
        runner_up_codes_KLR=np.full((2, 3, 2), -1),
        runner_up_logprobs_KLR=np.full((2, 3, 2), DEAD_SCORE),
    )
    request = _request(catalog, [0, 1], set(), None)
    assert explanation_of(beams, catalog, request) is None
    there = replace(beams, item_rows_WK=np.array([[0, 1]]), item_valid_WK=np.array([[True, True]]))
    assert explanation_of(there, catalog, request) is not None
    logprobs_WKL = there.level_logprobs_WKL.copy()
    logprobs_WKL[0, 1, 2] = DEAD_SCORE  # nothing could be chosen where the item was
    assert explanation_of(replace(there, level_logprobs_WKL=logprobs_WKL), catalog, request) is None


def _request(
    catalog: CatalogSnapshot, slate: list[int], excluded: set[int], tag_filter: TagFilter | None
) -> RequestInputs:
    def keys(rows: list[int]) -> np.ndarray[tuple[int], np.dtype[np.uint64]]:
        return np.array([item_key(catalog.items[row].item_id) for row in rows], dtype=np.uint64)

    return RequestInputs(
        item_keys_E=keys([]),
        timestamps_ms_E=np.zeros(0, dtype=np.int64),
        actions_E=np.zeros(0, dtype=np.int32),
        values_E=np.zeros(0, dtype=np.float32),
        excluded_keys_S=np.append(keys(sorted(excluded)), np.uint64(item_key("of another catalog"))),
        tag_filter=tag_filter,
        now_ms=0,
        purpose="explain",
        forced_keys_K=keys(slate),
    )


@settings(deadline=None, max_examples=200)
@given(st.booleans().flatmap(lambda has: catalogs(with_vectors=has)), st.integers(1, 20), st.data())
def test_similar_items_share_the_longest_beginning_then_the_direction(
    catalog: CatalogSnapshot, count: int, data: st.DataObject
) -> None:
    row = data.draw(st.integers(0, catalog.num_items - 1))
    sids = catalog.sids_NL.tolist()

    def num_shared(other: int) -> int:
        return next(level for level in range(4) if level == 3 or sids[other][level] != sids[row][level])

    def cosine(other: int) -> float | None:
        if catalog.vectors_ND is None:
            return None
        return float(catalog.vectors_ND[other] @ catalog.vectors_ND[row])

    others = [other for other in range(catalog.num_items) if other != row and catalog.items[other].available]
    ranked = sorted(others, key=lambda other: (-num_shared(other), -(cosine(other) or 0), abs(other - row), other))
    found = similar_rows(catalog, row, count)
    assert [other for other, _, _ in found] == ranked[:count]
    assert found == [(other, num_shared(other), cosine(other)) for other in ranked[:count]]
