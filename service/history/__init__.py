"""User histories: the protocol, the packed form, and who keeps them (Redis, or this process for tests).

`redis_store` and `embedded` are imported by name, where Redis is wanted.
"""

from service.history.guarded import CopyLimits, GuardedHistoryStore
from service.history.memory import MemoryHistoryStore
from service.history.shown import ShownRecorder, shown_until
from service.history.store import Durability, EventOutcome, HistoryLimits, HistoryStore, ShownSlate, UserHistory

__all__ = [
    "CopyLimits",
    "Durability",
    "EventOutcome",
    "GuardedHistoryStore",
    "HistoryLimits",
    "HistoryStore",
    "MemoryHistoryStore",
    "ShownRecorder",
    "ShownSlate",
    "UserHistory",
    "shown_until",
]
