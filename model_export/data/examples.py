"""Examples: which events a model sees and which it should write, as offsets into the events.

Shapes: E events, grouped by segment and in time order inside it; N examples; U units (runs that targets stay within).
"""

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Literal

import numpy as np

from model_export.data.config import PrepareConfig
from model_export.data.sessions import Bool, Int
from model_export.data.splits import PARTS, TRAIN


@dataclass(frozen=True, kw_only=True)
class Examples:
    """N examples. Offsets into the events, half open; a history ends where its target starts."""

    segment: Int
    history_start: Int
    history_end: Int
    target_start: Int
    target_end: Int

    def __len__(self) -> int:
        return len(self.segment)

    def __getitem__(self, selection: Int | Bool | slice) -> "Examples":
        """The selected examples, in the order of the selection."""
        return Examples(**{field.name: getattr(self, field.name)[selection] for field in fields(self)})


@dataclass(frozen=True, kw_only=True)
class Timeline:
    """The events as far as examples depend on them."""

    segment_E: Int
    session_E: Int
    part_E: Int
    last_only_E: Bool
    """Only the segment's last event is a target."""


def build_examples(
    timeline: Timeline,
    *,
    target_kind: Literal["session", "next_items"],
    item_protocol: bool,
    config: PrepareConfig,
) -> dict[str, Examples]:
    """Examples by split name.

    Train, `session`: every session of at least `min_session_length`, in chunks of K. Train, `next_items`: the next K
    events at every `train_stride`-th event. Valid and test: chunks of K that do not overlap; with `item_protocol`
    (leave-one-out and given splits) exactly one event, at every event of the part or, with `last_only`, at the last.
    A target never leaves its segment, its part and, for `session`, its session; its history is everything before it
    in the segment, at least `min_history_length` events.
    """
    examples = {}
    for part, name in enumerate(PARTS):
        by_item = item_protocol and part != TRAIN
        in_sessions = target_kind == "session" and not by_item
        segment_start_U, start_U, end_U = _units(timeline, part, by_session=in_sessions)
        if in_sessions:
            long = end_U - start_U >= config.min_session_length
            segment_start_U, start_U, end_U = segment_start_U[long], start_U[long], end_U[long]
        first_U = np.maximum(start_U, segment_start_U + config.min_history_length)
        first_U = np.where(timeline.last_only_E[end_U - 1], np.maximum(first_U, end_U - 1), first_U)
        width = 1 if by_item else config.slate_size
        stride = config.train_stride if part == TRAIN and target_kind == "next_items" else width
        unit, target_start, target_end = _windows(first_U, end_U, width=width, stride=stride)
        found = Examples(
            segment=timeline.segment_E[target_start],
            history_start=segment_start_U[unit],
            history_end=target_start,
            target_start=target_start,
            target_end=target_end,
        )
        examples[name] = _newest(found, config.max_train_examples) if part == TRAIN else found
    return examples


def _units(timeline: Timeline, part: int, *, by_session: bool) -> tuple[Int, Int, Int]:
    """Runs of one segment and one part (and one session): their segment's start, their start, their end."""
    changes = (np.diff(timeline.segment_E) != 0) | (np.diff(timeline.part_E) != 0)
    if by_session:
        changes |= np.diff(timeline.session_E) != 0
    start_U = np.concatenate([[0], np.flatnonzero(changes) + 1]).astype(np.int64)
    end_U = np.append(start_U[1:], len(timeline.segment_E)).astype(np.int64)
    segment_start = np.searchsorted(timeline.segment_E, timeline.segment_E[start_U], side="left").astype(np.int64)
    mine = timeline.part_E[start_U] == part
    return segment_start[mine], start_U[mine], end_U[mine]


def _windows(first_U: Int, end_U: Int, *, width: int, stride: int) -> tuple[Int, Int, Int]:
    """Windows of up to `width` from `first` every `stride` until `end`: their unit, start and end."""
    count_U = np.maximum(-(-(end_U - first_U) // stride), 0)
    unit = np.repeat(np.arange(len(first_U)), count_U)
    place = np.arange(len(unit)) - np.repeat(np.cumsum(count_U) - count_U, count_U)
    start = first_U[unit] + place * stride
    return unit, start, np.minimum(start + width, end_U[unit])


def _newest(examples: Examples, limit: int) -> Examples:
    """The last `limit` examples of each segment; 0: all."""
    if limit == 0 or len(examples) == 0:
        return examples
    end_S = np.cumsum(np.bincount(examples.segment))
    return examples[end_S[examples.segment] - np.arange(len(examples)) <= limit]


def target_items(item_E: Int, examples: Examples, slate_size: int) -> Int:
    """Items of the targets `[N, slate_size]`: each item once, where it comes first; -1 pads.

    A slate never repeats an item, while a log may (a click repeated, a view and then a like).
    """
    items_NK = np.full((len(examples), slate_size), -1, dtype=np.int64)
    for column, offsets in _columns(examples, slate_size):
        item_N = np.where(offsets < examples.target_end, item_E[np.minimum(offsets, len(item_E) - 1)], -1)
        is_new = (items_NK[:, :column] != item_N[:, None]).all(axis=1)
        items_NK[:, column] = np.where(is_new, item_N, -1)
    order = np.argsort(items_NK < 0, axis=1, kind="stable")
    return np.take_along_axis(items_NK, order, axis=1)


def _columns(examples: Examples, slate_size: int) -> Iterator[tuple[int, Int]]:
    for column in range(slate_size):
        yield column, examples.target_start + column
