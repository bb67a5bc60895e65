"""`GET /v1/items/{item_id}/similar`."""

from typing import Annotated, Final

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from service.api.answers import SimilarAnswer
from service.api.auth import admit
from service.api.openapi import problems
from service.api.paths import PathId
from service.api.replies import json_response
from service.api.serving import serving_of
from service.inference.similar import similar_rows
from service.problems import INVALID_REQUEST, NOT_FOUND, Problem, ProblemError

router = APIRouter(tags=["items"])
_MOST: Final = 100


@router.get(
    "/v1/items/{item_id:any_text}/similar",
    response_model=SimilarAnswer,
    responses=problems(NOT_FOUND, INVALID_REQUEST, scope="recommend"),
)
async def similar_items(
    item_id: PathId, request: Request, k: Annotated[int, Query(ge=1, le=_MOST, description="Items to name.")] = 10
) -> Response:
    """The items nearest to this one: those that share the longest beginning of its semantic ID, nearest vector first.

    Only items that may be recommended are named.
    """
    admit(request, "recommend")
    snapshot, row = serving_of(request).find(item_id)
    if row is None:
        raise ProblemError(Problem(NOT_FOUND, f"{item_id!r} is not in catalog {snapshot.version}"))
    found = similar_rows(snapshot, row, k)
    items = [
        {"item_id": snapshot.items[other].item_id, "num_shared": shared, "cosine": cosine}
        for other, shared, cosine in found
    ]
    return json_response({"item_id": item_id, "catalog_version": snapshot.version, "items": items})
