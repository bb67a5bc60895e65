"""From what requests bring to the arrays of one batch: vectorised over all requests and events of the batch.

Legend: B requests (padded to a bucket), E events of one request, T padded history length, L levels, X padded number of
excluded rows, S excluded keys of one request, N items, F filter slots, A events of all requests one after another.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from service.bundle import Manifest
from service.bundle.manifest import Purpose
from service.catalog import CatalogSnapshot, TagFilter
from service.inference.runner import FIRST_CODE, NO_ROW, PAD_CODE, UNKNOWN_CODE, Batch, Draws, age_seconds

_SMALLEST_LENGTH = 8
_SMALLEST_EXCLUDED = 16
_MOST_FILTER_CELLS = 2**28
"""Of the prefix sums of one batch: a gigabyte, and an eighth of what 32 bits number."""
_NO_KEYS = np.zeros(0, dtype=np.uint64)
_Number = TypeVar("_Number", bound=np.number[Any])


class Kind(NamedTuple):
    """Which requests may share a run: those of one graph, and of one beam width where they name it."""

    purpose: Purpose = "generator"
    beam_width: int | None = None


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
    max_per_group: int = 0
    """Most items of one group in the slate; 0: any number."""
    diversity: float = 0.0
    """As `Batch.diversities_B`."""
    temperature: float = 1.0
    """Of a sampled slate."""
    seed: int = 0
    """Of a sampled slate; below 2^32."""
    now_ms: int
    purpose: Purpose = "generator"
    """Which of the bundle's graphs shall run it."""
    forced_keys_K: npt.NDArray[np.uint64] = field(default_factory=lambda: _NO_KEYS)
    """For `explain`: the items of the slate to explain."""
    num_slates: int = 1
    """Asked for: the fewest beams that hold them."""
    beam_width: int | None = None
    """Of the search, whatever waits; None: the model's own, or narrower while requests queue up."""

    def __post_init__(self) -> None:
        num_events = len(self.item_keys_E)
        assert len(self.timestamps_ms_E) == len(self.actions_E) == len(self.values_E) == num_events

    @property
    def kind(self) -> "Kind":
        """What requests of one run have in common."""
        return Kind(self.purpose, self.beam_width)


def bucket(size: int, smallest: int, largest: int | None = None) -> int:
    """The smallest power-of-two multiple of `smallest` that holds `size`, at most `largest`."""
    padded = smallest
    while padded < size:
        padded *= 2
    return padded if largest is None else min(padded, largest)


def length_bucket(request: RequestInputs, manifest: Manifest) -> int:
    """To how many events a history is padded when it is the longest of its batch."""
    newest = manifest.history_length
    return bucket(min(len(request.item_keys_E), newest), min(_SMALLEST_LENGTH, newest), newest)


