"""Maximal marginal relevance: a slate from a ranked list, each next item good and unlike those before it.

Legend: B requests, W candidates of each, K slate size, D width of an embedding.
"""

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.floating]


def relevance(score_BW: Floats, is_live_BW: npt.NDArray[np.bool_]) -> npt.NDArray[np.float64]:
    """Scores on a scale that cosines can be compared with: 1 for the best live candidate, 0 for the worst.

    Linear between the two (min-max) and per request; all 1 where the live scores are equal, 0 for what is not live.
    """
    score_BW = score_BW.astype(np.float64)
    best_B1 = np.where(is_live_BW, score_BW, -np.inf).max(1, keepdims=True)
    worst_B1 = np.where(is_live_BW, score_BW, np.inf).min(1, keepdims=True)
    span_B1 = np.where(is_live_BW.any(1, keepdims=True), best_B1 - worst_B1, 0.0)
    below_BW = np.where(is_live_BW, best_B1 - score_BW, 0.0)
    return np.where(is_live_BW, 1.0 - np.divide(below_BW, span_B1, out=np.zeros_like(below_BW), where=span_B1 > 0), 0.0)


def mmr(
    relevance_BW: Floats, is_live_BW: npt.NDArray[np.bool_], vectors_BWD: Floats, k: int, trade_off: float
) -> npt.NDArray[np.int64]:
    """Places [B, K] of the chosen candidates in the order of their choice, -1 where no live one is left.

    Carbonell and Goldstein 1998, equation 1: each time the candidate that maximises `trade_off * relevance -
    (1 - trade_off) * s`, s being its greatest cosine to what is chosen already, 0 while nothing is. Of equal ones the
    first in the list. With `trade_off` 1 it is the list by relevance.

    Args:
        relevance_BW: Of the candidates, best first.
        is_live_BW: Which of them exist.
        vectors_BWD: Their embeddings, of any length; a zero vector is like nothing.
        k: Items to choose.
        trade_off: lambda, 0 to 1.
    """
    length_BW1 = np.linalg.norm(vectors_BWD, axis=2, keepdims=True)
    unit_BWD = np.divide(vectors_BWD, length_BW1, out=np.zeros_like(vectors_BWD, np.float64), where=length_BW1 > 0)
    requests = np.arange(len(relevance_BW))
    left_BW, similarity_BW = is_live_BW.copy(), np.zeros(relevance_BW.shape)
    chosen_BK = np.full((len(relevance_BW), k), -1, dtype=np.int64)
    for place in range(min(k, relevance_BW.shape[1])):
        value_BW = trade_off * relevance_BW - (1 - trade_off) * similarity_BW
        best_B = np.where(left_BW, value_BW, -np.inf).argmax(1)
        chosen_BK[:, place] = np.where(left_BW[requests, best_B], best_B, -1)
        left_BW[requests, best_B] = False
        cosine_BW = np.einsum("bwd,bd->bw", unit_BWD, unit_BWD[requests, best_B])
        similarity_BW = cosine_BW if place == 0 else np.maximum(similarity_BW, cosine_BW)
    return chosen_BK
