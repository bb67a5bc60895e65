"""`/v1/models`: which models are in service, and how that changes without a restart."""

import asyncio
import logging
from typing import Annotated

from fastapi import APIRouter, Path, Request
from starlette.responses import Response

from service.api.answers import ModelsAnswer
from service.api.auth import admit
from service.api.body import invalid, read_json
from service.api.fields import ID_PATTERN
from service.api.openapi import OF_BODIES, json_body, problems
from service.api.replies import json_response
from service.api.requests import ActivateBody, LeaveBody
from service.api.serving import Serving, serving_of
from service.errors import BundleError, CatalogError, CatalogUnavailable, RunnerError
from service.models import ModelState, Registered
from service.problems import (
    MODELS_UNAVAILABLE,
    NO_EARLIER_MODEL,
    REFUSED_MODEL,
    UNKNOWN_MODEL,
    Problem,
    ProblemError,
)

_log = logging.getLogger(__name__)
router = APIRouter(tags=["models"])
Version = Annotated[str, Path(min_length=1, max_length=100, pattern=ID_PATTERN)]


@router.get(
    "/v1/models", response_model=ModelsAnswer, responses=problems(REFUSED_MODEL, MODELS_UNAVAILABLE, scope="admin")
)
async def read_models(request: Request) -> Response:
    """The models in service, those before, and those that may be activated."""
    admit(request, "admin")
    serving = serving_of(request)
    return await _answer(serving, await serving.models.state())


@router.post(
    "/v1/models/{version}/activate",
    response_model=ModelsAnswer,
    responses=problems(*OF_BODIES, UNKNOWN_MODEL, REFUSED_MODEL, MODELS_UNAVAILABLE, scope="admin"),
    openapi_extra=json_body(ActivateBody),
)
async def activate_model(version: Version, request: Request) -> Response:
    """Puts a registered model into service: for all users, or as a canary for a share of them.

    It is checked in a process of its own and loaded beside the one in service, which stays if anything is wrong.
    Answers when this replica has it; the others follow within seconds.
    """
    caller = admit(request, "admin")
    serving = serving_of(request)
    body = await read_json(request, ActivateBody)
    if body.share < 1 and version == serving.model.version:
        raise invalid("/share", "this model is the active one already")
    _log.info("model %s for %g of users asked for by key %r", version, body.share, caller.name)
    try:
        state = await serving.models.activate(version, body.share)
    except (BundleError, CatalogError, CatalogUnavailable, RunnerError) as error:
        _log.warning("model %s is refused: %s", version, error)
        serving.metrics.model_errors.inc()
        raise ProblemError(Problem(REFUSED_MODEL, str(error))) from error
    return await _answer(serving, state)


@router.post(
    "/v1/models/rollback",
    response_model=ModelsAnswer,
    responses=problems(*OF_BODIES, UNKNOWN_MODEL, REFUSED_MODEL, NO_EARLIER_MODEL, MODELS_UNAVAILABLE, scope="admin"),
    openapi_extra=json_body(LeaveBody),
)
async def roll_back_model(request: Request) -> Response:
    """Ends a canary, or else goes back to the model before. Name the model to leave, and asking again does no harm."""
    caller = admit(request, "admin")
    serving = serving_of(request)
    body = await read_json(request, LeaveBody)
    _log.info("rollback of the model asked for by key %r", caller.name)
    try:
        state = await serving.models.roll_back(body.model_version)
    except (BundleError, CatalogError, CatalogUnavailable, RunnerError) as error:
        serving.metrics.model_errors.inc()
        raise ProblemError(Problem(REFUSED_MODEL, str(error))) from error
    return await _answer(serving, state)


async def _answer(serving: Serving, state: ModelState) -> Response:
    registry = serving.models.registry()
    try:
        registered: dict[str, Registered] = {} if registry is None else await asyncio.to_thread(registry.all)
    except BundleError as error:
        raise ProblemError(Problem(REFUSED_MODEL, str(error))) from error
    manifests = {version: one.manifest for version, one in registered.items()}
    # Without a registry there is only what runs.
    for model in serving.models.loaded():
        manifests.setdefault(model.version, model.manifest)
    members = {
        "active": state.active,
        "canary": state.canary,
        "canary_share": state.canary_share,
        "previous": state.previous,
        "serving": [model.version for model in serving.models.loaded()],
        "models": [
            {
                "model_version": version,
                "created": manifest.created,
                "slate_size": manifest.slate_size,
                "metrics": manifest.metrics,
            }
            for version, manifest in sorted(manifests.items())
        ],
    }
    return json_response(members)
