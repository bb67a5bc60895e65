"""`/v1/items`: what can be recommended, changed while slates are answered."""

from typing import Any, Final

from fastapi import APIRouter, Request
from starlette.responses import Response

from service.api.answers import CatalogItemAnswer, ItemResult, ItemsAnswer
from service.api.auth import admit
from service.api.body import invalid, read_json
from service.api.openapi import OF_BODIES, json_body, problems
from service.api.paths import PathId
from service.api.replies import json_response
from service.api.requests import ItemBody, ItemChangeBody, ItemsBody
from service.api.serving import serving_of
from service.catalog import ItemChange
from service.items import ItemOutcome
from service.problems import (
    CATALOG_UNAVAILABLE,
    INVALID_REQUEST,
    NOT_FOUND,
    REFUSED_ITEM,
    UNKNOWN_ITEM,
    FieldError,
    Problem,
    ProblemError,
)

router = APIRouter(tags=["items"])
_ROUTE: Final = "/v1/items/{item_id:item_text}"


@router.post(
    "/v1/items",
    response_model=ItemsAnswer,
    responses=problems(*OF_BODIES, CATALOG_UNAVAILABLE, scope="items"),
    openapi_extra=json_body(ItemsBody),
)
async def change_items(request: Request) -> Response:
    """Adds, changes and removes items, each by itself. 503: send all again, it does no harm."""
    admit(request, "items")
    serving = serving_of(request)
    body = await read_json(request, ItemsBody)
    if len(body.items) > (most := serving.settings.limits.items):
        raise invalid("/items", f"at most {most} items, not {len(body.items)}")
    model = serving.model
    with model.in_use():
        outcomes = await model.items.write([_change(item) for item in body.items])
    results = [
        _result(item.item_id, outcome, f"/items/{place}")
        for place, (item, outcome) in enumerate(zip(body.items, outcomes, strict=True))
    ]
    return json_response({"results": results})


@router.get(
    _ROUTE,
    response_model=CatalogItemAnswer,
    responses=problems(NOT_FOUND, INVALID_REQUEST, CATALOG_UNAVAILABLE, scope="recommend"),
)
async def read_item(item_id: PathId, request: Request) -> Response:
    """The item as slates see it now; what was changed through this replica is seen at once."""
    admit(request, "recommend")
    serving = serving_of(request)
    model = serving.model
    with model.in_use():
        await model.items.settle(item_id)
    snapshot, row = serving.find(item_id)
    if row is None:
        raise _not_found(item_id, snapshot.version)
    item = snapshot.items[row]
    return json_response(
        {
            "item_id": item.item_id,
            "title": item.title,
            "text": item.text,
            "tags": item.tags,
            "group": item.group,
            "available": item.available,
            "sid": snapshot.sids_NL[row].tolist(),
            "num_events": int(snapshot.popularity_N[row]),
            "catalog_version": snapshot.version,
        }
    )


@router.put(
    _ROUTE,
    response_model=ItemResult,
    responses=problems(*OF_BODIES, REFUSED_ITEM, CATALOG_UNAVAILABLE, scope="items"),
    openapi_extra=json_body(ItemBody),
)
async def put_item(item_id: PathId, request: Request) -> Response:
    """Adds the item, brings it back, or replaces what is known of it: members left out become empty.

    Where it has its place stays as it is.
    """
    admit(request, "items")
    body = await read_json(request, ItemBody)
    change = ItemChange(
        item_id=item_id,
        title=body.title or "",
        text=body.text or "",
        tags=body.tags or (),
        group=body.group or "",
        available=body.available is not False,
        removed=False,
        embedding=body.embedding or (),
    )
    model = serving_of(request).model
    with model.in_use():
        [outcome] = await model.items.write([change])
    result = _result(item_id, outcome, "")
    if outcome.status == "refused":
        raise ProblemError(_problem(outcome, ""))
    return json_response(result)


@router.delete(_ROUTE, status_code=204, responses=problems(INVALID_REQUEST, CATALOG_UNAVAILABLE, scope="items"))
async def remove_item(item_id: PathId, request: Request) -> Response:
    """Takes the item out: it is never recommended again unless it is put back. Also when there is none.

    Histories that hold it stay readable.
    """
    admit(request, "items")
    model = serving_of(request).model
    with model.in_use():
        await model.items.write([ItemChange(item_id=item_id, removed=True)])
    return Response(status_code=204)


def _change(body: ItemChangeBody) -> ItemChange:
    return ItemChange(
        item_id=body.item_id,
        title=body.title,
        text=body.text,
        tags=body.tags,
        group=body.group,
        available=body.available,
        removed=body.removed,
        embedding=body.embedding,
    )


def _result(item_id: str, outcome: ItemOutcome, pointer: str) -> dict[str, Any]:
    sid = None if outcome.sid is None else list(outcome.sid)
    result: dict[str, Any] = {"item_id": item_id, "status": outcome.status, "sid": sid}
    if outcome.status == "refused":
        result["problem"] = _problem(outcome, pointer).members()
    return result


def _problem(outcome: ItemOutcome, pointer: str) -> Problem:
    kind = UNKNOWN_ITEM if outcome.refusal == "unknown_item" else REFUSED_ITEM
    return Problem(kind, outcome.detail, [FieldError(pointer, outcome.detail)])


def _not_found(item_id: str, catalog_version: str) -> ProblemError:
    return ProblemError(Problem(NOT_FOUND, f"{item_id!r} is not in catalog {catalog_version}"))
