"""Bodies of answers: what OpenAPI promises. Routes send bytes that tests hold against these."""

from typing import Annotated, Literal

from pydantic import Field

from service.api.fields import AnswerModel


class ProblemFieldError(AnswerModel):
    """What is wrong at one place of the request."""

    pointer: str = Field(description="JSON pointer into the body, or a path parameter.")
    detail: str


class ProblemBody(AnswerModel):
    """An error as in RFC 9457."""

    type: str = Field(description="What kind of problem: a URI that stays the same.")
    title: str
    status: int
    detail: str
    errors: list[ProblemFieldError] = Field(default_factory=list)
    request_id: str = Field(default="", description="Names the request in the logs.")


class ItemAnswer(AnswerModel):
    """One place of a slate."""

    item_id: str
    score: float = Field(description="Logprob of the item at its place; not comparable between places.")
    sid: list[int]


class AlternativeAnswer(AnswerModel):
    """Another whole slate."""

    items: list[ItemAnswer]
    score: float = Field(description="Sum of its items' scores.")
    reward: float | None = Field(description="What the reward model expects of it; null where the model has none.")


class RunnerUpAnswer(AnswerModel):
    """A legal code that could have been written instead."""

    code: int
    logprob: float
    item_id: str | None = Field(description="The most popular item below it; null when there is none any more.")


class ExplainedCodeAnswer(AnswerModel):
    """One code of an item's semantic ID."""

    code: int
    logprob: float = Field(description="Of the code after all codes before it; they sum up to the item's score.")
    runner_ups: list[RunnerUpAnswer] = Field(description="The most likely others, best first.")


class ExplainedItemAnswer(AnswerModel):
    """How one item of the slate was written."""

    item_id: str
    levels: list[ExplainedCodeAnswer]


class TookMs(AnswerModel):
    """Milliseconds by stage; features and inference are the whole batch's, and an explanation counts in total alone."""

    history: float
    features: float
    queue: float
    inference: float
    total: float


class RecommendAnswer(AnswerModel):
    """A slate, and how it came about."""

    recommendation_id: str
    model_version: str
    catalog_version: str
    beam_width: int
    source: Literal["model", "popular"]
    degraded: bool
    reason: (
        Literal[
            "model_unavailable",
            "deadline",
            "history_unavailable",
            "stale_history",
            "unknown_continuation",
            "too_few_items",
            "not_explained",
            "cold_start",
        ]
        | None
    )
    items: list[ItemAnswer]
    score: float | None = Field(description="Sum of its items' scores; null when no model ran.")
    reward: float | None = Field(description="What the reward model expects of the slate; null where there is none.")
    propensity: float | None = Field(
        description="Probability that a slate drawn for this request begins with these items in this order, whatever "
        "the seed; null where the slate was not drawn."
    )
    seed: int | None = Field(description="With which the slate was drawn; null where it was not.")
    alternatives: list[AlternativeAnswer] = Field(
        description="The next best slates, best first, each with another set of items; fewer where there are no more."
    )
    explanation: list[ExplainedItemAnswer] | None = Field(
        description="One for each of `items`; null when not asked for, or `not_explained` for want of time."
    )
    took_ms: TookMs


class BatchResult(AnswerModel):
    """What became of one request."""

    status: int = Field(description="As the request alone would have been answered with.")
    answer: RecommendAnswer | None = Field(description="With status 200.")
    problem: ProblemBody | None = Field(description="With any other.")
    retry_after_s: int | None = Field(description="Seconds, with status 429.")


class BatchAnswer(AnswerModel):
    """One result per request, in their order."""

    results: list[BatchResult]


class SimilarItemAnswer(AnswerModel):
    """An item that is like another."""

    item_id: str
    num_shared: int = Field(description="First codes of the semantic IDs that are the same.")
    cosine: float | None = Field(description="Of the model's item vectors; null where it has none.")


class SimilarAnswer(AnswerModel):
    """What is like an item, most similar first."""

    item_id: str
    catalog_version: str
    items: list[SimilarItemAnswer]


class EventResult(AnswerModel):
    """What became of one event."""

    event_id: str
    status: Literal["stored", "duplicate", "refused"]
    problem: ProblemBody | None = Field(default=None, description="Why it is refused.")


