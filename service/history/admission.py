"""Which events a history takes, and their packed arrays: the rules that every store shares."""

import math
from collections.abc import Sequence

import numpy as np

from service.domain import Event, item_key
from service.history.codec import ENTRY_BYTES, ENTRY_DTYPE, MAX_TIMESTAMP_MS, encode_entries
from service.history.store import MAX_NUM_ACTIONS, EventOutcome, HistoryLimits

_MAX_VALUE = float(np.finfo(np.float32).max)


def refusal(event: Event, now_ms: int, limits: HistoryLimits) -> EventOutcome | None:
    """Why the event is refused whatever is stored already; None when it is not."""
    if not 0 <= event.timestamp_ms <= MAX_TIMESTAMP_MS:
        return EventOutcome("refused", "timestamp_out_of_range", f"timestamp must lie in 0..{MAX_TIMESTAMP_MS} ms")
    ahead_ms = event.timestamp_ms - now_ms
    if ahead_ms > limits.future_tolerance_ms:
        detail = f"timestamp lies {ahead_ms} ms ahead; at most {limits.future_tolerance_ms} ms are tolerated"
        return EventOutcome("refused", "timestamp_in_future", detail)
    # NaN is how "no value" is stored, and an overflow would become infinity: neither may come from outside.
    if event.value is not None and not (math.isfinite(event.value) and abs(event.value) <= _MAX_VALUE):
        return EventOutcome("refused", "value_out_of_range", "value must be finite and fit 32 bits")
    return None


def no_room_for_action(event: Event) -> EventOutcome:
    """The refusal of an event whose action is new when the registry is full."""
    detail = f"action {event.action!r} is new and the registry already holds {MAX_NUM_ACTIONS} actions"
    return EventOutcome("refused", "too_many_actions", detail)


def pack(events: Sequence[Event], action_numbers: dict[str, int]) -> list[bytes]:
    """Each event's packed entry; every action must have a number."""
    entries_N = np.empty(len(events), ENTRY_DTYPE)
    entries_N["item_key"] = [item_key(event.item_id) for event in events]
    entries_N["timestamp_ms"] = [event.timestamp_ms for event in events]
    entries_N["value"] = [math.nan if event.value is None else event.value for event in events]
    entries_N["action"] = [action_numbers[event.action] for event in events]
    packed = encode_entries(entries_N)
    return [packed[start : start + ENTRY_BYTES] for start in range(0, len(packed), ENTRY_BYTES)]
