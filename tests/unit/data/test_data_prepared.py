"""A prepared set reads back as it was written, is the same twice, and refuses to load when it is not whole."""

import json
from dataclasses import fields
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from model_export.data.config import PrepareConfig
from model_export.data.errors import DataError
from model_export.data.examples import Examples
from model_export.data.preparation import prepare
from model_export.data.prepared import PreparedData
from model_export.data.simulator import SimulatorConfig, write_simulation

FILES = ("events.parquet", "items.parquet", "examples.parquet", "meta.json", "rejects.jsonl")


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_simulation(SimulatorConfig(num_items=60, num_users=40), tmp_path_factory.mktemp("log"))
    (folder / "items.parquet").unlink()
    items = [{"item_id": "video-00001", "title": "One", "embedding": [0.5, 1.5]}, {"item_id": ""}]
    (folder / "items.jsonl").write_text("\n".join(json.dumps(item) for item in items))
    return folder


@pytest.fixture
def data(log: Path, tmp_path: Path) -> PreparedData:
    return prepare(PrepareConfig(value_unit="s"), log, tmp_path / "out")


def test_load_gives_what_prepare_returned(data: PreparedData, tmp_path: Path) -> None:
    loaded = PreparedData.load(tmp_path / "out")
    for field in fields(PreparedData):
        mine, other = getattr(data, field.name), getattr(loaded, field.name)
        if isinstance(mine, np.ndarray):
            assert mine.dtype == other.dtype, field.name
            np.testing.assert_array_equal(mine, other, err_msg=field.name)
            assert mine.flags.writeable, field.name  # torch.from_numpy warns about arrays that are not
            assert other.flags.writeable, field.name
        elif isinstance(mine, pl.DataFrame):
            assert mine.equals(other), field.name
            assert mine.schema == other.schema
    assert loaded.user_id_E.to_list() == data.user_id_E.to_list()
    assert loaded.meta == data.meta
    assert loaded.actions == data.actions
    for name in ("train", "valid", "test"):
        for column in fields(Examples):
            mine, other = getattr(data.examples(name), column.name), getattr(loaded.examples(name), column.name)
            assert mine.dtype == other.dtype == np.int64
            np.testing.assert_array_equal(mine, other)


def test_files_have_the_columns_of_the_contract(data: PreparedData, tmp_path: Path) -> None:
    assert data.num_events > 0
    events = pl.read_parquet(tmp_path / "out" / "events.parquet")
    assert events.schema == {
        "segment": pl.Int32,
        "user_id": pl.String,
        "item": pl.Int32,
        "action": pl.Int16,
        "timestamp_ms": pl.Int64,
        "value": pl.Float32,
        "session": pl.Int32,
        "part": pl.Int8,
    }
    for column in ("segment", "session"):
        numbers = events[column].to_numpy()
        assert numbers[0] == 0
        assert set(np.diff(numbers).tolist()) == {0, 1}
    assert events.group_by("session").agg(pl.col("segment").n_unique())["segment"].max() == 1
    examples = pl.read_parquet(tmp_path / "out" / "examples.parquet")
    offsets = ("segment", "history_start", "history_end", "target_start", "target_end")
    assert examples.schema == {"split": pl.String} | dict.fromkeys(offsets, pl.Int64)
    meta = json.loads((tmp_path / "out" / "meta.json").read_text())
    assert {"format", "actions", "default_action", "has_times", "target_kind", "slate_size", "split"} <= set(meta)
    assert {"repeat_policy", "counts", "data_sha256", "config"} <= set(meta)
    assert {action["unit"] for action in meta["actions"]} == {"s"}


def test_the_same_input_gives_the_same_bytes(data: PreparedData, log: Path, tmp_path: Path) -> None:
    again = prepare(PrepareConfig(value_unit="s"), log, tmp_path / "again")
    for name in FILES:
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "out" / name).read_bytes(), name
    assert again.meta["data_sha256"] == data.meta["data_sha256"]


def test_the_data_hash_follows_every_input_file(data: PreparedData, log: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in log.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    (copy / "notes.txt").write_text("not an input")
    assert prepare(PrepareConfig(), copy, tmp_path / "a").meta["data_sha256"] == data.meta["data_sha256"]
    with (copy / "items.jsonl").open("a") as file:
        file.write('\n{"item_id": "video-00002"}')
    assert prepare(PrepareConfig(), copy, tmp_path / "b").meta["data_sha256"] != data.meta["data_sha256"]


@pytest.mark.parametrize("missing", FILES)
def test_a_set_with_a_file_missing_does_not_load(data: PreparedData, tmp_path: Path, missing: str) -> None:
    (tmp_path / "out" / missing).unlink()
    with pytest.raises(DataError, match=f"not a prepared data set: no file {missing}"):
        PreparedData.load(tmp_path / "out")


def test_a_damaged_or_foreign_set_does_not_load(data: PreparedData, tmp_path: Path) -> None:
    path = tmp_path / "out"
    content = (path / "events.parquet").read_bytes()
    (path / "events.parquet").write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match="damaged prepared data set"):
        PreparedData.load(path)
    (path / "events.parquet").write_bytes(content)
    (path / "meta.json").write_text(json.dumps(data.meta | {"format_version": 99}))
    with pytest.raises(DataError, match="another version"):
        PreparedData.load(path)


def test_a_failed_prepare_leaves_no_set_that_loads(data: PreparedData, tmp_path: Path) -> None:
    (tmp_path / "out" / "events.parquet").unlink()
    (tmp_path / "out" / "events.parquet").mkdir()  # writing the events now fails
    with pytest.raises(OSError, match=r"events\.parquet"):
        data.save(tmp_path / "out")
    assert not (tmp_path / "out" / "meta.json").exists()


def test_train_events_hold_every_training_example(data: PreparedData) -> None:
    mask = data.train_events()
    assert mask.dtype == np.bool_
    train = data.examples("train")
    assert all(mask[start:end].all() for start, end in zip(train.history_start, train.target_end, strict=True))
    for name in ("valid", "test"):
        assert not mask[data.examples(name).target_start].any()


def test_an_unknown_split_is_refused(data: PreparedData) -> None:
    with pytest.raises(ValueError, match="split must be one of train, valid, test"):
        data.examples("dev")


def test_progress_and_summary_say_what_came_out(log: Path, tmp_path: Path) -> None:
    said: list[str] = []
    data = prepare(PrepareConfig(), log, tmp_path / "out", progress=said.append)
    assert said[0] == f"reading {log} as table"
    assert said[-1] == data.summary()
    assert f"{data.user_id_E.n_unique()} users, 60 items" in data.summary()
    assert "bad rows: 1 (see rejects.jsonl)" in data.summary()
    assert f"{len(data.examples('test')):,} test" in data.summary()
