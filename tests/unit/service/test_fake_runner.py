"""The fake runner writes legal slates that depend on the request alone: what the HTTP tests lean on."""

import numpy as np
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


def _request(history: list[int], excluded: list[int], filter_number: int) -> RequestInputs:
    return RequestInputs(
        item_keys_E=np.array([item_key(f"item-{number}") for number in history], dtype=np.uint64),
        timestamps_ms_E=np.zeros(len(history), dtype=np.int64),
        actions_E=np.ones(len(history), dtype=np.int32),
        values_E=np.full(len(history), np.nan, dtype=np.float32),
        excluded_keys_S=np.array([item_key(f"item-{number}") for number in excluded], dtype=np.uint64),
        tag_filter=FILTERS[filter_number],
        now_ms=0,
    )


numbers = st.lists(st.integers(0, NUM_ITEMS - 1), max_size=30)
requests = st.builds(_request, numbers, numbers, st.integers(0, len(FILTERS) - 1))


@settings(deadline=None, max_examples=150)
@given(st.lists(requests, min_size=1, max_size=5))
def test_slates_are_legal_distinct_and_as_long_as_the_catalog_allows(batch_requests: list[RequestInputs]) -> None:
    runner = FakeRunner(MANIFEST)
    decoded = runner.run(build_batch(batch_requests, CATALOG, MANIFEST, 8))
    for place, request in enumerate(batch_requests):
        allowed = np.diff(CATALOG.allowed_cumsum(request.tag_filter)) > 0
        allowed[CATALOG.rows_of_keys(request.excluded_keys_S)] = False
        valid_WK, rows_WK = decoded.item_valid_BWK[place], decoded.item_rows_BWK[place]
        assert valid_WK[0].sum() == min(4, allowed.sum())
        alive_W = decoded.scores_BW[place] > DEAD_SCORE
        assert (valid_WK.any(axis=1) == alive_W).all()
        for beam in np.flatnonzero(alive_W):
            rows = rows_WK[beam][valid_WK[beam]]
            assert len(set(rows.tolist())) == len(rows) == valid_WK[0].sum()
            assert allowed[rows].all()
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
