"""What a service collected becomes events, impressions and signals."""

from pathlib import Path

import polars as pl
import pytest

from model_export.data.config import PrepareConfig
from model_export.data.errors import DataError
from model_export.data.preparation import prepare
from model_export.data.prepared import PreparedData
from service.eventlog.dataset import LogDataset
from service.eventlog.rows import SCHEMAS, Row

START_MS = 1_700_000_000_000


def event(number: int, user: int, item: int, action: str, slate: int | None) -> Row:
    values = {
        "item_id": f"i{item}", "action": action, "timestamp": START_MS + 60_000 * number, "value": None,
        "event_id": f"e{number}", "recommendation_id": None if slate is None else f"{slate:032x}",
        "received": START_MS + 60_000 * number, "user_id": f"u{user}",
    }  # fmt: skip
    return Row("event", f"u{user}", values)


def slate(number: int, user: int, *items: int) -> Row:
    values: dict[str, object] = dict.fromkeys(SCHEMAS["impression"].names)
    values |= {
        "user_id": f"u{user}", "recommendation_id": f"{number:032x}", "timestamp": START_MS + 60_000 * number - 5000,
        "item_ids": [f"i{item}" for item in items], "item_scores": [0.0] * len(items),
    }  # fmt: skip
    return Row("impression", f"u{user}", values)


def write_collected(folder: Path) -> Path:
    """Sixty slates of three items to five users; of each the second is clicked, of every fourth it is liked, too."""
    with LogDataset.opened(folder) as dataset:
        for part in range(3):
            rows: list[Row] = []
            for number in range(20 * part, 20 * part + 20):
                user, items = number % 5, [(number + place) % 11 for place in range(3)]
                rows += [slate(number, user, *items), event(number, user, items[1], "click", number)]
                if number % 4 == 0:
                    rows.append(event(number, user, items[1], "like", number))
                rows.append(event(number, user, items[2], "click", None))  # found by another way
                rows.append(event(number, (user + 1) % 5, items[0], "click", number))  # somebody else's id
            dataset.add(rows, {0: f"{part}-0"})
    return folder


def prepared(folder: Path, **config: object) -> PreparedData:
    return prepare(PrepareConfig(format="collected", **config), folder, folder.parent / "out")  # type: ignore[arg-type]


def test_slates_are_impressions_and_what_was_done_to_them_are_signals(tmp_path: Path) -> None:
    data = prepared(write_collected(tmp_path / "log"), min_user_events=1, min_item_events=1)
    assert data.feedback is not None
    assert data.feedback.signals == ("click", "like")
    assert (data.num_items, data.num_events) == (11, 195)
    feedback = data.feedback
    assert (feedback.num_visits, feedback.num_impressions) == (60, 180)
    assert feedback.signal_FS.sum(axis=0).tolist() == [60, 15]
    # What was clicked by another way says nothing about the slate.
    assert feedback.signal_FS[feedback.position_F != 1].sum() == 0
    for visit, items in enumerate(feedback.item_F.reshape(60, 3).tolist()):
        assert feedback.position_F.reshape(60, 3)[visit].tolist() == [0, 1, 2]
        assert len(set(items)) == 3


def test_the_files_of_every_folder_count_for_the_hash(tmp_path: Path) -> None:
    one = prepared(write_collected(tmp_path / "one" / "log"))
    changed = write_collected(tmp_path / "other" / "log")
    file = min((changed / "events").glob("*.parquet"))
    pl.read_parquet(file).with_columns(value=pl.lit(1.0)).write_parquet(file)
    other = prepared(changed)
    assert one.meta["data_sha256"] != other.meta["data_sha256"]


def test_what_is_no_collected_log_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"no file events/\*\.parquet"):
        prepared(tmp_path / "empty")
    folder = write_collected(tmp_path / "log")
    with pytest.raises(DataError, match="reads a folder"):
        prepared(next((folder / "events").glob("*.parquet")))
    file = sorted((folder / "impressions").glob("*.parquet"))[1]
    pl.read_parquet(file).drop("item_ids").write_parquet(file)
    with pytest.raises(DataError, match="item_ids"):
        prepared(folder)
