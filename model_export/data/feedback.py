"""Feedback: what users were shown, visit by visit, and what they did with it.

Beside the events, which histories are made of, this is what a reward model learns from.
Shapes: E events; F impressions, grouped by visit; M visits; S signals; K slate size.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl

from model_export.data.config import PrepareConfig
from model_export.data.examples import Examples
from model_export.data.log import EventLog
from model_export.data.sessions import Int, number_sessions
from model_export.data.splits import split_by_time

NO_SEGMENT = -1
VISIT_COLUMNS = ("segment", "history_start", "history_end", "timestamp_ms", "part")
OWN_COLUMNS = (*VISIT_COLUMNS, "visit", "item", "position")


@dataclass(frozen=True, kw_only=True, eq=False)
class Feedback:
    """Impressions in shown order, in visits of at most K."""

    signals: tuple[str, ...]
    item_F: npt.NDArray[np.int32]
    """Item index."""
    position_F: npt.NDArray[np.int32]
    """Place inside the visit, from 0."""
    signal_FS: npt.NDArray[np.float32]
    """0, 1 or a share."""
    visit_F: npt.NDArray[np.int32]
    """Ascending, from 0."""
    segment_M: npt.NDArray[np.int32]
    """The user's segment of events; -1 for users without events."""
    history_start_M: npt.NDArray[np.int64]
    """The user's events strictly before the visit's first impression are `history_start:history_end` of the events."""
    history_end_M: npt.NDArray[np.int64]
    timestamp_ms_M: npt.NDArray[np.int64]
    """Of the visit's first impression."""
    part_M: npt.NDArray[np.int8]
    """0 train, 1 valid, 2 test."""

    @property
    def num_visits(self) -> int:
        return len(self.segment_M)

    @property
    def num_impressions(self) -> int:
        return len(self.item_F)

    def visits(self, part: int) -> Int:
        """Numbers of the visits of a part."""
        return np.flatnonzero(self.part_M == part)

    def lengths(self, visits: Int) -> Int:
        """How many items each visit has."""
        return np.bincount(self.visit_F, minlength=self.num_visits)[visits]

    def examples(self, visits: Int) -> Examples:
        """The histories of visits, with an empty target where the visit starts."""
        end = self.history_end_M[visits]
        return Examples(
            segment=self.segment_M[visits].astype(np.int64),
            history_start=self.history_start_M[visits],
            history_end=end,
            target_start=end,
            target_end=end,
        )

    def slates(self, visits: Int, slate_size: int) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]]:
        """Items [M, K] (-1 after the end) and signals [M, K, S] (NaN after the end) of visits."""
        start_M = np.searchsorted(self.visit_F, visits)
        length_M = np.searchsorted(self.visit_F, visits, side="right") - start_M
        place_MK = start_M[:, None] + np.arange(slate_size)
        inside_MK = np.arange(slate_size) < length_M[:, None]
        place_MK = np.where(inside_MK, place_MK, 0)
        signal_MKS = np.where(inside_MK[:, :, None], self.signal_FS[place_MK], np.float32(np.nan))
        return np.where(inside_MK, self.item_F[place_MK], -1).astype(np.int32), signal_MKS

    def summary(self) -> str:
        """Counts and rates, for people."""
        rates = zip(self.signals, self.signal_FS.mean(0), strict=True)
        return f"{self.num_impressions:,} impressions in {self.num_visits:,} visits; " + ", ".join(
            f"{name} {100 * rate:.2f} %" for name, rate in rates
        )

    def save(self, file: Path) -> None:
        """Write one Parquet row per impression; what belongs to the visit stands in each of its rows."""
        visit_columns = {name: getattr(self, f"{name}_M")[self.visit_F] for name in VISIT_COLUMNS}
        own = {"visit": self.visit_F, **visit_columns, "item": self.item_F, "position": self.position_F}
        signals = {f"signal_{name}": self.signal_FS[:, place] for place, name in enumerate(self.signals)}
        pl.DataFrame(own | signals).write_parquet(file)

    @classmethod
    def load(cls, file: Path) -> "Feedback":
        """Read what `save` wrote."""
        rows = pl.read_parquet(file)
        columns = [name for name in rows.columns if name not in OWN_COLUMNS]
        first = rows.unique("visit", keep="first", maintain_order=True)
        return cls(
            signals=tuple(name.removeprefix("signal_") for name in columns),
            item_F=rows["item"].to_numpy(writable=True),
            position_F=rows["position"].to_numpy(writable=True),
            signal_FS=np.ascontiguousarray(rows.select(columns).to_numpy(writable=True)),
            visit_F=rows["visit"].to_numpy(writable=True),
            **{f"{name}_M": first[name].to_numpy(writable=True) for name in VISIT_COLUMNS},
        )


