"""Accuracy metrics against definitions written out with loops, and against scikit-learn."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import ndcg_score

from model_export.evaluate.metrics import item_metrics, slate_metrics, target_ranks

NUM_ITEMS = 12
KS = (1, 3, 5)


@st.composite
def ranked_lists(draw: st.DrawFn, *, repeats: bool = True) -> list[list[int]]:
    """Lists of five places: items, then padding; items may repeat."""
    lists = []
    for _ in range(draw(st.integers(1, 6))):
        items = draw(st.lists(st.integers(0, NUM_ITEMS - 1), max_size=5, unique=not repeats))
        lists.append(items + [-1] * (5 - len(items)))
    return lists


def oracle_rank(items: list[int], target: int) -> int:
    return items.index(target) if target in items else len(items)


@given(ranked_lists(), st.randoms(use_true_random=False))
def test_item_metrics_equal_their_definitions(lists, random):
    targets = [random.randrange(NUM_ITEMS) for _ in lists]
    found = item_metrics(np.array(lists), np.array(targets), KS)
    for row, (items, target) in enumerate(zip(lists, targets, strict=True)):
        rank = oracle_rank(items, target)
        for k in KS:
            assert found[f"recall@{k}"][row] == (target in items[:k])
            assert found[f"mrr@{k}"][row] == pytest.approx(1 / (rank + 1) if rank < k else 0)
            assert found[f"ndcg@{k}"][row] == pytest.approx(1 / math.log2(rank + 2) if rank < k else 0)


@given(st.permutations(range(NUM_ITEMS)), st.integers(0, NUM_ITEMS - 1), st.integers(1, NUM_ITEMS))
def test_item_ndcg_equals_scikit_learn(order, target, k):
    score_N = np.empty(NUM_ITEMS)
    score_N[np.array(order)] = np.arange(NUM_ITEMS, 0, -1)
    relevance_N = (np.arange(NUM_ITEMS) == target).astype(float)
    found = item_metrics(np.array([order]), np.array([target]), (k,))[f"ndcg@{k}"][0]
    assert found == pytest.approx(ndcg_score([relevance_N], [score_N], k=k))


@given(st.permutations(range(NUM_ITEMS)), st.sets(st.integers(0, NUM_ITEMS - 1), min_size=1), st.integers(2, NUM_ITEMS))
def test_slate_ndcg_equals_scikit_learn(order, relevant, slate_size):
    score_N = np.empty(NUM_ITEMS)
    score_N[np.array(order)] = np.arange(NUM_ITEMS, 0, -1)
    relevance_N = np.isin(np.arange(NUM_ITEMS), list(relevant)).astype(float)
    found = slate_metrics(np.array([order[:slate_size]]), np.array([sorted(relevant)]))["ndcg"][0]
    assert found == pytest.approx(ndcg_score([relevance_N], [score_N], k=slate_size))


def oracle_slate(slate: list[int], target: list[int]) -> dict[str, float]:
    relevant = {item for item in target if item >= 0}
    seen: set[int] = set()
    gained = 0.0
    for place, item in enumerate(slate):
        if item in relevant and item not in seen:
            gained += 1 / math.log2(place + 2)
            seen.add(item)
    ideal = sum(1 / math.log2(place + 2) for place in range(min(len(relevant), len(slate))))
    return {
        "hit": float(bool(seen)),
        "recall": len(seen) / len(relevant),
        "precision": len(seen) / len(slate),
        "ndcg": gained / ideal,
    }


@given(ranked_lists(), st.data())
def test_slate_metrics_equal_their_definitions(lists, data):
    """Slates may repeat items and be short; targets may repeat items and be longer than the slate."""
    targets = []
    for _ in lists:
        items = data.draw(st.lists(st.integers(0, NUM_ITEMS - 1), min_size=1, max_size=8))
        targets.append(items + [-1] * (8 - len(items)))
    found = slate_metrics(np.array(lists), np.array(targets))
    for row, (slate, target) in enumerate(zip(lists, targets, strict=True)):
        for name, expected in oracle_slate(slate, target).items():
            assert found[name][row] == pytest.approx(expected), name


@given(ranked_lists(repeats=False))
def test_metrics_lie_in_the_unit_interval_and_grow_with_k(lists):
    target_E = np.zeros(len(lists), dtype=int)
    found = item_metrics(np.array(lists), target_E, KS)
    for name in ("recall", "ndcg", "mrr"):
        values = [found[f"{name}@{k}"] for k in KS]
        assert all((value >= 0).all() and (value <= 1).all() for value in values)
        assert all((low <= high).all() for low, high in itertools.pairwise(values))


def test_padding_is_no_target_and_no_hit():
    with pytest.raises(ValueError, match="padding"):
        target_ranks(np.array([[1, -1]]), np.array([-1]))
    with pytest.raises(ValueError, match="without items"):
        slate_metrics(np.array([[1, -1]]), np.array([[-1, -1]]))
    with pytest.raises(ValueError, match="cannot be cut at 10"):
        item_metrics(np.array([[1, 2]]), np.array([1]), (10,))
