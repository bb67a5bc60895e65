"""`/v1/catalog`: which catalog is in service, those before it, and the way back."""

from typing import Annotated, Final

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from service.api.answers import CatalogAnswer, RollbackAnswer
from service.api.auth import admit
from service.api.body import read_json
from service.api.openapi import OF_BODIES, json_body, problems
from service.api.replies import json_response
from service.api.requests import RollbackBody
from service.api.serving import serving_of
from service.problems import CATALOG_UNAVAILABLE, INVALID_REQUEST, UNKNOWN_VERSION, FieldError, Problem, ProblemError

router = APIRouter(tags=["items"])
_MAX_VERSIONS: Final = 1000


@router.get(
    "/v1/catalog", response_model=CatalogAnswer, responses=problems(INVALID_REQUEST, CATALOG_UNAVAILABLE, scope="items")
)
async def read_catalog(
    request: Request, limit: Annotated[int, Query(ge=1, le=_MAX_VERSIONS, description="Versions to list.")] = 20
) -> Response:
    """The catalog in service and its newest versions; any of them can be gone back to."""
    admit(request, "items")
    model = serving_of(request).model
    with model.in_use():
        entries = await model.items.newest(limit)
    snapshot = model.catalog()
    versions = [
        {
            "catalog_version": model.live.version_at(entry.position),
            "changed_at": entry.written_s,
            "num_changes": entry.num_changes,
        }
        for entry in entries
    ]
    return json_response(
        {
            "catalog_version": snapshot.version,
            "bundle_version": model.live.base_version,
            "num_items": snapshot.num_items,
            "num_shown": snapshot.num_available,
            "versions": versions,
        }
    )


@router.post(
    "/v1/catalog/rollback",
    response_model=RollbackAnswer,
    responses=problems(*OF_BODIES, UNKNOWN_VERSION, CATALOG_UNAVAILABLE, scope="admin"),
    openapi_extra=json_body(RollbackBody),
)
async def roll_back_catalog(request: Request) -> Response:
    """Makes every item what it was in an earlier version, on every replica; items that came since are removed.

    It is a change like any other: a new version, which can be gone back from in the same way. What it restores stays as
    it is under later bundles, too. Above a thousand items it comes in several steps. 503: ask again, it does no harm.
    """
    admit(request, "admin")
    body = await read_json(request, RollbackBody)
    model = serving_of(request).model
    with model.in_use():
        position = model.live.position_of(body.catalog_version)
        done = None if position is None else await model.items.roll_back(position)
    if done is None:
        why = "is none of this bundle's" if position is None else "is unknown: the log does not hold what came since"
        detail = f"catalog version {body.catalog_version!r} {why}"
        raise ProblemError(Problem(UNKNOWN_VERSION, detail, [FieldError("/catalog_version", detail)]))
    answer = {"catalog_version": model.live.version_at(done.position), "num_changes": done.num_changes}
    return json_response(answer)
