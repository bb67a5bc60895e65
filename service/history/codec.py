"""The packed form of a user history: 19 bytes an entry, 9 bytes a seen item, little endian.

entry       u64 item key | u48 Unix milliseconds | u8 action number | f32 value (NaN: none)
seen item   u64 item key | u8 action number

Packed histories carry no header: `FORMAT_VERSION` is part of every Redis key, so that another layout lives under
other keys and a reader never meets bytes it cannot tell apart.

Shapes: N entries or seen items.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

FORMAT_VERSION = 1

ENTRY_DTYPE = np.dtype([("item_key", "<u8"), ("timestamp_ms", "<i8"), ("value", "<f4"), ("action", "u1")], align=True)
"""An entry in memory, fields aligned so that each column is a plain strided array."""
SEEN_DTYPE = np.dtype([("item_key", "<u8"), ("action", "u1")])
"""A seen item, in memory as on the wire: 9 bytes."""
_PACKED_DTYPE = np.dtype(
    [("item_key", "<u8"), ("ms_low", "<u4"), ("ms_high", "<u2"), ("action", "u1"), ("value", "<f4")]
)

ENTRY_BYTES = _PACKED_DTYPE.itemsize
SEEN_BYTES = SEEN_DTYPE.itemsize
MAX_TIMESTAMP_MS = (1 << 48) - 1


def encode_entries(entries_N: NDArray[Any]) -> bytes:
    """Pack `entries_N` (ENTRY_DTYPE); timestamps must lie in 0..MAX_TIMESTAMP_MS."""
    timestamp_ms_N = entries_N["timestamp_ms"]
    assert not entries_N.size or (timestamp_ms_N.min() >= 0 and timestamp_ms_N.max() <= MAX_TIMESTAMP_MS)
    packed_N = np.empty(entries_N.shape, _PACKED_DTYPE)
    packed_N["item_key"] = entries_N["item_key"]
    packed_N["ms_low"] = timestamp_ms_N & 0xFFFFFFFF
    packed_N["ms_high"] = timestamp_ms_N >> 32
    packed_N["action"] = entries_N["action"]
    packed_N["value"] = entries_N["value"]
    return packed_N.tobytes()


def decode_entries(packed: bytes) -> NDArray[Any]:
    """Entries (ENTRY_DTYPE) of a packed history, in its order. ValueError when the length is not whole entries."""
    _require_whole(packed, ENTRY_BYTES, "history")
    packed_N = np.frombuffer(packed, _PACKED_DTYPE)
    entries_N = np.empty(packed_N.shape, ENTRY_DTYPE)
    entries_N["item_key"] = packed_N["item_key"]
    entries_N["timestamp_ms"] = packed_N["ms_high"]
    entries_N["timestamp_ms"] <<= 32
    entries_N["timestamp_ms"] |= packed_N["ms_low"]
    entries_N["action"] = packed_N["action"]
    entries_N["value"] = packed_N["value"]
    return entries_N


def decode_seen(packed: bytes) -> NDArray[Any]:
    """Seen items (SEEN_DTYPE, read-only, no copy). ValueError when the length is not whole items."""
    _require_whole(packed, SEEN_BYTES, "list of seen items")
    return np.frombuffer(packed, SEEN_DTYPE)


def _require_whole(packed: bytes, num_bytes: int, what: str) -> None:
    if len(packed) % num_bytes:
        raise ValueError(f"packed {what} of {len(packed)} bytes does not hold whole items of {num_bytes} bytes")
