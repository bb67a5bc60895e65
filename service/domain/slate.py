"""What is answered: an ordered slate of items."""

from dataclasses import dataclass

from service.domain.explanation import ExplainedItem


@dataclass(frozen=True, slots=True)
class SlateItem:
    """One place of a slate."""

    item_id: str
    score: float
    """Sum of the item's logprobs over its levels; scores of different positions are not comparable."""
    sid: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class RankedSlate:
    """A whole slate that the model wrote."""

    items: tuple[SlateItem, ...]
    score: float
    """Sum of its items' scores."""
    reward: float | None
    """What the reward model expects of it; None where the bundle has none."""
    propensity: float | None = None
    """Probability that a sampled slate begins with these items in this order; None where none was sampled."""


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
    score: float | None = None
    """As `RankedSlate.score`; None when no model ran."""
    reward: float | None = None
    propensity: float | None = None
    """As `RankedSlate.propensity`."""
    seed: int | None = None
    """That the slate was drawn with; None where none was sampled."""
    alternatives: tuple[RankedSlate, ...] = ()
    """Further slates, best first; each shows another set of items."""
    explanation: tuple[ExplainedItem, ...] | None = None
    """One for each item, where it was asked for and there was time."""
    reason: str | None = None
    """The most severe of what went less than perfectly; None when nothing did."""
