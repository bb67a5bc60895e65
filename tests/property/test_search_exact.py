"""The beam search against exhaustive scoring of every slate, and against a beam search in plain Python."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import event, given, settings
from hypothesis import strategies as st
from search_problems import (
    CODEBOOK_SIZES,
    HISTORY_LENGTH,
    SCORE_MODES,
    TOLERANCE,
    Oracle,
    Problem,
    make_catalog,
    make_history,
    random_events,
    rows_of,
    tiny_generator,
)

from model_export.search.eager import BeamSearch, Slates

MOST_ITEMS = 6
WIDE = 160
"""More than the partial slates of three out of six items, so that no beam is ever pruned."""
DEAD = np.float32(-1e30)


@st.composite
def problems(draw: st.DrawFn, num_levels: int, *, has_caps: bool) -> Problem:
    sizes = CODEBOOK_SIZES[:num_levels]
    sid = st.tuples(*(st.integers(0, size - 1) for size in sizes))
    most = min(MOST_ITEMS, math.prod(sizes))
    # Left alone, Hypothesis draws few items and excludes nearly all of them.
    sids = draw(st.lists(sid, min_size=draw(st.integers(1, most)), max_size=most, unique=True))
    rows = st.one_of(
        st.just(frozenset[int]()),
        st.frozensets(st.integers(0, len(sids) - 1), max_size=2),
        st.frozensets(st.integers(0, len(sids) - 1)),
    )
    num_requests = draw(st.integers(1, 3))
    num_filters = draw(st.integers(1, 3))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    blocked_F = draw(st.lists(rows, min_size=num_filters, max_size=num_filters))
    allowed_FN = np.array([[row not in blocked for row in range(len(sids))] for blocked in blocked_F])
    groups = draw(st.lists(st.sampled_from(["", "a", "b"]), min_size=len(sids), max_size=len(sids)))
    diversities = st.sampled_from([0.0, 0.7, 2.5])
    limits = st.lists(st.sampled_from([0, 1, 2]), min_size=num_requests, max_size=num_requests)
    return Problem(
        catalog=make_catalog(sids, groups),
        history=make_history([random_events(rng, sizes, HISTORY_LENGTH) for _ in range(num_requests)], num_levels),
        excluded=tuple(draw(st.lists(rows, min_size=num_requests, max_size=num_requests))),
        allowed_FN=allowed_FN,
        slots=tuple(draw(st.lists(st.integers(0, num_filters - 1), min_size=num_requests, max_size=num_requests))),
        limits=tuple(draw(limits)) if has_caps else (),
        diversities=tuple(draw(st.lists(diversities, min_size=num_requests, max_size=num_requests))),
    )


@st.composite
def searches(draw: st.DrawFn, ties: bool | None = None, has_caps: bool = False) -> tuple[BeamSearch, Problem, int]:
    """A search, its problem, and how many items to ask for."""
    num_levels = draw(st.integers(1, 3))
    problem = draw(problems(num_levels, has_caps=has_caps))
    score_mode = draw(st.sampled_from(SCORE_MODES))
    has_ties = draw(st.booleans()) if ties is None else ties
    has_vectors = score_mode == "legal_softmax" and not has_ties and draw(st.booleans())
    event(f"item vectors: {has_vectors}")
    generator = tiny_generator(
        num_levels,
        3,
        score_mode,
        seed=draw(st.integers(0, 3)),
        context_free=has_ties,
        num_experts=draw(st.sampled_from([1, 3])),
        catalog=problem.catalog if has_vectors else None,
    )
    problem = replace(problem, history=replace(problem.history, rows_BT=rows_of(problem.history, problem.catalog)))
    return BeamSearch(generator, problem.catalog), problem, draw(st.sampled_from([3, 2, 1, 3, 2]))


def live_slates(slates: Slates, problem: Problem, request: int, num_items: int) -> list[tuple[int, ...]]:
    """The rows of every live beam; checks what must hold of rows, validity and logprobs whatever was asked."""
    scores_W = slates.scores_BW[request].numpy()
    rows_WK = slates.item_rows_BWK[request].numpy()
    valid_WK = slates.item_valid_BWK[request].numpy()
    logprobs_WKL = slates.level_logprobs_BWKL[request].numpy()
    assert rows_WK.shape[1] == num_items
    lengths_W = valid_WK.sum(1) + (scores_W > DEAD / 2)
    assert np.all(np.diff(lengths_W) <= 0)
    assert np.all((np.diff(scores_W) <= 0) | (np.diff(lengths_W) < 0) | (lengths_W[1:] < lengths_W[0]))
    np.testing.assert_array_equal(valid_WK, rows_WK >= 0)
    assert np.all(logprobs_WKL[~valid_WK] == 0)
    live_W = scores_W > DEAD / 2
    assert np.all(scores_W[~live_W] == DEAD)
    assert not valid_WK[~live_W].any()
    penalties = [problem.penalty(request, rows) for rows in rows_WK[live_W].tolist()]
    np.testing.assert_allclose(logprobs_WKL[live_W].sum((1, 2)) - penalties, scores_W[live_W], atol=TOLERANCE)
    # A slate ends once: after a place without an item comes no item.
    assert np.all(np.diff(valid_WK.astype(int), axis=1) <= 0)
    return [tuple(row for row in rows if row >= 0) for rows in rows_WK[live_W].tolist()]


@settings(deadline=None, max_examples=350)
@given(st.booleans().flatmap(lambda has_caps: searches(has_caps=has_caps)))
def test_a_wide_beam_finds_what_exhaustive_scoring_finds(case: tuple[BeamSearch, Problem, int]) -> None:
    search, problem, num_items = case
    slates = search.decode(problem.history, beam_width=WIDE, num_items=num_items, **problem.restrictions())
    for request in range(problem.num_requests):
        oracle = Oracle(search.generator, problem, request, num_items)
        event(f"length {oracle.length} of {num_items}")
        found = live_slates(slates, problem, request, num_items)
        expected = oracle.best_of_sets()
        # Below a node of several groups a cap may leave a dead end; what ends there comes last.
        whole, cut = found[: len(expected)], found[len(expected) :]
        assert [len(slate) for slate in whole] == [oracle.length] * len(expected)
        assert all(len(slate) < oracle.length and oracle.is_legal(slate) for slate in cut)
        assert not cut or problem.limits[request]
        event(f"dead ends: {bool(cut)}")
        assert len({frozenset(slate) for slate in found}) == len(found)
        found = whole
        scores = slates.scores_BW[request, : len(found)].numpy()
        np.testing.assert_allclose(scores, [score for score, _ in expected], atol=TOLERANCE)
        for beam, slate in enumerate(found):
            logprobs_KL = slates.level_logprobs_BWKL[request, beam, : len(slate)].numpy()
            np.testing.assert_allclose(logprobs_KL, oracle.level_logprobs(slate), atol=TOLERANCE)
        every = oracle.all_slates()
        if oracle.length <= 2:
            # With two items each order is compared with the other only when both are complete: no order is lost.
            best = {}
            for slate, score in every.items():
                best[frozenset(slate)] = max(best.get(frozenset(slate), -np.inf), score)
            np.testing.assert_allclose(scores, sorted(best.values(), reverse=True), atol=TOLERANCE)
        else:
            assert scores[0] <= max(every.values()) + TOLERANCE


@settings(deadline=None, max_examples=250)
@given(searches(ties=False), st.sampled_from([2, 1, 3, 5, 4, 2]))
def test_a_narrow_beam_prunes_as_the_plain_search_does(case: tuple[BeamSearch, Problem, int], width: int) -> None:
    search, problem, num_items = case
    slates = search.decode(problem.history, beam_width=width, num_items=num_items, **problem.restrictions())
    for request in range(problem.num_requests):
        oracle = Oracle(search.generator, problem, request, num_items)
        found = live_slates(slates, problem, request, num_items)
        expected = oracle.beam_search(width, ambiguous_gap=1e-5)
        if expected is None:
            event("a near tie decides: not compared")
            continue
        event(f"compared at width {width}")
        scores = slates.scores_BW[request, : len(found)].numpy()
        np.testing.assert_allclose(scores, [score for score, _ in expected], atol=TOLERANCE)
        assert [slate for _, slate in expected] == found or np.diff(scores).max(initial=-1) > -1e-5


@settings(deadline=None, max_examples=60)
@given(searches(ties=True), st.sampled_from([2, 1, 3, 4]))
def test_ties_at_the_edge_of_a_narrow_beam_never_lose_the_best_score(
    case: tuple[BeamSearch, Problem, int], width: int
) -> None:
    # Without context a greedy choice of items is optimal up to ties inside the trie, at one level.
    search, problem, num_items = case
    slates = search.decode(problem.history, beam_width=width, num_items=num_items, **problem.restrictions())
    for request in range(problem.num_requests):
        found = live_slates(slates, problem, request, num_items)
        oracle = Oracle(search.generator, problem, request, num_items)
        assert found
        assert {len(slate) for slate in found} == {oracle.length}
        if search.generator.spec.num_levels == 1:
            best = max(oracle.all_slates().values())
            assert float(slates.scores_BW[request, 0]) == pytest.approx(best, abs=TOLERANCE)


@pytest.mark.parametrize("score_mode", SCORE_MODES)
def test_three_items_can_lose_the_best_order_but_no_set(score_mode: str) -> None:
    """Keeping one order of each pair is a heuristic: how often it costs the best slate, and that it costs no set."""
    generator = tiny_generator(2, 3, score_mode, seed=1)
    catalog = make_catalog([(0, 0), (0, 1), (1, 0), (2, 2), (3, 1)])
    rng = np.random.default_rng(0)
    history = make_history([random_events(rng, CODEBOOK_SIZES[:2], HISTORY_LENGTH) for _ in range(40)], 2)
    slates = BeamSearch(generator, catalog).decode(history, beam_width=WIDE)
    problem = Problem(
        catalog=catalog,
        history=history,
        excluded=(frozenset(),) * 40,
        allowed_FN=np.ones((1, 5), dtype=bool),
        slots=(0,) * 40,
    )
    lost = []
    for request in range(40):
        oracle = Oracle(generator, problem, request, 3)
        assert len({frozenset(slate) for slate in live_slates(slates, problem, request, 3)}) == 10
        lost.append(max(oracle.all_slates().values()) - float(slates.scores_BW[request, 0]))
    assert min(lost) > -TOLERANCE
    assert np.mean(np.array(lost) < TOLERANCE) > 0.5


def test_the_defaults_ask_for_whole_slates_of_the_available_items() -> None:
    generator = tiny_generator(2, 3, "full_softmax")
    items = make_catalog([(0, 0), (0, 1), (1, 0), (2, 2)])
    history = make_history([[], [((2, 2), 1, 1000, 1.0)]], 2)
    slates = BeamSearch(generator, items).decode(history, beam_width=5)
    assert slates.item_rows_BWK.shape == (2, 5, 3)
    assert slates.item_valid_BWK[:, 0].all()
    assert torch.equal(slates.item_rows_BWK[0, 0].sort().values.unique(), slates.item_rows_BWK[0, 0].sort().values)


def test_decoding_leaves_the_generator_as_it_was() -> None:
    generator = tiny_generator(2, 3, "full_softmax", seed=9)
    generator.train()
    search = BeamSearch(generator, make_catalog([(0, 0), (1, 1), (2, 0)]))
    history = make_history([[((3, 3), 1, 1000, 1.0)]], 2)
    first, second = (search.decode(history, beam_width=3) for _ in range(2))
    assert generator.training
    assert torch.equal(first.scores_BW, second.scores_BW)  # dropout is off while decoding
    generator.eval()
