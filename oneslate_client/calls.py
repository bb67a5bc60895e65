"""Every route as a call: what is sent, whether it may be sent twice, and how the answer is read. No I/O."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar
from urllib.parse import quote

from pydantic import BaseModel, TypeAdapter, ValidationError

from oneslate_client.answers import (
    BatchResult,
    Catalog,
    CatalogRollback,
    EventResult,
    History,
    Item,
    ItemResult,
    Models,
    Ready,
    Similar,
    Slate,
    Users,
    Version,
)
from oneslate_client.errors import UnexpectedAnswer
from oneslate_client.requests import Event, ItemChange, ItemFields, SlateOptions, SlateRequest

T = TypeVar("T")
AnswerT = TypeVar("AnswerT", bound=BaseModel)


@dataclass(frozen=True, slots=True, kw_only=True)
class Call(Generic[T]):
    """One request of the API."""

    method: str
    path: str
    """Below the service's URL, quoted."""
    read: Callable[[Any], T]
    """From the JSON of the answer (None: it had no body). Raises UnexpectedAnswer."""
    body: Mapping[str, Any] | None = None
    params: Mapping[str, int] | None = None
    may_repeat: bool = True
    """Whether to send it again does no harm where nobody knows what became of it."""
    statuses: frozenset[int] = frozenset({200, 204})
    """That are answers, where the answer can be read; others are problems."""


def recommend(user_id: str, slate_size: int, options: SlateOptions) -> Call[Slate]:
    """A user's next slate."""
    asked = SlateRequest(user_id=user_id, slate_size=slate_size, **options)
    return Call(method="POST", path="/v1/recommend", body=asked.members(), read=_as(Slate))


def recommend_batch(requests: Iterable[SlateRequest]) -> Call[list[BatchResult]]:
    """Slates of many users; each is answered, and fails, alone."""
    body = {"requests": [request.members() for request in requests]}
    return Call(method="POST", path="/v1/recommend/batch", body=body, read=_results(BatchResult))


def send_events(events: Iterable[Event]) -> Call[list[EventResult]]:
    """What users did."""
    body = {"events": [event.members() for event in events]}
    return Call(method="POST", path="/v1/events", body=body, read=_results(EventResult))


def history(user_id: str) -> Call[History]:
    """What is stored of a user."""
    return Call(method="GET", path=f"/v1/users/{_quoted(user_id)}/history", read=_as(History))


def forget(user_id: str) -> Call[None]:
    """Deletes what is stored of a user."""
    return Call(method="DELETE", path=f"/v1/users/{_quoted(user_id)}/history", read=_nothing)


def some_users(limit: int) -> Call[list[str]]:
    """A few users who have a history, at random."""
    return Call(method="GET", path="/v1/users", params={"limit": limit}, read=lambda body: _as(Users)(body).user_ids)


def item(item_id: str) -> Call[Item]:
    """An item of the catalog."""
    return Call(method="GET", path=_item_path(item_id), read=_as(Item))


def put_item(item_id: str, fields: ItemFields) -> Call[ItemResult]:
    """An item as it is from now on."""
    body = ItemChange(item_id=item_id, **fields).members()
    del body["item_id"]
    return Call(method="PUT", path=_item_path(item_id), body=body, read=_as(ItemResult))


def remove_item(item_id: str) -> Call[None]:
    """Takes an item out of the catalog."""
    return Call(method="DELETE", path=_item_path(item_id), read=_nothing)


def change_items(changes: Iterable[ItemChange]) -> Call[list[ItemResult]]:
    """Many changes of items."""
    body = {"items": [change.members() for change in changes]}
    return Call(method="POST", path="/v1/items", body=body, read=_results(ItemResult))


def similar(item_id: str, k: int) -> Call[Similar]:
    """The items nearest to one."""
    return Call(method="GET", path=f"/v1/items/{_quoted(item_id)}/similar", params={"k": k}, read=_as(Similar))


def catalog(limit: int) -> Call[Catalog]:
    """The catalog in service, and so many versions before it."""
    return Call(method="GET", path="/v1/catalog", params={"limit": limit}, read=_as(Catalog))


def roll_back_catalog(catalog_version: str) -> Call[CatalogRollback]:
    """Back to the items of a version; a second time nothing is left to change."""
    body = {"catalog_version": catalog_version}
    return Call(method="POST", path="/v1/catalog/rollback", body=body, read=_as(CatalogRollback))


def models() -> Call[Models]:
    """Which models are in service, and which may be."""
    return Call(method="GET", path="/v1/models", read=_as(Models))


def activate(model_version: str, share: float) -> Call[Models]:
    """Puts a model into service, for all or a share of users."""
    path = f"/v1/models/{_quoted(model_version)}/activate"
    return Call(method="POST", path=path, body={"share": share}, read=_as(Models))


def roll_back_model(leaving: str | None) -> Call[Models]:
    """Leaves a model for the one before it. Only where it is named a second request does nothing more."""
    body = {} if leaving is None else {"model_version": leaving}
    path = "/v1/models/rollback"
    return Call(method="POST", path=path, body=body, read=_as(Models), may_repeat=leaving is not None)


def ready() -> Call[Ready]:
    """Whether requests should come here; not to be ready is an answer, too."""

    return Call(method="GET", path="/readyz", read=_as(Ready), statuses=frozenset({200, 503}))


def version() -> Call[Version]:
    """What runs."""
    return Call(method="GET", path="/version", read=_as(Version))


def _item_path(item_id: str) -> str:
    """ValueError: the path would be another route's."""
    if item_id.endswith("/similar"):
        raise ValueError(f"{item_id!r} cannot be named in a path: use change_items")
    return f"/v1/items/{_quoted(item_id)}"


def _quoted(name: str) -> str:
    """As one or more parts of a path: a slash stays, whatever else could mean something does not."""
    return "/".join(part.replace(".", "%2E") if part in {".", ".."} else part for part in quote(name).split("/"))


def _as(kind: type[AnswerT]) -> Callable[[Any], AnswerT]:
    def read(body: Any) -> AnswerT:
        try:
            return kind.model_validate(body)
        except ValidationError as error:
            raise UnexpectedAnswer(f"the answer is no {kind.__name__}: {error}") from error

    return read


def _results(kind: type[AnswerT]) -> Callable[[Any], list[AnswerT]]:
    many = TypeAdapter(list[kind])  # type: ignore[valid-type]

    def read(body: Any) -> list[AnswerT]:
        try:
            return many.validate_python(body["results"])
        except (ValidationError, KeyError, TypeError) as error:
            raise UnexpectedAnswer(f"the answer holds no results of kind {kind.__name__}: {error}") from error

    return read


def _nothing(_: Any) -> None:
    return None
