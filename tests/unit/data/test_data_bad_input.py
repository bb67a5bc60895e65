"""Bad rows are named by line and counted; bad files are one clear error."""

import gzip
import json
from pathlib import Path

import polars as pl
import pytest

from model_export.data.config import PrepareConfig
from model_export.data.errors import DataError
from model_export.data.preparation import prepare
from model_export.data.prepared import PreparedData

HEADER = "user_id,item_id,timestamp,action,value,session_id"
GOOD = [f"ann,i{n % 7},{1000 + n},view,{n}," for n in range(20)]

BAD_CSV_ROWS = [
    ("ann,i1,nan,view,1,", "timestamp is not finite"),
    ("ann,i1,inf,view,1,", "timestamp is not finite"),
    ("ann,i1,-5,view,1,", "timestamp lies outside 1970 to 2100 (Unix seconds are expected)"),
    ("ann,i1,1700000000000,view,1,", "timestamp lies outside 1970 to 2100 (Unix seconds are expected)"),
    ("ann,i1,yesterday,view,1,", "timestamp is neither Unix seconds nor RFC 3339"),
    ("ann,i1,2024-13-01T00:00:00Z,view,1,", "timestamp is neither Unix seconds nor RFC 3339"),
    ("ann,i1,,view,1,", "timestamp is empty"),
    (",i1,1000,view,1,", "user_id is empty"),
    ("ann,,1000,view,1,", "item_id is empty"),
    ("ann,   ,1000,view,1,", "item_id is empty"),
    ("ann,a\x07b,1000,view,1,", "item_id holds a control character or is not valid text"),
    ("a\x00nn,i1,1000,view,1,", "user_id holds a control character or is not valid text"),
    (f"ann,{'é' * 257},1000,view,1,", "item_id is longer than 512 bytes"),
    ("ann,i1,1000,view,many,", "value is not a number"),
    ("ann,i1,1000,view,nan,", "value is not finite"),
    ("ann,i1,1000,view,1e39,", "value is too large for float32"),
    ("ann,i1,1000,vi\x01ew,1,", "action holds a control character or is not valid text"),
    ("ann,i1,1000,view,1,s\x1f", "session_id holds a control character or is not valid text"),
    ("ann,i1,1000,view,1", "expected 6 fields, found 5"),
    ("ann,i1,1000,view,1,s,more", "expected 6 fields, found 7"),
]


def prepared(folder: Path, **config: object) -> PreparedData:
    settings = {"split": "leave_one_out", "target_kind": "next_items", **config}
    return prepare(PrepareConfig(**settings), folder, folder / "out")  # type: ignore[arg-type]


def rejected(data: PreparedData) -> list[tuple[int, str]]:
    return [(row["line"], row["reason"]) for row in data.rejects.rows(named=True)]


def test_each_bad_csv_row_is_named_by_its_line(tmp_path: Path) -> None:
    lines = [HEADER, *GOOD[:10], *(row for row, _ in BAD_CSV_ROWS), "", *GOOD[10:]]
    (tmp_path / "events.csv").write_text("\n".join(lines) + "\n")
    data = prepared(tmp_path)
    assert rejected(data) == [(12 + n, reason) for n, (_, reason) in enumerate(BAD_CSV_ROWS)]
    assert data.num_events == len(GOOD)
    assert data.meta["counts"]["rejects"] == len(BAD_CSV_ROWS)
    written = [json.loads(line) for line in (tmp_path / "out" / "rejects.jsonl").read_text().splitlines()]
    assert [entry["row"] for entry in written] == [row[:500] for row, _ in BAD_CSV_ROWS]
    assert {entry["file"] for entry in written} == {"events.csv"}


def test_a_quoted_newline_in_an_id_is_rejected_and_later_lines_keep_their_numbers(tmp_path: Path) -> None:
    lines = [
        HEADER,
        *GOOD,
        '"ann","i\n1",1000,view,1,',
        '"ann",i1,x,view,1,',
        '"ann",i1,1000,view,1',
        '"ann",i1,50,view,1,',
    ]
    (tmp_path / "events.csv").write_text("\n".join(lines))
    data = prepared(tmp_path)
    assert rejected(data) == [
        (22, "item_id holds a control character or is not valid text"),
        (24, "timestamp is neither Unix seconds nor RFC 3339"),
        (25, "expected 6 fields, found 5"),
    ]
    assert data.num_events == len(GOOD) + 1


def test_bytes_that_are_no_utf_8_are_rejected(tmp_path: Path) -> None:
    (tmp_path / "events.csv").write_bytes("\n".join([HEADER, *GOOD]).encode() + b"\nann,caf\xe9,1000,view,1,\n")
    assert rejected(prepared(tmp_path)) == [(22, "item_id holds a control character or is not valid text")]


