"""A user's own log: every kind of file gives the same data, and items bring their texts, tags and vectors."""

import gzip
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from model_export.data.config import PrepareConfig
from model_export.data.preparation import prepare
from model_export.data.prepared import PreparedData

START_S = 1_700_000_000
EVENTS = pl.DataFrame(
    {
        "user_id": [f"u{n % 5}" for n in range(60)],
        "item_id": [f"item {(n * 7) % 11}" for n in range(60)],
        "timestamp": [START_S + 0.25 + 40 * n for n in range(60)],
        "action": ["like" if n % 4 == 0 else "view" for n in range(60)],
        "value": [None if n % 3 == 0 else n / 2 for n in range(60)],
    }
)


def prepared(data_path: Path, **config: object) -> PreparedData:
    return prepare(PrepareConfig(**config), data_path, data_path.parent / "out")  # type: ignore[arg-type]


def assert_same_events(data: PreparedData, expected: PreparedData) -> None:
    for name in ("item_E", "action_E", "timestamp_ms_E", "value_E", "session_E", "segment_E", "part_E"):
        np.testing.assert_array_equal(getattr(data, name), getattr(expected, name), err_msg=name)
    assert data.user_id_E.to_list() == expected.user_id_E.to_list()
    assert data.meta["actions"] == expected.meta["actions"]
    assert data.items.rows() == expected.items.rows()


@pytest.fixture
def from_csv(tmp_path: Path) -> PreparedData:
    folder = tmp_path / "csv"
    folder.mkdir()
    EVENTS.write_csv(folder / "events.csv")
    return prepared(folder)


def as_rfc_3339(events: pl.DataFrame) -> pl.DataFrame:
    zone = datetime.fromtimestamp(START_S, UTC)
    return events.with_columns(
        timestamp=pl.Series([(zone + timedelta(seconds=t - START_S)).isoformat() for t in events["timestamp"]])
    )


def as_datetimes(events: pl.DataFrame, time_zone: str | None) -> pl.DataFrame:
    moments = (pl.col("timestamp") * 1e6).round().cast(pl.Int64).cast(pl.Datetime("us", time_zone))
    return events.with_columns(timestamp=moments)


WRITERS = {
    "events.csv.gz": lambda events, path: path.write_bytes(gzip.compress(events.write_csv().encode())),
    "events.tsv": lambda events, path: events.write_csv(path, separator="\t"),
    "events.jsonl": lambda events, path: events.write_ndjson(path),
    "events.jsonl.gz": lambda events, path: path.write_bytes(gzip.compress(events.write_ndjson().encode())),
    "events.parquet": lambda events, path: events.write_parquet(path),
    "quoted/events.csv": lambda events, path: events.write_csv(path, quote_style="always"),
    "crlf/events.csv": lambda events, path: path.write_bytes(events.write_csv(line_terminator="\r\n").encode()),
    "bom/events.csv": lambda events, path: path.write_bytes(b"\xef\xbb\xbf" + events.write_csv().encode()),
    "rfc/events.csv": lambda events, path: as_rfc_3339(events).write_csv(path),
    "rfc/events.jsonl": lambda events, path: as_rfc_3339(events).write_ndjson(path),
    "naive/events.parquet": lambda events, path: as_datetimes(events, None).write_parquet(path),
    "zoned/events.parquet": lambda events, path: as_datetimes(events, "Europe/Paris").write_parquet(path),
    "columns/events.csv": lambda events, path: events.reverse().reverse().select(
        "value", "action", pl.lit("x").alias("extra"), "timestamp", "item_id", "user_id"
    ).write_csv(path),
}  # fmt: skip


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("as_file", [False, True], ids=["folder", "file"])
def test_every_kind_of_file_gives_the_same_data(
    name: str, as_file: bool, from_csv: PreparedData, tmp_path: Path
) -> None:
    path = tmp_path / "log" / name
    path.parent.mkdir(parents=True)
    WRITERS[name](EVENTS, path)
    assert_same_events(prepared(path if as_file else path.parent), from_csv)


def test_a_gzipped_file_is_found_under_its_plain_name(from_csv: PreparedData, tmp_path: Path) -> None:
    (tmp_path / "mine.csv.gz").write_bytes(gzip.compress(EVENTS.write_csv().encode()))
    assert_same_events(prepared(tmp_path / "mine.csv"), from_csv)


