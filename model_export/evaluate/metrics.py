"""Accuracy metrics, one value per example.

Item level: one relevant item (the next one) in a ranking of the full catalog. Slate level: the set of relevant items is
the next session or the next K items. Every function is vectorised and returns float64 `[E]`; means and intervals are
taken in `bootstrap`.

Shapes: E examples, K length of a list, T longest target; items are item indexes, -1 pads.
"""

import numpy as np
import numpy.typing as npt

Int = npt.NDArray[np.integer]
Float = npt.NDArray[np.float64]
Bool = npt.NDArray[np.bool_]


def target_ranks(items_EK: Int, target_E: Int) -> npt.NDArray[np.int64]:
    """Rank of the target in each list, from 0; K where the list does not hold it.

    If a list names an item twice, its first place counts. Padding never matches. `ValueError` on a negative target.
    """
    if (target_E < 0).any():
        raise ValueError("a target must be an item index, not padding")
    is_hit_EK = items_EK == target_E[:, None]
    found_E = np.where(is_hit_EK.any(axis=1), is_hit_EK.argmax(axis=1), items_EK.shape[1])
    return np.asarray(found_E, dtype=np.int64)


def recall_at(rank_E: Int, k: int) -> Float:
    """Recall@k = HR@k with one relevant item: 1 if its rank is below k, else 0."""
    return np.asarray(rank_E < k, dtype=np.float64)


def ndcg_at(rank_E: Int, k: int) -> Float:
    """NDCG@k with one relevant item: 1 / log2(rank + 2) inside the first k, else 0; the ideal DCG is 1.

    Järvelin and Kekäläinen, "Cumulated gain-based evaluation of IR techniques", TOIS 2002.
    """
    return np.where(rank_E < k, 1.0 / np.log2(rank_E + 2.0), 0.0)


def mrr_at(rank_E: Int, k: int) -> Float:
    """Reciprocal rank cut at k: 1 / (rank + 1) inside the first k, else 0 (Voorhees, TREC-8, 1999)."""
    return np.where(rank_E < k, 1.0 / (rank_E + 1.0), 0.0)


ITEM_METRICS = {"recall": recall_at, "ndcg": ndcg_at, "mrr": mrr_at}


def item_metrics(items_EK: Int, target_E: Int, ks: tuple[int, ...]) -> dict[str, Float]:
    """`recall@k`, `ndcg@k` and `mrr@k` for every k. `ValueError` if a list is shorter than the largest k."""
    if items_EK.shape[1] < max(ks):
        raise ValueError(f"lists of {items_EK.shape[1]} items cannot be cut at {max(ks)}")
    rank_E = target_ranks(items_EK, target_E)
    return {f"{name}@{k}": metric(rank_E, k) for name, metric in ITEM_METRICS.items() for k in ks}


def repeats(items_EK: Int) -> Bool:
    """Which places repeat an earlier item of the same list; padding never does."""
    is_earlier_KK = np.tri(items_EK.shape[1], k=-1, dtype=bool)
    same_EKK = items_EK[:, :, None] == items_EK[:, None, :]
    return np.asarray((same_EKK & is_earlier_KK).any(axis=2) & (items_EK >= 0), dtype=np.bool_)


def gains(slate_EK: Int, target_ET: Int) -> Bool:
    """Which places of a slate hold a relevant item for the first time: an item shown twice gains once."""
    is_hit_EK = ((slate_EK[:, :, None] == target_ET[:, None, :]) & (target_ET[:, None, :] >= 0)).any(axis=2)
    return np.asarray(is_hit_EK & ~repeats(slate_EK), dtype=np.bool_)


def slate_metrics(slate_EK: Int, target_ET: Int) -> dict[str, Float]:
    """`hit`, `recall`, `precision`, `ndcg` of slates against sets of relevant items.

    With G the relevant items of a slate and R the distinct items of the target:
    hit = [G not empty], recall = |G| / |R|, precision = |G| / K (a short slate is not excused), and
    ndcg = sum over G of 1 / log2(place + 2), divided by the same sum over the first min(|R|, K) places, places from 0
    (binary gains; Järvelin and Kekäläinen 2002). A target may be longer than the slate: recall then stays below 1.
    `ValueError` on an empty target.
    """
    num_relevant_E = ((target_ET >= 0) & ~repeats(target_ET)).sum(axis=1)
    if (num_relevant_E == 0).any():
        raise ValueError("a target without items cannot be scored")
    slate_size = slate_EK.shape[1]
    gain_EK = gains(slate_EK, target_ET)
    num_hits_E = gain_EK.sum(axis=1)
    discount_K = 1.0 / np.log2(np.arange(slate_size) + 2.0)
    ideal_K = np.cumsum(discount_K)
    return {
        "hit": (num_hits_E > 0).astype(np.float64),
        "recall": num_hits_E / num_relevant_E,
        "precision": num_hits_E / slate_size,
        "ndcg": gain_EK @ discount_K / ideal_K[np.minimum(num_relevant_E, slate_size) - 1],
    }
