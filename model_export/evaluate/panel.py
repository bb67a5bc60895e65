"""The beyond-accuracy panel: what slates are like, whatever was clicked.

Shapes: E examples, K slate size, N items of the catalog, D embedding width, P flat (example, item) pairs; items are
item indexes, -1 pads. Values per example are NaN where a slate has none (no pair of items with tags, say); means skip
them.
"""

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from model_export.evaluate.metrics import Bool, Float, Int, repeats


def embedding_diversity(slate_EK: Int, embedding_ND: npt.NDArray[np.floating]) -> Float:
    """Intra-list diversity: mean of 1 - cosine over the pairs of a slate (Ziegler et al., WWW 2005), in [0, 2].

    Items with a zero or non-finite vector have no embedding and form no pair. The sum over pairs of unit vectors is
    (|sum|^2 - n) / 2, so no pair is ever formed.
    """
    vector_ND = np.nan_to_num(np.asarray(embedding_ND, dtype=np.float64), nan=0.0, posinf=0.0, neginf=0.0)
    norm_N = np.linalg.norm(vector_ND, axis=1)
    unit_ND = vector_ND / np.where(norm_N > 0, norm_N, 1.0)[:, None]
    weight_EK = (slate_EK >= 0) & (norm_N > 0)[slate_EK]
    sum_ED = np.zeros((len(slate_EK), unit_ND.shape[1]))
    for place in range(slate_EK.shape[1]):
        sum_ED += unit_ND[slate_EK[:, place]] * weight_EK[:, place, None]
    num_E = weight_EK.sum(axis=1)
    num_pairs_E = num_E * (num_E - 1) / 2
    similarity_E = ((sum_ED**2).sum(axis=1) - num_E) / 2
    return np.where(num_pairs_E > 0, 1.0 - similarity_E / np.maximum(num_pairs_E, 1), np.nan)


def tag_matrix(tags_N: list[list[str]]) -> sp.csr_array:
    """Which item carries which tag, `[N, number of tags]`."""
    column = {tag: index for index, tag in enumerate(sorted({tag for tags in tags_N for tag in tags}))}
    distinct_N = [sorted({column[tag] for tag in tags}) for tags in tags_N]
    start = np.cumsum([0, *(len(tags) for tags in distinct_N)])
    flat = np.array([tag for tags in distinct_N for tag in tags], dtype=np.int64)
    ones = np.ones(len(flat), dtype=np.int32)
    return sp.csr_array((ones, flat, start), shape=(len(tags_N), max(len(column), 1)))


def tag_diversity(slate_EK: Int, tag_NG: sp.csr_array) -> Float:
    """Mean Jaccard distance between the tag sets of a slate's pairs; items without tags form no pair."""
    size_N = np.asarray(tag_NG.sum(axis=1)).ravel()
    total_E, num_pairs_E = np.zeros(len(slate_EK)), np.zeros(len(slate_EK))
    for right in range(1, slate_EK.shape[1]):
        tag_EG = tag_NG[np.maximum(slate_EK[:, right], 0)]
        for left in range(right):
            a_E, b_E = slate_EK[:, left], slate_EK[:, right]
            is_pair_E = (a_E >= 0) & (b_E >= 0) & (size_N[a_E] > 0) & (size_N[b_E] > 0)
            shared_E = np.asarray(tag_NG[np.maximum(a_E, 0)].multiply(tag_EG).sum(axis=1)).ravel()
            union_E = np.maximum(size_N[a_E] + size_N[b_E] - shared_E, 1)
            total_E += np.where(is_pair_E, 1.0 - shared_E / union_E, 0.0)
            num_pairs_E += is_pair_E
    return np.where(num_pairs_E > 0, total_E / np.maximum(num_pairs_E, 1), np.nan)


def novelty(slate_EK: Int, count_N: Int) -> Float:
    """Mean self-information -log2 p of a slate's items in bits (Zhou et al., PNAS 2010).

    p is the item's share of the training events with one added to every count, so that an unseen item stays finite.
    """
    information_N = -np.log2((count_N + 1.0) / (count_N.sum() + len(count_N)))
    return _mean_over_items(slate_EK, information_N[slate_EK])


def popular_share(slate_EK: Int, count_N: Int, *, head: float = 0.1) -> Float:
    """Share of a slate's items among the `head` part of the catalog with the most training events (at least one)."""
    num_popular = max(1, round(len(count_N) * head))
    is_popular_N = np.zeros(len(count_N))
    is_popular_N[np.argsort(-count_N, kind="stable")[:num_popular]] = 1.0
    return _mean_over_items(slate_EK, is_popular_N[slate_EK])


def duplicates(slate_EK: Int) -> Float:
    """Share of a slate's places that repeat an earlier item of it."""
    return _mean_over_items(slate_EK, repeats(slate_EK).astype(np.float64))


def fill(slate_EK: Int) -> Float:
    """Share of the places asked for that hold an item."""
    return np.asarray((slate_EK >= 0).mean(axis=1))


def legality(slate_EK: Int, available_N: Bool, excluded: tuple[Int, Int]) -> Float:
    """Share of a slate's items that are in the catalog, available, and not excluded for the example.

    `excluded`: flat (example_P, item_P) pairs. Only -1 pads; any other number outside the catalog is illegal.
    """
    num_items = len(available_N)
    in_catalog_EK = (slate_EK >= 0) & (slate_EK < num_items)
    safe_EK = np.where(in_catalog_EK, slate_EK, 0)
    example_E = np.arange(len(slate_EK), dtype=np.int64)
    excluded_P = excluded[0].astype(np.int64) * num_items + excluded[1]
    is_excluded_EK = np.isin(example_E[:, None] * num_items + safe_EK, excluded_P)
    is_legal_EK = in_catalog_EK & available_N[safe_EK] & ~is_excluded_EK
    is_filled_EK = slate_EK != -1
    num_E = is_filled_EK.sum(axis=1)
    return np.where(num_E > 0, (is_legal_EK & is_filled_EK).sum(axis=1) / np.maximum(num_E, 1), np.nan)


def coverage(slate_EK: Int, available_N: Bool) -> float:
    """Share of the available catalog that appears in at least one slate (Ge et al., RecSys 2010).

    It grows with the number of examples: compare only recommenders evaluated on the same ones.
    """
    shown = np.unique(slate_EK[slate_EK >= 0])
    return float(available_N[shown].sum() / max(int(available_N.sum()), 1))


def gini(slate_EK: Int, available_N: Bool) -> float:
    """Gini coefficient of how often each available item is shown: 0 all alike, towards 1 a few items only.

    sum over items in ascending order of (2 i - n - 1) x_i / (n sum x), i from 1. NaN if nothing is shown.
    """
    shown_N = np.bincount(slate_EK[slate_EK >= 0], minlength=len(available_N))[available_N]
    ordered_N, num_items = np.sort(shown_N), len(shown_N)
    if num_items == 0 or ordered_N.sum() == 0:
        return float("nan")
    place_N = np.arange(1, num_items + 1)
    return float(((2 * place_N - num_items - 1) * ordered_N).sum() / (num_items * ordered_N.sum()))


def _mean_over_items(slate_EK: Int, value_EK: Float) -> Float:
    is_filled_EK = slate_EK >= 0
    num_E = is_filled_EK.sum(axis=1)
    return np.where(num_E > 0, np.where(is_filled_EK, value_EK, 0.0).sum(axis=1) / np.maximum(num_E, 1), np.nan)