class EventsAnswer(AnswerModel):
    """One result per event, in their order."""

    results: list[EventResult]


class CatalogItemAnswer(AnswerModel):
    """An item of the catalog."""

    item_id: str
    title: str
    text: str
    tags: list[str]
    group: str
    available: bool
    sid: list[int]
    num_events: int = Field(description="Training events.")
    catalog_version: str


class ItemResult(AnswerModel):
    """What became of one change."""

    item_id: str
    status: Literal["added", "changed", "removed", "refused"]
    sid: list[int] | None = Field(description="Where the model has its place; null where it has none.")
    problem: ProblemBody | None = Field(default=None, description="Why it is refused.")


class ItemsAnswer(AnswerModel):
    """One result per change, in their order. Slates follow within a second, on every replica."""

    results: list[ItemResult]


class CatalogVersionAnswer(AnswerModel):
    """A version of the catalog, and what made it."""

    catalog_version: str
    changed_at: float = Field(description="Unix seconds.")
    num_changes: int = Field(description="Changes of items that came at once and made this version.")


class CatalogAnswer(AnswerModel):
    """The catalog in service, and the versions before it."""

    catalog_version: str
    bundle_version: str = Field(description="Of the bundle's own items, without any change.")
    num_items: int = Field(description="Removed ones included: histories that hold them stay readable.")
    num_shown: int = Field(description="Items that can be recommended.")
    versions: list[CatalogVersionAnswer] = Field(description="Newest first, as far back as asked for.")


class RollbackAnswer(AnswerModel):
    """What a rollback did."""

    catalog_version: str = Field(description="The new version; its items are as in the one that was asked for.")
    num_changes: int = Field(description="Items that are as they were then; those that came since are removed.")


class ModelAnswer(AnswerModel):
    """A registered model."""

    model_version: str
    created: str = Field(description="RFC 3339 time of its export.")
    slate_size: int
    metrics: dict[str, float] = Field(description="Of its test, by name.")


class ModelsAnswer(AnswerModel):
    """Which models are in service, and which may be."""

    active: str = Field(description="Answers every user, or all but those of the canary.")
    canary: str | None = Field(description="Answers a share of users.")
    canary_share: float
    previous: list[str] = Field(description="Active before, newest first: what a rollback goes back to.")
    serving: list[str] = Field(description="What answers on this replica now: it may be a second behind.")
    models: list[ModelAnswer] = Field(description="What may be activated.")


class HistoryEventAnswer(AnswerModel):
    """One event of a stored history."""

    item_id: str | None = Field(description="null when the catalog does not hold the item any more.")
    action: str
    timestamp: float = Field(description="Unix seconds.")
    value: float | None


class HistoryAnswer(AnswerModel):
    """A user's history, newest last; empty for an unknown user."""

    user_id: str
    events: list[HistoryEventAnswer]
    num_seen: int = Field(description="Items that the next slate leaves out.")


class UsersAnswer(AnswerModel):
    """Some users."""

    user_ids: list[str]


class LiveAnswer(AnswerModel):
    """The process runs."""

    status: Literal["ok"]


NotReadyReason = Literal["starting", "stopping", "inference_worker_gone", "inference_stuck"]


class ReadyAnswer(AnswerModel):
    """Whether requests should come here, and what works less than fully."""

    status: Literal["ready", "not_ready"]
    reasons: list[NotReadyReason] = Field(description="Why not ready.")
    degraded: list[Literal["history_unavailable", "model_not_loaded", "canary_unwell"]] = Field(
        description="What does not work, while slates still do."
    )


class VersionAnswer(AnswerModel):
    """What runs."""

    version: str
    model_version: str
    catalog_version: str
    num_items: Annotated[int, Field(ge=1)]
    provider: str
    precision: str
    slate_size: int
    beam_width: int = Field(description="Of a search that names none, while nothing queues up.")
    max_beam_width: int = Field(description="That a request may name.")
    actions: list[str]
    filters: list[str] = Field(description="Names of filters.")
    durability: Literal["strong", "everysec", "none", "unknown"] = Field(
        description="What an acknowledged event survives; strong: any crash."
    )