def test_each_bad_json_line_is_named_by_its_line(tmp_path: Path) -> None:
    good = [{"user_id": "ann", "item_id": n % 7, "timestamp": 1000 + n} for n in range(20)]
    bad = [
        ("{not json", "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ("[1, 2]", "not a JSON object"),
        ('{"user_id": "ann", "item_id": ["i1"], "timestamp": 1}', "item_id is a list or an object"),
        ('{"user_id": true, "item_id": "i1", "timestamp": 1}', "user_id is true or false"),
        ('{"user_id": "ann", "timestamp": 1}', "item_id is empty"),
        ('{"user_id": "ann", "item_id": "i1"}', "timestamp is empty"),
        ('{"user_id": "ann", "item_id": "i1", "timestamp": NaN}', "timestamp is not finite"),
        (
            '{"user_id": "ann", "item_id": "i\\n1", "timestamp": 1}',
            "item_id holds a control character or is not valid text",
        ),
        ('{"user_id": "ann", "item_id": "\\ud800", "timestamp": 1}', "item_id is not valid text"),
        ('{"user_id": "ann", "item_id": "i1", "timestamp": 1, "value": {}}', "value is a list or an object"),
    ]
    lines = [*(json.dumps(entry) for entry in good), *(line for line, _ in bad)]
    (tmp_path / "events.jsonl").write_text("\n".join(lines))
    data = prepared(tmp_path)
    assert rejected(data) == [(21 + n, reason) for n, (_, reason) in enumerate(bad)]
    assert data.num_events == 20
    assert sorted(data.items["item_id"]) == [str(n) for n in range(7)]


def test_bad_parquet_rows_are_named_by_row_and_shown_as_json(tmp_path: Path) -> None:
    frame = pl.DataFrame(
        {"user_id": ["ann"] * 8, "item_id": [1, 2, None, 3, 4, 5, 6, 7], "timestamp": [1.0, float("nan"), *range(2, 8)]}
    )
    frame.write_parquet(tmp_path / "events.parquet")
    data = prepared(tmp_path)
    assert rejected(data) == [(2, "timestamp is not finite"), (3, "item_id is empty")]
    assert json.loads(data.rejects["row"][1])["user_id"] == "ann"


def test_bad_items_are_rejected_and_the_first_of_an_id_stays(tmp_path: Path) -> None:
    (tmp_path / "events.csv").write_text("\n".join([HEADER, *GOOD]))
    items = [
        {"item_id": "i1", "title": "first", "embedding": [1, 2]},
        {"item_id": "i1", "title": "second"},
        {"item_id": "", "title": "nameless"},
        {"item_id": "i2", "embedding": [1, 2, 3]},
        {"item_id": "i3", "embedding": [1, "two"]},
        {"item_id": "i4", "embedding": [1, 10**400]},
        {"item_id": "i5", "tags": "a|b"},
        {"item_id": "i6", "available": "perhaps"},
        {"item_id": "i0", "available": False},
    ]
    (tmp_path / "items.jsonl").write_text("\n".join(json.dumps(item) for item in items))
    data = prepared(tmp_path)
    assert rejected(data) == [
        (2, "item_id repeats line 1"),
        (3, "item_id is empty"),
        (4, "embedding has 3 numbers where the first has 2"),
        (5, "embedding is not a list of numbers"),
        (6, "embedding holds a number that is not finite"),
        (7, "tags is not a list of texts"),
        (8, "available is neither true nor false"),
    ]
    assert data.items.filter(pl.col("item_id") == "i1")["title"].to_list() == ["first"]
    assert data.items.filter(~pl.col("available"))["item_id"].to_list() == ["i0"]


def write(path: Path, content: str | bytes) -> None:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())


HEAD = HEADER.encode() + b"\n"
FILE_ERRORS = {
    "no such file": ("", b"", r"nowhere: no such file or folder"),
    "empty folder": ("readme.md", b"", r"no file events\.csv"),
    "empty file": ("events.csv", b"", r"events\.csv: the file is empty"),
    "missing column": (
        "events.csv",
        b"user_id,item\n1,2\n",
        r"events\.csv: no column 'item_id' \(columns: user_id, item\)",
    ),
    "missing key": ("events.jsonl", b'{"user_id": "a", "item_id": "b"}', r"events\.jsonl: no column 'timestamp'"),
    "repeated column": ("events.csv", b"item_id,item_id,user_id,timestamp\n", r"'item_id' appears more than once"),
    "damaged gzip": ("events.csv.gz", gzip.compress(HEAD * 99)[:-9], r"events\.csv\.gz: damaged gzip file"),
    "no Parquet": ("events.parquet", HEAD, r"events\.parquet: not a readable Parquet file"),
    "header alone": ("events.csv", HEAD, r"no usable event: the files hold none"),
    "all rows bad": ("events.csv", HEAD + b"a,,1,,,\n", r"all 1 rows are bad, the first in events\.csv, line 2"),
    "huge field": ("events.csv", HEAD + b'a,"' + b"x" * 200_000 + b'"\n', r"events\.csv, line 2: field larger"),
}


