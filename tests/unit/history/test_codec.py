"""The packed form against an encoder written out with struct."""

import math
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.history import HistoryLimits
from service.history.codec import ENTRY_DTYPE, MAX_TIMESTAMP_MS, decode_entries, decode_seen, encode_entries

entries = st.lists(
    st.tuples(
        st.integers(0, 2**64 - 1),
        st.integers(0, MAX_TIMESTAMP_MS),
        st.just(math.nan) | st.floats(width=32, allow_nan=False),
        st.integers(0, 255),
    )
)


@given(rows=entries)
def test_entries_are_19_bytes_little_endian_and_come_back(rows: list[tuple[int, int, float, int]]) -> None:
    entries_N = np.array(rows, ENTRY_DTYPE)
    packed = encode_entries(entries_N)
    assert packed == b"".join(
        struct.pack("<Q", key) + struct.pack("<Q", at)[:6] + struct.pack("<Bf", action, value)
        for key, at, value, action in rows
    )
    back_N = decode_entries(packed)
    for column in ("item_key", "timestamp_ms", "action", "value"):
        np.testing.assert_array_equal(back_N[column], entries_N[column])


@given(pairs=st.lists(st.tuples(st.integers(0, 2**64 - 1), st.integers(0, 255))))
def test_seen_items_are_9_bytes_little_endian(pairs: list[tuple[int, int]]) -> None:
    assert decode_seen(b"".join(struct.pack("<QB", *pair) for pair in pairs)).tolist() == pairs


def test_half_an_entry_is_refused() -> None:
    with pytest.raises(ValueError, match="packed history of 18 bytes does not hold whole items of 19 bytes"):
        decode_entries(bytes(18))
    with pytest.raises(ValueError, match="packed list of seen items of 10 bytes"):
        decode_seen(bytes(10))


@pytest.mark.parametrize("field", ["num_entries", "max_age_ms", "num_seen", "dedupe_ms"])
def test_limits_of_nothing_are_refused(field: str) -> None:
    with pytest.raises(ValueError, match=f"{field} must be at least 1, not 0"):
        HistoryLimits(**{field: 0})


def test_no_tolerance_is_a_limit_but_less_is_not() -> None:
    assert HistoryLimits(future_tolerance_ms=0).future_tolerance_ms == 0
    with pytest.raises(ValueError, match="future_tolerance_ms must be at least 0"):
        HistoryLimits(future_tolerance_ms=-1)
