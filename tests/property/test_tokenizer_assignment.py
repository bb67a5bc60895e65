"""Semantic IDs hold their promises on any catalog: unique, balanced, deterministic, as good as an exact solver."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

from model_export.tokenizer.assignment import Assignment, assign_catalog
from model_export.tokenizer.balance import PricedCodes, cheapest_codes, squared_distances
from model_export.tokenizer.config import TokenizerConfig
from model_export.tokenizer.groups import Groups, legalise
from model_export.tokenizer.paths import Rebalancer
from model_export.tokenizer.shifts import FEW_UNITS, imbalance, shift, shift_many
from model_export.tokenizer.targets import Targets
from service.bundle.item_encoder import assign_new
from service.errors import CatalogError

SETTINGS = settings(max_examples=60, deadline=None)


@st.composite
def catalogs(draw: st.DrawFn) -> tuple[np.ndarray, tuple[int, ...]]:
    """Points, many of them equal, and codebook sizes that hold them: loosely, tightly or exactly."""
    sizes = tuple(draw(st.lists(st.integers(1, 5), min_size=1, max_size=4)))
    capacity = math.prod(sizes)
    num_items = draw(st.one_of(st.integers(1, capacity), st.just(capacity)))
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    points = rng.standard_normal((num_items, draw(st.integers(1, 6)))).astype(np.float32)
    num_distinct = draw(st.integers(1, num_items))
    return points[rng.integers(0, num_distinct, num_items)], sizes


def check_promises(assignment: Assignment, num_items: int, sizes: tuple[int, ...]) -> None:
    sids = assignment.sids_NL
    assert sids.shape == (num_items, len(sizes))
    assert sids.dtype == np.int32
    assert len(np.unique(sids, axis=0)) == num_items
    for level, num_codes in enumerate(sizes):
        counts = np.bincount(sids[:, level], minlength=num_codes)
        assert len(counts) == num_codes
        assert counts.max() - counts.min() <= 1
        assert num_items < num_codes or counts.min() >= 1
        assert np.isfinite(assignment.codebooks[level]).all()


@SETTINGS
@given(catalogs(), st.sampled_from([0, 1, 3]))
def test_sids_are_unique_and_balanced_at_every_level(
    catalog: tuple[np.ndarray, tuple[int, ...]], refine_sweeps: int
) -> None:
    points, sizes = catalog
    assignment = assign_catalog(points, sizes, refine_sweeps=refine_sweeps, balance_iterations=2)
    check_promises(assignment, len(points), sizes)


@pytest.mark.parametrize("sizes", [(8, 8), (4, 4, 4), (3, 5, 7), (105,), (1, 1, 6)])
def test_a_full_space_and_one_item_less(sizes: tuple[int, ...]) -> None:
    points = np.random.default_rng(1).standard_normal((math.prod(sizes), 3)).astype(np.float32)
    for num_items in (len(points), len(points) - 1):
        check_promises(assign_catalog(points[:num_items], sizes), num_items, sizes)
    with pytest.raises(ValueError, match="do not fit"):
        assign_catalog(np.concatenate([points, points[:1]]), sizes)


def test_identical_items_all_get_sids_of_their_own() -> None:
    check_promises(assign_catalog(np.ones((500, 4), np.float32), (16, 16, 16)), 500, (16, 16, 16))


def test_the_seed_decides_everything() -> None:
    points = np.random.default_rng(2).standard_normal((300, 8)).astype(np.float32)
    first, again, other = (assign_catalog(points, (8, 8, 8), seed=seed) for seed in (5, 5, 6))
    assert np.array_equal(first.sids_NL, again.sids_NL)
    assert all(np.array_equal(a, b) for a, b in zip(first.codebooks, again.codebooks, strict=True))
    assert not np.array_equal(first.sids_NL, other.sids_NL)


@SETTINGS
@given(st.integers(2, 40), st.integers(1, 7), st.integers(0, 2**16))
def test_balancing_without_groups_costs_what_the_optimum_costs(num_items: int, num_codes: int, seed: int) -> None:
    """Oracle: a linear assignment with every code repeated; only divisible sizes have one optimum to compare with."""
    num_items = max(num_items - num_items % num_codes, num_codes)
    rng = np.random.default_rng(seed)
    points = rng.standard_normal((num_items, 3)).astype(np.float32)
    centroids = rng.standard_normal((num_codes, 3)).astype(np.float32)
    costs = squared_distances(points, centroids).astype(np.float64)
    prices = np.zeros(num_codes, np.float32)
    groups = Groups(np.arange(num_items), 1, num_codes)
    targets = Targets(points)
    codes = Rebalancer(targets, centroids, prices, cheapest_codes(targets, centroids, prices), groups).run()
    rows, columns = linear_sum_assignment(np.repeat(costs, num_items // num_codes, axis=1))
    best = costs[rows, columns // (num_items // num_codes)].sum()
    assert np.bincount(codes, minlength=num_codes).tolist() == [num_items // num_codes] * num_codes
    assert costs[np.arange(num_items), codes].sum() == pytest.approx(best, abs=1e-4)


@SETTINGS
@given(st.integers(1, 30), st.integers(2, 6), st.integers(1, 4), st.integers(0, 2**16))
def test_groups_never_crowd_a_code_and_balance_is_still_reached(
    num_items: int, num_codes: int, capacity: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    points = rng.standard_normal((num_items, 2)).astype(np.float32)
    centroids = rng.standard_normal((num_codes, 2)).astype(np.float32)
    # consecutive runs no longer than what a group may hold
    group = np.arange(num_items) // int(rng.integers(1, num_codes * capacity + 1))
    groups = Groups(group, capacity, num_codes)
    prices = rng.standard_normal(num_codes).astype(np.float32)
    targets = Targets(points)
    legal = legalise(targets, centroids, prices, cheapest_codes(targets, centroids, prices), groups)
    balanced = Rebalancer(targets, centroids, prices, legal, groups).run()
    for codes in (legal, balanced):
        _, counts = np.unique(np.stack([group, codes], axis=1), axis=0, return_counts=True)
        assert counts.max() <= capacity
    assert np.ptp(np.bincount(balanced, minlength=num_codes)) <= 1


@SETTINGS
@given(st.integers(1, 120), st.integers(1, 6), st.integers(1, 4), st.integers(0, 2**16))
def test_direct_moves_only_ever_lessen_the_imbalance_and_keep_groups(
    num_items: int, num_codes: int, capacity: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    points = rng.standard_normal((num_items, 2)).astype(np.float32)
    centroids = rng.standard_normal((num_codes, 2)).astype(np.float32)
    group = np.arange(num_items) // int(rng.integers(1, num_codes * capacity + 1))
    groups, targets = Groups(group, capacity, num_codes), Targets(points)
    codes = legalise(
        targets,
        centroids,
        np.zeros(num_codes, np.float32),
        cheapest_codes(targets, centroids, np.zeros(num_codes, np.float32)),
        groups,
    )
    groups.watch(codes)
    level = PricedCodes(centroids)
    for _ in range(100):
        surplus, room = imbalance(codes, num_codes)
        before = codes.copy()
        if not min(surplus.sum(), room.sum()) or not shift(targets, level, codes, groups, surplus, room):
            break
        moved = np.flatnonzero(codes != before)
        assert (np.bincount(before[moved], minlength=num_codes) <= surplus).all()
        assert (np.bincount(codes[moved], minlength=num_codes) <= room).all()
        _, counts = np.unique(np.stack([group, codes], axis=1), axis=0, return_counts=True)
        assert counts.max() <= capacity
    else:
        raise AssertionError("it never ends")
    balanced = Rebalancer(targets, centroids, np.zeros(num_codes, np.float32), codes, groups).run()
    assert np.ptp(np.bincount(balanced, minlength=num_codes)) <= 1


def test_many_items_move_at_once_and_few_are_left_to_chains() -> None:
    """Everyone's nearest code is the same one; without groups direct moves reach what FEW_UNITS asks for."""
    rng = np.random.default_rng(0)
    points = rng.standard_normal((20_000, 4)).astype(np.float32)
    centroids = np.concatenate([np.zeros((1, 4)), 9 + rng.standard_normal((63, 4))]).astype(np.float32)
    codes = np.zeros(20_000, np.int32)
    groups = Groups(np.arange(20_000), 1, 64)
    moved = shift_many(Targets(points), centroids, codes, groups)
    surplus, room = imbalance(moved, 64)
    assert (codes == 0).all()  # the caller's array stays
    assert 0 <= min(surplus.sum(), room.sum()) <= FEW_UNITS
    near = shift_many(Targets(points), centroids, moved, groups)
    np.testing.assert_array_equal(near, moved)