@pytest.mark.parametrize("case", FILE_ERRORS)
def test_a_bad_file_is_one_clear_line(case: str, tmp_path: Path) -> None:
    name, content, message = FILE_ERRORS[case]
    if name:
        write(tmp_path / name, content)
    with pytest.raises(DataError, match=message) as caught:
        prepared(tmp_path if name else tmp_path / "nowhere")
    assert "\n" not in str(caught.value)


def test_files_that_format_table_cannot_take(tmp_path: Path) -> None:
    write(tmp_path / "events.csv", "\n".join([HEADER, *GOOD]))
    with pytest.raises(DataError, match=r"catalog\.csv: no such file"):
        prepared(tmp_path, items=str(tmp_path / "catalog.csv"))
    write(tmp_path / "events.xlsx", "x")
    with pytest.raises(DataError, match=r"events\.xlsx: unknown kind of file; known are csv, tsv"):
        prepare(PrepareConfig(), tmp_path / "events.xlsx", tmp_path / "out")
    write(tmp_path / "events.jsonl", "{}")
    with pytest.raises(DataError, match=r"several files match .*: events\.csv, events\.jsonl; name one of them"):
        prepared(tmp_path)


def test_more_actions_than_a_history_can_name_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "events.csv", "\n".join([HEADER, *(f"ann,i,{n},act{n},," for n in range(256))]))
    with pytest.raises(DataError, match="column 'action' holds 256 different names; at most 255"):
        prepared(tmp_path)


def test_the_data_folder_is_never_written_to(tmp_path: Path) -> None:
    write(tmp_path / "events.csv", "\n".join([HEADER, *GOOD]))
    for data_path in (tmp_path, tmp_path / "events.csv"):
        with pytest.raises(ValueError, match="must not be written among the data"):
            prepare(PrepareConfig(), data_path, tmp_path / "." / "")
    assert [file.name for file in tmp_path.iterdir()] == ["events.csv"]


def test_missing_columns_of_named_formats(tmp_path: Path) -> None:
    write(tmp_path / "ratings.csv", "userId,movieId,stars,timestamp\n1,2,3,4\n")
    with pytest.raises(DataError, match=r"ratings\.csv: no column 'rating'"):
        prepared(tmp_path, format="movielens")
    write(tmp_path / "clicks.txt", "SessionId\tItemId\n1\t2\n")
    with pytest.raises(DataError, match=r"clicks\.txt: no column 'Time'"):
        prepared(tmp_path / "clicks.txt", format="yoochoose")
    write(tmp_path / "log_standard_x.csv", "user_id,video_id,time_ms\n1,2,3\n")
    with pytest.raises(DataError, match=r"log_standard_x\.csv: no column 'is_click'"):
        prepared(tmp_path, format="kuairand")
    write(tmp_path / "x.train.inter", "user_id:token\titem_id:token\n1\t2\n")
    with pytest.raises(DataError, match=r"x\.train\.inter: no column 'item_id_list:token_seq'"):
        prepared(tmp_path, format="industrial", split="auto")


@pytest.mark.parametrize("format_name", ["industrial", "kuairand", "movielens", "sequences", "sessions", "yoochoose"])
def test_an_empty_folder_names_the_files_that_are_missing(format_name: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no file|name one sequence file"):
        prepared(tmp_path, format=format_name)


def test_choices_that_the_data_cannot_serve(tmp_path: Path) -> None:
    write(tmp_path / "events.csv", "\n".join([HEADER, *GOOD]))
    with pytest.raises(ValueError, match="format must be one of collected, industrial, kuairand"):
        prepared(tmp_path, format="netflix")
    with pytest.raises(ValueError, match="gives no split here"):
        prepared(tmp_path, split="given")
    write(tmp_path / "x.txt", "1 a b c\n2 b c d\n")
    for config, message in (
        ({"split": "time"}, "no times"),
        ({"target_kind": "session"}, "neither times nor session_id"),
    ):
        with pytest.raises(ValueError, match=message):
            prepared(tmp_path / "x.txt", format="sequences", **config)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("split", "random"),
        ("target_kind", "items"),
        ("repeat_policy", "never"),
        ("unseen_items", "maybe"),
        ("slate_size", 0),
        ("train_stride", 0),
        ("min_history_length", -1),
        ("session_gap_s", 0.0),
        ("session_gap_s", float("nan")),
        ("valid_fraction", 1.0),
        ("test_fraction", 0.95),
    ],
)
def test_config_refuses(field: str, value: object) -> None:
    with pytest.raises(ValueError, match=field):
        PrepareConfig(**{field: value})  # type: ignore[arg-type]
