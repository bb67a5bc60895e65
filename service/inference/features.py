"""From what requests bring to the arrays of one batch: vectorised over all requests and events of the batch.

Legend: B requests (padded to a bucket), E events of one request, T padded history length, L levels, X padded number of
excluded rows, S excluded keys of one request, N items, F filter slots, A events of all requests one after another.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from service.bundle import Manifest
from service.catalog import CatalogSnapshot, TagFilter
from service.inference.runner import FIRST_CODE, NO_ROW, PAD_CODE, UNKNOWN_CODE, Batch

_SMALLEST_LENGTH = 8
_SMALLEST_EXCLUDED = 16
_NO_KEYS = np.zeros(0, dtype=np.uint64)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RequestInputs:
    """What one request brings, independent of any catalog snapshot; events oldest first."""

    item_keys_E: npt.NDArray[np.uint64]
    timestamps_ms_E: npt.NDArray[np.int64]
    """Unix milliseconds."""
    actions_E: npt.NDArray[np.int32]
    """Manifest numbers, from 1."""
    values_E: npt.NDArray[np.float32]
    """Raw values; NaN: none."""
    excluded_keys_S: npt.NDArray[np.uint64] = field(default_factory=lambda: _NO_KEYS)
    """Item keys that must not be recommended; repetitions and unknown keys are allowed."""
    tag_filter: TagFilter | None = None
    now_ms: int

    def __post_init__(self) -> None:
        num_events = len(self.item_keys_E)
        assert len(self.timestamps_ms_E) == len(self.actions_E) == len(self.values_E) == num_events


def bucket(size: int, smallest: int, largest: int | None = None) -> int:
    """The smallest power-of-two multiple of `smallest` that holds `size`, at most `largest`."""
    padded = smallest
    while padded < size:
        padded *= 2
    return padded if largest is None else min(padded, largest)


def build_batch(
    requests: Sequence[RequestInputs], snapshot: CatalogSnapshot, manifest: Manifest, max_batch_size: int
) -> Batch:
    """Arrays of one run for the given requests, the first `len(requests)` rows of each array.

    Sizes are padded to a few buckets, so that the runner meets few shapes: the batch with empty histories, histories
    to the longest of the batch (the newest `manifest.history_length` events count), excluded rows with NO_ROW.
    """
    assert 0 < len(requests) <= max_batch_size
    batch_size = bucket(len(requests), 1, max_batch_size)
    slots_B, cumsum_FN = _filters(requests, snapshot, batch_size)
    now_B = np.full(batch_size, requests[0].now_ms, dtype=np.int64)
    now_B[: len(requests)] = [request.now_ms for request in requests]
    return Batch(
        **_histories(requests, snapshot, manifest, now_B),
        now_B=now_B,
        excluded_rows_BX=_excluded(requests, snapshot, batch_size),
        filter_slots_B=slots_B,
        allowed_cumsum_FN=cumsum_FN,
        beam_width=manifest.beam_width,
        catalog=snapshot,
    )


def _histories(
    requests: Sequence[RequestInputs], snapshot: CatalogSnapshot, manifest: Manifest, now_B: npt.NDArray[np.int64]
) -> dict[str, npt.NDArray[Any]]:
    newest = manifest.history_length
    lengths_B = np.zeros(len(now_B), dtype=np.int32)
    lengths_B[: len(requests)] = [min(len(request.item_keys_E), newest) for request in requests]
    length = bucket(int(lengths_B.max()), min(_SMALLEST_LENGTH, newest), newest)
    filled_BT = np.arange(length) < lengths_B[:, None]
    rows_A = snapshot.rows_of_keys(np.concatenate([request.item_keys_E[-newest:] for request in requests]))
    codes_AL = np.where(rows_A[:, None] >= 0, snapshot.sids_NL[rows_A] + FIRST_CODE, UNKNOWN_CODE)
    codes_BTL = np.full((*filled_BT.shape, manifest.num_levels), PAD_CODE, dtype=np.int32)
    codes_BTL[filled_BT] = codes_AL
    rows_BT = np.full(filled_BT.shape, NO_ROW, dtype=np.int32)
    rows_BT[filled_BT] = rows_A
    actions_BT = np.zeros(filled_BT.shape, dtype=np.int32)
    actions_BT[filled_BT] = np.concatenate([request.actions_E[-newest:] for request in requests])
    times_BT = np.zeros(filled_BT.shape, dtype=np.int64)
    times_BT[filled_BT] = np.concatenate([request.timestamps_ms_E[-newest:] for request in requests])
    # A clock that runs ahead of ours must not become a negative time gap inside the graph.
    np.minimum(times_BT, now_B[:, None], out=times_BT)
    values_BT = np.full(filled_BT.shape, np.nan, dtype=np.float32)
    values_BT[filled_BT] = np.concatenate([request.values_E[-newest:] for request in requests])
    return {
        "history_codes_BTL": codes_BTL,
        "history_rows_BT": rows_BT,
        "history_actions_BT": actions_BT,
        "history_times_BT": times_BT,
        "history_values_BT": values_BT,
        "history_lengths_B": lengths_B,
    }


def _excluded(requests: Sequence[RequestInputs], snapshot: CatalogSnapshot, batch_size: int) -> npt.NDArray[np.int32]:
    """Distinct excluded rows of each request, ascending, padded with NO_ROW."""
    keys = [request.excluded_keys_S for request in requests]
    rows = snapshot.rows_of_keys(np.concatenate(keys)).astype(np.int64)
    owners = np.repeat(np.arange(len(requests)), [len(keys_S) for keys_S in keys])
    # One sort over (request, row) pairs makes the rows of every request distinct at once.
    pairs = np.unique((owners * snapshot.num_items + rows)[rows >= 0])
    owners, rows = np.divmod(pairs, snapshot.num_items)
    counts_B = np.bincount(owners, minlength=batch_size)
    filled_BX = np.arange(bucket(int(counts_B.max()), _SMALLEST_EXCLUDED)) < counts_B[:, None]
    excluded_BX = np.full(filled_BX.shape, NO_ROW, dtype=np.int32)
    excluded_BX[filled_BX] = rows
    return excluded_BX


def _filters(
    requests: Sequence[RequestInputs], snapshot: CatalogSnapshot, batch_size: int
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
    """The filter slot [B] of each request, and the prefix sums [F, N + 1] of the distinct filters."""
    slot_of: dict[TagFilter | None, int] = {}
    slots_B = np.zeros(batch_size, dtype=np.int32)
    for place, request in enumerate(requests):
        slots_B[place] = slot_of.setdefault(request.tag_filter, len(slot_of))
    if len(slot_of) == 1:  # the usual case: no copy of a catalog-sized array
        return slots_B, snapshot.allowed_cumsum(requests[0].tag_filter)[None, :]
    cumsums = [snapshot.allowed_cumsum(tag_filter) for tag_filter in slot_of]
    cumsums += cumsums[:1] * (bucket(len(cumsums), 1) - len(cumsums))
    return slots_B, np.stack(cumsums)
