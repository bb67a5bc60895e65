"""What a user was shown: a slate, and how it came about."""

from dataclasses import dataclass

from service.domain.slate import Slate


@dataclass(frozen=True, slots=True, kw_only=True)
class Impression:
    """A slate as it was answered."""

    user_id: str
    recommendation_id: str
    """32 hexadecimal digits."""
    continued_from: str | None
    """The slate that this one is the next after."""
    timestamp_ms: int
    """When it was asked for, Unix time in milliseconds."""
    slate: Slate
    temperature: float | None = None
    """That the slate was drawn with; None where none was sampled."""
