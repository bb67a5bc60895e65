"""The beyond-accuracy panel against definitions written out with loops."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model_export.evaluate import panel

NUM_ITEMS = 8
slates = st.lists(st.lists(st.integers(-1, NUM_ITEMS - 1), min_size=4, max_size=4), min_size=1, max_size=5).map(
    np.array
)
counts = st.lists(st.integers(0, 50), min_size=NUM_ITEMS, max_size=NUM_ITEMS).map(np.array)


def mean_or_nan(values: list[float]) -> float:
    return sum(values) / len(values) if values else math.nan


def same(found: np.ndarray, expected: list[float]) -> None:
    assert found == pytest.approx(np.array(expected), nan_ok=True, abs=1e-9)


@given(slates, st.integers(0, 2**32 - 1))
def test_embedding_diversity_is_the_mean_cosine_distance_of_pairs(slate_EK, seed):
    embedding_ND = np.random.default_rng(seed).normal(size=(NUM_ITEMS, 3))
    embedding_ND[0] = 0.0  # an item without an embedding
    embedding_ND[1] = np.nan
    expected = []
    for slate in slate_EK:
        vectors = [embedding_ND[item] for item in slate if item > 1]
        expected.append(
            mean_or_nan(
                [1 - a @ b / (np.linalg.norm(a) * np.linalg.norm(b)) for a, b in itertools.combinations(vectors, 2)]
            )
        )
    same(panel.embedding_diversity(slate_EK, embedding_ND), expected)


@given(slates, st.lists(st.lists(st.sampled_from("abcd"), max_size=3), min_size=NUM_ITEMS, max_size=NUM_ITEMS))
def test_tag_diversity_is_the_mean_jaccard_distance_of_pairs(slate_EK, tags):
    expected = []
    for slate in slate_EK:
        sets = [set(tags[item]) for item in slate if item >= 0 and tags[item]]
        expected.append(mean_or_nan([1 - len(a & b) / len(a | b) for a, b in itertools.combinations(sets, 2)]))
    same(panel.tag_diversity(slate_EK, panel.tag_matrix(tags)), expected)


@given(slates, counts)
def test_novelty_is_mean_self_information_and_popular_share_counts_the_head(slate_EK, count_N):
    probability = [(count + 1) / (count_N.sum() + NUM_ITEMS) for count in count_N]
    head = sorted(range(NUM_ITEMS), key=lambda item: (-count_N[item], item))[:2]
    filled = [[item for item in slate if item >= 0] for slate in slate_EK]
    same(panel.novelty(slate_EK, count_N), [mean_or_nan([-math.log2(probability[i]) for i in s]) for s in filled])
    found = panel.popular_share(slate_EK, count_N, head=0.25)
    same(found, [mean_or_nan([float(i in head) for i in s]) for s in filled])


@given(slates)
def test_duplicates_fill_and_coverage(slate_EK):
    available_N = np.arange(NUM_ITEMS) != 3
    filled = [[item for item in slate if item >= 0] for slate in slate_EK]
    same(panel.duplicates(slate_EK), [1 - len(set(s)) / len(s) if s else math.nan for s in filled])
    same(panel.fill(slate_EK), [len(s) / 4 for s in filled])
    shown = set(itertools.chain(*filled)) - {3}
    assert panel.coverage(slate_EK, available_N) == pytest.approx(len(shown) / (NUM_ITEMS - 1))


@given(slates)
def test_gini_is_the_mean_absolute_difference_form(slate_EK):
    """Gini = sum over all pairs |x_i - x_j| / (2 n^2 mean)."""
    shown = [int((slate_EK == item).sum()) for item in range(NUM_ITEMS)]
    found = panel.gini(slate_EK, np.ones(NUM_ITEMS, dtype=bool))
    if sum(shown) == 0:
        assert math.isnan(found)
    else:
        pairs = sum(abs(a - b) for a in shown for b in shown)
        assert found == pytest.approx(pairs / (2 * NUM_ITEMS * sum(shown)))


@given(
    st.lists(st.lists(st.integers(-1, NUM_ITEMS + 2), min_size=3, max_size=3), min_size=1, max_size=4).map(np.array),
    st.sets(st.tuples(st.integers(0, 3), st.integers(0, NUM_ITEMS - 1))),
    st.lists(st.booleans(), min_size=NUM_ITEMS, max_size=NUM_ITEMS).map(np.array),
)
def test_legality_counts_what_is_outside_the_catalog_unavailable_or_excluded(slate_EK, excluded, available_N):
    pairs = np.array(sorted(excluded), dtype=np.int64).reshape(-1, 2)
    expected = []
    for row, slate in enumerate(slate_EK):
        legal = [
            float(item < NUM_ITEMS and bool(available_N[item]) and (row, int(item)) not in excluded)
            for item in slate
            if item != -1
        ]
        expected.append(mean_or_nan(legal))
    same(panel.legality(slate_EK, available_N, (pairs[:, 0], pairs[:, 1])), expected)
