"""Examples of random logs equal those of a plain reading of the rules, and never look ahead."""

import csv
import tempfile
from collections import Counter
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import polars as pl
from hypothesis import given, settings
from hypothesis import strategies as st

from model_export.data.config import PrepareConfig
from model_export.data.core import k_core
from model_export.data.errors import DataError
from model_export.data.examples import Examples
from model_export.data.preparation import prepare
from model_export.data.prepared import PreparedData

GAP_S = 100
SPLITS = ("train", "valid", "test")


@dataclass(frozen=True)
class Row:
    user: str
    item: str
    time_s: int


rows_strategy = st.lists(
    st.builds(
        Row,
        user=st.sampled_from(["ann", "bob", "eve"]),
        item=st.sampled_from([f"i{n}" for n in range(7)]),
        time_s=st.integers(0, 1500),
    ),
    min_size=1,
    max_size=60,
)
configs = st.fixed_dictionaries(
    {
        "split": st.sampled_from(["time", "session", "leave_one_out"]),
        "target_kind": st.sampled_from(["session", "next_items"]),
        "slate_size": st.integers(1, 4),
        "min_session_length": st.integers(1, 3),
        "min_history_length": st.integers(0, 2),
        "train_stride": st.integers(1, 3),
        "max_train_examples": st.integers(0, 3),
        "valid_fraction": st.sampled_from([0.0, 0.1, 0.3]),
        "test_fraction": st.sampled_from([0.0, 0.2]),
    }
).map(lambda fields: PrepareConfig(session_gap_s=GAP_S, **fields))


