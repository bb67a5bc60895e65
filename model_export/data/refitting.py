"""Train and validation put together, for the fit whose test figure is reported.

A data set with given evaluation rows (`industrial`) has a segment for each of them: a copy of the user's newest events,
then the target. Such a target is put behind the user's sequence that ends in the copy, so that no event counts twice; a
copy that continues none (a user whose first target is a validation row) stays a segment, all of it training.

Shapes: E events, N examples, S segments, G events after the change.
"""

import dataclasses
import itertools
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from model_export.data.examples import Examples
from model_export.data.splits import PARTS, TRAIN, VALID

Int = npt.NDArray[np.int64]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Refitted:
    """What changes: the events in their new order, and the examples."""

    event_G: Int
    """Old place of each event."""
    segment_G: npt.NDArray[np.int32]
    session_G: npt.NDArray[np.int32]
    part_G: npt.NDArray[np.int8]
    splits: dict[str, Examples]


def refitted(
    *,
    user_id_E: pl.Series,
    item_E: npt.NDArray[np.int32],
    segment_E: npt.NDArray[np.int32],
    session_E: npt.NDArray[np.int32],
    part_E: npt.NDArray[np.int8],
    splits: dict[str, Examples],
) -> Refitted:
    """Makes the examples of `valid` examples of `train`; those of `test` keep their histories and targets."""
    start_S = np.flatnonzero(np.diff(segment_E, prepend=-1)).astype(np.int64)
    end_S = np.append(start_S[1:], len(segment_E)).astype(np.int64)
    copies = _copies(splits["valid"], part_E, start_S, end_S)
    home_of = _homes(copies, user_id_E.gather(start_S).to_list(), item_E, part_E, start_S, end_S) if copies else {}
    event_G, segment_G = _new_order(home_of, start_S, end_S)
    # A target behind a sequence belongs to the session that it continues.
    home_E = np.arange(len(segment_E))
    for copy, home in home_of.items():
        home_E[end_S[copy] - 1] = end_S[home] - 1
    session_G = session_E[home_E[event_G]]
    starts = (np.diff(segment_G, prepend=-1) != 0) | (np.diff(session_G, prepend=-1) != 0)
    return Refitted(
        event_G=event_G,
        segment_G=segment_G,
        session_G=(np.cumsum(starts) - 1).astype(np.int32),
        part_G=np.where(part_E[event_G] == VALID, TRAIN, part_E[event_G]).astype(np.int8),
        splits=_moved(splits, event_G, segment_G, len(segment_E), home_of, start_S),
    )


def _copies(valid: Examples, part_E: npt.NDArray[np.int8], start_S: Int, end_S: Int) -> set[int]:
    """Segments that exist for one validation example alone: its history, then its one target event."""
    is_whole = (valid.history_start == start_S[valid.segment]) & (valid.target_end == end_S[valid.segment])
    is_alone = np.bincount(valid.segment, minlength=len(start_S))[valid.segment] == 1
    is_copy = (
        is_whole & is_alone & (valid.target_end - valid.target_start == 1) & (valid.history_end > valid.history_start)
    )
    is_copy &= part_E[start_S[valid.segment]] == VALID
    return set(valid.segment[is_copy].tolist())


def _homes(
    copies: set[int],
    user_S: list[str],
    item_E: npt.NDArray[np.int32],
    part_E: npt.NDArray[np.int8],
    start_S: Int,
    end_S: Int,
) -> dict[int, int]:
    """The segment that each copy's target continues: of the same user, ending in the copy's history.

    A copy that continues none is the first of its user: later ones may continue it.
    """
    sequences: dict[str, list[tuple[int, list[int]]]] = {}
    homes: dict[int, int] = {}
    for segment, (start, end) in enumerate(zip(start_S.tolist(), end_S.tolist(), strict=True)):
        items = item_E[start:end].tolist()
        if part_E[start] != TRAIN and segment not in copies:
            continue
        known = sequences.setdefault(user_S[segment], [])
        home = next((at for at in reversed(known) if segment in copies and _ends_in(at[1], items[:-1])), None)
        if home is None:
            known.append((segment, items))
        else:
            home[1].append(items[-1])
            homes[segment] = home[0]
    return homes


def _ends_in(sequence: list[int], history: list[int]) -> bool:
    return sequence[-len(history) :] == history


def _new_order(home_of: dict[int, int], start_S: Int, end_S: Int) -> tuple[Int, npt.NDArray[np.int32]]:
    """Old places of the events in their new order, and their new segments."""
    followers: dict[int, list[int]] = {}
    for copy, home in home_of.items():
        followers.setdefault(home, []).append(int(end_S[copy]) - 1)
    kept = [segment for segment in range(len(start_S)) if segment not in home_of]
    parts = [
        [*range(start, end), *followers.get(segment, [])]
        for segment, start, end in zip(kept, start_S[kept].tolist(), end_S[kept].tolist(), strict=True)
    ]
    segment_G = np.repeat(np.arange(len(kept)), [len(part) for part in parts]).astype(np.int32)
    return np.fromiter(itertools.chain.from_iterable(parts), dtype=np.int64, count=len(segment_G)), segment_G


def _moved(
    splits: dict[str, Examples],
    event_G: Int,
    segment_G: npt.NDArray[np.int32],
    num_events: int,
    home_of: dict[int, int],
    start_S: Int,
) -> dict[str, Examples]:
    """The examples at their new offsets, those of valid behind those of train."""
    place_E = np.full(num_events, -1, dtype=np.int64)
    place_E[event_G] = np.arange(len(event_G))
    moved = {}
    for name in PARTS:
        found = splits[name]
        target = place_E[found.target_start]
        home = np.array([home_of.get(segment, segment) for segment in found.segment.tolist()], dtype=np.int64)
        # The history of a stitched target is everything before it in its new segment, of which the copy held the end.
        was_stitched = home != found.segment
        start = np.where(was_stitched, place_E[start_S[home]], target - (found.target_start - found.history_start))
        moved[name] = Examples(
            segment=segment_G[target].astype(np.int64),
            history_start=start,
            history_end=target,
            target_start=target,
            target_end=target + (found.target_end - found.target_start),
        )
    train, valid = moved["train"], moved["valid"]
    fields: dict[str, Any] = {
        field.name: np.concatenate([getattr(train, field.name), getattr(valid, field.name)])
        for field in dataclasses.fields(Examples)
    }
    return {"train": Examples(**fields), "valid": valid[:0], "test": moved["test"]}
