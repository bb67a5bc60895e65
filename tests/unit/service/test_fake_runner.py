"""The fake runner writes legal slates that depend on the request alone: what the HTTP tests lean on."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.catalog import TagFilter
from service.domain import item_key
from service.inference.fake_runner import FakeRunner, fake_catalog, fake_manifest
from service.inference.features import RequestInputs, build_batch
from service.inference.runner import DEAD_SCORE

NUM_ITEMS = 30
CATALOG = fake_catalog(NUM_ITEMS)
MANIFEST = fake_manifest(slate_size=4, beam_width=3)
FILTERS = [None, TagFilter(any_of=frozenset({"even"})), TagFilter(all_of=frozenset({"rare"}))]


def _request(history: list[int], excluded: list[int], filter_number: int, limit: int) -> RequestInputs:
    return RequestInputs(
        item_keys_E=np.array([item_key(f"item-{number}") for number in history], dtype=np.uint64),
        timestamps_ms_E=np.zeros(len(history), dtype=np.int64),
        actions_E=np.ones(len(history), dtype=np.int32),
        values_E=np.full(len(history), np.nan, dtype=np.float32),
        excluded_keys_S=np.array([item_key(f"item-{number}") for number in excluded], dtype=np.uint64),
        tag_filter=FILTERS[filter_number],
        max_per_group=limit,
        now_ms=0,
    )


numbers = st.lists(st.integers(0, NUM_ITEMS - 1), max_size=30)
requests = st.builds(_request, numbers, numbers, st.integers(0, len(FILTERS) - 1), st.integers(0, 2))


@settings(deadline=None, max_examples=150)
@given(st.lists(requests, min_size=1, max_size=5))
def test_slates_are_legal_distinct_and_as_long_as_the_catalog_allows(batch_requests: list[RequestInputs]) -> None:
    runner = FakeRunner(MANIFEST)
    decoded = runner.run(build_batch(batch_requests, CATALOG, MANIFEST, 8))
    for place, request in enumerate(batch_requests):
        allowed = np.diff(CATALOG.allowed_cumsum(request.tag_filter)) > 0
        allowed[CATALOG.rows_of_keys(request.excluded_keys_S)] = False
        valid_WK, rows_WK = decoded.item_valid_BWK[place], decoded.item_rows_BWK[place]
        groups_N, limit = CATALOG.child_groups[-1], request.max_per_group or 4
        assert valid_WK[0].sum() == min(4, np.minimum(np.bincount(groups_N[allowed], minlength=1), limit).sum())
        alive_W = decoded.scores_BW[place] > DEAD_SCORE
        assert (valid_WK.any(axis=1) == alive_W).all()
        for beam in np.flatnonzero(alive_W):
            rows = rows_WK[beam][valid_WK[beam]]
            assert len(set(rows.tolist())) == len(rows) == valid_WK[0].sum()
            assert allowed[rows].all()
            assert np.bincount(groups_N[rows]).max() <= limit
        assert (np.diff(decoded.scores_BW[place]) <= 0).all()
        np.testing.assert_allclose(
            decoded.level_logprobs_BWKL[place].sum(axis=(1, 2))[alive_W], decoded.scores_BW[place][alive_W]
        )


@settings(deadline=None, max_examples=60)
@given(requests, st.lists(requests, min_size=1, max_size=5))
def test_an_answer_does_not_depend_on_who_shares_the_batch(
    request_: RequestInputs, others: list[RequestInputs]
) -> None:
    runner = FakeRunner(MANIFEST)
    alone = runner.run(build_batch([request_], CATALOG, MANIFEST, 8))
    shared = runner.run(build_batch([*others, request_], CATALOG, MANIFEST, 8))
    np.testing.assert_array_equal(alone.item_rows_BWK[0], shared.item_rows_BWK[len(others)])
    np.testing.assert_array_equal(alone.scores_BW[0], shared.scores_BW[len(others)])


@settings(deadline=None, max_examples=100)
@given(st.lists(requests, min_size=1, max_size=3), st.sampled_from([0.3, 1.0, 5.0]), st.integers(0, 2**32 - 1))
def test_drawn_slates_are_legal_and_do_not_depend_on_who_shares_the_batch(
    batch_requests: list[RequestInputs], temperature: float, seed: int
) -> None:
    runner = FakeRunner(MANIFEST)
    asked = [replace(one, purpose="sampler", temperature=temperature, seed=seed) for one in batch_requests]
    shared = runner.run(build_batch(asked, CATALOG, MANIFEST, 8))
    best = runner.run(build_batch(batch_requests, CATALOG, MANIFEST, 8))
    np.testing.assert_array_equal(shared.item_valid_BWK[:, 0], best.item_valid_BWK[:, 0])
    for place, request in enumerate(asked):
        alone = runner.run(build_batch([request], CATALOG, MANIFEST, 8)).of_request(0)
        np.testing.assert_array_equal(alone.item_rows_WK, shared.item_rows_BWK[place])
        rows = alone.item_rows_WK[0][alone.item_valid_WK[0]]
        allowed = np.diff(CATALOG.allowed_cumsum(request.tag_filter)) > 0
        allowed[CATALOG.rows_of_keys(request.excluded_keys_S)] = False
        assert allowed[rows].all()
        assert len(set(rows.tolist())) == len(rows)
        assert np.bincount(CATALOG.child_groups[-1][rows], minlength=1).max() <= (request.max_per_group or 4)


@pytest.mark.parametrize(("limit", "num_slates"), [(0, 12), (1, 10)])
def test_drawn_slates_come_as_often_as_their_propensities_say(limit: int, num_slates: int) -> None:
    shown = [0, 1, 2, 7]  # the first and the last are of one group
    others = [number for number in range(NUM_ITEMS) if number not in shown]
    request = replace(_request([1], others, 0, limit), purpose="sampler", temperature=2.0)
    asked = [replace(request, seed=seed) for seed in range(4000)]
    decoded = FakeRunner(fake_manifest(slate_size=2)).run(build_batch(asked, CATALOG, MANIFEST, 4000))
    assert decoded.level_log_propensities_BWKL is not None
    share_B = np.exp(decoded.level_log_propensities_BWKL[:4000, 0].sum((1, 2)))
    found = Counter(map(tuple, decoded.item_rows_BWK[:4000, 0].tolist()))
    shares = {
        tuple(rows[0]): float(share) for rows, share in zip(decoded.item_rows_BWK.tolist(), share_B, strict=False)
    }
    assert len(shares) == num_slates
    assert sum(shares.values()) == pytest.approx(1)
    for slate, share in shares.items():
        assert abs(found[slate] - 4000 * share) < 4 * (4000 * share) ** 0.5
