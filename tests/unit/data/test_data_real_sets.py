"""Every real set reads with the counts that its README gives."""

import gzip
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from model_export.data.config import PrepareConfig
from model_export.data.errors import DataError
from model_export.data.preparation import prepare
from model_export.data.prepared import PreparedData
from model_export.data.sessions import number_sessions

SharedData = Callable[[str], Path]


@dataclass(frozen=True)
class RealSet:
    folder: str
    format: str
    users: int
    items: int
    events: int
    file: str = ""
    config: dict[str, Any] = field(default_factory=dict)
    split: str = "leave_one_out"
    target_kind: str = "next_items"
    examples: dict[str, int] = field(default_factory=dict)
    title: tuple[str, str] = ("", "")
    rejects: int = 0


REAL_SETS = [
    RealSet("ml-100k", "movielens", 943, 1682, 100_000, split="time", title=("1", "Toy Story (1995)")),
    RealSet(
        "ml-latest-small",
        "movielens",
        671,
        9066,
        100_004,
        split="time",
        target_kind="session",
        title=("11", "American President, The (1995)"),
    ),
    RealSet(
        "ml-1m",
        "sequences",
        6040,
        3706,
        1_000_209,
        examples={"valid": 6040, "test": 6040},
        title=("1", "Toy Story (1995)"),
    ),
    RealSet(
        "amazon14",
        "sequences",
        22_363,
        12_101,
        198_502,
        file="Beauty.txt",
        examples={"train": 198_502 - 3 * 22_363, "valid": 22_363, "test": 22_363},
        title=("1", "nail lacquer simmer and shimmer"),
    ),
    RealSet("amazon14", "sequences", 35_598, 18_357, 296_337, file="Sports_and_Outdoors.txt"),
    RealSet("office-text", "sequences", 4905, 2420, 53_258, examples={"test": 4905}),
    RealSet(
        "yoochoose1_64",
        "sessions",
        116_167 + 55_898,
        17_745,
        486_026 + 360_252,
        config={"valid_fraction": 0.0},
        split="given",
        examples={"train": 369_859, "valid": 0, "test": 55_898},
    ),
    RealSet("yoochoose-100k", "yoochoose", 17_794 + 3416, 2933, 70_278 + 13_568, split="given"),
    RealSet("kuairand-pure", "kuairand", 25_156, 6361, 228_329 - 5885, split="time", rejects=5885),
    RealSet(
        "kuairand-27k-kcore",
        "kuairand",
        664,
        9359,
        41_828 - 124,
        split="time",
        target_kind="session",
        rejects=124,
    ),
]


@pytest.mark.parametrize("real", REAL_SETS, ids=lambda real: f"{real.folder}{real.file and '-' + real.file}")
def test_counts_of_the_readme(real: RealSet, shared_data: SharedData, tmp_path: Path) -> None:
    data_path = shared_data(real.folder) / real.file
    data = prepare(PrepareConfig(format=real.format, **real.config), data_path, tmp_path)
    counts = data.meta["counts"]
    assert (counts["users"], counts["items"], counts["events"]) == (real.users, real.items, real.events)
    assert counts["rejects"] == data.rejects.height == real.rejects
    assert (data.meta["split"], data.meta["target_kind"]) == (real.split, real.target_kind)
    for name, expected in real.examples.items():
        assert len(data.examples(name)) == expected
    assert len(data.examples("train")) > 0
    assert len(data.examples("test")) > 0
    item_id, title = real.title
    if item_id:
        assert data.items.filter(pl.col("item_id") == item_id)["title"].to_list() == [title]


def test_five_core_of_ml_1m_leaves_3416_items(shared_data: SharedData, tmp_path: Path) -> None:
    config = PrepareConfig(format="sequences", min_item_events=5, min_user_events=5, max_train_examples=1)
    assert prepare(config, shared_data("ml-1m"), tmp_path).num_items == 3416


