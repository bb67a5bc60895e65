"""Baselines on planted patterns, and what no list may hold."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model_export.evaluate.baselines.content import ContentConfig, ContentNeighbours
from model_export.evaluate.baselines.cooccurrence import Cooccurrence, CooccurrenceConfig, transition_weights
from model_export.evaluate.baselines.popularity import Popularity
from model_export.evaluate.baselines.sasrec import SasRec
from model_export.evaluate.baselines.sasrec_config import SasRecConfig
from model_export.evaluate.baselines.scoring import best
from model_export.evaluate.sequences import first_targets, histories, history_pairs

ALL = [
    Popularity,
    Cooccurrence,
    lambda prepared: SasRec(prepared, SasRecConfig(width=8, max_length=4)),
    lambda prepared: ContentNeighbours(prepared, feature_ND=np.eye(prepared.num_items)),
]


@given(
    st.lists(st.lists(st.sampled_from([-np.inf, 0.0, 1.0, 2.0]), min_size=6, max_size=6), min_size=1, max_size=4),
    st.integers(1, 8),
)
def test_best_equals_a_stable_sort(rows, k):
    expected = []
    for row in rows:
        order = sorted((item for item in range(6) if row[item] > -np.inf), key=lambda item: (-row[item], item))
        expected.append((order + [-1] * k)[:k])
    assert best(np.array(rows), k).tolist() == expected


def test_best_refuses_nan():
    with pytest.raises(ValueError, match="NaN"):
        best(np.array([[0.0, np.nan]]), 1)


def test_popularity_counts_only_events_that_follow_another(make_prepared):
    prepared = make_prepared([[3, 1, 1, 2, 0, 0], [3, 1, 2, 2, 0, 0], [3, 2, 1, 1, 0, 0]], 5)
    assert Popularity(prepared).rank(prepared.examples("test"), 5).tolist() == [[1, 2, 3, 0, 4]] * 3


def test_cooccurrence_follows_the_newest_item(make_prepared):
    prepared = make_prepared([[0, 1, 9, 9], [2, 3, 9, 9], [0, 1, 2, 9, 9], [2, 3, 0, 9, 9]], 10)
    ranked_EK = Cooccurrence(prepared, CooccurrenceConfig(window=1)).rank(prepared.examples("valid"), 2)
    # Histories end in 1, 3, 2 and 0.
    assert ranked_EK[2].tolist() == [3, 2] or ranked_EK[2, 0] == 3
    assert ranked_EK[3, 0] == 1


def test_cooccurrence_weights_equal_a_loop(make_prepared):
    rng = np.random.default_rng(3)
    sequences = [rng.integers(0, 7, size=rng.integers(3, 12)).tolist() for _ in range(20)]
    prepared = make_prepared(sequences, 7)
    config = CooccurrenceConfig(window=3, backward_weight=0.25, power=0.7)
    counts = np.zeros((7, 7))
    for items in sequences:
        train = items[:-2]
        for later in range(len(train)):
            for earlier in range(max(0, later - 3), later):
                counts[train[earlier], train[later]] += 1 / (later - earlier)
                counts[train[later], train[earlier]] += 0.25 / (later - earlier)
    sums = counts.sum(axis=1, keepdims=True)
    expected = np.divide(counts, sums, out=np.zeros_like(counts), where=sums > 0) ** 0.7
    assert transition_weights(prepared, config).toarray() == pytest.approx(expected)


def test_cooccurrence_weighs_history_by_age_and_learns_nothing_from_test(make_prepared):
    prepared = make_prepared([[0, 1, 2, 5, 6], [0, 3, 2, 5, 6]], 7)
    model = Cooccurrence(prepared, CooccurrenceConfig(decay=0.25))
    score_EN = model.scores(prepared.examples("test"))
    weights = transition_weights(prepared, model.config).toarray()
    # The newest item of a history, 5, is of the valid part: unknown to training, it gives no evidence.
    assert not weights[5].any()
    assert not weights[:, 5:].any()
    assert score_EN[0] == pytest.approx(weights[2] * 0.25 + weights[1] * 0.25**2 + weights[0] * 0.25**3)


@pytest.mark.parametrize("make", ALL)
def test_excluded_and_unavailable_items_never_appear(make, make_prepared):
    rng = np.random.default_rng(0)
    sequences = [rng.integers(0, 9, size=8).tolist() for _ in range(30)]
    prepared = make_prepared(sequences, 9, repeat_policy="exclude", unavailable=[4])
    examples = prepared.examples("test")
    ranked_EK = make(prepared).rank(examples, 9)
    assert (make(prepared).slates(examples, 3) == ranked_EK[:, :3]).all()
    for items, ranked in zip(sequences, ranked_EK.tolist(), strict=True):
        legal = set(range(9)) - set(items[:-1]) - {4}
        assert set(ranked) - {-1} == legal
        assert ranked[len(legal) :] == [-1] * (9 - len(legal))


@pytest.mark.parametrize("make", ALL)
def test_repeats_are_allowed_where_the_policy_allows_them(make, make_prepared):
    prepared = make_prepared([[0, 1, 0, 1, 0, 1, 0]] * 4, 3)
    assert (np.sort(make(prepared).rank(prepared.examples("test"), 3), axis=1) == [0, 1, 2]).all()


@pytest.mark.parametrize("make", ALL)
def test_an_empty_history_gets_the_popular_list(make, make_prepared):
    prepared = make_prepared([[0, 2, 2, 1, 0, 0]] * 4, 3)
    examples = prepared.examples("test")[:1]
    object.__setattr__(examples, "history_start", examples.history_end)
    assert make(prepared).rank(examples, 3).tolist() == [[2, 1, 0]]


@pytest.mark.parametrize("make", ALL)
def test_no_examples_give_no_lists(make, make_prepared):
    prepared = make_prepared([[0, 1, 2, 1]], 3)
    assert make(prepared).rank(prepared.examples("test")[:0], 2).shape == (0, 2)


def test_histories_and_pairs_name_the_same_events(make_prepared):
    prepared = make_prepared([[0, 1, 2, 3, 4], [5, 6, 7]], 8)
    examples = prepared.examples("test")
    assert histories(prepared, examples, max_length=3).tolist() == [[1, 2, 3], [5, 6, -1]]
    example_P, item_P, age_P = history_pairs(prepared, examples)
    assert list(zip(example_P, item_P, age_P, strict=True)) == [
        (0, 0, 3), (0, 1, 2), (0, 2, 1), (0, 3, 0), (1, 5, 1), (1, 6, 0)
    ]  # fmt: skip
    assert first_targets(prepared, examples).tolist() == [4, 7]


@pytest.mark.parametrize(
    ("field", "value"),
    [("window", 0), ("power", 0.0), ("decay", 0.0), ("backward_weight", -1.0), ("max_history_length", 0)],
)
def test_cooccurrence_settings_are_checked(field, value):
    with pytest.raises(ValueError, match=field):
        CooccurrenceConfig(**{field: value})


def test_content_ranks_by_likeness_whether_an_item_was_ever_seen_or_not(make_prepared):
    prepared = make_prepared([[0, 1, 2, 3], [1, 0, 2, 3]], 6)
    # Items 4 and 5 have no event. Item 4 is like 1 and 2 together, 5 like nothing.
    feature_ND = np.array([[1.0, 0, 0], [0, 2.0, 0], [0, 0, 0.5], [1, 0.2, 0.2], [0, 1, 1], [0, 0, 0]])
    model = ContentNeighbours(prepared, ContentConfig(decay=1.0, max_history_length=2), feature_ND=feature_ND)
    examples = prepared.examples("test")
    score_EN = model.scores(examples)
    taste = np.array([0, 1, 1]) / np.sqrt(2)  # the newest two of history 0, 1, 2
    unit_ND = feature_ND / np.maximum(np.linalg.norm(feature_ND, axis=1, keepdims=True), 1e-9)
    assert score_EN[0] == pytest.approx(unit_ND @ taste, abs=1e-6)
    assert model.rank(examples, 1)[0].tolist() == [4]
    decayed = ContentNeighbours(prepared, ContentConfig(decay=0.1), feature_ND=feature_ND)
    assert decayed.rank(examples[:1], 3).tolist() == [[2, 4, 3]]
    last = ContentNeighbours(prepared, ContentConfig(exclude_history=True), feature_ND=feature_ND)
    assert set(last.rank(examples, 3)[0].tolist()) == {3, 4, 5}
    with pytest.raises(ValueError, match="feature row for each of 6"):
        ContentNeighbours(prepared, feature_ND=feature_ND[:3])
