"""What happened: a user's action on an item at a time."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One action of one user, as a client sends it or a log holds it."""

    user_id: str
    item_id: str
    action: str
    timestamp_ms: int
    """Unix time in milliseconds."""
    value: float | None = None
    """Raw figure of the action (watch seconds, rating); its unit stands per action in the manifest."""
    event_id: str | None = None
    """The client's own id: two events of one user with one `event_id` are one event."""
    recommendation_id: str | None = None


@dataclass(frozen=True, slots=True)
class HistoryEntry:
    """One event inside a user history, as the store keeps it: the item by its 64-bit key."""

    item_key: int
    timestamp_ms: int
    action: str
    value: float | None = None
