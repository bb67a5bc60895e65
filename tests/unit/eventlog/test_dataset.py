"""The folder that the event log is drained into: every commit whole or not at all, wherever it is killed."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from service.errors import EventLogDamaged
from service.eventlog import dataset as dataset_module
from service.eventlog.dataset import STATE_FILE, LogDataset
from service.eventlog.rows import SCHEMAS, Row

Contents = dict[str, list[str]]


def event(user_id: str, event_id: str) -> Row:
    values = {
        "item_id": "x", "action": "view", "timestamp": 5, "value": None, "event_id": event_id,
        "recommendation_id": None, "received": 6, "user_id": user_id,
    }  # fmt: skip
    return Row("event", user_id, values)


def impression(user_id: str, number: int) -> Row:
    values: dict[str, Any] = dict.fromkeys(SCHEMAS["impression"].names)
    values |= {"user_id": user_id, "recommendation_id": str(number), "item_ids": ["x"], "item_scores": [-1.0]}
    return Row("impression", user_id, values)


def forgotten(user_id: str) -> Row:
    return Row("forgotten", user_id, {"user_id": user_id, "timestamp": 7})


def contents(folder: Path) -> Contents:
    """What a reader finds who looks at every file that can be seen."""
    found: Contents = {"events": [], "impressions": [], "forgotten": []}
    for kind, column in (("events", "event_id"), ("impressions", "recommendation_id"), ("forgotten", "user_id")):
        for file in sorted((folder / kind).glob("*.parquet")):
            if not file.name.startswith("."):
                found[kind] += pq.read_table(file)[column].to_pylist()
    return found


BATCHES: list[tuple[list[Row], dict[int, str]]] = [
    ([event("a", "1"), event("b", "2"), impression("a", 3)], {0: "1-0", 4: "1-5"}),
    ([event("c", "4"), impression("b", 5), event("a", "6")], {4: "2-0"}),
    ([event("b", "7"), forgotten("b"), event("c", "8"), forgotten("c")], {0: "3-0", 9: "3-0"}),
    ([event("d", "9")], {9: "4-0"}),
]


def after(num_commits: int) -> Contents:
    gone = {row.user_id for rows, _ in BATCHES[:num_commits] for row in rows if row.kind == "forgotten"}
    kept = [row for rows, _ in BATCHES[:num_commits] for row in rows]
    return {
        "events": [row.values["event_id"] for row in kept if row.kind == "event" and row.user_id not in gone],
        "impressions": [
            row.values["recommendation_id"] for row in kept if row.kind == "impression" and row.user_id not in gone
        ],
        "forgotten": [row.user_id for row in kept if row.kind == "forgotten"],
    }


def cursors_after(num_commits: int) -> dict[int, str]:
    cursors: dict[int, str] = {}
    for _, reached in BATCHES[:num_commits]:
        cursors |= reached
    return cursors


def test_rows_stand_in_columns_of_their_kind_and_the_forgotten_are_gone(tmp_path: Path) -> None:
    for number, (rows, cursors) in enumerate(BATCHES, start=1):
        with LogDataset.opened(tmp_path) as dataset:
            name = dataset.collector
            dataset.add(rows, cursors)
            assert dataset.cursors == cursors_after(number)
        assert contents(tmp_path) == after(number)
        with LogDataset.opened(tmp_path) as dataset:
            assert (dataset.collector, dataset.cursors) == (name, cursors_after(number))
    schema = pq.read_schema(tmp_path / "events/00000001.parquet")
    assert schema.equals(SCHEMAS["event"])
    assert sorted(path.name for path in tmp_path.rglob(".*")) == []


class Killed(BaseException):
    """As if the process ended here."""


class Fuse:
    """Lets so many calls happen, then none."""

    def __init__(self, num_calls: int) -> None:
        self.num_left = num_calls

    def burn(self) -> None:
        if self.num_left == 0:
            raise Killed
        self.num_left -= 1


def fused(monkeypatch: pytest.MonkeyPatch, fuse: Fuse) -> None:
    """Every step that reaches the disk may be the last."""
    sync, replace, write = os.fsync, Path.replace, pq.write_table

    def patched_sync(descriptor: int) -> None:
        fuse.burn()
        sync(descriptor)

    def patched_replace(self: Path, target: Path) -> Path:
        fuse.burn()
        return replace(self, target)

    def patched_write(table: Any, file: Any, **options: Any) -> None:
        if fuse.num_left == 0:
            file.write(b"PAR1 half a file")
        fuse.burn()
        write(table, file, **options)

    monkeypatch.setattr(os, "fsync", patched_sync)
    monkeypatch.setattr(Path, "replace", patched_replace)
    monkeypatch.setattr(dataset_module.pq, "write_table", patched_write)


def commit_until_killed(folder: Path, batches: Sequence[tuple[list[Row], dict[int, str]]], num_steps: int) -> bool:
    """Whether all of it was done within so many steps."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        fused(monkeypatch, Fuse(num_steps))
        try:
            with LogDataset.opened(folder) as dataset:
                for rows, cursors in batches:
                    dataset.add(rows, cursors)
        except Killed:
            return False
        return True


def test_whoever_is_killed_at_any_step_leaves_whole_commits(tmp_path: Path) -> None:
    for num_steps in range(1000):
        folder = tmp_path / str(num_steps)
        is_done = commit_until_killed(folder, BATCHES, num_steps)
        if not (folder / STATE_FILE).exists():
            with LogDataset.opened(folder) as dataset:
                assert dataset.cursors == {}
            assert contents(folder) == after(0)
            continue
        seen = contents(folder)  # by a reader before anybody mends it: every row once, if not yet all of a commit
        for kind, values in seen.items():
            assert len(set(values)) == len(values), kind
        with LogDataset.opened(folder) as dataset:
            [num_commits] = [n for n in range(len(BATCHES) + 1) if cursors_after(n) == dataset.cursors]
            assert contents(folder) == after(num_commits)
            # Who goes on there ends where who was never killed does.
            for rows, cursors in BATCHES[num_commits:]:
                dataset.add(rows, cursors)
        assert contents(folder) == after(len(BATCHES))
        assert [path.name for path in folder.rglob(".*")] == []
        if is_done:
            assert num_steps > 60
            return
    pytest.fail("never done")


def test_a_folder_is_refused_that_another_writes_or_that_makes_no_sense(tmp_path: Path) -> None:
    with (
        LogDataset.opened(tmp_path / "a"),
        pytest.raises(EventLogDamaged, match="another process"),
        LogDataset.opened(tmp_path / "a"),
    ):
        pass
    with LogDataset.opened(tmp_path / "a") as dataset:
        dataset.add(*BATCHES[0])
    state = tmp_path / "a" / STATE_FILE
    for damage in (b"", b"{}", b'{"collector": "x", "cursors": 3}'):
        state.write_bytes(damage)
        with pytest.raises(EventLogDamaged, match="is not what a collector writes"), LogDataset.opened(tmp_path / "a"):
            pass
    state.unlink()
    with pytest.raises(EventLogDamaged, match=r"no collector\.json"), LogDataset.opened(tmp_path / "a"):
        pass
    assert contents(tmp_path / "a") == after(1)