def test_kuairand_27k_has_1490_sessions_of_five_or_more(shared_data: SharedData) -> None:
    """The count of the README is over all rows, repeated ones included."""
    file = shared_data("kuairand-27k-kcore") / "processed_standard_kcore_15.csv.gz"
    log = pl.read_csv(file, separator="\t").sort("user_id", "time_ms", maintain_order=True)
    session_E = number_sessions(
        log["user_id"].rank("dense").cast(pl.Int64).to_numpy(),
        log["time_ms"].to_numpy(),
        np.full(log.height, -1),
        has_pauses=True,
        session_gap_s=1800,
    )
    assert int((np.bincount(session_E) >= 5).sum()) == 1490


def test_movielens_genres_and_ratings(shared_data: SharedData, tmp_path: Path) -> None:
    data = prepare(PrepareConfig(format="movielens"), shared_data("ml-100k"), tmp_path)
    toy_story = data.items.row(by_predicate=pl.col("item_id") == "1", named=True)
    assert toy_story["tags"] == ["Animation", "Children's", "Comedy"]
    assert toy_story["group"] == "Animation"
    unknown = data.items.row(by_predicate=pl.col("item_id") == "267", named=True)
    assert (unknown["tags"], unknown["group"]) == ([], "")
    assert "Misérables, Les (1995)" in data.items["title"]
    (action,) = data.actions
    assert (action.name, action.unit) == ("rate", "stars")
    assert action.value_edges == (2.0, 3.0, 4.0, 5.0)
    assert Counter(data.value_E.tolist()) == {1.0: 6110, 2.0: 11370, 3.0: 27145, 4.0: 34174, 5.0: 21201}


def test_kuairand_takes_the_strongest_signal_and_watch_seconds(shared_data: SharedData, tmp_path: Path) -> None:
    folder = shared_data("kuairand-pure")
    data = prepare(PrepareConfig(format="kuairand"), folder, tmp_path)
    log = pl.read_csv(folder / "log_standard_4_25_to_5_08_pure.csv.gz")
    log = log.unique(["user_id", "video_id", "time_ms"], keep="first")
    names = [action.name for action in data.actions]
    counts = Counter(names[action] for action in data.action_E.tolist())
    assert counts["hate"] == log["is_hate"].sum()
    follows = log.filter((pl.col("is_follow") == 1) & (pl.col("is_hate") == 0))
    assert counts["follow"] == follows.height
    flags = [name for name in log.columns if name.startswith("is_") and name not in ("is_profile_enter", "is_rand")]
    assert counts["view"] == log.filter(pl.sum_horizontal(*flags, "long_view") == 0).height
    assert float(data.value_E.sum(dtype=np.float64)) == pytest.approx(log["play_time_ms"].sum() / 1000, rel=1e-6)
    assert {action.unit for action in data.actions} == {"s"}
    videos = pl.read_csv(folder / "video_features_basic_pure.csv.gz", infer_schema=False)
    tags = dict(videos.select("video_id", pl.col("tag").fill_null("")).rows())
    for item_id, item_tags in data.items.select("item_id", "tags").rows():
        assert ",".join(item_tags) == tags[item_id]
    assert data.rejects["reason"].str.starts_with("repeats user_id, video_id and time_ms of line").all()


def test_amazon14_words_follow_the_asin_and_tags_the_id(shared_data: SharedData, tmp_path: Path) -> None:
    data = prepare(PrepareConfig(format="sequences"), shared_data("amazon14") / "Beauty.txt", tmp_path)
    untitled = data.items.filter(pl.col("title") == "")
    assert untitled["item_id"].to_list() == ["10205"]  # B001LTVF7G has no key words
    assert data.items.row(by_predicate=pl.col("item_id") == "4", named=True)["tags"] == ["1", "2", "3"]
    assert not data.has_times


def test_a_folder_with_two_sequence_files_asks_which(shared_data: SharedData, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"name one sequence file.*Beauty\.txt, Sports_and_Outdoors\.txt"):
        prepare(PrepareConfig(format="sequences"), shared_data("amazon14"), tmp_path)


