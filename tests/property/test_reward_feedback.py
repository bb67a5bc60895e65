"""Visits and their histories against brute force."""

import numpy as np
import polars as pl
from hypothesis import given
from hypothesis import strategies as st

from model_export.data.config import PrepareConfig
from model_export.data.feedback import build_feedback
from model_export.data.log import EVENT_SCHEMA, EventLog

USERS = st.sampled_from(["a", "b", "c"])
Events = st.lists(st.tuples(USERS, st.integers(0, 3), st.integers(0, 12)), min_size=1, max_size=12)
Shown = st.lists(
    st.tuples(USERS, st.integers(0, 4), st.integers(0, 12), st.none() | st.integers(0, 3), st.booleans()),
    min_size=1,
    max_size=20,
)
CUTS_S = (6, 9)


def log_of(
    events: list[tuple[str, int, int]], shown: list[tuple[str, int, int, int | None, bool]]
) -> tuple[EventLog, pl.DataFrame, pl.DataFrame]:
    raw = pl.DataFrame(
        {
            "user_id": [user for user, _, _ in events],
            "item_id": [f"i{item}" for _, item, _ in events],
            "action": "view",
            "timestamp_ms": [1000 * moment for _, _, moment in events],
            "value": None,
            "session_id": None,
        },
        schema=EVENT_SCHEMA,
    )
    impressions = pl.DataFrame(
        {
            "user_id": [user for user, *_ in shown],
            "item_id": [f"i{item}" for _, item, *_ in shown],
            "timestamp_ms": [1000 * moment for _, _, moment, *_ in shown],
            "session_id": pl.Series([None] * len(shown), dtype=pl.String),
            "position": pl.Series([position for *_, position, _ in shown], dtype=pl.Int32),
            "click": pl.Series([float(click) for *_, click in shown], dtype=pl.Float32),
        }
    )
    segments = raw.select("user_id").unique(maintain_order=True).with_row_index("segment")
    ordered = raw.join(segments, on="user_id", maintain_order="left").sort(
        "segment", "timestamp_ms", maintain_order=True
    )
    items = pl.DataFrame({"item_id": [f"i{item}" for item in range(4)]})  # i4 is not in the catalog
    return EventLog(events=raw, impressions=impressions, signals=("click",)), ordered, items


@given(Events, Shown, st.integers(1, 4), st.integers(0, 4))
def test_visits_and_histories_are_those_of_brute_force(
    events: list[tuple[str, int, int]],
    shown: list[tuple[str, int, int, int | None, bool]],
    slate_size: int,
    gap_s: int,
) -> None:
    log, ordered, items = log_of(events, shown)
    config = PrepareConfig(slate_size=slate_size, session_gap_s=gap_s + 0.5)
    feedback = build_feedback(log, ordered, items, [1000 * cut for cut in CUTS_S], config)
    kept = [row for row in shown if row[1] < 4]
    if not kept:
        assert feedback is None
        return
    assert feedback is not None
    users = list(dict.fromkeys(user for user, *_ in kept))
    expected = []
    for user in users:
        mine = sorted((row for row in kept if row[0] == user), key=lambda row: (row[2], row[3] is None, row[3] or 0))
        visit: list[tuple[str, int, int, int | None, bool]] = []
        previous = None
        length = 0
        for row in mine:
            part = sum(row[2] >= cut for cut in CUTS_S)
            breaks = previous is not None and (row[2] - previous[0] > gap_s + 0.5 or part != previous[1])
            if visit and (breaks or length % slate_size == 0):
                expected.append((user, visit))
                visit = []
            length = 1 if breaks else length + 1
            visit.append(row)
            previous = (row[2], part)
        expected.append((user, visit))
    assert feedback.num_visits == len(expected)
    item_MK, signal_MKS = feedback.slates(np.arange(feedback.num_visits), slate_size)
    user_E, time_E = ordered["user_id"].to_list(), ordered["timestamp_ms"].to_list()
    for number, (user, visit) in enumerate(expected):
        assert item_MK[number].tolist() == [row[1] for row in visit] + [-1] * (slate_size - len(visit))
        assert signal_MKS[number, : len(visit), 0].tolist() == [float(row[4]) for row in visit]
        assert feedback.position_F[feedback.visit_F == number].tolist() == list(range(len(visit)))
        moment = 1000 * visit[0][2]
        assert feedback.timestamp_ms_M[number] == moment
        assert feedback.part_M[number] == sum(moment >= 1000 * cut for cut in CUTS_S)
        history = range(feedback.history_start_M[number], feedback.history_end_M[number])
        assert list(history) == [
            event for event, owner in enumerate(user_E) if owner == user and time_E[event] < moment
        ]
        assert (feedback.segment_M[number] < 0) == (user not in user_E)
