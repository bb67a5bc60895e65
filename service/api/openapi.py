"""The OpenAPI description, exact: bodies as they are read, every problem, and the limits of what is in service."""

from typing import Any, Final

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from service.api.answers import ProblemBody
from service.api.fields import StrictModel
from service.api.requests import (
    ActivateBody,
    BatchBody,
    EventsBody,
    ItemBody,
    ItemsBody,
    LeaveBody,
    RecommendBody,
    RollbackBody,
)
from service.api.serving import Serving
from service.keys import Scope
from service.problems import MEDIA_TYPE, PROBLEM_TYPES

SCHEME: Final = "Bearer"
_COMPONENT = "#/components/schemas/{model}"
_BODIES: tuple[type[BaseModel], ...] = (
    RecommendBody, BatchBody, EventsBody, ItemBody, ItemsBody, RollbackBody, ActivateBody, LeaveBody, ProblemBody
)  # fmt: skip


def json_body(model: type[StrictModel]) -> dict[str, Any]:
    """`openapi_extra` of a route that reads its body itself."""
    schema = {"$ref": _COMPONENT.format(model=model.__name__)}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def problems(*statuses: int, scope: Scope | None = None) -> dict[int | str, dict[str, Any]]:
    """`responses` of a route that answers these problems; 500 always among them.

    `scope`: that a key needs, where the service has keys; then 401, 403 and 429 are among them.
    """
    if scope is not None:
        statuses = (*statuses, 401, 403, 429)
    schema = {"$ref": _COMPONENT.format(model=ProblemBody.__name__)}
    described: dict[int | str, dict[str, Any]] = {}
    for status in sorted({*statuses, 500}):
        titles = "; ".join(kind.title for kind in PROBLEM_TYPES if kind.status == status)
        described[status] = {"description": titles, "content": {MEDIA_TYPE: {"schema": schema}}}
        if status == 401:
            described[status]["headers"] = {"WWW-Authenticate": {"schema": {"type": "string", "const": SCHEME}}}
        if status == 403:
            described[status]["description"] += f": it needs the scope `{scope}`, and may be bound to one user"
        if status == 429:
            seconds = {"schema": {"type": "integer", "minimum": 1}, "description": "Seconds."}
            described[status]["headers"] = {"Retry-After": seconds}
    return described


def describe(app: FastAPI) -> dict[str, Any]:
    """The description of the application and, when it is up, of what it has in service; made once for each."""
    serving: Serving | None = app.state.serving
    # By name: what is described must not be kept in memory by it.
    versions = None if serving is None else [model.version for model in serving.models.loaded()]
    described: tuple[list[str] | None, dict[str, Any]] | None = getattr(app.state, "described", None)
    if described is None or described[0] != versions:
        app.state.described = described = (versions, _describe(app, serving))
    return described[1]


def _describe(app: FastAPI, serving: Serving | None) -> dict[str, Any]:
    schema = get_openapi(
        title=app.title, version=app.version, description=app.description, routes=app.routes, tags=app.openapi_tags
    )
    definitions = models_json_schema([(body, "validation") for body in _BODIES], ref_template=_COMPONENT)[1]["$defs"]
    components = schema.setdefault("components", {}).setdefault("schemas", {})
    components.update(definitions)
    for unused in ("HTTPValidationError", "ValidationError"):  # FastAPI's own form of 422, which is never answered
        components.pop(unused, None)
    if serving is not None:
        _add_limits(components, serving)
        if serving.keys is not None:
            _add_keys(schema)
    return schema


def _add_keys(schema: dict[str, Any]) -> None:
    schema["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": SCHEME.lower()}}
    for operations in schema["paths"].values():
        for operation in operations.values():
            if "401" in operation["responses"]:
                operation["security"] = [{"key": []}]


def _add_limits(components: dict[str, Any], serving: Serving) -> None:
    manifest, limits = serving.model.manifest, serving.settings.limits
    actions = list(manifest.action_numbers)
    body = components["RecommendBody"]["properties"]
    body["slate_size"]["maximum"] = manifest.slate_size
    body["num_slates"]["maximum"] = manifest.beam_width
    body["exclude"]["maxItems"] = limits.exclude
    _non_null(body["model_version"])["enum"] = [model.version for model in serving.models.loaded()]
    _non_null(body["history"])["maxItems"] = limits.history
    _non_null(body["seen_actions"])["items"] = {"type": "string", "enum": actions}
    past_action = components["HistoryEvent"]["properties"]["action"]
    past_action["anyOf"][0] = {"type": "string", "enum": actions}
    names = [{"type": "string", "enum": sorted(serving.filters)}] if serving.filters else []
    forms = _non_null(body["filter"])
    forms["oneOf"] = names + [form for form in forms["oneOf"] if form.get("type") != "string"]
    for part in components["FilterBody"]["properties"].values():
        part["maxItems"] = limits.tags
    components["BatchBody"]["properties"]["requests"]["maxItems"] = limits.batch
    components["EventsBody"]["properties"]["events"]["maxItems"] = limits.events
    components["ItemsBody"]["properties"]["items"]["maxItems"] = limits.items


def _non_null(schema: dict[str, Any]) -> dict[str, Any]:
    """The one alternative of an optional field that is not null."""
    [alternative] = [part for part in schema["anyOf"] if part.get("type") != "null"]
    assert isinstance(alternative, dict)
    return alternative
