"""Forms of the named formats that the real sets do not show, and rows that are bad in each of them."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from model_export.data.config import PrepareConfig
from model_export.data.errors import DataError
from model_export.data.preparation import prepare
from model_export.data.prepared import PreparedData


def prepared(path: Path, format_name: str, **config: object) -> PreparedData:
    return prepare(PrepareConfig(format=format_name, **config), path, path.parent / "out")  # type: ignore[arg-type]


def rejected(data: PreparedData) -> list[tuple[str, int, str]]:
    return [(row["file"], row["line"], row["reason"]) for row in data.rejects.rows(named=True)]


def sequences(data: PreparedData) -> list[list[str]]:
    names = data.items["item_id"].to_list()
    segments = np.split(data.item_E, np.flatnonzero(np.diff(data.segment_E)) + 1)
    return [[names[item] for item in segment] for segment in segments]


def test_movielens_1m_files(tmp_path: Path) -> None:
    ratings = [f"{user}::{n}::{n % 5 + 1}::{1000 * user + n}" for user in (1, 2) for n in range(6)]
    (tmp_path / "ratings.dat").write_text("\n".join([*ratings, "1::7::good::99", "1::7::::99", "1:7:3:99"]))
    (tmp_path / "movies.dat").write_bytes("0::Amélie (2001)::Comedy|Romance\n1::Plain::\n".encode("latin-1"))
    data = prepared(tmp_path, "movielens")
    assert data.num_events == 12
    assert data.items.row(0)[:5] == ("0", "Amélie (2001)", "", ["Comedy", "Romance"], "Comedy")
    assert rejected(data) == [
        ("ratings.dat", 13, "value is not a number"),
        ("ratings.dat", 14, "rating is empty"),
        ("ratings.dat", 15, "expected 4 fields, found 1"),
    ]


def test_movielens_from_the_ratings_file_finds_its_neighbour(tmp_path: Path) -> None:
    rows = [f"1,{n},3.5,{n * 1000}" for n in range(8)]
    (tmp_path / "ratings.csv").write_text("\n".join(["userId,movieId,rating,timestamp", *rows]))
    (tmp_path / "movies.csv").write_text('movieId,title,genres\n3,"Three, The",(no genres listed)\n99,Unseen,War\n')
    data = prepared(tmp_path / "ratings.csv", "movielens", target_kind="next_items")
    assert data.items.row(0, named=True)["title"] == "Three, The"
    assert data.items.row(0, named=True)["tags"] == []
    assert "99" not in data.items["item_id"]
    (tmp_path / "movies.txt").write_text("x")
    with pytest.raises(DataError, match=r"movies\.txt: not a MovieLens ratings file"):
        prepared(tmp_path / "movies.txt", "movielens")


def test_sequences_name_bad_lines(tmp_path: Path) -> None:
    (tmp_path / "s.txt").write_text("1 a b c d\n2\n\n3 b c a\n1 x y\n4 a b\x07 c\n")
    data = prepared(tmp_path, "sequences")
    assert rejected(data) == [
        ("s.txt", 2, "a user without items"),
        ("s.txt", 5, "user_id repeats line 1"),
        ("s.txt", 6, "item_id holds a control character or is not valid text"),
    ]
    assert sequences(data) == [["a", "b", "c", "d"], ["b", "c", "a"], ["a", "c"]]


def test_sequences_as_json_must_be_lists_of_ids(tmp_path: Path) -> None:
    file = tmp_path / "s.inter.json"
    file.write_text('{"1": [1, 2, 3, "x"], "2": [3, 2]}')
    assert sequences(prepared(file, "sequences")) == [["1", "2", "3", "x"], ["3", "2"]]
    for content, message in (("[1]", "a JSON object is expected"), ('{"1": 2}', "user '1'"), ("{", "not valid JSON")):
        file.write_text(content)
        with pytest.raises(DataError, match=message):
            prepared(file, "sequences")


INTER_HEADER = "user_id:token\titem_id_list:token_seq\titem_id:token"


def write_inter(folder: Path, **rows: list[str]) -> None:
    for name, lines in rows.items():
        (folder / f"x.{name}.inter").write_text("\n".join([INTER_HEADER, *lines]) + "\n")


def test_industrial_windows_longer_than_ten_join_again(tmp_path: Path) -> None:
    items = [f"i{n}" for n in range(15)]
    windows = [f"u\t{' '.join(items[max(0, n - 10) : n])}\t{items[n]}" for n in range(1, 15)]
    write_inter(tmp_path, train=windows, valid=["u\ti1 i2\ti3"], test=["u\ti1 i2\ti3"])
    data = prepared(tmp_path, "industrial")
    assert sequences(data) == [items, ["i1", "i2", "i3"], ["i1", "i2", "i3"]]
    assert len(data.examples("train")) == 14


def test_industrial_rows_that_fit_nowhere_keep_their_target(tmp_path: Path) -> None:
    train = ["u\ta\tb", "u\tc d\te", "u\ta b\tc", "v\ta b c\td", "w\t\td", "w\ta\t", "w\ta"]
    write_inter(tmp_path, train=train, valid=["u\ta\tb"], test=["u\ta\tb"])
    data = prepared(tmp_path, "industrial")
    assert sequences(data)[:3] == [["a", "b", "c"], ["c", "d", "e"], ["a", "b", "c", "d"]]
    names = data.items["item_id"].to_list()
    train_examples = data.examples("train")
    assert sorted(names[item] for item in data.item_E[train_examples.target_start]) == ["b", "c", "d", "e"]
    assert rejected(data) == [
        ("x.train.inter", 6, "item_id_list is empty"),
        ("x.train.inter", 7, "item_id is empty"),
        ("x.train.inter", 8, "expected 3 fields, found 2"),
    ]


def test_given_splits_are_not_filtered_or_split_again(tmp_path: Path) -> None:
    write_inter(tmp_path, train=["u\ta\tb", "u\ta b\tc"], valid=["u\ta\tb"], test=["u\ta\tb"])
    with pytest.raises(ValueError, match="split must be auto or given"):
        prepared(tmp_path, "industrial", split="time")
    with pytest.raises(ValueError, match="its events cannot be filtered"):
        prepared(tmp_path, "industrial", min_item_events=3)


def test_sessions_without_samples_split_by_session(tmp_path: Path) -> None:
    lines = [" ".join(f"i{(n + k) % 9}" for k in range(4)) for n in range(20)]
    (tmp_path / "train_sessions.txt").write_text("\n".join(lines))
    data = prepared(tmp_path, "sessions", split="session")
    assert data.num_events == 80
    assert data.meta["counts"]["sessions"] == 20
    part_S = data.part_E[::4].tolist()
    assert part_S == [0] * 16 + [1, 1, 2, 2]
    assert len(data.examples("train")) == 16 * 3
    assert len(data.examples("test")) == 2  # one slate after each session's first item


def test_bad_samples_are_named(tmp_path: Path) -> None:
    (tmp_path / "train_sessions.txt").write_text("a b c\nb c\n \nc\n")
    (tmp_path / "test_samples.tsv").write_text("a b\tc\n\tb\na b\n")
    data = prepared(tmp_path, "sessions", valid_fraction=0.0)
    assert rejected(data) == [
        ("test_samples.tsv", 2, "a sample without prefix items"),
        ("test_samples.tsv", 3, "expected 2 fields, found 1"),
        ("train_sessions.txt", 3, "a session without items"),
    ]


def test_a_single_yoochoose_file_splits_in_time(tmp_path: Path) -> None:
    rows = [f"{n // 3},{n % 7},{1_400_000_000 + 60 * n}.5" for n in range(60)]
    (tmp_path / "clicks.csv").write_text("\n".join(["SessionId,ItemId,Time", *rows]))
    data = prepared(tmp_path / "clicks.csv", "yoochoose")
    assert (data.meta["split"], data.meta["target_kind"], data.meta["counts"]["sessions"]) == ("time", "next_items", 20)
    assert data.timestamp_ms_E[0] == 1_400_000_000_500


def test_bad_kuairand_rows_are_named(tmp_path: Path) -> None:
    header = "user_id,video_id,time_ms,is_click,is_like,long_view,play_time_ms"
    rows = [f"1,{n},{1_650_000_000_000 + n * 1000},1,0,0,{n * 10}" for n in range(10)]
    bad = ["1,5,x,1,0,0,9", "1,5,1650000000001,yes,0,0,9", "1,5,1650000000001,1,0,0,", rows[3]]
    (tmp_path / "log_standard_1.csv").write_text("\n".join([header, *rows, *bad]))
    data = prepared(tmp_path, "kuairand", split="leave_one_out")
    assert rejected(data) == [
        ("log_standard_1.csv", 12, "time_ms is not a whole number"),
        ("log_standard_1.csv", 13, "is_click is neither 0 nor 1"),
        ("log_standard_1.csv", 14, "play_time_ms is not a whole number"),
        ("log_standard_1.csv", 15, "repeats user_id, video_id and time_ms of line 5"),
    ]
    assert data.timestamp_ms_E.tolist() == [1_650_000_000_000 + n * 1000 for n in range(10)]
    np.testing.assert_allclose(data.value_E, np.arange(10) / 100)


def test_repeat_policy_follows_the_training_events(tmp_path: Path) -> None:
    for content, expected in (("1 a b c d e\n2 e d c b a\n", "exclude"), ("1 a a b b c\n2 a b c\n", "allow")):
        (tmp_path / "s.txt").write_text(content)
        assert prepared(tmp_path / "s.txt", "sequences").meta["repeat_policy"] == expected
    data = prepared(tmp_path / "s.txt", "sequences", repeat_policy="exclude")
    assert data.meta["repeat_policy"] == "exclude"
    assert data.meta["repeat_share"] == pytest.approx(1 / 4)  # a, a, b of user 1 and a of user 2 are train
    assert data.items["item_id"].dtype == pl.String
