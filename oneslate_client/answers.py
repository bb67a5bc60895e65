"""What is answered. Members that this version does not know are kept, so that a newer service is no error."""

from typing import Any

from pydantic import BaseModel, ConfigDict


class _Answer(BaseModel):
    model_config = ConfigDict(extra="allow", frozen=True, protected_namespaces=())


class Problem(_Answer):
    """Why one of many was refused."""

    type: str
    title: str = ""
    status: int
    detail: str = ""
    errors: list[dict[str, Any]] = []
    request_id: str = ""


class SlateItem(_Answer):
    """One place of a slate."""

    item_id: str
    score: float
    """Logprob of the item at its place; not comparable between places."""
    sid: list[int]


class Alternative(_Answer):
    """Another whole slate."""

    items: list[SlateItem]
    score: float
    reward: float | None


class RunnerUp(_Answer):
    """A legal code that could have been written instead."""

    code: int
    logprob: float
    item_id: str | None
    """The most popular item below it."""


class ExplainedCode(_Answer):
    """One code of an item's semantic ID."""

    code: int
    logprob: float
    runner_ups: list[RunnerUp]


class ExplainedItem(_Answer):
    """How one item of the slate was written."""

    item_id: str
    levels: list[ExplainedCode]


class TookMs(_Answer):
    """Milliseconds by stage."""

    history: float
    features: float
    queue: float
    inference: float
    total: float


class Slate(_Answer):
    """A slate, and how it came about."""

    recommendation_id: str
    """Goes with the events that follow, and into `continue_from`."""
    model_version: str
    catalog_version: str
    beam_width: int
    source: str
    """`model` or `popular`."""
    degraded: bool
    reason: str | None
    """The most severe: `docs/operations.md` lists them."""
    items: list[SlateItem]
    score: float | None
    reward: float | None
    propensity: float | None
    """Of a slate that was drawn."""
    seed: int | None
    alternatives: list[Alternative]
    explanation: list[ExplainedItem] | None
    took_ms: TookMs


class BatchResult(_Answer):
    """What became of one request of many."""

    status: int
    answer: Slate | None
    """With status 200."""
    problem: Problem | None
    retry_after_s: float | None
    """With status 429."""


class EventResult(_Answer):
    """What became of one event."""

    event_id: str
    status: str
    """`stored`, `duplicate` or `refused`."""
    problem: Problem | None = None


class ItemResult(_Answer):
    """What became of one change of an item."""

    item_id: str
    status: str
    """`added`, `changed`, `removed` or `refused`."""
    sid: list[int] | None
    problem: Problem | None = None


class Item(_Answer):
    """An item of the catalog."""

    item_id: str
    title: str
    text: str
    tags: list[str]
    group: str
    available: bool
    sid: list[int]
    num_events: int
    catalog_version: str


class SimilarItem(_Answer):
    """An item that is like another."""

    item_id: str
    num_shared: int
    """First codes of the semantic IDs that are the same."""
    cosine: float | None


class Similar(_Answer):
    """What is like an item, most similar first."""

    item_id: str
    catalog_version: str
    items: list[SimilarItem]


class HistoryEvent(_Answer):
    """One event of a stored history."""

    item_id: str | None
    """None where the catalog does not hold the item any more."""
    action: str
    timestamp: float
    """Unix seconds."""
    value: float | None


class History(_Answer):
    """A user's history, newest last; empty for an unknown user."""

    user_id: str
    events: list[HistoryEvent]
    num_seen: int


class CatalogVersion(_Answer):
    """A version of the catalog, and what made it."""

    catalog_version: str
    changed_at: float
    num_changes: int


class Catalog(_Answer):
    """The catalog in service, and the versions before it."""

    catalog_version: str
    bundle_version: str
    num_items: int
    num_shown: int
    versions: list[CatalogVersion]


class CatalogRollback(_Answer):
    """What a rollback did."""

    catalog_version: str
    num_changes: int


class RegisteredModel(_Answer):
    """A model that may be activated."""

    model_version: str
    created: str
    slate_size: int
    metrics: dict[str, float]


class Models(_Answer):
    """Which models are in service, and which may be."""

    active: str
    canary: str | None
    canary_share: float
    previous: list[str]
    serving: list[str]
    models: list[RegisteredModel]


class Ready(_Answer):
    """Whether requests should come here, and what works less than fully."""

    status: str
    reasons: list[str]
    degraded: list[str]


class Version(_Answer):
    """What runs."""

    version: str
    model_version: str
    catalog_version: str
    num_items: int
    provider: str
    precision: str
    slate_size: int
    beam_width: int
    max_beam_width: int
    actions: list[str]
    filters: list[str]
    durability: str


class Results(_Answer):
    """The envelope of many results."""

    results: list[Any]


class Users(_Answer):
    """Some users who have a history."""

    user_ids: list[str]