def prepare_rows(rows: list[Row], config: PrepareConfig) -> PreparedData | None:
    """The prepared set, or None where the split leaves nothing to train on."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "events.csv"
        with file.open("w", newline="") as out:
            writer = csv.writer(out)
            writer.writerow(["user_id", "item_id", "timestamp"])
            writer.writerows((row.user, row.item, row.time_s) for row in rows)
        try:
            return prepare(config, file, Path(folder) / "out")
        except DataError as error:
            if "leave" not in str(error):
                raise
            return None


def as_named(data: PreparedData, examples: Examples) -> list[tuple[str, list[str], list[str]]]:
    """Examples as (user, history item ids, target item ids)."""
    names = data.items["item_id"].to_list()
    spans = zip(examples.history_start, examples.history_end, examples.target_start, examples.target_end, strict=True)
    return [
        (
            data.user_id_E[int(target_start)],
            [names[item] for item in data.item_E[start:end]],
            [names[item] for item in data.item_E[target_start:target_end]],
        )
        for start, end, target_start, target_end in spans
    ]


def expected_examples(rows: list[Row], config: PrepareConfig) -> dict[str, list[tuple[str, list[str], list[str]]]]:
    """The rules, one event at a time."""
    users = list(dict.fromkeys(row.user for row in rows))
    by_user = {user: sorted((r for r in rows if r.user == user), key=lambda r: r.time_s) for user in users}
    sessions: list[tuple[str, list[int]]] = []
    for user, events in by_user.items():
        for place, event in enumerate(events):
            if place and event.time_s - events[place - 1].time_s <= GAP_S:
                sessions[-1][1].append(place)
            else:
                sessions.append((user, [place]))
    part = _parts(rows, by_user, sessions, config)
    by_item = config.split == "leave_one_out"
    found: dict[str, list[tuple[str, list[str], list[str]]]] = {name: [] for name in SPLITS}
    for user, events in by_user.items():
        for number, name in enumerate(SPLITS):
            single = by_item and name != "train"
            in_sessions = config.target_kind == "session" and not single
            groups = [places for owner, places in sessions if owner == user] if in_sessions else [range(len(events))]
            mine: list[tuple[str, list[str], list[str]]] = []
            for group in groups:
                places = [place for place in group if part[user, place] == number]
                if not places or (in_sessions and len(places) < config.min_session_length):
                    continue
                width = 1 if single else config.slate_size
                rolling = name == "train" and config.target_kind == "next_items"
                start = max(places[0], config.min_history_length)
                while start <= places[-1]:
                    end = min(start + width, places[-1] + 1)
                    items = [event.item for event in events]
                    mine.append((user, items[:start], items[start:end]))
                    start += config.train_stride if rolling else width
            if name == "train" and config.max_train_examples:
                mine = mine[-config.max_train_examples :]
            found[name] += mine
    return found


def _parts(
    rows: list[Row], by_user: dict[str, list[Row]], sessions: list[tuple[str, list[int]]], config: PrepareConfig
) -> dict[tuple[str, int], int]:
    places = [(user, place) for user, events in by_user.items() for place in range(len(events))]
    if config.split == "leave_one_out":
        length = {user: len(events) for user, events in by_user.items()}
        return {(user, place): max(0, place - length[user] + 3) if length[user] >= 3 else 0 for user, place in places}
    if config.split == "session":
        order = sorted(sessions, key=lambda session: by_user[session[0]][session[1][0]].time_s)
        num_test, num_valid = (round(len(order) * f) for f in (config.test_fraction, config.valid_fraction))
        parts = {}
        for rank, (user, group) in enumerate(order):
            left = len(order) - rank
            for place in group:
                parts[user, place] = 2 if left <= num_test else 1 if left <= num_test + num_valid else 0
        return parts
    times = sorted(row.time_s for row in rows)
    share = 1 - config.valid_fraction - config.test_fraction
    first = int(len(times) * share)
    second = int(len(times) * (1 - config.test_fraction))
    cuts = [times[at] if at < len(times) else times[-1] + 1 for at in (first, second)]
    return {(user, place): sum(by_user[user][place].time_s >= cut for cut in cuts) for user, place in places}


@settings(max_examples=80, deadline=None)
@given(rows=rows_strategy, config=configs)
def test_examples_equal_the_plain_reading_of_the_rules(rows: list[Row], config: PrepareConfig) -> None:
    expected = expected_examples(rows, config)
    data = prepare_rows(rows, config)
    if data is None:
        assert not expected["train"]
        return
    for name in SPLITS:
        assert as_named(data, data.examples(name)) == expected[name]


@settings(max_examples=40, deadline=None)
@given(rows=rows_strategy, config=configs)
def test_nothing_looks_ahead(rows: list[Row], config: PrepareConfig) -> None:
    data = prepare_rows(rows, config)
    if data is None:
        return
    for name in SPLITS:
        examples = data.examples(name)
        assert np.array_equal(examples.history_end, examples.target_start)
        length_N = examples.target_end - examples.target_start
        assert ((length_N >= 1) & (length_N <= data.slate_size)).all()
        for start, end in zip(examples.history_start, examples.target_end, strict=True):
            assert len(set(data.segment_E[start:end].tolist())) == 1
            assert (np.diff(data.timestamp_ms_E[start:end]) >= 0).all()
    if config.split == "time":
        first_cut_ms = data.meta["split_cuts_ms"][0]
        train = data.examples("train")
        newest_train_ms = max(int(data.timestamp_ms_E[end - 1]) for end in train.target_end)
        assert newest_train_ms < first_cut_ms
        assert (data.timestamp_ms_E[data.train_events()] < first_cut_ms).all()
        for name in ("valid", "test"):
            assert (data.timestamp_ms_E[data.examples(name).target_start] >= first_cut_ms).all()


@settings(max_examples=40, deadline=None)
@given(rows=rows_strategy)
def test_sessions_never_span_a_gap_or_two_users(rows: list[Row]) -> None:
    config = PrepareConfig(split="leave_one_out", target_kind="next_items", session_gap_s=GAP_S, min_history_length=0)
    data = prepare_rows(rows, config)
    assert data is not None
    columns = zip(data.session_E.tolist(), data.user_id_E.to_list(), data.timestamp_ms_E.tolist(), strict=True)
    for (session, user, time_ms), (next_session, next_user, next_time_ms) in pairwise(columns):
        continues = user == next_user and next_time_ms - time_ms <= GAP_S * 1000
        assert next_session == session + (0 if continues else 1)


@settings(max_examples=40, deadline=None)
@given(rows=rows_strategy, slate_size=st.integers(1, 5))
def test_target_items_are_the_distinct_items_in_order(rows: list[Row], slate_size: int) -> None:
    config = PrepareConfig(split="leave_one_out", target_kind="next_items", slate_size=slate_size, min_history_length=0)
    data = prepare_rows(rows, config)
    assert data is not None
    examples = data.examples("train")
    for row, start, end in zip(
        data.target_items(examples).tolist(), examples.target_start, examples.target_end, strict=True
    ):
        distinct = list(dict.fromkeys(data.item_E[start:end].tolist()))
        assert row == distinct + [-1] * (slate_size - len(distinct))


@settings(max_examples=40, deadline=None)
@given(rows=rows_strategy, min_item=st.integers(1, 4), min_user=st.integers(1, 6))
def test_k_core_is_the_largest_part_that_satisfies_both_bounds(rows: list[Row], min_item: int, min_user: int) -> None:
    kept = list(rows)
    while True:
        items, users = Counter(row.item for row in kept), Counter(row.user for row in kept)
        fewer = [row for row in kept if items[row.item] >= min_item and users[row.user] >= min_user]
        if fewer == kept:
            break
        kept = fewer
    events = pl.DataFrame([(row.user, row.item) for row in rows], schema=["user_id", "item_id"], orient="row")
    core = k_core(events, min_item_events=min_item, min_user_events=min_user)
    assert core.rows() == [(row.user, row.item) for row in kept]
