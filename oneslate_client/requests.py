"""What is asked. Fields that are left out are the service's to choose."""

import time
import uuid
from collections.abc import Sequence
from typing import Any, TypedDict

from pydantic import BaseModel, ConfigDict, Field


class _Request(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    def members(self) -> dict[str, Any]:
        """Of the JSON object: what was given or has a default of ours."""
        return self.model_dump(mode="json", exclude_none=True)


class PastEvent(_Request):
    """One event of a history that comes with the request."""

    item_id: str
    timestamp: float
    """Unix seconds."""
    action: str | None = None
    value: float | None = None


class TagFilter(_Request):
    """Keeps items with any of, all of, and none of these tags."""

    any_of: Sequence[str] | None = None
    all_of: Sequence[str] | None = None
    none_of: Sequence[str] | None = None


class SlateOptions(TypedDict, total=False):
    """Of a slate, beside user and size; docs/guides/api.md explains each."""

    num_slates: int
    beam_width: int
    history: Sequence[PastEvent]
    exclude: Sequence[str]
    exclude_seen: bool
    seen_actions: Sequence[str]
    filter: str | TagFilter
    max_per_group: int
    diversity: float
    temperature: float
    seed: int
    continue_from: str
    explain: bool
    model_version: str
    deadline_ms: float


class SlateRequest(_Request):
    """Asks for a user's next slate; for `recommend_batch`."""

    user_id: str
    slate_size: int
    num_slates: int | None = None
    beam_width: int | None = None
    history: Sequence[PastEvent] | None = None
    exclude: Sequence[str] | None = None
    exclude_seen: bool | None = None
    seen_actions: Sequence[str] | None = None
    filter: str | TagFilter | None = None
    max_per_group: int | None = None
    diversity: float | None = None
    temperature: float | None = None
    seed: int | None = None
    continue_from: str | None = None
    explain: bool | None = None
    model_version: str | None = None
    deadline_ms: float | None = None


class Event(_Request):
    """What a user did, now unless a time is given.

    The id makes it harmless to send it again, which this client does by itself: keep the object, or give an id of your
    own, where you send it again yourself.
    """

    user_id: str
    item_id: str
    action: str | None = None
    value: float | None = None
    timestamp: float = Field(default_factory=time.time)
    """Unix seconds."""
    recommendation_id: str | None = None
    """The slate that led to it."""
    event_id: str = Field(default_factory=lambda: uuid.uuid4().hex)


class ItemFields(TypedDict, total=False):
    """What an item is; a new one needs a title, text, tags or an embedding."""

    title: str
    text: str
    tags: Sequence[str]
    group: str
    available: bool
    embedding: Sequence[float]


class ItemChange(_Request):
    """What changes of an item; members left out stay as they are."""

    item_id: str
    title: str | None = None
    text: str | None = None
    tags: Sequence[str] | None = None
    group: str | None = None
    available: bool | None = None
    embedding: Sequence[float] | None = None
    removed: bool | None = None
    """True takes the item out, False brings it back."""
