"""A runner without a model: legal slates that depend on nothing but the request's own arrays, at a fixed cost.

Lets HTTP be tested and measured alone. Not a recommender.

Legend: B requests, T history length, L levels, W beams, K slate size, X excluded rows, N items, R ranks.
"""

import time

import numpy as np
import numpy.typing as npt

from service.bundle import ActionSpec, GoldenTolerance, GraphSpec, Manifest
from service.catalog import CatalogSnapshot
from service.domain import Item
from service.inference.runner import DEAD_SCORE, NO_ROW, Batch, Decoded

_MIX = np.uint64(0x9E3779B97F4A7C15)
_CODES_PER_LEVEL = 32
_LAST = np.uint64(2**64 - 1)


class FakeRunner:
    """Ranks the allowed items of each request by a hash of (history, item row).

    Beam w holds the items of rank w to w + K - 1. The logprobs of an item depend on its rank alone, so scores descend.
    """

    def __init__(self, manifest: Manifest, service_time_s: float = 0.0) -> None:
        self._manifest = manifest
        self._service_time_s = service_time_s
        """Every run takes at least this long, asleep."""

    @property
    def manifest(self) -> Manifest:
        """Of the bundle that the runner pretends to serve."""
        return self._manifest

    @property
    def provider(self) -> str:
        """Always `fake`."""
        return "fake"

    def run(self, batch: Batch) -> Decoded:
        """Decodes one batch."""
        until = time.monotonic() + self._service_time_s
        num_beams, slate_size = batch.beam_width, self._manifest.slate_size
        ranked_BR, num_allowed_B = _rank(batch, num_beams + slate_size - 1)
        ranks_WK = np.arange(num_beams)[:, None] + np.arange(slate_size)
        item_valid_BWK = ranks_WK < num_allowed_B[:, None, None]
        # A slate may be short only where the catalog is; then it is the only one.
        item_valid_BWK[:, 1:] &= item_valid_BWK[:, 1:, -1:]
        item_rows_BWK = np.where(item_valid_BWK, ranked_BR[:, ranks_WK], np.int32(NO_ROW))
        level_logprobs_BWKL = np.zeros((*item_rows_BWK.shape, self._manifest.num_levels), dtype=np.float32)
        logprobs_WK = (-np.log2(ranks_WK + 2.0)).astype(np.float32)
        level_logprobs_BWKL[..., 0] = np.where(item_valid_BWK, logprobs_WK, 0)
        scores_BW = level_logprobs_BWKL.sum(axis=(2, 3))
        scores_BW[~item_valid_BWK[:, :, 0]] = DEAD_SCORE
        if (rest_s := until - time.monotonic()) > 0:
            time.sleep(rest_s)
        return Decoded(
            item_rows_BWK=item_rows_BWK,
            item_valid_BWK=item_valid_BWK,
            level_logprobs_BWKL=level_logprobs_BWKL,
            scores_BW=scores_BW,
        )


def _rank(batch: Batch, num_ranks: int) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]:
    """Rows [B, R] of the lowest hashes among each request's allowed items, and the number of these [B]."""
    num_items = batch.catalog.num_items
    rows_N = np.arange(num_items, dtype=np.uint64)
    allowed_BN = (np.diff(batch.allowed_cumsum_FN, axis=1) > 0)[batch.filter_slots_B]
    requests, places = np.nonzero(batch.excluded_rows_BX != NO_ROW)
    allowed_BN[requests, batch.excluded_rows_BX[requests, places]] = False
    hashes_BN: npt.NDArray[np.uint64] = (_history_hashes(batch)[:, None] + rows_N) * _MIX
    hashes_BN ^= hashes_BN >> np.uint64(29)
    hashes_BN *= _MIX
    # The row in the low bits makes hashes distinct, so that the order never depends on the sort's inner workings.
    row_bits = np.uint64(max(1, int(num_items).bit_length()))
    hashes_BN = (hashes_BN >> row_bits << row_bits) | rows_N
    hashes_BN[~allowed_BN] = _LAST
    num_found = min(num_ranks, num_items)
    lowest_BR = np.partition(hashes_BN, num_found - 1, axis=1)[:, :num_found]
    lowest_BR.sort(axis=1)
    ranked_BR = np.full((len(lowest_BR), num_ranks), NO_ROW, dtype=np.int32)
    ranked_BR[:, :num_found] = lowest_BR & ((np.uint64(1) << row_bits) - np.uint64(1))
    return ranked_BR, allowed_BN.sum(axis=1)


def _history_hashes(batch: Batch) -> npt.NDArray[np.uint64]:
    """A hash [B] of each history, the same however far the batch is padded: padding adds zeros to a sum."""
    places_T = np.arange(1, batch.history_codes_BTL.shape[1] + 1, dtype=np.uint64) * _MIX
    levels_L = np.arange(1, batch.history_codes_BTL.shape[2] + 1, dtype=np.uint64)
    tokens_BT = (batch.history_codes_BTL.astype(np.uint64) * levels_L**2).sum(axis=2) * np.uint64(31)
    tokens_BT += batch.history_actions_BT.astype(np.uint64)
    hashes_B: npt.NDArray[np.uint64] = (tokens_BT * places_T).sum(axis=1)
    return hashes_B


def fake_manifest(
    *, num_levels: int = 3, slate_size: int = 10, beam_width: int = 4, history_length: int = 128
) -> Manifest:
    """The manifest of a bundle that is not there."""
    return Manifest(
        model_version="fake",
        created="1970-01-01T00:00:00Z",
        files={"generator.onnx": "0" * 64},
        num_levels=num_levels,
        codebook_sizes=(_CODES_PER_LEVEL,) * num_levels,
        max_branch=(_CODES_PER_LEVEL,) * num_levels,
        slate_size=slate_size,
        beam_width=beam_width,
        max_beam_width=beam_width,
        history_length=history_length,
        actions=(ActionSpec(name="view"), ActionSpec(name="watch", unit="s", value_edges=(10.0, 60.0, 600.0))),
        default_action="view",
        score_mode="legal_softmax",
        has_times=True,
        graphs={"generator": GraphSpec(file="generator.onnx", precision="float32", inputs=(), outputs=())},
        golden_tolerance={"float32": GoldenTolerance(logprob_abs=1e-4)},
        recipe={},
        commit="",
        seed=0,
        data_sha256="",
    )


def fake_catalog(num_items: int = 1000, num_levels: int = 3) -> CatalogSnapshot:
    """Items `item-0` to `item-<n - 1>`, tagged `even` or `odd` and, every hundredth, `rare`; popularity descends."""
    numbers_N = np.arange(num_items)
    places_L = _CODES_PER_LEVEL ** np.arange(num_levels)[::-1]
    sids_NL = (numbers_N[:, None] // places_L % _CODES_PER_LEVEL).astype(np.int32)
    items = [
        Item(
            item_id=f"item-{number}",
            title=f"Item {number}",
            tags=("odd" if number % 2 else "even", *(("rare",) if number % 100 == 0 else ())),
            group=f"group-{number % 7}",
        )
        for number in range(num_items)
    ]
    return CatalogSnapshot.build(items, sids_NL, popularity_N=num_items - numbers_N)
