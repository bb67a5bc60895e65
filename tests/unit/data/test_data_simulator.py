"""The simulated log: deterministic, clean, of the promised size, and holding what a model should learn."""

import dataclasses
from itertools import pairwise
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from model_export.data.config import PrepareConfig
from model_export.data.preparation import prepare
from model_export.data.prepared import PreparedData
from model_export.data.simulator import SimulatorConfig, log_sha256, simulate, write_simulation

FILES = ("events.parquet", "impressions.parquet", "items.parquet")
SMALL = SimulatorConfig(num_items=120, num_users=80)


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_simulation(SimulatorConfig(), tmp_path_factory.mktemp("log"))


@pytest.fixture(scope="module")
def data(log: Path, tmp_path_factory: pytest.TempPathFactory) -> PreparedData:
    return prepare(PrepareConfig(), log, tmp_path_factory.mktemp("out"))


@pytest.fixture(scope="module")
def control(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_simulation(SimulatorConfig().without_boredom(), tmp_path_factory.mktemp("log"))


def test_the_same_configuration_gives_the_same_log_and_another_seed_does_not(tmp_path: Path) -> None:
    hashes = {}
    for name, seed in (("a", 7), ("b", 7), ("c", 8)):
        summary = simulate(dataclasses.replace(SMALL, seed=seed), tmp_path / name)
        assert summary.log_sha256 == log_sha256(summary.log)
        hashes[name] = summary.log_sha256
    assert hashes["a"] == hashes["b"] != hashes["c"]
    for name in FILES:
        assert (tmp_path / "a/log" / name).read_bytes() == (tmp_path / "b/log" / name).read_bytes()


def test_the_log_alone_is_the_one_that_has_a_truth(tmp_path: Path) -> None:
    assert log_sha256(write_simulation(SMALL, tmp_path / "alone")) == simulate(SMALL, tmp_path / "both").log_sha256
    assert sorted(file.name for file in (tmp_path / "both/log").iterdir()) == list(FILES)


@pytest.mark.parametrize("name", FILES)
def test_the_hash_depends_on_what_the_files_hold_not_on_how(tmp_path: Path, name: str) -> None:
    folder = write_simulation(SMALL, tmp_path)
    before = log_sha256(folder)
    frame = pl.read_parquet(folder / name)
    frame.write_parquet(folder / name, compression="uncompressed")
    assert log_sha256(folder) == before
    changed = frame[[0, *range(frame.height - 1)]]
    changed.write_parquet(folder / name)
    assert log_sha256(folder) != before


def test_the_default_log_is_clean_and_of_the_promised_size(data: PreparedData) -> None:
    counts = data.meta["counts"]
    assert 55_000 <= counts["events"] <= 70_000
    assert (counts["items"], counts["rejects"]) == (1000, 0)
    assert counts["users"] >= 0.98 * SimulatorConfig.num_users
    assert (data.meta["split"], data.meta["target_kind"], data.meta["repeat_policy"]) == ("time", "session", "exclude")
    assert {action.name for action in data.actions} == {"click", "long_view", "like"}
    assert data.items["title"].n_unique() == 1000
    assert data.items["title"][0] == "Sourdough from Scratch, part 1: first steps"
    assert data.items["group"].n_unique() == 8
    assert (data.value_E > 0).all()
    month_ms = 30 * 86_400_000
    assert data.timestamp_ms_E.max() - data.timestamp_ms_E.min() < month_ms + 3_600_000
    assert np.bincount(data.session_E).mean() >= 3.5


def test_events_are_the_clicks_among_the_impressions(log: Path) -> None:
    events, shown = (pl.read_parquet(log / f"{name}.parquet") for name in ("events", "impressions"))
    assert events.columns == ["user_id", "item_id", "timestamp", "action", "value", "session_id"]
    keys = ["user_id", "item_id", "timestamp", "session_id"]
    assert shown.filter(pl.col("click") == 1).select(keys).equals(events.select(keys))
    joined = events.join(shown, on=keys)
    assert (joined["action"].is_in(["long_view", "like"]) == (joined["long_view"] == 1)).all()
    assert ((joined["action"] == "like") == (joined["like"] == 1)).all()
    assert shown.filter((pl.col("hide") == 1) & (pl.col("click") == 1)).is_empty()
    for name in ("click", "long_view", "like", "hide"):
        assert 0.01 < shown[name].mean() < 0.7  # type: ignore[operator]


def test_a_visit_shows_items_once_in_order_and_only_published_ones(log: Path) -> None:
    shown = pl.read_parquet(log / "impressions.parquet").sort("session_id", "position")
    assert shown.group_by("session_id").agg(pl.col("item_id").is_duplicated().any())["item_id"].any() is False
    visits = shown.group_by("session_id", maintain_order=True).agg(
        "position", pl.col("timestamp").diff().drop_nulls().min().alias("step_s")
    )
    assert all(row == list(range(len(row))) for row in visits["position"].to_list())
    assert visits["step_s"].min() >= 1.5  # type: ignore[operator]
    gaps = shown.group_by("user_id", "session_id").agg(
        pl.col("timestamp").min().alias("start"), pl.col("timestamp").max().alias("end")
    )
    gaps = gaps.sort("user_id", "start").with_columns(pause_s=pl.col("start") - pl.col("end").shift().over("user_id"))
    assert gaps["pause_s"].drop_nulls().min() >= 3600  # type: ignore[operator]


def test_items_appear_over_time_and_a_few_are_far_more_popular(log: Path) -> None:
    shown = pl.read_parquet(log / "impressions.parquet")
    first_day = (
        shown.group_by("item_id").agg(pl.col("timestamp").min())["timestamp"] - shown["timestamp"].min()
    ) / 86_400
    assert 0.1 < (first_day > 3).mean() < 0.3  # type: ignore[operator]
    share = np.sort(shown["item_id"].value_counts()["count"].to_numpy())[::-1]
    assert share[:100].sum() / share.sum() > 0.2


def test_users_keep_to_a_few_topics_and_visits_serve_several(data: PreparedData) -> None:
    topic_E = data.items["tags"].list.get(1).rank("dense").to_numpy()[data.item_E].astype(int)
    few, several = [], []
    for segment in range(0, int(data.segment_E[-1]), 5):
        mine = data.segment_E == segment
        if mine.sum() >= 20:
            few.append(np.sort(np.bincount(topic_E[mine]))[::-1][:4].sum() / mine.sum())
    for session in range(0, int(data.session_E[-1]), 50):
        mine = data.session_E == session
        if mine.sum() >= 5:
            several.append(len(set(topic_E[mine])))
    assert np.mean(few) > 0.7
    assert np.mean(several) > 2.5


def same_series_share(log: Path, *, clicked: bool) -> float:
    """How often an impression after one of the same series, not its next part, was (was not) clicked."""
    shown = pl.read_parquet(log / "impressions.parquet").sort("session_id", "position")
    number = pl.col("item_id").str.slice(6).cast(pl.Int64) - 1
    shown = shown.with_columns(series=number // 5, part=number % 5)
    earlier = pl.col("series").shift().over("session_id")
    is_next = pl.col("part") == pl.col("part").shift().over("session_id") + 1
    near = shown.filter((pl.col("series") == earlier) & ~is_next)
    assert near.height > 100
    return float((near["click"] == int(clicked)).mean())  # type: ignore[arg-type]


def test_boredom_shows_in_the_log(log: Path, control: Path) -> None:
    """Whoever has just seen a part of a series clicks less on another; without boredom more often than not."""
    assert same_series_share(log, clicked=True) < same_series_share(control, clicked=True) - 0.15


def test_what_was_watched_says_what_is_next(data: PreparedData) -> None:
    """Counting what followed the last five events, on training events alone, finds the next item far more often."""
    train = data.train_events()
    popularity = np.bincount(data.item_E[train], minlength=data.num_items).astype(float)
    follows = np.zeros((data.num_items, data.num_items))
    pairs = train[1:] & train[:-1] & (np.diff(data.segment_E) == 0)
    np.add.at(follows, (data.item_E[:-1][pairs], data.item_E[1:][pairs]), 1)
    test = data.examples("test")
    hits = dict.fromkeys(("popularity", "follows"), 0)
    for start, end, target in zip(test.history_start, test.history_end, test.target_start, strict=True):
        history = data.item_E[start:end]
        for name, score in (
            ("popularity", popularity),
            ("follows", follows[history[-5:]].sum(axis=0) + 1e-6 * popularity),
        ):
            masked = score.copy()
            masked[history] = -1
            hits[name] += int(data.item_E[target] in np.argsort(-masked)[:10])
    assert hits["follows"] > 1.5 * hits["popularity"]


@pytest.mark.parametrize(("num_items", "num_users"), [(1, 1), (3, 5), (7, 2), (20_000, 3)])
def test_any_size_works(tmp_path: Path, num_items: int, num_users: int) -> None:
    summary = simulate(SimulatorConfig(num_items=num_items, num_users=num_users), tmp_path)
    items = pl.read_parquet(summary.log / "items.parquet")
    shown = pl.read_parquet(summary.log / "impressions.parquet")
    assert items.height == items["title"].n_unique() == num_items
    assert set(shown["item_id"]) <= set(items["item_id"])
    assert shown["timestamp"].is_sorted()
    for _, mine in shown.group_by("session_id"):
        assert all(first != second for first, second in pairwise(mine.sort("position")["item_id"]))


def test_a_log_of_about_so_many_events(tmp_path: Path) -> None:
    for num_events in (8_000, 16_000):
        summary = simulate(SimulatorConfig(num_items=1000).for_events(num_events), tmp_path / str(num_events))
        assert 0.8 * num_events <= summary.num_events <= 1.2 * num_events


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("num_items", 0),
        ("num_users", 0),
        ("mean_visits", 0.5),
        ("boredom", -0.1),
        ("boredom", float("nan")),
        ("relevant_share", 0.9),
        ("spacing", 1.5),
        ("memory_days", 0.01),
        ("subject_share", 0.95),
    ],
)
def test_config_refuses(field: str, value: float) -> None:
    with pytest.raises(ValueError, match=field):
        SimulatorConfig(**{field: value})  # type: ignore[arg-type]
