"""Which of the beams is answered, and which others come after it."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.bundle.manifest import Choice
from service.inference.choice import slates_of
from service.inference.fake_runner import fake_catalog
from service.inference.runner import DEAD_SCORE, NO_ROW, Beams

CATALOG = fake_catalog(300)


def beams_of(
    logprobs_WK: Sequence[Sequence[float]],
    valid_WK: Sequence[Sequence[bool]],
    rewards_WK: Sequence[Sequence[float]] | None = None,
    rows_WK: Sequence[Sequence[int]] | None = None,
) -> Beams:
    logprobs, valid = np.array(logprobs_WK, dtype=np.float32), np.array(valid_WK)
    rows = np.arange(valid.size).reshape(valid.shape) if rows_WK is None else np.array(rows_WK)
    return Beams(
        item_rows_WK=np.where(valid, rows, NO_ROW).astype(np.int32),
        item_valid_WK=valid,
        level_logprobs_WKL=np.where(valid, logprobs, 0)[:, :, None] * np.array([0.5, 0.25, 0.25], dtype=np.float32),
        scores_W=np.where(valid[:, 0], np.where(valid, logprobs, 0).sum(axis=1), DEAD_SCORE).astype(np.float32),
        item_rewards_WK=None if rewards_WK is None else np.where(valid, rewards_WK, 0).astype(np.float32),
    )


def best(beams: Beams, slate_size: int, choice: Choice = "score") -> list[float]:
    [slate] = slates_of(beams, CATALOG, slate_size, 1, choice)
    assert slate.score == sum(item.score for item in slate.items)
    return [item.score for item in slate.items]


def test_a_shorter_slate_is_the_best_prefix_of_any_beam() -> None:
    every = [True, True, True]
    beams = beams_of([[-3, -1, -1], [-1, -2, -4], [-2, -0.5, -9]], [every, every, every])
    assert best(beams, 3) == [-3, -1, -1]
    assert best(beams, 2) == [-2, -0.5]
    assert best(beams, 1) == [-1]


def test_the_prefix_of_a_diverse_slate_is_chosen_by_its_own_penalty() -> None:
    """Rows 0 to 2 of the catalog share their first code with one another; rows 1024 and on would not."""
    every = [True, True, True]
    catalog = fake_catalog(3000)
    rows = [[0, 1, 1500], [2, 1500, 2500]]
    beams = beams_of([[-1, -1, -1], [-2, -2, -1]], [every, every], rows_WK=rows)
    found = {d: slates_of(beams, catalog, 2, 1, "score", diversity=d)[0].score for d in (0.0, 1.9, 2.1)}
    assert found == {0.0: -2, 1.9: -2, 2.1: -4}


def test_draws_stay_in_their_order_and_say_how_probable_what_is_shown_was() -> None:
    every = [True, True, True]
    beams = beams_of([[-9, -9, -9], [-1, -1, -1], [-2, -2, -2]], [every, [True, True, False], [False] * 3])
    phi_WKL = np.log(np.array([[0.5, 0.25, 0.1], [0.2, 0.3, 1], [1, 1, 1]]))[:, :, None] * np.array([0.5, 0.5, 0])
    drawn = replace(beams, level_log_propensities_WKL=phi_WKL.astype(np.float32))
    for choice in ("score", "reward"):
        slates = slates_of(drawn, CATALOG, 3, 3, choice)  # type: ignore[arg-type]
        assert [len(slate.items) for slate in slates] == [3, 2]
        assert [slate.propensity for slate in slates] == [pytest.approx(0.0125), pytest.approx(0.06)]
        [prefix] = slates_of(drawn, CATALOG, 1, 1, choice)  # type: ignore[arg-type]
        assert (prefix.score, prefix.propensity) == (-9, pytest.approx(0.5))
    assert slates_of(beams, CATALOG, 3, 1, "score")[0].propensity is None


def test_dead_beams_and_empty_places_are_never_taken() -> None:
    beams = beams_of([[-3, -1], [0, 0]], [[True, False], [False, False]])
    assert best(beams, 1) == [-3]
    assert best(beams, 2) == [-3]
    assert best(beams_of([[0, 0]], [[False, False]]), 2) == []


def test_the_reward_of_what_is_shown_chooses_where_the_bundle_says_so() -> None:
    every = [True, True, True]
    beams = beams_of(
        [[-1, -1, -1], [-2, -2, -2], [-3, -3, -3], [-4, -4, -4]],
        [every, every, [True, True, False], [False, False, False]],
        [[0.1, 0.2, 0.9], [0.3, 0.1, 0.1], [0.4, 9, 0], [9, 9, 9]],
    )
    assert best(beams, 3, "reward") == [-1, -1, -1]
    assert best(beams, 2, "reward") == [-3, -3]  # a short beam that is long enough
    assert best(beams, 1, "reward") == [-3]
    assert best(beams, 1, "score") == [-1]


@st.composite
def some_beams(draw: st.DrawFn) -> Beams:
    """Quarters, whose sums are exact; some beams end early or are dead, some show one set in two orders."""
    num_beams, slate_size = draw(st.integers(1, 7)), draw(st.integers(1, 3))
    rows = st.permutations(range(4)).map(lambda rows: rows[:slate_size])
    quarters = st.lists(st.integers(-12, 0).map(lambda n: n / 4), min_size=slate_size, max_size=slate_size)
    lengths = [draw(st.integers(0, slate_size)) for _ in range(num_beams)]
    return beams_of(
        [draw(quarters) for _ in lengths],
        [[place < length for place in range(slate_size)] for length in lengths],
        [draw(quarters) for _ in lengths] if draw(st.booleans()) else None,
        [draw(rows) for _ in lengths],
    )


@settings(deadline=None, max_examples=300)
@given(some_beams(), st.integers(1, 3), st.integers(1, 8), st.sampled_from(["score", "reward"]))
def test_slates_come_best_first_and_show_different_sets(
    beams: Beams, slate_size: int, num_slates: int, choice: Choice
) -> None:
    slate_size = min(slate_size, beams.item_rows_WK.shape[1])
    expected: dict[frozenset[int], tuple[int, float, int]] = {}
    for beam, rows_K in enumerate(beams.item_rows_WK[:, :slate_size].tolist()):
        shown = [row for row in rows_K if row >= 0]
        worth = float(beams.level_logprobs_WKL[beam, :slate_size].sum())
        if choice == "reward" and beams.item_rewards_WK is not None:
            worth = float(beams.item_rewards_WK[beam, :slate_size].sum())
        if shown:
            rank = (-len(shown), -worth, beam)
            expected[frozenset(shown)] = min(rank, expected.get(frozenset(shown), rank))
    ranked = sorted(expected.values())[:num_slates]
    found = slates_of(beams, CATALOG, slate_size, num_slates, choice)
    if not ranked:
        assert [(slate.items, slate.score) for slate in found] == [((), 0)]
        return
    assert len(found) == len(ranked)
    for slate, (_, _, beam) in zip(found, ranked, strict=True):
        rows = [row for row in beams.item_rows_WK[beam, :slate_size].tolist() if row >= 0]
        assert [item.item_id for item in slate.items] == [CATALOG.items[row].item_id for row in rows]
        assert slate.score == beams.level_logprobs_WKL[beam, :slate_size].sum()
        if beams.item_rewards_WK is None:
            assert slate.reward is None
        else:
            assert slate.reward == beams.item_rewards_WK[beam, :slate_size].sum()
