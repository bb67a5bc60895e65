"""Whose newest events are sent, and under which ids."""

import itertools

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model_export.backfill import LogEvents, newest_logs
from model_export.data.prepared import PreparedData

Segment = tuple[str, list[tuple[int, int]]]
SEGMENTS = st.lists(
    st.tuples(
        st.sampled_from(["ann", "bob", "cleo", "dora"]),
        st.lists(st.tuples(st.integers(0, 6), st.integers(0, 2)), min_size=1, max_size=6),
    ),
    min_size=1,
    max_size=8,
)
"""Of each a user, and times and items."""


def prepared(segments: list[Segment]) -> PreparedData:
    """A user may have several segments, of which none is in order with another."""
    rows = [(user, number, *event) for number, (user, events) in enumerate(segments) for event in sorted(events)]
    users, numbers, times, items = zip(*rows, strict=True)
    return PreparedData(
        user_id_E=pl.Series(users),
        item_E=np.array(items, np.int32),
        action_E=np.zeros(len(rows), np.int16),
        timestamp_ms_E=np.array(times, np.int64),
        value_E=np.full(len(rows), np.nan, np.float32),
        session_E=np.array(numbers, np.int32),
        segment_E=np.array(numbers, np.int32),
        part_E=np.zeros(len(rows), np.int8),
        items=pl.DataFrame({"item_id": ["a", "b", "c"]}),
        splits={},
        rejects=pl.DataFrame(),
        meta={"has_times": True, "actions": [{"name": "view", "unit": None, "value_edges": []}]},
    )


@given(SEGMENTS, st.integers(1, 9), st.integers(1, 4))
def test_each_users_newest_events_those_who_were_there_last_first(
    segments: list[Segment], num_events: int, at_least: int
) -> None:
    log = prepared(segments)
    places: dict[str, list[int]] = {}
    for place, user in enumerate(log.user_id_E):
        places.setdefault(user, []).append(place)
    for mine in places.values():
        mine.sort(key=lambda place: log.timestamp_ms_E[place])  # stable
    expected = {user: mine[-num_events:] for user, mine in places.items() if len(mine) >= at_least}
    found = newest_logs(log, num_events, at_least=at_least)
    assert {one.user_id: one.places_H.tolist() for one in found} == expected
    assert (len(found), found.num_events) == (len(expected), sum(map(len, expected.values())))
    last = [log.timestamp_ms_E[one.places_H[-1]] for one in found]
    assert all(late >= early for late, early in itertools.pairwise(last))
    assert [one.user_id for one in found[1:]] == [one.user_id for one in found][1:]
    assert found[1:].num_events + found[:1].num_events == found.num_events


@given(SEGMENTS, st.integers(1, 9))
def test_every_event_has_an_id_of_its_own_that_stays_when_the_log_grows(segments: list[Segment], later: int) -> None:
    def ids(log: PreparedData) -> list[str]:
        events = LogEvents(log, end_now=False)
        return [event.event_id for one in newest_logs(log, 1000) for event in events.of(one)]

    before = ids(prepared(segments))
    assert len(set(before)) == sum(len(events) for _, events in segments)
    after = ids(prepared([*segments, ("ann", [(6 + later, 1)])]))
    assert set(before) < set(after)


def test_an_event_that_was_moved_in_time_has_another_id() -> None:
    log = prepared([("ann", [(5, 1), (7, 2)])])
    (one,) = newest_logs(log, 10)
    plain, moved = ([*LogEvents(log, end_now=end_now).of(one)] for end_now in (False, True))
    assert {event.event_id for event in plain}.isdisjoint(event.event_id for event in moved)
    assert moved[1].timestamp - moved[0].timestamp == pytest.approx(0.002, abs=1e-5)


@given(SEGMENTS, st.integers(1, 7))
def test_posts_hold_everything_in_order_and_cut_only_what_does_not_fit(segments: list[Segment], most: int) -> None:
    log = prepared(segments)
    events, logs = LogEvents(log, end_now=False), newest_logs(log, 1000)
    posts = [*events.posts(logs, most)]
    assert [event for post in posts for event in post] == [event for one in logs for event in events.of(one)]
    assert all(0 < len(post) <= most for post in posts)
    for one in logs:
        holding = [post for post in posts if any(event.user_id == one.user_id for event in post)]
        assert len(holding) <= -(-len(one.places_H) // most) + (len(one.places_H) > most)