def most_filters(num_items: int) -> int:
    """How many distinct filters one batch may bring: each is an array as long as the catalog."""
    fitting = max(1, _MOST_FILTER_CELLS // (num_items + 1))
    return 1 << (fitting.bit_length() - 1)  # what `bucket` leaves as it is


def build_batch(
    requests: Sequence[RequestInputs],
    snapshot: CatalogSnapshot,
    manifest: Manifest,
    max_batch_size: int,
    *,
    beam_width: int | None = None,
) -> Batch:
    """Arrays of one run for the given requests, all of one purpose, the first `len(requests)` rows of each array.

    The requests have at most `most_filters` distinct filters. `beam_width`: None: the manifest's.

    Sizes are padded to a few buckets, so that the runner meets few shapes: the batch with empty histories, histories
    to the longest of the batch (the newest `manifest.history_length` events count), excluded rows with NO_ROW.
    """
    assert 0 < len(requests) <= max_batch_size
    assert len({request.kind for request in requests}) == 1
    batch_size = bucket(len(requests), 1, max_batch_size)
    slots_B, cumsum_FN = _filters(requests, snapshot, batch_size)
    return Batch(
        **_histories(requests, snapshot, manifest, batch_size),
        excluded_rows_BX=_excluded(requests, snapshot, batch_size),
        filter_slots_B=slots_B,
        allowed_cumsum_FN=cumsum_FN,
        group_limits_B=_padded([request.max_per_group for request in requests], batch_size, np.int32(0)),
        diversities_B=_padded([request.diversity for request in requests], batch_size, np.float32(0)),
        beam_width=manifest.beam_width if beam_width is None else beam_width,
        catalog=snapshot,
        purpose=requests[0].purpose,
        forced_rows_BK=_forced(requests, snapshot, batch_size, manifest.slate_size),
        draws=_draws(requests, batch_size) if requests[0].purpose == "sampler" else None,
    )


def _histories(
    requests: Sequence[RequestInputs], snapshot: CatalogSnapshot, manifest: Manifest, batch_size: int
) -> dict[str, npt.NDArray[Any]]:
    newest = manifest.history_length
    lengths_B = np.zeros(batch_size, dtype=np.int32)
    lengths_B[: len(requests)] = [min(len(request.item_keys_E), newest) for request in requests]
    length = max(length_bucket(request, manifest) for request in requests)
    filled_BT = np.arange(length) < lengths_B[:, None]
    rows_A = snapshot.rows_of_keys(np.concatenate([request.item_keys_E[-newest:] for request in requests]))
    codes_AL = np.where(rows_A[:, None] >= 0, snapshot.sids_NL[rows_A] + FIRST_CODE, UNKNOWN_CODE)
    codes_BTL = np.full((*filled_BT.shape, manifest.num_levels), PAD_CODE, dtype=np.int32)
    codes_BTL[filled_BT] = codes_AL
    rows_BT = np.full(filled_BT.shape, NO_ROW, dtype=np.int32)
    rows_BT[filled_BT] = rows_A
    actions_BT = np.zeros(filled_BT.shape, dtype=np.int32)
    actions_BT[filled_BT] = np.concatenate([request.actions_E[-newest:] for request in requests])
    now_B = np.full(batch_size, requests[0].now_ms, dtype=np.int64)
    now_B[: len(requests)] = [request.now_ms for request in requests]
    # Padding is of age 0.
    times_BT = np.repeat(now_B[:, None], length, axis=1)
    times_BT[filled_BT] = np.concatenate([request.timestamps_ms_E[-newest:] for request in requests])
    values_BT = np.full(filled_BT.shape, np.nan, dtype=np.float32)
    values_BT[filled_BT] = np.concatenate([request.values_E[-newest:] for request in requests])
    return {
        "history_codes_BTL": codes_BTL,
        "history_rows_BT": rows_BT,
        "history_actions_BT": actions_BT,
        "history_ages_BT": age_seconds(times_BT, now_B),
        "history_values_BT": values_BT,
        "history_lengths_B": lengths_B,
    }


def _draws(requests: Sequence[RequestInputs], batch_size: int) -> Draws:
    return Draws(
        temperatures_B=_padded([request.temperature for request in requests], batch_size, np.float32(1)),
        seeds_B=_padded([request.seed for request in requests], batch_size, np.int64(0)),
    )


def _padded(numbers: Sequence[float], batch_size: int, padding: _Number) -> npt.NDArray[_Number]:
    """The numbers [B], of the padding's type."""
    numbers_B = np.full(batch_size, padding)
    numbers_B[: len(numbers)] = numbers
    return numbers_B


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


def _forced(
    requests: Sequence[RequestInputs], snapshot: CatalogSnapshot, batch_size: int, slate_size: int
) -> npt.NDArray[np.int32] | None:
    """Rows [B, K] of the slates to explain; NO_ROW where a slate is shorter, or the catalog lost an item since."""
    if requests[0].purpose != "explain":
        return None
    forced_BK = np.full((batch_size, slate_size), NO_ROW, dtype=np.int32)
    for place, request in enumerate(requests):
        forced_BK[place, : len(request.forced_keys_K)] = snapshot.rows_of_keys(request.forced_keys_K)
    return forced_BK


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
    assert len(cumsums) * len(cumsums[0]) < 2**31, "the graph finds a filter's row by a 32-bit offset"
    return slots_B, np.stack(cumsums)
