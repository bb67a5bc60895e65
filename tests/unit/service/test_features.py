"""The arrays of a batch against a plain-Python oracle."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.catalog import CatalogSnapshot, TagFilter
from service.domain import item_key
from service.inference.fake_runner import fake_catalog, fake_manifest
from service.inference.features import RequestInputs, bucket, build_batch
from service.inference.feeds import seed_words
from service.inference.runner import FIRST_CODE, NO_ROW, PAD_CODE, UNKNOWN_CODE, Batch, age_seconds

NUM_ITEMS = 40
CATALOG: CatalogSnapshot = fake_catalog(NUM_ITEMS)
MANIFEST = fake_manifest(history_length=20)
FILTERS = [
    None,
    TagFilter(any_of=frozenset({"even"})),
    TagFilter(none_of=frozenset({"even"})),
    TagFilter(all_of=frozenset({"rare"})),
]

item_ids = st.integers(0, NUM_ITEMS + 5).map(lambda number: f"item-{number}")  # the last few are unknown
events = st.tuples(
    item_ids, st.integers(0, 2**42), st.integers(1, 2), st.one_of(st.none(), st.floats(-1e6, 1e6, width=32))
)


@st.composite
def requests(draw: st.DrawFn) -> RequestInputs:
    history = draw(st.lists(events, max_size=45))
    excluded = draw(st.lists(item_ids, max_size=60))
    return RequestInputs(
        item_keys_E=_keys([event[0] for event in history]),
        timestamps_ms_E=np.array([event[1] for event in history], dtype=np.int64),
        actions_E=np.array([event[2] for event in history], dtype=np.int32),
        values_E=np.array([math.nan if event[3] is None else event[3] for event in history], dtype=np.float32),
        excluded_keys_S=_keys(excluded),
        tag_filter=draw(st.sampled_from(FILTERS)),
        max_per_group=draw(st.integers(0, 3)),
        diversity=draw(st.sampled_from([0.0, 0.5])),
        now_ms=draw(st.integers(0, 2**42)),
    )


@pytest.mark.parametrize("power", range(32))
def test_ages_reach_a_bucket_with_their_last_millisecond(power: int) -> None:
    """The edges are 2^b - 1 seconds: whole seconds lose nothing of what milliseconds say."""
    now_ms, edge_s = 1_700_000_000_000, 2**power - 1
    times_ms = now_ms - 1000 * edge_s + np.array([[1, 0, -1, -999]])
    expected = [max(0, edge_s - 1), edge_s, edge_s, edge_s]
    assert age_seconds(times_ms, np.array([now_ms])).tolist() == [expected]


def test_an_age_is_never_negative_and_fits_32_bits() -> None:
    ages = age_seconds(np.array([[5_000, 0, -(2**62)]]), np.array([4_000]))
    assert ages.tolist() == [[0, 4, 2**31 - 1]]
    assert ages.dtype == np.int32


@settings(deadline=None, max_examples=150)
@given(st.lists(requests(), min_size=1, max_size=6))
def test_each_row_is_what_the_request_says(batch_requests: list[RequestInputs]) -> None:
    batch = build_batch(batch_requests, CATALOG, MANIFEST, max_batch_size=6)
    for row, request in enumerate(batch_requests):
        _check_history(batch, row, request)
        _check_restrictions(batch, row, request)
    _check_shapes(batch, batch_requests)


def _check_history(batch: Batch, row: int, request: RequestInputs) -> None:
    newest = list(zip(request.item_keys_E, request.timestamps_ms_E, request.actions_E, request.values_E, strict=True))
    newest = newest[-MANIFEST.history_length :]
    assert batch.history_lengths_B[row] == len(newest)
    for place in range(batch.history_codes_BTL.shape[1]):
        codes = batch.history_codes_BTL[row, place].tolist()
        if place >= len(newest):
            assert codes == [PAD_CODE] * 3
            assert batch.history_rows_BT[row, place] == NO_ROW
            assert batch.history_actions_BT[row, place] == 0
            assert np.isnan(batch.history_values_BT[row, place])
            assert batch.history_ages_BT[row, place] == 0
            continue
        key, at_ms, action, value = newest[place]
        item = next((item for item in CATALOG.items if item_key(item.item_id) == key), None)
        if item is None:
            assert codes == [UNKNOWN_CODE] * 3
            assert batch.history_rows_BT[row, place] == NO_ROW
        else:
            assert batch.history_rows_BT[row, place] == CATALOG.items.index(item)
            sid = CATALOG.sids_NL[CATALOG.items.index(item)].tolist()
            assert codes == [code + FIRST_CODE for code in sid]
        assert batch.history_ages_BT[row, place] == min(max(0, request.now_ms - int(at_ms)) // 1000, 2**31 - 1)
        assert batch.history_actions_BT[row, place] == action
        np.testing.assert_equal(batch.history_values_BT[row, place], value)


def _check_restrictions(batch: Batch, row: int, request: RequestInputs) -> None:
    found = batch.excluded_rows_BX[row][batch.excluded_rows_BX[row] != NO_ROW].tolist()
    wanted = {key for key in request.excluded_keys_S.tolist() if key in _rows_of_key()}
    assert sorted(found) == sorted(_rows_of_key()[key] for key in wanted)
    cumsum = batch.allowed_cumsum_FN[batch.filter_slots_B[row]]
    np.testing.assert_array_equal(cumsum, CATALOG.allowed_cumsum(request.tag_filter))
    assert batch.group_limits_B[row] == request.max_per_group
    assert batch.diversities_B[row] == request.diversity
    assert (batch.group_limits_B.dtype, batch.diversities_B.dtype) == (np.int32, np.float32)


@pytest.mark.parametrize("purpose", ["generator", "sampler"])
def test_draws_go_to_the_sampler_alone(purpose: str) -> None:
    one = RequestInputs(
        item_keys_E=_keys([]), timestamps_ms_E=np.zeros(0, np.int64), actions_E=np.zeros(0, np.int32),
        values_E=np.zeros(0, np.float32), now_ms=0, purpose=purpose, temperature=0.5, seed=2**32 - 1,
    )  # fmt: skip
    batch = build_batch([one, one, replace(one, seed=7)], CATALOG, MANIFEST, max_batch_size=8)
    if purpose == "generator":
        assert batch.draws is None
        return
    assert batch.draws is not None
    assert batch.draws.seeds_B.tolist() == [2**32 - 1, 2**32 - 1, 7, 0]
    assert batch.draws.temperatures_B.tolist() == [0.5, 0.5, 0.5, 1.0]
    assert (batch.draws.seeds_B.dtype, batch.draws.temperatures_B.dtype) == (np.int64, np.float32)
    words_BS = seed_words(batch.draws.seeds_B)
    assert words_BS.dtype == np.int32
    assert len({tuple(words) for words in words_BS.tolist()}) == 3


def _check_shapes(batch: Batch, batch_requests: list[RequestInputs]) -> None:
    size, length, width = *batch.history_codes_BTL.shape[:2], batch.excluded_rows_BX.shape[1]
    assert size in {1, 2, 4, 6}
    assert length in {8, 16, 20}
    assert width % 16 == 0
    assert len(batch.allowed_cumsum_FN) in {1, 2, 4}
    assert len(batch.allowed_cumsum_FN) < 2 * len({request.tag_filter for request in batch_requests})
    padding = slice(len(batch_requests), None)
    assert not batch.history_lengths_B[padding].any()
    assert not batch.group_limits_B[padding].any()
    assert (batch.excluded_rows_BX[padding] == NO_ROW).all()


def _keys(item_ids: list[str]) -> np.ndarray:
    return np.array([item_key(item_id) for item_id in item_ids], dtype=np.uint64)


def _rows_of_key() -> dict[int, int]:
    return {item_key(item.item_id): row for row, item in enumerate(CATALOG.items)}


@pytest.mark.parametrize(
    ("size", "smallest", "largest", "padded"),
    [(0, 8, 100, 8), (8, 8, 100, 8), (9, 8, 100, 16), (90, 8, 100, 100), (3, 1, 32, 4), (33, 16, None, 64)],
)
def test_buckets_are_few_and_hold_what_they_must(size: int, smallest: int, largest: int | None, padded: int) -> None:
    assert bucket(size, smallest, largest) == padded
