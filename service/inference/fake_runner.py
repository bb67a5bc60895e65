"""A runner without a model: legal slates that depend on nothing but the request's own arrays, at a fixed cost.

Lets HTTP be tested and measured alone. Not a recommender.

Legend: B requests, T history length, L levels, W beams, K slate size, X excluded rows, N items, R ranks.
"""

import time

import numpy as np
import numpy.typing as npt

from service.bundle import ActionSpec, GoldenTolerance, GraphSpec, Manifest
from service.bundle.item_encoder import ItemEncoder
from service.bundle.manifest import Choice, Precision, Purpose
from service.catalog import CatalogSnapshot, NewItemEncoder
from service.domain import Item
from service.inference.feeds import graph_spec
from service.inference.popular import within_cap
from service.inference.runner import DEAD_SCORE, NO_ROW, Batch, Decoded, Draws

_MIX = np.uint64(0x9E3779B97F4A7C15)
_CODES_PER_LEVEL = 32
_LAST = np.uint64(2**64 - 1)


class FakeRunner:
    """Ranks the allowed items of each request by a hash of (history, item row).

    Beam w holds the K items from rank w on, but for those that a cap forbids. The logprobs of an item depend on its
    rank alone, so scores descend; where the manifest promises rewards they are the ranks, and ascend. It knows no
    diversity. Where slates are to be sampled, there is one beam: each place is drawn from the softmax of logprob /
    temperature over the items that are left.
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

    @property
    def precision(self) -> Precision:
        """Always `float32`."""
        return "float32"

    def load(self, purpose: Purpose) -> None:
        """Refuses what the manifest does not name."""
        graph_spec(self._manifest, purpose)

    def run(self, batch: Batch) -> Decoded:
        """Decodes one batch."""
        until = time.monotonic() + self._service_time_s
        if batch.forced_rows_BK is not None:
            time.sleep(self._service_time_s)
            return self._explained(batch.forced_rows_BK)
        if batch.draws is not None:
            time.sleep(self._service_time_s)
            return self._drawn(batch, batch.draws)
        num_beams, slate_size = batch.beam_width, self._manifest.slate_size
        # A cap may pass over any number of items.
        num_ranks = batch.catalog.num_items if batch.group_limits_B.any() else num_beams + slate_size - 1
        ranked_BR, num_allowed_B = _rank(batch, num_ranks)
        ranks_WK = np.arange(num_beams)[:, None] + np.arange(slate_size)
        ranks_BWK = np.broadcast_to(ranks_WK, (len(ranked_BR), *ranks_WK.shape)).copy()
        for request in np.flatnonzero(batch.group_limits_B):
            groups_R = batch.catalog.child_groups[-1][ranked_BR[request, : num_allowed_B[request]]]
            ranks_BWK[request] = _capped_ranks(groups_R, int(batch.group_limits_B[request]), ranks_WK)
        item_valid_BWK = ranks_BWK < num_allowed_B[:, None, None]
        # A slate may be short only where the catalog is; then it is the only one.
        item_valid_BWK[:, 1:] &= item_valid_BWK[:, 1:, -1:]
        requests_B11 = np.arange(len(ranked_BR))[:, None, None]
        found_BWK = ranked_BR[requests_B11, np.minimum(ranks_BWK, ranked_BR.shape[1] - 1)]
        item_rows_BWK = np.where(item_valid_BWK, found_BWK, np.int32(NO_ROW))
        level_logprobs_BWKL = np.zeros((*item_rows_BWK.shape, self._manifest.num_levels), dtype=np.float32)
        level_logprobs_BWKL[..., 0] = np.where(item_valid_BWK, -np.log2(ranks_BWK + 2.0), 0)
        item_rewards_BWK = None
        if "item_rewards" in self._manifest.graphs["generator"].outputs:
            item_rewards_BWK = np.where(item_valid_BWK, ranks_BWK, 0).astype(np.float32)
        scores_BW = level_logprobs_BWKL.sum(axis=(2, 3))
        scores_BW[~item_valid_BWK[:, :, 0]] = DEAD_SCORE
        if (rest_s := until - time.monotonic()) > 0:
            time.sleep(rest_s)
        return Decoded(
            item_rows_BWK=item_rows_BWK,
            item_valid_BWK=item_valid_BWK,
            level_logprobs_BWKL=level_logprobs_BWKL,
            scores_BW=scores_BW,
            item_rewards_BWK=item_rewards_BWK,
        )

    def _drawn(self, batch: Batch, draws: Draws) -> Decoded:
        """One slate for each request, and how probable each of its items was."""
        ranked_BR, num_allowed_B = _rank(batch, batch.catalog.num_items)
        shape = (len(ranked_BR), batch.beam_width, self._manifest.slate_size)
        rows_BWK = np.full(shape, NO_ROW, dtype=np.int32)
        logprobs_BWKL, propensities_BWKL = np.zeros((2, *shape, self._manifest.num_levels), dtype=np.float32)
        for request, seed in enumerate(draws.seeds_B.tolist()):
            row_R = ranked_BR[request, : num_allowed_B[request]]
            logprob_R = -np.log2(np.arange(len(row_R)) + 2.0)
            logit_R = logprob_R / float(draws.temperatures_B[request])
            group_R, limit = batch.catalog.child_groups[-1][row_R], int(batch.group_limits_B[request])
            drawn_K, log_share_K = _drawn_ranks(logit_R, group_R, limit, shape[2], seed)
            places = slice(len(drawn_K))
            rows_BWK[request, 0, places] = row_R[drawn_K]
            logprobs_BWKL[request, 0, places, 0] = logprob_R[drawn_K]
            propensities_BWKL[request, 0, places, 0] = log_share_K
        scores_BW = np.full(shape[:2], DEAD_SCORE, dtype=np.float32)
        scores_BW[:, 0] = 0
        return Decoded(
            item_rows_BWK=rows_BWK,
            item_valid_BWK=rows_BWK != NO_ROW,
            level_logprobs_BWKL=logprobs_BWKL,
            scores_BW=scores_BW,
            level_log_propensities_BWKL=propensities_BWKL,
        )

    def _explained(self, forced_rows_BK: npt.NDArray[np.int32]) -> Decoded:
        """Every code of the slates has logprob -1 and no rival."""
        rows_BWK = forced_rows_BK[:, None]
        valid_BWK = rows_BWK != NO_ROW
        shape = (*rows_BWK.shape, self._manifest.num_levels)
        logprobs_BWKL = np.where(valid_BWK[..., None], np.float32(-1), np.float32(0)) * np.ones(shape, np.float32)
        return Decoded(
            item_rows_BWK=rows_BWK,
            item_valid_BWK=valid_BWK,
            level_logprobs_BWKL=logprobs_BWKL,
            scores_BW=logprobs_BWKL.sum(axis=(2, 3)),
            runner_up_codes_BKLR=np.full((*shape[:1], *shape[2:], 1), -1, dtype=np.int32),
            runner_up_logprobs_BKLR=np.full((*shape[:1], *shape[2:], 1), DEAD_SCORE, dtype=np.float32),
        )


def _drawn_ranks(
    logit_R: npt.NDArray[np.float64], group_R: npt.NDArray[np.int32], limit: int, slate_size: int, seed: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """Draws without replacement under a cap: ranks, and the log of the share that each had among what was left.

    The order of Gumbel-perturbed logits is that of such draws (Kool et al., 2019, arXiv 1903.06059); an item of a group
    that is full is passed over, as if it had not been there.
    """
    perturbed_R = logit_R + np.random.default_rng(seed).gumbel(size=len(logit_R))
    order_R = np.argsort(-perturbed_R)
    if not limit:
        # Over what was left: sums from the end, in logs, so that nothing cancels.
        left_R = np.logaddexp.accumulate(logit_R[order_R][::-1])[::-1]
        drawn_K = order_R[:slate_size]
        return drawn_K, logit_R[drawn_K] - left_R[:slate_size]
    drawn_K = order_R[within_cap(group_R[order_R], limit)][:slate_size]
    log_share_K = np.empty(len(drawn_K))
    open_R = np.ones(len(logit_R), dtype=bool)
    for place, rank in enumerate(drawn_K):
        log_share_K[place] = logit_R[rank] - np.logaddexp.reduce(logit_R[open_R])
        open_R[rank] = False
        group = group_R[rank]
        if group >= 0 and np.count_nonzero(group_R[drawn_K[: place + 1]] == group) == limit:
            open_R &= group_R != group
    return drawn_K, log_share_K


def _capped_ranks(
    groups_R: npt.NDArray[np.int32], limit: int, ranks_WK: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64]:
    """As `ranks_WK`, but beam w takes the first K from rank w on of which the cap allows every one; ends with R."""
    capped_WK = np.full_like(ranks_WK, len(groups_R))
    for beam in range(min(len(ranks_WK), len(groups_R))):
        ranks = beam + np.flatnonzero(within_cap(groups_R[beam:], limit))[: ranks_WK.shape[1]]
        capped_WK[beam, : len(ranks)] = ranks
    return capped_WK


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
    *,
    num_levels: int = 3,
    slate_size: int = 10,
    beam_width: int = 4,
    history_length: int = 128,
    outputs: tuple[str, ...] = (),
    choice: Choice = "score",
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
        max_beam_width=4 * beam_width,
        history_length=history_length,
        actions=(ActionSpec(name="view"), ActionSpec(name="watch", unit="s", value_edges=(10.0, 60.0, 600.0))),
        default_action="view",
        score_mode="legal_softmax",
        has_times=True,
        graphs={
            purpose: GraphSpec(file="generator.onnx", precision="float32", inputs=(), outputs=outputs)
            for purpose in ("generator", "explain", "sampler")
        },
        choice=choice,
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


def fake_encoder(num_levels: int = 3) -> NewItemEncoder:
    """Places new items of the fake catalog: by an embedding of eight values, or all at one place for lack of words."""
    rng = np.random.default_rng(0)
    width = 8
    codebooks = [rng.normal(0, 0.5**level, (_CODES_PER_LEVEL, width)).astype(np.float32) for level in range(num_levels)]
    return NewItemEncoder(
        encoder=ItemEncoder(
            words=(),
            idf_W=np.zeros(0, dtype=np.float32),
            components_TW=np.zeros((width, 0), dtype=np.float32),
            projection_TD=None,
            offset_D=None,
            default_D=np.full(width, width**-0.5, dtype=np.float32),
        ),
        codebooks=tuple(codebooks),
    )
