"""Sessions: what one visit consumed together.

Shapes: E events, grouped by segment and in time order inside it.
"""

import numpy as np
import numpy.typing as npt

from model_export.data.config import PrepareConfig

Int = npt.NDArray[np.int64]
Bool = npt.NDArray[np.bool_]

MAX_SHARE_WITHIN_A_SECOND = 0.25
MIN_SHARE_IN_SESSIONS = 0.5


def number_sessions(
    segment_E: Int, timestamp_ms_E: Int, visit_E: Int, *, has_pauses: bool, session_gap_s: float
) -> Int:
    """Dense ascending session numbers, unique across segments.

    `visit_E` numbers the log's own `session_id`, -1 where it has none. A session is a run of one `session_id`; where
    there is none, it ends at a pause longer than `session_gap_s`, or, without `has_pauses`, with the segment.
    """
    starts = (np.diff(segment_E) != 0) | (np.diff(visit_E) != 0)
    if has_pauses:
        starts |= (np.diff(timestamp_ms_E) > session_gap_s * 1000) & (visit_E[1:] < 0)
    return np.concatenate([[0], np.cumsum(starts)]).astype(np.int64)


def usable(segment_E: Int, timestamp_ms_E: Int, session_E: Int, *, has_ids: bool, config: PrepareConfig) -> bool:
    """Do these sessions say what was consumed together, in order?

    They do not where over a quarter of a segment's consecutive events fall within the same second (ratings typed in
    bulk: half of MovieLens 100k), unless the log names its sessions itself; nor where fewer than half of the events
    lie in sessions of at least `min_session_length`.
    """
    is_pair = np.diff(segment_E) == 0
    if not is_pair.any():
        return False
    within_a_second = float((np.diff(timestamp_ms_E)[is_pair] < 1000).mean())
    if within_a_second > MAX_SHARE_WITHIN_A_SECOND and not has_ids:
        return False
    length_E = np.bincount(session_E)[session_E]
    return float((length_E >= config.min_session_length).mean()) >= MIN_SHARE_IN_SESSIONS