def read_inter(folder: Path, name: str) -> list[tuple[str, tuple[str, ...], str]]:
    with gzip.open(folder / f"Industrial_and_Scientific.{name}.inter.gz", "rt", encoding="utf-8") as file:
        rows = [line.rstrip("\n").split("\t") for line in file][1:]
    return [(user, tuple(history.split()), target) for user, history, target in rows]


def shown(data: PreparedData, split: str, window: int) -> list[tuple[str, tuple[str, ...], str]]:
    """Examples as (user, newest `window` history items, first target item)."""
    names = data.items["item_id"].to_list()
    examples = data.examples(split)
    spans = zip(examples.history_start, examples.history_end, examples.target_start, strict=True)
    return [
        (
            data.user_id_E[int(target)],
            tuple(names[item] for item in data.item_E[max(start, end - window) : end]),
            names[data.item_E[target]],
        )
        for start, end, target in spans
    ]


def test_industrial_rows_are_the_examples(shared_data: SharedData, tmp_path: Path) -> None:
    """Rebuilding the sliding windows loses no target: every row is exactly one example, with the same history."""
    folder = shared_data("industrial")
    data = prepare(PrepareConfig(format="industrial"), folder, tmp_path)
    counts = data.meta["counts"]
    assert (counts["users"], counts["items"]) == (7694, 3686)
    assert [len(data.examples(name)) for name in ("train", "valid", "test")] == [36_259, 4532, 4533]
    assert Counter(shown(data, "train", 10)) == Counter(read_inter(folder, "train"))
    for name in ("valid", "test"):
        examples = data.examples(name)
        assert (examples.target_end - examples.target_start == 1).all()
        assert shown(data, name, 10) == read_inter(folder, name)
    assert data.meta["repeat_policy"] == "allow"
    assert data.meta["split"] == "given"
    train_targets = Counter(target for _, _, target in read_inter(folder, "train"))
    first_items = Counter(history[0] for _, history, _ in read_inter(folder, "train") if len(history) == 1)
    names = data.items["item_id"].to_list()
    seen = Counter(names[item] for item in data.item_E[data.train_events()])
    assert (seen - train_targets).total() == 7034  # one opening item a user
    assert not (seen - train_targets - first_items)


def test_industrial_text_is_plain(shared_data: SharedData, tmp_path: Path) -> None:
    data = prepare(PrepareConfig(format="industrial"), shared_data("industrial"), tmp_path)
    assert (data.items["title"] != "").all()
    assert not data.items["text"].str.contains(r"^\[['\"]|['\"]\]$").any()
    tape = data.items.row(by_predicate=pl.col("item_id") == "10", named=True)
    assert (tape["group"], tape["tags"]) == ("3M", ["3M"])


def test_yoochoose_test_samples_are_the_examples(shared_data: SharedData, tmp_path: Path) -> None:
    folder = shared_data("yoochoose1_64")
    data = prepare(PrepareConfig(format="yoochoose"), folder, tmp_path)
    with gzip.open(folder / "test_samples.tsv.gz", "rt") as file:
        samples = [line.rstrip("\n").split("\t") for line in file]
    assert [(" ".join(history), target) for _, history, target in shown(data, "test", 1000)] == [
        (prefix, target) for prefix, target in samples
    ]
    # Without a valid part in the files, the last tenth of the training sessions becomes it.
    assert data.meta["counts"]["train_examples"] + data.meta["counts"]["valid_examples"] == 369_859
    assert len(data.examples("valid")) > 0


def test_split_in_time_of_ml_100k_leaves_166_test_users(shared_data: SharedData, tmp_path: Path) -> None:
    data = prepare(PrepareConfig(format="movielens"), shared_data("ml-100k"), tmp_path)
    users = {data.user_id_E[int(place)] for place in data.examples("test").target_start}
    tested = {user for user, part in zip(data.user_id_E, data.part_E.tolist(), strict=True) if part == 2}
    assert len(tested) == 166
    assert users <= tested
