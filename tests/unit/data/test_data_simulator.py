"""The simulated log is deterministic, reads like a user's own, and holds what a sequence model can learn."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from model_export.data import PrepareConfig, PreparedData, prepare
from model_export.data.simulator import SimulatorConfig, simulate, write_simulation


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_simulation(SimulatorConfig(), tmp_path_factory.mktemp("log"))


@pytest.fixture(scope="module")
def data(log: Path) -> PreparedData:
    return prepare(PrepareConfig(), log, log / "out")


def test_the_same_seed_gives_the_same_bytes_and_another_does_not(tmp_path: Path) -> None:
    small = {"num_items": 50, "num_users": 20}
    for folder, seed in (("a", 7), ("b", 7), ("c", 8)):
        write_simulation(SimulatorConfig(**small, seed=seed), tmp_path / folder)
    for name in ("events.jsonl.gz", "items.jsonl.gz"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert (tmp_path / "a" / "events.jsonl.gz").read_bytes() != (tmp_path / "c" / "events.jsonl.gz").read_bytes()


def test_parquet_and_json_lines_hold_the_same_log(tmp_path: Path) -> None:
    config = SimulatorConfig(num_items=50, num_users=20)
    for kind in ("jsonl.gz", "parquet"):
        write_simulation(config, tmp_path / kind, kind=kind)
    first, second = (
        prepare(PrepareConfig(), tmp_path / kind, tmp_path / f"{kind}.out") for kind in ("jsonl.gz", "parquet")
    )
    np.testing.assert_array_equal(first.item_E, second.item_E)
    np.testing.assert_array_equal(first.timestamp_ms_E, second.timestamp_ms_E)
    np.testing.assert_array_equal(first.value_E, second.value_E)
    assert first.items.equals(second.items)


def test_the_default_log_is_clean_and_of_the_promised_size(data: PreparedData) -> None:
    counts = data.meta["counts"]
    assert 55_000 <= counts["events"] <= 70_000
    assert (counts["users"], counts["items"], counts["rejects"]) == (1500, 1000, 0)
    assert (data.meta["split"], data.meta["target_kind"], data.meta["repeat_policy"]) == ("time", "session", "exclude")
    assert {action.name for action in data.actions} == {"view", "like", "share", "follow"}
    assert data.items["title"].n_unique() == 1000
    assert data.items["title"][0] == "Sourdough from Scratch, part 1: first steps"
    assert (data.items["tags"].list.len() == 3).all()
    assert data.items["group"].n_unique() == 8
    assert (data.value_E > 0).all()
    month_ms = 30 * 86_400_000
    assert data.timestamp_ms_E.max() - data.timestamp_ms_E.min() < month_ms


def test_visits_hold_several_items_without_immediate_repeats(data: PreparedData) -> None:
    length_S = np.bincount(data.session_E)
    assert 4 <= length_S.mean() <= 8
    within = np.diff(data.segment_E) == 0
    assert not (np.diff(data.item_E)[within] == 0).any()


def test_order_inside_a_visit_beats_popularity(data: PreparedData) -> None:
    """Counting which item followed which, on training events alone, finds the next item of the test far more often."""
    train = data.train_events()
    popularity = np.bincount(data.item_E[train], minlength=data.num_items).astype(float)
    follows = np.zeros((data.num_items, data.num_items))
    pairs = train[1:] & train[:-1] & (np.diff(data.session_E) == 0)
    np.add.at(follows, (data.item_E[:-1][pairs], data.item_E[1:][pairs]), 1)
    test = data.examples("test")
    hits = {"popularity": 0, "follows": 0}
    for start, end, target in zip(test.history_start, test.history_end, test.target_start, strict=True):
        history = data.item_E[start:end]
        for name, score in (("popularity", popularity), ("follows", follows[history[-1]] + 1e-6 * popularity)):
            masked = score.copy()
            masked[history] = -1
            hits[name] += int(data.item_E[target] in np.argsort(-masked)[:10])
    recall = {name: count / len(test) for name, count in hits.items()}
    assert recall["follows"] > 0.2
    assert recall["follows"] > 4 * recall["popularity"]


def test_a_visit_stays_with_its_group(data: PreparedData) -> None:
    group_E = data.items["group"].rank("dense").to_numpy()[data.item_E]
    within = np.diff(data.session_E) == 0
    assert (np.diff(group_E.astype(int))[within] == 0).mean() > 0.95


@pytest.mark.parametrize(("num_items", "num_users"), [(1, 1), (3, 5), (7, 2), (20_000, 3)])
def test_any_size_works(num_items: int, num_users: int) -> None:
    events, items = simulate(SimulatorConfig(num_items=num_items, num_users=num_users))
    assert items.height == items["title"].n_unique() == num_items
    assert set(events["item_id"]) <= set(items["item_id"])
    assert events["timestamp"].is_sorted()
    for _, mine in events.group_by("user_id"):
        assert all(first != second for first, second in pairwise(mine.sort("timestamp")["item_id"]))


@pytest.mark.parametrize(
    ("field", "value"),
    [("num_items", 0), ("num_users", 0), ("mean_visits", 0.5), ("next_part_share", -0.1), ("drift_share", 0.9)],
)
def test_config_refuses(field: str, value: float) -> None:
    with pytest.raises(ValueError, match=field):
        SimulatorConfig(**{field: value})  # type: ignore[arg-type]


def test_events_stand_in_the_columns_of_format_table() -> None:
    events, items = simulate(SimulatorConfig(num_items=10, num_users=3))
    assert events.schema == {
        "user_id": pl.String,
        "item_id": pl.String,
        "timestamp": pl.Float64,
        "action": pl.String,
        "value": pl.Float64,
    }
    assert items.columns == ["item_id", "title", "text", "tags", "group", "available"]
