"""Bodies of requests."""

from typing import Annotated, Any, Final

from pydantic import ConfigDict, Discriminator, Field, Tag, model_validator
from pydantic_core import PydanticCustomError

from service.api.fields import (
    ID_PATTERN,
    Count,
    ExternalId,
    Name,
    RecommendationId,
    Seed,
    StrictModel,
    TimestampMs,
    Value,
)
from service.catalog import TagFilter
from service.query import PastEvent

ItemText = Annotated[str, Field(max_length=20_000)]
MAX_TAGS: Final = 1000
MAX_EMBEDDING: Final = 16_384
GROUP_PATTERN: Final = ID_PATTERN.replace("]+$", "]*$")
"""As an id, but it may be empty."""
Tags = Annotated[tuple[Name, ...], Field(min_length=1)]


class HistoryEvent(StrictModel):
    """One event of a history that comes with the request."""

    item_id: ExternalId
    action: Name | None = Field(default=None, description="One of the model's actions; left out: its default action.")
    timestamp: TimestampMs
    value: Value | None = Field(default=None, description="Raw figure of the action, in its unit.")

    def past_event(self, default_action: str) -> PastEvent:
        """The event in the service's own words."""
        return PastEvent(
            item_id=self.item_id,
            action=self.action or default_action,
            timestamp_ms=self.timestamp,
            value=self.value,
        )


class FilterBody(StrictModel):
    """Keeps items with any of, all of, and none of these tags. At least one part must be given."""

    model_config = ConfigDict(json_schema_extra={"minProperties": 1})

    any_of: Tags = ()
    all_of: Tags = ()
    none_of: Tags = ()

    @model_validator(mode="after")
    def _says_something(self) -> "FilterBody":
        if not self.model_fields_set:
            raise PydanticCustomError("filter", "A filter needs any_of, all_of or none_of")
        return self

    def tag_filter(self) -> TagFilter:
        """The filter in the service's own words."""
        return TagFilter(any_of=frozenset(self.any_of), all_of=frozenset(self.all_of), none_of=frozenset(self.none_of))


def _filter_branch(value: object) -> str:
    return FILTER_BRANCHES[0] if isinstance(value, str) else FILTER_BRANCHES[1]


FILTER_BRANCHES: Final = ("filter name", "filter tags")
"""How errors name the two forms of a filter."""
Filter = Annotated[
    Annotated[Name, Tag(FILTER_BRANCHES[0])] | Annotated[FilterBody, Tag(FILTER_BRANCHES[1])],
    Discriminator(_filter_branch),
]


class RecommendBody(StrictModel):
    """Asks for a user's next slate."""

    user_id: ExternalId
    slate_size: Count = Field(description="Items asked for, at most the model's slate size.")
    num_slates: Count = Field(
        default=1, description="Whole slates asked for, the others as `alternatives`; at most the model's beam width."
    )
    beam_width: Count | None = Field(
        default=None,
        description="Beams of the search, whatever the load, and no fewer than slates: more of them find better slates "
        "and take longer. Left out: the model's own, fewer while requests queue up.",
    )
    history: tuple[HistoryEvent, ...] | None = Field(
        default=None, description="In any order; replaces the stored history and counts as seen."
    )
    exclude: tuple[ExternalId, ...] = Field(default=(), description="Items that must not be in the slate.")
    exclude_seen: bool = Field(default=True, description="Leave out what the user has seen.")
    seen_actions: tuple[Name, ...] | None = Field(
        default=None, description="Only events of these actions count as seen; left out: all."
    )
    filter: Filter | None = Field(default=None, description="A named filter, or tags.")
    max_per_group: Count | None = Field(
        default=None,
        description="Most items of one group in the slate, which may leave it shorter; left out: any number.",
    )
    diversity: Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)] = Field(
        default=0.0,
        description="What a slate's score, in nats, loses for every two of its items that share their first code.",
    )
    temperature: Annotated[float, Field(ge=0.01, le=100, allow_inf_nan=False)] | None = Field(
        default=None,
        description="Draws the slate instead of taking the best: each code from the softmax of its score over this, "
        "among the codes that are legal then. 1: as the model learned; near 0: as the best; larger: more even.",
    )
    seed: Seed | None = Field(
        default=None,
        description="Of the draw: the same request draws the same slate. Alone: temperature 1. Left out: a fresh one.",
    )
    continue_from: RecommendationId | None = Field(
        default=None,
        description="A `recommendation_id` of this user: the next slate, without what it and those before it showed.",
    )
    explain: bool = Field(
        default=False, description="Say which code was how likely at each step, and what else was close."
    )
    model_version: Name | None = Field(
        default=None,
        description="Which of the models in service answers, to compare two; left out: the user's, always the same.",
    )
    deadline_ms: Annotated[float, Field(ge=1, le=60_000, allow_inf_nan=False)] | None = Field(
        default=None, description="Answer by then, with a popular slate if need be; left out: the service's default."
    )


