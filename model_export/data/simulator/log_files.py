"""The log as a user's own would stand there, in format `table`, and the hash that freezes it."""

import hashlib
from pathlib import Path

import numpy as np
import polars as pl

from model_export.data.simulator.items import SimulatedItems, items_frame
from model_export.data.simulator.visits import ImpressionTable, VisitTable

SIGNALS = ("click", "long_view", "like", "hide")
FILES = ("events.parquet", "impressions.parquet", "items.parquet")


def write_log(
    folder: Path,
    items: SimulatedItems,
    visits: VisitTable,
    impressions: ImpressionTable,
    *,
    user_ids: list[str],
    start_timestamp_s: float,
) -> None:
    """Write `events.parquet` (what was clicked), `impressions.parquet` (all that was shown) and `items.parquet`."""
    folder.mkdir(parents=True, exist_ok=True)
    shown = _impressions_frame(items, visits, impressions, user_ids, start_timestamp_s)
    strongest = pl.when("like").then(pl.lit("like")).when("long_view").then(pl.lit("long_view"))
    events = shown.filter("click").select(
        "user_id",
        "item_id",
        "timestamp",
        action=strongest.otherwise(pl.lit("click")),
        value=pl.col("watch_s").cast(pl.Float32),
        session_id="session_id",
    )
    events.write_parquet(folder / "events.parquet")
    signals = [pl.col(name).cast(pl.Int8) for name in SIGNALS]
    columns = ("user_id", "item_id", "timestamp", "session_id", "position")
    shown.select(*columns, *signals).write_parquet(folder / "impressions.parquet")
    items_frame(items).write_parquet(folder / "items.parquet")


def _impressions_frame(
    items: SimulatedItems,
    visits: VisitTable,
    impressions: ImpressionTable,
    user_ids: list[str],
    start_timestamp_s: float,
) -> pl.DataFrame:
    """All impressions in time order, ties by visit and position."""
    visit_R = impressions.visit_R
    is_first_R = np.diff(visit_R, prepend=-1) != 0
    position_R = np.arange(len(visit_R)) - np.flatnonzero(is_first_R)[np.cumsum(is_first_R) - 1]
    user_V = visits.user_V
    first_visit_V = np.searchsorted(user_V, user_V, side="left")
    number_V = np.arange(len(user_V)) - first_visit_V + 1
    timestamp_ms_R = impressions.time_ms_R + round(start_timestamp_s * 1000)
    frame = pl.DataFrame(
        {
            "user_id": pl.Series(user_ids).gather(user_V[visit_R]),
            "item_id": pl.Series(items.item_ids).gather(impressions.item_R),
            "timestamp": timestamp_ms_R / 1000.0,
            "number": number_V[visit_R],
            "position": position_R.astype(np.int32),
            "click": impressions.click_R,
            "long_view": impressions.long_view_R,
            "like": impressions.like_R,
            "hide": impressions.hide_R,
            "watch_s": np.maximum(np.round(impressions.watch_s_R, 1), 0.1 * impressions.click_R),
        }
    )
    session_id = pl.format("{}-{}", "user_id", "number")
    return frame.with_columns(session_id=session_id).sort("timestamp", maintain_order=True)


def log_sha256(folder: str | Path) -> str:
    """SHA-256 over what a log's three files hold, column by column, whatever the Parquet writer's version.

    Numbers count to the thousandth, lists by their elements; names of columns and order of rows count too.
    """
    digest = hashlib.sha256()
    for name in FILES:
        frame = pl.read_parquet(Path(folder) / name)
        for column in frame.iter_columns():
            digest.update(f"{name}/{column.name}/{len(column)}\n".encode())
            if column.dtype.is_float():
                digest.update((column.cast(pl.Float64) * 1000).round().cast(pl.Int64).to_numpy().tobytes())
            elif column.dtype.is_numeric() or column.dtype == pl.Boolean:
                digest.update(column.cast(pl.Int64).to_numpy().tobytes())
            else:
                texts = column.list.join("\x1f") if column.dtype == pl.List(pl.String) else column
                digest.update("\x1e".join(texts.to_list()).encode())
    return digest.hexdigest()