def build_feedback(
    log: EventLog, events: pl.DataFrame, items: pl.DataFrame, cuts_ms: list[int], config: PrepareConfig
) -> Feedback | None:
    """Visits of a log's impressions; None where it has none, or none of the catalog's items.

    A visit is a run of one `session_id`, or, without it, of impressions with no pause above `session_gap_s`; it is cut
    where a part ends and into chunks of `slate_size`. Parts are cut in time: where the events' are, else by the same
    shares of the impressions. Impressions of items outside the catalog, and of users whose events were all filtered
    away, are left out.

    Args:
        log: With impressions.
        events: Those that are used, with `segment` and `item`, in order.
        items: The catalog.
        cuts_ms: Starts of valid and test in Unix milliseconds; empty where the events are not split in time.
        config: Gap, slate size and shares.
    """
    if log.impressions is None:
        return None
    assert not log.is_given, "segments of a given split are no users"
    shown = _order(log.impressions, log.events, events, items)
    if shown.height == 0:
        return None
    segment_E, timestamp_ms_E = _int64(events["segment"]), _int64(events["timestamp_ms"])
    segment_F, timestamp_ms_F = _int64(shown["segment"]), _int64(shown["timestamp_ms"])
    valid_cut, test_cut = cuts_ms or split_by_time(timestamp_ms_F, config)[1]
    part_F = np.searchsorted([valid_cut, test_cut], timestamp_ms_F, side="right")
    first_M, visit_F, position_F = _cut_visits(shown, timestamp_ms_F, part_F, config)
    start_M, end_M = _histories(segment_E, timestamp_ms_E, segment_F[first_M], timestamp_ms_F[first_M])
    return Feedback(
        signals=log.signals,
        item_F=shown["item"].cast(pl.Int32).to_numpy(writable=True),
        position_F=position_F.astype(np.int32),
        signal_FS=np.ascontiguousarray(shown.select(log.signals).to_numpy(writable=True), dtype=np.float32),
        visit_F=visit_F.astype(np.int32),
        segment_M=segment_F[first_M].astype(np.int32),
        history_start_M=start_M,
        history_end_M=end_M,
        timestamp_ms_M=timestamp_ms_F[first_M],
        part_M=part_F[first_M].astype(np.int8),
    )


def _order(
    impressions: pl.DataFrame, all_events: pl.DataFrame, events: pl.DataFrame, items: pl.DataFrame
) -> pl.DataFrame:
    """Impressions with `item`, `user` and `segment`, by user and time; ties by position, then as in the files."""
    segments = events.select("user_id", pl.col("segment").cast(pl.Int64)).unique("user_id")
    filtered_away = all_events.select("user_id").unique().join(segments, on="user_id", how="anti")
    shown = (
        impressions.join(filtered_away, on="user_id", how="anti", maintain_order="left")
        .join(items.select("item_id").with_row_index("item"), on="item_id", how="inner", maintain_order="left")
        .join(segments, on="user_id", how="left", maintain_order="left")
        .with_columns(pl.col("segment").fill_null(NO_SEGMENT))
    )
    users = shown.select("user_id").unique(maintain_order=True).with_row_index("user")
    shown = shown.join(users, on="user_id", maintain_order="left")
    return shown.sort("user", "timestamp_ms", "position", maintain_order=True, nulls_last=True)


def _cut_visits(shown: pl.DataFrame, timestamp_ms_F: Int, part_F: Int, config: PrepareConfig) -> tuple[Int, Int, Int]:
    """First impression of each visit, and each impression's visit and place in it."""
    named_F = _int64(shown["session_id"].rank("dense").cast(pl.Int64).fill_null(0)) - 1
    stay_F = number_sessions(
        _int64(shown["user"]), timestamp_ms_F, named_F, has_pauses=True, session_gap_s=config.session_gap_s
    )
    starts_F = np.concatenate([[True], (np.diff(stay_F) != 0) | (np.diff(part_F) != 0)])
    start = np.flatnonzero(starts_F)
    place_F = np.arange(len(part_F)) - start[np.cumsum(starts_F) - 1]
    starts_F = place_F % config.slate_size == 0
    return np.flatnonzero(starts_F), np.cumsum(starts_F) - 1, place_F % config.slate_size


def _histories(segment_E: Int, timestamp_ms_E: Int, segment_M: Int, timestamp_ms_M: Int) -> tuple[Int, Int]:
    """Start and end of each visit's history: events of its segment strictly before it."""
    moments = np.unique(timestamp_ms_E)
    # (segment, moment) as one ascending number, moments by rank so that it fits.
    key_E = segment_E * (len(moments) + 1) + np.searchsorted(moments, timestamp_ms_E)
    key_M = segment_M * (len(moments) + 1)
    start_M = np.searchsorted(key_E, key_M)
    end_M = np.searchsorted(key_E, key_M + np.searchsorted(moments, timestamp_ms_M))
    known_M = segment_M != NO_SEGMENT
    return np.where(known_M, start_M, 0).astype(np.int64), np.where(known_M, end_M, 0).astype(np.int64)


def _int64(series: pl.Series) -> Int:
    return series.cast(pl.Int64).to_numpy(writable=True)