_ANY_BUT_BEST: Final[dict[str, Any]] = {"anyOf": [{"$ref": "#/components/schemas/RecommendBody"}, {}]}
"""What else the array holds is no error of the whole."""


class BatchBody(StrictModel):
    """Asks for the next slates of many users. Each request is read by itself, so that a bad one fails alone."""

    requests: Annotated[tuple[Any, ...], Field(min_length=1, json_schema_extra={"items": _ANY_BUT_BEST})]


class ItemBody(StrictModel):
    """What an item is. A new one is placed by its embedding, or else by title, text and tags."""

    title: ItemText | None = None
    text: ItemText | None = None
    tags: Annotated[tuple[Name, ...], Field(max_length=MAX_TAGS)] | None = None
    group: Annotated[str, Field(max_length=100, pattern=GROUP_PATTERN)] | None = Field(
        default=None, description="The one tag that caps per group count by; empty: none."
    )
    available: bool | None = Field(default=None, description="Whether it may be recommended now.")
    embedding: Annotated[tuple[Value, ...], Field(min_length=1, max_length=MAX_EMBEDDING)] | None = Field(
        default=None, description="As wide as the model's embeddings; instead of the text."
    )


class ItemChangeBody(ItemBody):
    """What changes of an item; members left out stay as they are."""

    item_id: ExternalId
    removed: bool | None = Field(default=None, description="true takes the item out, false brings it back.")


class ItemsBody(StrictModel):
    """Changes of items; several of one item count in their order."""

    items: Annotated[tuple[ItemChangeBody, ...], Field(min_length=1)]


class ActivateBody(StrictModel):
    """Who gets a model."""

    share: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] = Field(
        default=1.0, description="Of users, always the same ones; below 1 the others stay with the active model."
    )


class LeaveBody(StrictModel):
    """Which model to leave."""

    model_version: Name | None = Field(
        default=None,
        description="Nothing is done where it is not in service (any more), so that asking again does no harm; left "
        "out: whatever is in service now.",
    )


class RollbackBody(StrictModel):
    """Where the catalog goes back to."""

    catalog_version: ExternalId = Field(description="As `GET /v1/catalog` lists them, or its `bundle_version`.")


class EventBody(StrictModel):
    """What a user did."""

    event_id: ExternalId = Field(description="The client's own; sending it again is harmless.")
    user_id: ExternalId
    item_id: ExternalId
    action: Name | None = Field(default=None, description="One of the model's actions; left out: its default action.")
    timestamp: TimestampMs
    value: Value | None = Field(default=None, description="Raw figure of the action, in its unit.")
    recommendation_id: ExternalId | None = Field(default=None, description="The slate that led to the event.")


class EventsBody(StrictModel):
    """Events of any users, in any order."""

    events: Annotated[tuple[EventBody, ...], Field(min_length=1)]