@SETTINGS
@given(catalogs(), st.integers(0, 2**16))
def test_new_items_fill_every_free_sid_and_then_are_refused(
    catalog: tuple[np.ndarray, tuple[int, ...]], seed: int
) -> None:
    points, sizes = catalog
    assignment = assign_catalog(points, sizes, refine_sweeps=2, balance_iterations=1)
    taken = np.unique(assignment.sids_NL, axis=0)
    rng = np.random.default_rng(seed)
    for _ in range(min(math.prod(sizes) - len(taken), 30)):
        vector = rng.standard_normal(points.shape[1]).astype(np.float32)
        sid = assign_new(vector, assignment.codebooks, taken, sizes)
        assert (sid < np.array(sizes)).all()
        before = len(taken)
        taken = np.unique(np.concatenate([taken, sid[None]]), axis=0)
        assert len(taken) == before + 1
    if len(taken) == math.prod(sizes):
        with pytest.raises(CatalogError, match="no semantic ID is free"):
            assign_new(points[0], assignment.codebooks, taken, sizes)


@SETTINGS
@given(st.integers(0, 2**16), st.integers(1, 20))
def test_a_wide_beam_finds_the_nearest_free_sid(seed: int, num_taken: int) -> None:
    """Oracle: every sid of the space, those taken struck out."""
    rng = np.random.default_rng(seed)
    sizes = (3, 4, 3)
    codebooks = [rng.standard_normal((size, 4)).astype(np.float32) for size in sizes]
    space = np.stack(np.meshgrid(*map(np.arange, sizes), indexing="ij"), axis=-1).reshape(-1, 3)
    taken = space[np.sort(rng.permutation(len(space))[:num_taken])].astype(np.int32)
    vector = rng.standard_normal(4).astype(np.float32)
    errors = np.square(vector - sum(codebooks[level][space[:, level]] for level in range(3))).sum(axis=1)
    is_taken = (space[:, None] == taken).all(axis=2).any(axis=1)
    sid = assign_new(vector, codebooks, taken, sizes, beam_width=1000)
    assert errors[(space == sid).all(axis=1)][0] == pytest.approx(errors[~is_taken].min(), abs=1e-4)


def test_a_prefix_gets_no_child_beyond_max_branch() -> None:
    codebooks = [np.array([[0.0], [10.0]], np.float32), np.array([[0.0], [1.0], [2.0]], np.float32)]
    taken = np.array([[0, 0], [0, 1], [1, 0]], np.int32)
    # the nearest sid (0, 2) would be a third child
    assert assign_new(np.array([2.0], np.float32), codebooks, taken, (2, 2)).tolist() == [1, 1]
    assert assign_new(np.array([2.0], np.float32), codebooks, taken, (2, 3)).tolist() == [0, 2]


@SETTINGS
@given(st.integers(1, 2_000_000), st.integers(1, 5))
def test_a_chosen_codebook_holds_the_catalog_and_leaves_no_code_empty(num_items: int, num_levels: int) -> None:
    sizes = TokenizerConfig(num_levels=num_levels).codebook_sizes(num_items)
    assert len(sizes) == num_levels
    assert math.prod(sizes) >= num_items
    assert max(sizes) <= num_items
