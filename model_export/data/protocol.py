"""What `auto` means: the split, the kind of target and the repeat policy that fit a data set.

Shapes: E events, grouped by segment and in time order inside it.
"""

from typing import Literal

import numpy as np

from model_export.data.config import PrepareConfig
from model_export.data.log import EventLog
from model_export.data.sessions import Bool, Int, usable
from model_export.data.splits import carve_valid, check_split, split_by_session, split_by_time, split_leave_one_out

SplitName = Literal["given", "time", "session", "leave_one_out"]
MAX_REPEAT_SHARE_EXCLUDED = 0.01


def choose_split(log: EventLog, config: PrepareConfig) -> SplitName:
    """The split to use. `ValueError` where the configured one does not fit the data."""
    if log.is_given:
        if config.split not in ("auto", "given"):
            raise ValueError(f"format {config.format!r} brings its own split here: split must be auto or given")
        return "given"
    if config.split == "auto":
        return "time" if log.has_times else "leave_one_out"
    if config.split == "given":
        raise ValueError(f"format {config.format!r} gives no split here: choose time, session or leave_one_out")
    if config.split == "time" and not log.has_times:
        raise ValueError("these data have no times: split must be session or leave_one_out")
    return config.split


def assign_parts(
    split: SplitName,
    *,
    segment_E: Int,
    session_E: Int,
    timestamp_ms_E: Int,
    given_part_E: Int | None,
    config: PrepareConfig,
) -> tuple[Int, list[int]]:
    """Each event's part, and the two cuts in Unix milliseconds where the split is in time.

    `DataError` where nothing is left for train.
    """
    cuts: list[int] = []
    if given_part_E is not None:
        part_E = carve_valid(given_part_E, segment_E, config)
    elif split == "time":
        part_E, (valid_cut, test_cut) = split_by_time(timestamp_ms_E, config)
        cuts = [valid_cut, test_cut]
    elif split == "session":
        part_E = split_by_session(session_E, timestamp_ms_E, config)
    else:
        part_E = split_leave_one_out(segment_E)
    check_split(part_E)
    return part_E, cuts


def choose_target_kind(
    log: EventLog, segment_E: Int, timestamp_ms_E: Int, session_E: Int, config: PrepareConfig
) -> Literal["session", "next_items"]:
    """`session` where sessions are usable, else `next_items`; the configured kind wherever it is possible."""
    has_ids = bool(log.events["session_id"].is_not_null().any())
    is_possible = log.has_times or has_ids or log.anonymous
    if config.target_kind == "session" and not is_possible:
        raise ValueError("these data have neither times nor session_id: target_kind must be next_items")
    if config.target_kind != "auto":
        return config.target_kind
    if log.anonymous or not is_possible:
        return "next_items"
    return "session" if usable(segment_E, timestamp_ms_E, session_E, has_ids=has_ids, config=config) else "next_items"


def repeat_share(segment_E: Int, item_E: Int, train_E: Bool) -> float:
    """Share of the training events whose item stands earlier in their segment."""
    _, first_E = np.unique(segment_E * (int(item_E.max()) + 1) + item_E, return_index=True)
    is_repeat_E = np.ones(len(item_E), dtype=np.bool_)
    is_repeat_E[first_E] = False
    return float(is_repeat_E[train_E].mean())


def choose_repeat_policy(share: float, config: PrepareConfig) -> Literal["allow", "exclude"]:
    """`allow` where over 1 % of the training events are repeats; the configured policy otherwise."""
    if config.repeat_policy != "auto":
        return config.repeat_policy
    return "allow" if share > MAX_REPEAT_SHARE_EXCLUDED else "exclude"
