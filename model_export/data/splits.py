"""Which part of the data each event belongs to: 0 train, 1 valid, 2 test.

Inside a segment parts never decrease, so an example's history may reach back into an earlier part, never forward.
Shapes: E events, grouped by segment and in time order inside it.
"""

import numpy as np

from model_export.data.config import PrepareConfig
from model_export.data.errors import DataError
from model_export.data.sessions import Int

PARTS = ("train", "valid", "test")
TRAIN, VALID, TEST = range(3)


def split_by_time(timestamp_ms_E: Int, config: PrepareConfig) -> tuple[Int, tuple[int, int]]:
    """Parts cut at two moments, the same for all users; an event at a cut belongs to the later part.

    Returns the parts and the two cuts in Unix milliseconds.
    """
    ordered = np.sort(timestamp_ms_E)

    def moment(fraction: float) -> int:
        index = int(len(ordered) * fraction)
        return int(ordered[index]) if index < len(ordered) else int(ordered[-1]) + 1

    valid_cut = moment(1 - config.valid_fraction - config.test_fraction)
    test_cut = moment(1 - config.test_fraction)
    part_E = np.searchsorted([valid_cut, test_cut], timestamp_ms_E, side="right")
    return part_E.astype(np.int64), (valid_cut, test_cut)


def split_by_session(session_E: Int, timestamp_ms_E: Int, config: PrepareConfig) -> Int:
    """Whole sessions, ordered by their start: the newest are test, those before valid. None is divided."""
    starts = np.flatnonzero(np.diff(session_E, prepend=-1))
    order = np.argsort(timestamp_ms_E[starts], kind="stable")
    num_sessions = len(starts)
    num_test = round(num_sessions * config.test_fraction)
    num_valid = round(num_sessions * config.valid_fraction)
    part_S = np.full(num_sessions, TRAIN, dtype=np.int64)
    part_S[order[num_sessions - num_test - num_valid : num_sessions - num_test]] = VALID
    part_S[order[num_sessions - num_test :]] = TEST
    return part_S[session_E]


def split_leave_one_out(segment_E: Int) -> Int:
    """Each segment's last event is test, the last but one valid. Segments of fewer than three are all train."""
    length_S = np.bincount(segment_E)
    end_S = np.cumsum(length_S)
    long = length_S >= 3
    part_E = np.full(len(segment_E), TRAIN, dtype=np.int64)
    part_E[end_S[long] - 1] = TEST
    part_E[end_S[long] - 2] = VALID
    return part_E


def carve_valid(part_E: Int, segment_E: Int, config: PrepareConfig) -> Int:
    """A given split without a valid part: the last `valid_fraction` of the training segments become valid."""
    if (part_E == VALID).any() or config.valid_fraction == 0:
        return part_E
    train_segments = np.unique(segment_E[part_E == TRAIN])
    num_valid = round(len(train_segments) * config.valid_fraction)
    carved = train_segments[len(train_segments) - num_valid :]
    return np.where(np.isin(segment_E, carved), VALID, part_E)


def check_split(part_E: Int) -> None:
    """`DataError` where training would see nothing."""
    if not (part_E == TRAIN).any():
        raise DataError("the split leaves no event for train: there is too little data, or all of it at one moment")
