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


class TookMs(AnswerModel):
    """Milliseconds by stage; features and inference are those of the whole batch."""

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
    reason: Literal["model_unavailable", "deadline", "history_unavailable", "too_few_items", "cold_start"] | None
    items: list[ItemAnswer]
    took_ms: TookMs


class EventResult(AnswerModel):
    """What became of one event."""

    event_id: str
    status: Literal["stored", "duplicate", "refused"]
    problem: ProblemBody | None = Field(default=None, description="Why it is refused.")


class EventsAnswer(AnswerModel):
    """One result per event, in their order."""

    results: list[EventResult]


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


class LiveAnswer(AnswerModel):
    """The process runs."""

    status: Literal["ok"]


NotReadyReason = Literal["starting", "stopping", "inference_worker_gone"]


class ReadyAnswer(AnswerModel):
    """Whether requests should come here, and what works less than fully."""

    status: Literal["ready", "not_ready"]
    reasons: list[NotReadyReason] = Field(description="Why not ready.")
    degraded: list[Literal["history_unavailable"]] = Field(description="What does not work, while slates still do.")


class VersionAnswer(AnswerModel):
    """What runs."""

    version: str
    model_version: str
    catalog_version: str
    num_items: Annotated[int, Field(ge=1)]
    provider: str
    precision: str
    slate_size: int
    actions: list[str]
    filters: list[str] = Field(description="Names of filters.")
    durability: Literal["strong", "everysec", "none", "unknown"] = Field(
        description="What an acknowledged event survives; strong: any crash."
    )
