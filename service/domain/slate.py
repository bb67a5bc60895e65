"""What is answered: an ordered slate of items."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class SlateItem:
    """One place of a slate."""

    item_id: str
    score: float
    """Sum of the item's logprobs over its levels; scores of different positions are not comparable."""
    sid: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Slate:
    """The answer to one request: items in order, and how they came about."""

    items: tuple[SlateItem, ...]
    source: str
    """`model` or `popular`."""
    model_version: str
    catalog_version: str
    beam_width: int = 0
    """Beams that the decoder ran with; 0 when no model ran."""
    degraded: bool = False
    reason: str | None = None
    """The most severe of what went less than perfectly; None when nothing did."""
