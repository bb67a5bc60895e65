"""Impressions: every kind of file gives the same feedback, bad rows are named, no history reaches into its visit."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from model_export.data.config import PrepareConfig
from model_export.data.errors import DataError
from model_export.data.feedback import Feedback
from model_export.data.preparation import prepare
from model_export.data.prepared import PreparedData

START_S = 1_700_000_000
EVENTS = pl.DataFrame(
    {
        "user_id": [f"u{n % 5}" for n in range(60)],
        "item_id": [f"i{n % 11}" for n in range(60)],
        "timestamp": [START_S + 40 * n for n in range(60)],
    }
)
SHOWN = pl.DataFrame(
    {
        "user_id": [f"u{n % 6}" for n in range(120)],  # u5 has no events
        "item_id": [f"i{n % 12}" for n in range(120)],  # i11 has no events
        "timestamp": [START_S + 20 * n for n in range(120)],
        "position": [n % 7 for n in range(120)],
        "click": [n % 2 == 0 for n in range(120)],
        "watched": [n / 120 for n in range(120)],
        "device": ["phone" if n % 3 else "web" for n in range(120)],
    }
)
WRITERS: dict[str, Callable[[pl.DataFrame, Path], object]] = {
    "parquet": lambda frame, folder: frame.write_parquet(folder / "impressions.parquet"),
    "csv": lambda frame, folder: frame.write_csv(folder / "impressions.csv"),
    "numbers in csv": lambda frame, folder: frame.cast({"click": pl.Int8}).write_csv(folder / "impressions.csv"),
    "jsonl": lambda frame, folder: frame.write_ndjson(folder / "impressions.jsonl"),
}


def feedback_of(folder: Path, **config: object) -> tuple[PreparedData, Feedback]:
    data = prepare(PrepareConfig(**config), folder, folder.parent / "out")  # type: ignore[arg-type]
    assert data.feedback is not None
    return data, data.feedback


def write_log(folder: Path, shown: pl.DataFrame | None = SHOWN) -> Path:
    folder.mkdir()
    EVENTS.write_csv(folder / "events.csv")
    pl.DataFrame({"item_id": [f"i{n}" for n in range(12)]}).write_csv(folder / "items.csv")
    if shown is not None:
        shown.write_csv(folder / "impressions.csv")
    return folder


def assert_same(left: Feedback, right: Feedback) -> None:
    assert left.signals == right.signals
    for name, mine in vars(left).items():
        if isinstance(mine, np.ndarray):
            other = getattr(right, name)
            assert mine.dtype == other.dtype, name
            assert mine.flags.writeable
            assert other.flags.writeable
            np.testing.assert_array_equal(mine, other, err_msg=name)


@pytest.mark.parametrize("kind", WRITERS)
def test_every_kind_of_file_gives_the_same_feedback_and_it_loads_as_saved(kind: str, tmp_path: Path) -> None:
    _, expected = feedback_of(write_log(tmp_path / "csv"))
    folder = write_log(tmp_path / "log", None)
    WRITERS[kind](SHOWN, folder)
    data, feedback = feedback_of(folder)
    assert feedback.signals == ("click", "watched")  # and not the device
    assert_same(feedback, expected)
    loaded = PreparedData.load(tmp_path / "out")
    assert loaded.feedback is not None
    assert_same(loaded.feedback, expected)
    assert data.meta["counts"]["impressions"] == 120
    assert "120 impressions" in data.summary()


def test_a_log_without_impressions_has_no_feedback_and_leaves_no_old_one(tmp_path: Path) -> None:
    feedback_of(write_log(tmp_path / "with"))
    data = prepare(PrepareConfig(), write_log(tmp_path / "without", None), tmp_path / "out")
    assert data.feedback is None
    assert PreparedData.load(tmp_path / "out").feedback is None


def test_histories_end_strictly_before_the_first_impression(tmp_path: Path) -> None:
    data, feedback = feedback_of(write_log(tmp_path / "log"))
    ended_at_a_tie = 0
    for visit in range(feedback.num_visits):
        start, end = feedback.history_start_M[visit], feedback.history_end_M[visit]
        if feedback.segment_M[visit] < 0:
            assert (start, end) == (0, 0)
            continue
        mine = np.flatnonzero(data.segment_E == feedback.segment_M[visit])
        moment = feedback.timestamp_ms_M[visit]
        assert list(range(start, end)) == [event for event in mine if data.timestamp_ms_E[event] < moment]
        ended_at_a_tie += int((data.timestamp_ms_E[mine] == moment).any())
    assert ended_at_a_tie > 0
    assert (feedback.segment_M < 0).any()


def test_visits_are_cut_by_gap_by_part_and_by_slate_size(tmp_path: Path) -> None:
    shown = pl.DataFrame(
        {
            "user_id": ["u0"] * 9,
            "item_id": ["i0", "i1", "i2", "i3", "i4", "i5", "i6", "i7", "i8"],
            "timestamp": [START_S + 1918 + at for at in (0, 1, 2, 3, 200, 201, 201, 202, 2000)],
            "position": [None, None, None, None, 0, 2, 1, 3, 0],
            "click": [1, 0, 0, 0, 0, 1, 0, 0, 1],
        }
    )
    data, feedback = feedback_of(write_log(tmp_path / "log", shown), session_gap_s=100, slate_size=3)
    assert data.meta["split_cuts_ms"] == [1000 * (START_S + 1920), 1000 * (START_S + 2160)]
    slates, signals = feedback.slates(np.arange(feedback.num_visits), 3)
    names = data.items["item_id"].to_list()
    assert [[names[item] for item in slate if item >= 0] for slate in slates] == [
        ["i0", "i1"],
        ["i2", "i3"],  # of the valid part
        ["i4", "i6", "i5"],  # by position where the moment is one
        ["i7"],
        ["i8"],
    ]
    assert signals[2, :, 0].tolist() == [0, 0, 1]
    assert np.isnan(signals[1, 2:]).all()
    assert feedback.position_F.tolist() == [0, 1, 0, 1, 0, 1, 2, 0, 0]
    assert feedback.part_M.tolist() == [0, 1, 1, 1, 2]
    by_id = shown.with_columns(session_id=pl.Series(list("abbbbbbbb")))
    _, feedback = feedback_of(write_log(tmp_path / "named", by_id), session_gap_s=100, slate_size=9)
    # The pause inside `b` does not count, the cuts between parts do.
    assert np.bincount(feedback.visit_F).tolist() == [1, 1, 6, 1]


def test_filtered_items_and_users_are_left_out_and_counted(tmp_path: Path) -> None:
    shown = SHOWN.with_columns(
        item_id=pl.when(pl.int_range(120) == 7).then(pl.lit("nowhere")).otherwise(pl.col("item_id"))
    )
    data, feedback = feedback_of(write_log(tmp_path / "log", shown))
    assert data.meta["counts"]["impressions_left_out"] == 1
    assert feedback.num_impressions == 119
    assert "1 of unused items or users left out" in data.summary()


BAD = [
    ('{"user_id": "", "item_id": "i0", "timestamp": 1700000000, "click": 1}', "user_id is empty"),
    ('{"user_id": "u0", "item_id": "i0", "timestamp": "soon", "click": 1}', "neither Unix seconds nor RFC 3339"),
    ('{"user_id": "u0", "item_id": "i0", "timestamp": 1700000000, "click": null}', "click is empty"),
    ('{"user_id": "u0", "item_id": "i0", "timestamp": 1700000000}', "click is empty"),
    ('{"user_id": "u0", "item_id": "i0", "timestamp": 1700000000, "click": "maybe"}', "click is not a number"),
    ('{"user_id": "u0", "item_id": "i0", "timestamp": 1700000000, "click": 1.5}', "click lies outside 0 to 1"),
    ('{"user_id": "u0", "item_id": "i0", "timestamp": 1700000000, "click": NaN}', "click lies outside 0 to 1"),
    ('{"user_id": "u0", "item_id": "i0", "timestamp": 1700000000, "click": 1, "position": -1}', "position is not a"),
    ('{"user_id": "u0", "item_id": "i0", "timestamp": 1700000000, "click": 1, "position": 1.5}', "position is not a"),
    ('["u0"]', "not a JSON object"),
    ('{"user_id": ', "not a JSON object"),
]


def test_bad_rows_are_rejected_by_line(tmp_path: Path) -> None:
    good = [json.dumps({"user_id": "u0", "item_id": "i1", "timestamp": START_S + n, "click": n % 2}) for n in range(20)]
    folder = write_log(tmp_path / "log", None)
    (folder / "impressions.jsonl").write_text("\n".join([*good[:3], *(row for row, _ in BAD), *good[3:]]))
    data, feedback = feedback_of(folder)
    assert feedback.num_impressions == 20
    assert data.rejects["line"].to_list() == list(range(4, 4 + len(BAD)))
    assert data.rejects["file"].unique().to_list() == ["impressions.jsonl"]
    for (_, reason), found in zip(BAD, data.rejects["reason"], strict=True):
        assert reason in found


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("user_id,item_id,click\nu0,i0,1\n", r"impressions\.csv: no column 'timestamp'"),
        ("user_id,item_id,timestamp,device\nu0,i0,1700000000,phone\n", r"impressions\.csv: no signal"),
        ("user_id,item_id,timestamp,click\nu0,i0,1700000000,7\n", r"impressions\.csv: no usable impression"),
    ],
)
def test_a_file_that_cannot_be_used_is_one_clear_error(tmp_path: Path, content: str, message: str) -> None:
    folder = write_log(tmp_path / "log", None)
    (folder / "impressions.csv").write_text(content)
    with pytest.raises(DataError, match=message):
        prepare(PrepareConfig(), folder, tmp_path / "out")


def test_kuairand_keeps_every_signal_of_every_impression(shared_data: Callable[[str], Path], tmp_path: Path) -> None:
    folder = shared_data("kuairand-27k-kcore")
    data = prepare(PrepareConfig(format="kuairand"), folder, tmp_path)
    feedback = data.feedback
    assert feedback is not None
    assert feedback.signals == ("click", "long_view", "follow", "comment", "forward")
    log = pl.read_csv(folder / "processed_standard_kcore_15.csv.gz", separator="\t")
    log = log.unique(["user_id", "video_id", "time_ms"], keep="first")
    assert feedback.num_impressions == log.height
    columns = ("is_click", "long_view", "is_follow", "is_comment", "is_forward")
    assert feedback.signal_FS.sum(0).tolist() == [log[column].sum() for column in columns]
    # Its events are the same impressions: a history never holds one of its visit.
    user_E = data.user_id_E.to_numpy()
    moments = {
        (int(user), moment): item for user, item, moment in log.select("user_id", "video_id", "time_ms").iter_rows()
    }
    for visit in range(0, feedback.num_visits, 997):
        end = int(feedback.history_end_M[visit])
        assert end == feedback.history_start_M[visit] or data.timestamp_ms_E[end - 1] < feedback.timestamp_ms_M[visit]
        assert (int(user_E[end]), int(feedback.timestamp_ms_M[visit])) in moments
