"""Which of the decoded beams is answered, and what comes after it.

Legend: W beams, K slate size, L levels, R ranked beams.
"""

import numpy as np
import numpy.typing as npt

from service.bundle.manifest import Choice
from service.catalog import CatalogSnapshot
from service.domain import RankedSlate, SlateItem
from service.inference.runner import DEAD_SCORE, Beams

FloatArray = npt.NDArray[np.float32]


def slates_of(
    beams: Beams,
    snapshot: CatalogSnapshot,
    slate_size: int,
    num_slates: int,
    choice: Choice,
    *,
    diversity: float = 0.0,
) -> list[RankedSlate]:
    """Up to `num_slates` slates, best first, cut after `slate_size` items; no two show the same set. One at least.

    `snapshot` and `diversity`: that they were decoded with.
    """
    penalty_W = diversity * num_alike_pairs(beams, snapshot, slate_size) if diversity else 0.0
    if num_slates == 1:
        chosen = ranked_beams(beams, slate_size, choice, penalty_W)[:1]
    else:
        chosen = distinct_beams(beams, slate_size, choice, penalty_W)[:num_slates]
    rewards_W = rewards_of(beams, slate_size)
    slates = []
    for beam in chosen.tolist():
        items = _items(beams, beam, snapshot, slate_size)
        slates.append(
            RankedSlate(
                items=items,
                score=sum(item.score for item in items),
                reward=None if rewards_W is None else float(rewards_W[beam]),
                propensity=_propensity(beams, beam, slate_size),
            )
        )
    return slates


def _propensity(beams: Beams, beam: int, slate_size: int) -> float | None:
    """Of what is shown. The codes of an item that a cap kept from being finished do not count: nobody sees them."""
    if beams.level_log_propensities_WKL is None:
        return None
    return float(np.exp(beams.level_log_propensities_WKL[beam, :slate_size].sum(dtype=np.float64)))


def _items(beams: Beams, beam: int, snapshot: CatalogSnapshot, slate_size: int) -> tuple[SlateItem, ...]:
    valid_K = beams.item_valid_WK[beam, :slate_size]
    rows_K = beams.item_rows_WK[beam, :slate_size][valid_K]
    scores = beams.level_logprobs_WKL[beam, :slate_size].sum(axis=1)[valid_K].tolist()
    sids = snapshot.sids_NL[rows_K].tolist()
    return tuple(
        SlateItem(snapshot.items[row].item_id, score, tuple(sid))
        for row, score, sid in zip(rows_K.tolist(), scores, sids, strict=True)
    )


def num_alike_pairs(beams: Beams, snapshot: CatalogSnapshot, slate_size: int) -> npt.NDArray[np.int64]:
    """How many pairs [W] of the first `slate_size` items share their first code."""
    code_WK = snapshot.sids_NL[beams.item_rows_WK[:, :slate_size], 0]
    alike_WKK = code_WK[:, :, None] == code_WK[:, None, :]
    valid_WK = beams.item_valid_WK[:, :slate_size]
    later_KK = np.tri(slate_size, k=-1, dtype=bool)
    num_pairs_W: npt.NDArray[np.int64] = (alike_WKK & valid_WK[:, :, None] & later_KK).sum(axis=(1, 2))
    return num_pairs_W


def ranked_beams(
    beams: Beams, slate_size: int, choice: Choice, penalty_W: FloatArray | float = 0.0
) -> npt.NDArray[np.intp]:
    """The beams [R], best first, cut after `slate_size` items: longer ones first, then by score or reward; none dead.

    Longer slates count before better ones: a shorter one is a dead end. There is one beam at least: where the catalog
    has nothing to show it is an empty one. Draws stay as they were drawn: choosing among them would make the
    propensity of the first untrue. `penalty_W`: by which scores count less; those of whole slates do already.
    """
    if beams.level_log_propensities_WKL is not None:
        order_W = np.arange(len(beams.scores_W))
        live_W = beams.scores_W > DEAD_SCORE / 2
        return order_W[live_W] if live_W.any() else order_W[:1]
    worth_W = rewards_of(beams, slate_size) if choice == "reward" else None
    if worth_W is None:
        worth_W = scores_of(beams, slate_size, penalty_W)
    order_W = np.lexsort((-worth_W, -beams.item_valid_WK[:, :slate_size].sum(axis=1)))
    live_W = beams.scores_W[order_W] > DEAD_SCORE / 2
    return order_W[live_W] if live_W.any() else order_W[:1]


def distinct_beams(
    beams: Beams, slate_size: int, choice: Choice, penalty_W: FloatArray | float = 0.0
) -> npt.NDArray[np.intp]:
    """As `ranked_beams`, of those that show the same set of items the best alone."""
    order_R = ranked_beams(beams, slate_size, choice, penalty_W)
    sets_RK = np.sort(beams.item_rows_WK[order_R, :slate_size], axis=1)
    _, first = np.unique(sets_RK, axis=0, return_index=True)
    return order_R[np.sort(first)]


def scores_of(beams: Beams, slate_size: int, penalty_W: FloatArray | float = 0.0) -> FloatArray:
    """Sum of the logprobs [W] of the first `slate_size` items, less the penalty."""
    if slate_size == beams.item_rows_WK.shape[1]:
        return beams.scores_W  # summed in the graph, in whose order the beams already stand
    scores_W: FloatArray = beams.level_logprobs_WKL[:, :slate_size].sum(axis=(1, 2)) - penalty_W
    return scores_W


def rewards_of(beams: Beams, slate_size: int) -> FloatArray | None:
    """Expected reward [W] of the first `slate_size` items; None where the bundle has no reward model."""
    if beams.item_rewards_WK is None:
        return None
    rewards_W: FloatArray = beams.item_rewards_WK[:, :slate_size].sum(axis=1)
    return rewards_W