def test_events_are_grouped_and_in_time_order_and_actions_ranked(from_csv: PreparedData) -> None:
    assert [action.name for action in from_csv.actions] == ["view", "like"]
    assert from_csv.meta["default_action"] == "view"
    for segment in range(5):
        mine = from_csv.segment_E == segment
        expected = EVENTS.filter(pl.col("user_id") == f"u{segment}")
        names = from_csv.items["item_id"].to_list()
        assert [names[item] for item in from_csv.item_E[mine]] == expected["item_id"].to_list()
        assert from_csv.timestamp_ms_E[mine].tolist() == [round(t * 1000) for t in expected["timestamp"]]
        values = [None if np.isnan(value) else value for value in from_csv.value_E[mine].tolist()]
        assert values == expected["value"].to_list()


def test_value_edges_are_quantiles_of_the_training_events_alone(tmp_path: Path) -> None:
    # The test part holds values of another size; edges must not see them.
    events = EVENTS.with_columns(action=pl.lit("view"), value=pl.Series([float(n) for n in range(48)] + [1e6] * 12))
    events.write_csv(tmp_path / "events.csv")
    data = prepared(tmp_path, valid_fraction=0.1, test_fraction=0.1, value_buckets=4)
    (action,) = data.actions
    assert action.value_edges == (12.0, 24.0, 35.0)
    bucket_E = np.searchsorted(action.value_edges, np.arange(48), side="right")
    assert np.bincount(bucket_E).tolist() == [12, 12, 11, 13]


def test_sessions_follow_session_id_and_not_the_gap(tmp_path: Path) -> None:
    ids = [f"s{n // 10}" for n in range(60)]
    EVENTS.with_columns(user_id=pl.lit("ann"), session_id=pl.Series(ids)).write_csv(tmp_path / "events.csv")
    data = prepared(tmp_path, session_gap_s=1.0)
    assert data.session_E.tolist() == [n // 10 for n in range(60)]
    assert data.meta["target_kind"] == "session"
    train = data.examples("train")
    assert (data.session_E[train.target_start] == data.session_E[train.target_end - 1]).all()


def test_keep_actions_and_min_value(tmp_path: Path) -> None:
    EVENTS.write_csv(tmp_path / "events.csv")
    likes = prepared(
        tmp_path, keep_actions=("like",), split="leave_one_out", target_kind="next_items", min_history_length=0
    )
    assert likes.num_events == 15
    assert [action.name for action in likes.actions] == ["like"]
    high = prepared(tmp_path, min_value=20.0, split="leave_one_out", target_kind="next_items", min_history_length=0)
    assert high.num_events == EVENTS.filter(pl.col("value") >= 20).height
    with pytest.raises(ValueError, match="leave none of 60 events"):
        prepared(tmp_path, keep_actions=("buy",))


ITEMS = [
    {"item_id": "item 3", "title": 'Three, "quoted"', "text": "third", "tags": ["a", "b"], "group": "g",
     "embedding": [1.0, -2.5], "available": False},
    {"item_id": "item 0", "title": "Zero", "text": "", "tags": [], "group": "", "embedding": None, "available": True},
    {"item_id": "new", "title": "Newcomer", "text": "x", "tags": ["b"], "group": "g", "embedding": [0.5, 0.25],
     "available": True},
]  # fmt: skip


def write_items_csv(path: Path) -> None:
    rows = [
        {
            **item,
            "tags": "|".join(item["tags"]),  # type: ignore[arg-type]
            "embedding": " ".join(map(str, item["embedding"] or [])),  # type: ignore[call-overload]
            "available": str(item["available"]),
        }
        for item in ITEMS
    ]
    pl.DataFrame(rows).write_csv(path)


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_items_bring_texts_tags_vectors_and_newcomers(kind: str, tmp_path: Path) -> None:
    EVENTS.write_csv(tmp_path / "events.csv")
    file = tmp_path / f"items.{kind}"
    if kind == "csv":
        write_items_csv(file)
    elif kind == "jsonl":
        file.write_text("\n".join(json.dumps(item) for item in ITEMS))
    else:
        pl.DataFrame(ITEMS).write_parquet(file)
    data = prepared(tmp_path)
    assert data.items.head(3).to_dicts() == ITEMS
    others = data.items[3:]
    assert others["item_id"].to_list() == sorted(f"item {n}" for n in (1, 2, 4, 5, 6, 7, 8, 9, 10))
    assert others["title"].unique().to_list() == [""]
    assert others["available"].all()
    dropped = prepared(tmp_path, unseen_items="drop")
    assert "new" not in dropped.items["item_id"]
    assert dropped.num_items == data.num_items - 1


def test_config_names_an_items_file_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    EVENTS.write_csv(tmp_path / "events.csv")
    write_items_csv(tmp_path / "elsewhere" / "catalog.csv")
    data = prepared(tmp_path / "events.csv", items=str(tmp_path / "elsewhere" / "catalog.csv"))
    assert data.items["title"][0] == 'Three, "quoted"'
