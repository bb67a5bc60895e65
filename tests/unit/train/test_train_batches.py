"""Batches: every array against a plain-Python reading of the events, and every example once."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from training_data import Bounds, build, catalog_of, examples_of, generator_of, grid_sids, walks

from model_export.data.prepared import PreparedData
from model_export.train.batches import Collator, in_batches, shuffled_batches, training_examples

CPU = torch.device("cpu")
NUM_ITEMS, SIZE, LEVELS, HISTORY = 9, 4, 2, 6


@st.composite
def data_sets(draw: st.DrawFn) -> tuple[PreparedData, Bounds]:
    lengths = draw(st.lists(st.integers(2, 12), min_size=1, max_size=4))
    slate_size = draw(st.integers(1, 4))
    sequences = [draw(st.lists(st.integers(0, NUM_ITEMS - 1), min_size=n, max_size=n)) for n in lengths]
    num_events, ends = sum(lengths), np.cumsum(lengths)
    bounds = []
    for _ in range(draw(st.integers(1, 6))):
        user = draw(st.integers(0, len(lengths) - 1))
        first, end = int(ends[user]) - lengths[user], int(ends[user])
        target = draw(st.integers(first, end - 1))
        bounds.append((draw(st.integers(first, target)), target, draw(st.integers(target + 1, end))))
        bounds[-1] = (bounds[-1][0], target, min(bounds[-1][2], target + slate_size))
    rng = np.random.default_rng(draw(st.integers(0, 100)))
    prepared = build(
        sequences, NUM_ITEMS, {"train": bounds}, slate_size=slate_size,
        timestamp_ms_E=rng.integers(0, 2**41, num_events),
        action_E=rng.integers(0, 2, num_events).astype(np.int16),
        value_E=np.where(rng.random(num_events) < 0.5, np.nan, rng.random(num_events) * 20).astype(np.float32),
    )  # fmt: skip
    return prepared, bounds


def collator_of(prepared: PreparedData) -> tuple[Collator, dict[int, int], Any]:
    sids_NL = grid_sids(NUM_ITEMS, SIZE, LEVELS, seed=3)
    rows = sorted(range(NUM_ITEMS), key=lambda item: tuple(sids_NL[item]))
    row_of = {item: row for row, item in enumerate(rows)}
    catalog = catalog_of(prepared, sids_NL)
    return Collator(prepared, catalog, generator_of(prepared, SIZE, LEVELS).spec, CPU), row_of, sids_NL


@settings(max_examples=60, deadline=None)
@given(data_sets())
def test_a_history_is_the_newest_events_before_the_target(drawn: tuple[PreparedData, Bounds]) -> None:
    prepared, bounds = drawn
    collator, _, sids_NL = collator_of(prepared)
    batch = collator.history(prepared.examples("train"))
    width = max(1, *(min(HISTORY, target - first) for first, target, _ in bounds))
    assert batch.codes_BTL.shape == (len(bounds), width, LEVELS)
    for place, (first, target, _) in enumerate(bounds):
        events = list(range(first, target))[-HISTORY:]
        pad = width - len(events)
        assert int(batch.lengths_B[place]) == len(events)
        now_ms = int(prepared.timestamp_ms_E[target])
        codes = [[int(code) + 2 for code in sids_NL[prepared.item_E[event]]] for event in events]
        assert batch.codes_BTL[place].tolist() == codes + [[0] * LEVELS] * pad
        actions = [int(prepared.action_E[event]) + 1 for event in events]
        assert batch.actions_BT[place].tolist() == actions + [0] * pad
        ages = [max(0, now_ms - int(prepared.timestamp_ms_E[event])) // 1000 for event in events]
        assert batch.ages_BT[place].tolist() == ages + [0] * pad
        values = [*(prepared.value_E[event] for event in events), *[np.nan] * pad]
        np.testing.assert_array_equal(batch.values_BT[place].numpy(), np.array(values, np.float32))


@settings(max_examples=60, deadline=None)
@given(data_sets())
def test_targets_name_each_item_once_in_its_first_place(drawn: tuple[PreparedData, Bounds]) -> None:
    prepared, bounds = drawn
    collator, row_of, sids_NL = collator_of(prepared)
    rows_BK, codes_BKL = collator.targets(prepared.examples("train"))
    excluded_BX = collator.history_rows(prepared.examples("train"))
    for place, (first, target, end) in enumerate(bounds):
        items = list(dict.fromkeys(int(prepared.item_E[event]) for event in range(target, end)))
        pad = prepared.slate_size - len(items)
        assert rows_BK[place].tolist() == [row_of[item] for item in items] + [-1] * pad
        assert codes_BKL[place, : len(items)].tolist() == [sids_NL[item].tolist() for item in items]
        whole = sorted({row_of[int(prepared.item_E[event])] for event in range(first, target)})
        assert excluded_BX[place].tolist() == whole + [-1] * (excluded_BX.shape[1] - len(whole))


def places_of(batch: Any) -> list[tuple[int, int]]:
    return list(zip(batch.history_start.tolist(), batch.target_start.tolist(), strict=True))


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 300), st.integers(1, 9), st.integers(0, 5))
def test_shuffled_batches_hold_every_example_once(count: int, batch_size: int, seed: int) -> None:
    segment_E = np.zeros(400, np.int32)
    lengths = np.random.default_rng(seed).integers(0, 40, count)
    examples = examples_of([(0, int(length), int(length) + 1) for length in lengths], segment_E)
    examples.history_start[:] = -np.arange(count)  # tells them apart
    batches = list(shuffled_batches(examples, batch_size, np.random.default_rng(seed)))
    # The schedule and the resumption count on this number of steps.
    assert len(batches) == math.ceil(count / batch_size)
    assert max(len(batch) for batch in batches) <= batch_size
    assert sorted(place for batch in batches for place in places_of(batch)) == sorted(places_of(examples))
    again = shuffled_batches(examples, batch_size, np.random.default_rng(seed))
    assert [places_of(batch) for batch in batches] == [places_of(batch) for batch in again]
    in_order = [place for batch in in_batches(examples, batch_size) for place in places_of(batch)]
    assert in_order == places_of(examples)


def test_batches_are_random_but_of_similar_lengths() -> None:
    lengths = np.random.default_rng(0).integers(0, 100, 2000)
    examples = examples_of([(0, int(length), int(length) + 1) for length in lengths], np.zeros(200, np.int32))
    first, second = (list(shuffled_batches(examples, 16, np.random.default_rng([0, epoch]))) for epoch in (0, 1))
    assert places_of(first[0]) != places_of(second[0])
    spread = [np.ptp(batch.history_end - batch.history_start) for batch in first]
    assert np.mean(spread) < 15  # of random batches: about 88
    means = [float(np.mean(batch.history_end - batch.history_start)) for batch in first]
    assert abs(np.corrcoef(means, range(len(means)))[0, 1]) < 0.3


def test_popularity_counts_training_events_alone() -> None:
    prepared = walks(7, 5, 6)
    catalog = catalog_of(prepared, grid_sids(7, 4, 2))
    counts = [0] * 7
    for event, item in enumerate(prepared.item_E):
        counts[item] += prepared.part_E[event] == 0
    assert [int(catalog.snapshot.popularity_N[catalog.row_of_item_N[item]]) for item in range(7)] == counts
    assert catalog.item_of_row_N[catalog.row_of_item_N].tolist() == list(range(7))


@pytest.mark.parametrize("level", range(2))
def test_rows_and_sids_agree(level: int) -> None:
    sids_NL = grid_sids(7, 4, 2)
    catalog = catalog_of(walks(7, 5, 6), sids_NL)
    assert catalog.snapshot.sids_NL[catalog.row_of_item_N, level].tolist() == sids_NL[:, level].tolist()


@settings(max_examples=60, deadline=None)
@given(data_sets(), st.integers(1, 5))
def test_short_targets_are_left_out_and_nothing_else(drawn: tuple[PreparedData, Bounds], least: int) -> None:
    prepared, bounds = drawn
    long = [(first, target, end) for first, target, end in bounds if end - target >= least]
    if not long:
        with pytest.raises(ValueError, match=f"no training example has a target of {least} items"):
            training_examples(prepared, least)
        return
    found = training_examples(prepared, least)
    assert sorted(long) == sorted(
        zip(found.history_start.tolist(), found.target_start.tolist(), found.target_end.tolist(), strict=True)
    )
