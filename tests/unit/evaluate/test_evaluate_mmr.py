"""Maximal marginal relevance against the greedy choice written out, and its limits."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model_export.evaluate.mmr import mmr, relevance


def cosine(left: np.ndarray, right: np.ndarray) -> float:
    lengths = np.linalg.norm(left) * np.linalg.norm(right)
    return float(left @ right / lengths) if lengths > 0 else 0.0


def greedy(relevance_W: np.ndarray, live_W: np.ndarray, vectors_WD: np.ndarray, k: int, trade_off: float) -> list[int]:
    chosen: list[int] = []
    while len(chosen) < k:
        left = [place for place in range(len(live_W)) if live_W[place] and place not in chosen]
        if not left:
            return chosen + [-1] * (k - len(chosen))
        values = [
            trade_off * relevance_W[place]
            - (1 - trade_off) * max([cosine(vectors_WD[place], vectors_WD[other]) for other in chosen], default=0.0)
            for place in left
        ]
        chosen.append(left[int(np.argmax(values))])
    return chosen


@settings(max_examples=200, deadline=None)
@given(
    st.integers(1, 4), st.integers(1, 9), st.integers(1, 7), st.sampled_from([0.0, 0.2, 0.5, 0.8, 1.0]),
    st.integers(0, 10**6),
)  # fmt: skip
def test_it_is_the_greedy_choice(num_requests: int, width: int, k: int, trade_off: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    live_BW = np.arange(width) < rng.integers(0, width + 1, (num_requests, 1))
    vectors_BWD = rng.normal(size=(num_requests, width, 3)) * rng.uniform(0.1, 9, (num_requests, width, 1))
    vectors_BWD[rng.random((num_requests, width)) < 0.1] = 0.0
    score_BW = -np.sort(rng.exponential(size=(num_requests, width)))
    relevance_BW = relevance(np.where(live_BW, score_BW, -1e30), live_BW)
    found_BK = mmr(relevance_BW, live_BW, vectors_BWD, k, trade_off)
    for request in range(num_requests):
        expected = greedy(relevance_BW[request], live_BW[request], vectors_BWD[request], k, trade_off)
        assert found_BK[request].tolist() == expected


def test_relevance_is_linear_from_the_worst_live_score_to_the_best() -> None:
    score_BW = np.array(
        [[-1.0, -2.0, -5.0, -1e30], [-3.0, -3.0, -1e30, -1e30], [-4.0, -1e30, -1e30, -1e30], [-1e30] * 4]
    )
    found_BW = relevance(score_BW, score_BW > -1e29)
    assert found_BW.tolist() == [[1.0, 0.75, 0.0, 0.0], [1.0, 1.0, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0], [0.0] * 4]


@pytest.mark.parametrize(
    ("trade_off", "expected"),
    [
        (1.0, [0, 1, 2, 3]),  # by relevance alone
        (0.7, [0, 2, 1, 3]),  # the near-duplicate of the first waits for one that is unlike it
        (0.0, [0, 3, 2, 1]),  # after the first in the list the one most unlike it, whatever its relevance
    ],
)
def test_what_the_trade_off_trades(trade_off: float, expected: list[int]) -> None:
    relevance_BW = np.array([[1.0, 0.9, 0.6, 0.0]])
    angle_W = np.deg2rad([0, 5, 90, 170])
    vectors_BWD = np.stack([np.cos(angle_W), np.sin(angle_W)], 1)[None]
    assert mmr(relevance_BW, np.ones((1, 4), bool), vectors_BWD, 4, trade_off)[0].tolist() == expected


def test_the_length_of_an_embedding_does_not_matter() -> None:
    rng = np.random.default_rng(0)
    relevance_BW, vectors_BWD = -np.sort(-rng.random((3, 20))), rng.normal(size=(3, 20, 4))
    live_BW = np.ones((3, 20), bool)
    stretched_BWD = vectors_BWD * rng.uniform(0.5, 20, (3, 20, 1))
    assert (mmr(relevance_BW, live_BW, vectors_BWD, 8, 0.6) == mmr(relevance_BW, live_BW, stretched_BWD, 8, 0.6)).all()
