"""What a reader hands over: the events and items of a data set, cleaned, in one form for all formats."""

from dataclasses import dataclass, field

import polars as pl

EVENT_SCHEMA = pl.Schema(
    {
        "user_id": pl.String(),
        "item_id": pl.String(),
        "action": pl.String(),
        "timestamp_ms": pl.Int64(),
        "value": pl.Float32(),
        "session_id": pl.String(),
    }
)
GIVEN_SCHEMA = pl.Schema({"segment_key": pl.Int64(), "part": pl.Int8(), "last_only": pl.Boolean()})
"""Further event columns of a format that brings its own split. `segment_key`: events that share it form a segment;
`part`: 0 train, 1 valid, 2 test; `last_only`: only the segment's last event is a target, the others are its history."""

IMPRESSION_SCHEMA = pl.Schema(
    {
        "user_id": pl.String(),
        "item_id": pl.String(),
        "timestamp_ms": pl.Int64(),
        "session_id": pl.String(),
        "position": pl.Int32(),
    }
)
"""What was shown; beside these columns a Float32 column per signal, 0 to 1."""

ITEM_SCHEMA = pl.Schema(
    {
        "item_id": pl.String(),
        "title": pl.String(),
        "text": pl.String(),
        "tags": pl.List(pl.String),
        "group": pl.String(),
        "available": pl.Boolean(),
        "embedding": pl.List(pl.Float32),
    }
)


@dataclass(frozen=True, kw_only=True)
class EventLog:
    """A data set as its format describes it, before segments, sessions and splits."""

    events: pl.DataFrame
    """`EVENT_SCHEMA`, and `GIVEN_SCHEMA` where the split is given; in the order of the files."""
    items: pl.DataFrame | None = None
    """`ITEM_SCHEMA`, in the order of the file, each id once; None where the format has no item file."""
    impressions: pl.DataFrame | None = None
    """`IMPRESSION_SCHEMA` and `signals`, in the order of the files; None where the log does not tell what was shown."""
    signals: tuple[str, ...] = ()
    """What is known of each impression: names of further columns of `impressions`."""
    default_action: str = "view"
    units: dict[str, str] = field(default_factory=dict)
    """Unit of `value` per action, where the format says so."""
    has_times: bool = True
    anonymous: bool = False
    """Each user_id is one visit: a segment is a session, and its items are better learnt by rolling windows."""
    owns_catalog: bool = False
    """The items file lists what can be recommended, events or not (a user's own file)."""

    @property
    def is_given(self) -> bool:
        """Does the format bring its own split?"""
        return "part" in self.events.columns
