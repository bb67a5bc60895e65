"""What a user may choose about the stage `prepare`."""

from dataclasses import dataclass
from typing import Literal, get_args

Split = Literal["auto", "given", "time", "session", "leave_one_out"]
TargetKind = Literal["auto", "session", "next_items"]
RepeatPolicy = Literal["auto", "allow", "exclude"]
UnseenItems = Literal["auto", "keep", "drop"]


@dataclass(frozen=True, kw_only=True)
class PrepareConfig:
    """Settings of `prepare`; a recipe's table `[prepare]` fills them."""

    format: str = "table"
    """Name of a reader: see `model_export.data.formats.READERS`."""
    items: str = ""
    """Format `table`: path of the items file; empty: `items.*` of the data folder, if there is one."""
    value_unit: str = ""
    """Format `table`: unit of `value`, for people (`s`, `stars`)."""
    split: Split = "auto"
    """`auto`: `given` where the format brings a split, else `time` where there are times, else `leave_one_out`."""
    target_kind: TargetKind = "auto"
    """`session`: targets are a visit's events, in chunks of `slate_size`; `next_items`: the next `slate_size`.
    `auto`: `session` where the times make usable sessions (`sessions.usable`), else `next_items`."""
    slate_size: int = 5
    """K: the most events that one target holds."""
    session_gap_s: float = 1800.0
    """A pause longer than this ends a session, where the log has no `session_id`."""
    min_session_length: int = 2
    """Shorter sessions are no target (they stay in histories)."""
    min_history_length: int = 1
    """A target needs at least this many events before it; 0 teaches slates for empty histories too."""
    valid_fraction: float = 0.1
    """Share of events (split `time`) or sessions (split `session`, and `given` without a valid part) for valid."""
    test_fraction: float = 0.1
    """Share of events (split `time`) or sessions (split `session`) for test."""
    min_item_events: int = 1
    """k-core: items with fewer events leave, until none is left to leave."""
    min_user_events: int = 1
    """k-core: users with fewer events leave, until none is left to leave."""
    keep_actions: tuple[str, ...] = ()
    """Only events with these actions are used; empty: all."""
    min_value: float | None = None
    """Only events with at least this value are used (a rating of 4, say); None: all."""
    train_stride: int = 1
    """`next_items`: events between the starts of two rolling training targets."""
    max_train_examples: int = 0
    """The newest training examples kept of a segment; 0: all."""
    repeat_policy: RepeatPolicy = "auto"
    """May a target repeat an item of its history? `auto`: `allow` if over 1 % of the training events do."""
    unseen_items: UnseenItems = "auto"
    """Items without an event: `auto` keeps those of a user's own items file (`table`), and drops other formats'."""
    value_buckets: int = 8
    """Buckets per action for the raw value, cut at quantiles of the training events."""
    seed: int = 0
    """Recorded with the data; `prepare` itself draws nothing at random."""

    def __post_init__(self) -> None:
        for name, value, allowed in (
            ("split", self.split, get_args(Split)),
            ("target_kind", self.target_kind, get_args(TargetKind)),
            ("repeat_policy", self.repeat_policy, get_args(RepeatPolicy)),
            ("unseen_items", self.unseen_items, get_args(UnseenItems)),
        ):
            if value not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(allowed)}, not {value!r}")
        for name, number, least in (
            ("slate_size", self.slate_size, 1),
            ("min_session_length", self.min_session_length, 1),
            ("min_history_length", self.min_history_length, 0),
            ("min_item_events", self.min_item_events, 1),
            ("min_user_events", self.min_user_events, 1),
            ("train_stride", self.train_stride, 1),
            ("max_train_examples", self.max_train_examples, 0),
            ("value_buckets", self.value_buckets, 1),
        ):
            if number < least:
                raise ValueError(f"{name} must be at least {least}, not {number}")
        if not self.session_gap_s > 0:
            raise ValueError(f"session_gap_s must be positive, not {self.session_gap_s}")
        if not (0 <= self.valid_fraction < 1 and 0 <= self.test_fraction < 1):
            raise ValueError("valid_fraction and test_fraction must lie in [0, 1)")
        if self.valid_fraction + self.test_fraction >= 1:
            raise ValueError("valid_fraction and test_fraction leave nothing for train")
