"""The OpenAPI description, exact: bodies as they are read, every problem, and the limits of what is in service.

Before the application is up it describes any service of this release; `docs/openapi.json` is that, and what the client
is held against.
"""

import json
from copy import deepcopy
from typing import Any, Final

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from service.api.answers import ProblemBody
from service.api.examples import EXAMPLES
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
from service.problems import (
    BODY_TOO_LARGE,
    FORBIDDEN,
    HEAD_TOO_LARGE,
    INTERNAL_ERROR,
    INVALID_REQUEST,
    MALFORMED_JSON,
    MALFORMED_REQUEST,
    MEDIA_TYPE,
    NOT_READY,
    PROBLEM_TYPES,
    RATE_LIMITED,
    REQUEST_TIMEOUT,
    TOO_MANY_CONNECTIONS,
    UNAUTHORIZED,
    UNSUPPORTED_MEDIA_TYPE,
    Problem,
    ProblemType,
)

SCHEME: Final = "Bearer"
OF_BODIES: Final = (MALFORMED_JSON, BODY_TOO_LARGE, UNSUPPORTED_MEDIA_TYPE, INVALID_REQUEST)
"""Problems of every route that reads a body."""
_OF_KEYS: Final = (UNAUTHORIZED, FORBIDDEN, RATE_LIMITED, NOT_READY)
_OF_ALL: Final = (MALFORMED_REQUEST, REQUEST_TIMEOUT, HEAD_TOO_LARGE, TOO_MANY_CONNECTIONS, INTERNAL_ERROR)
_WRITTEN_ONCE: Final = (
    UNAUTHORIZED, REQUEST_TIMEOUT, BODY_TOO_LARGE, UNSUPPORTED_MEDIA_TYPE, HEAD_TOO_LARGE, INTERNAL_ERROR
)  # fmt: skip
"""With these statuses every route answers the same."""
_COMPONENT = "#/components/schemas/{model}"
_BODIES: tuple[type[BaseModel], ...] = (
    RecommendBody, BatchBody, EventsBody, ItemBody, ItemsBody, RollbackBody, ActivateBody, LeaveBody, ProblemBody
)  # fmt: skip


def json_body(model: type[StrictModel]) -> dict[str, Any]:
    """`openapi_extra` of a route that reads its body itself."""
    schema = {"$ref": _COMPONENT.format(model=model.__name__)}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def problems(*kinds: ProblemType, scope: Scope | None = None) -> dict[int | str, dict[str, Any]]:
    """`responses` of a route that answers these problems; those that any request may meet are always among them.

    `scope`: that a key needs, where the service has keys.
    """
    if scope is not None:
        kinds = (*kinds, *_OF_KEYS)
    by_status: dict[int, list[ProblemType]] = {}
    for kind in PROBLEM_TYPES:
        if kind in kinds or kind in _OF_ALL:
            by_status.setdefault(kind.status, []).append(kind)
    described: dict[int | str, dict[str, Any]] = {status: _answered(by_status[status]) for status in sorted(by_status)}
    if scope is not None:
        described[401]["headers"] = {"WWW-Authenticate": {"schema": {"type": "string", "const": SCHEME}}}
        described[403]["description"] += f": it needs the scope `{scope}`, and may be bound to one user"
    if 429 in described:
        seconds = {"schema": {"type": "integer", "minimum": 1}, "description": "Seconds."}
        described[429]["headers"] = {"Retry-After": seconds}
    return described


def _answered(kinds: list[ProblemType]) -> dict[str, Any]:
    """What is answered with one status."""
    schema = {
        "allOf": [{"$ref": _COMPONENT.format(model=ProblemBody.__name__)}],
        "properties": {"type": {"enum": [kind.uri for kind in kinds]}},
    }
    examples = {kind.code: {"$ref": f"#/components/examples/{kind.code}"} for kind in kinds}
    content = {MEDIA_TYPE: {"schema": schema, "examples": examples}}
    return {"description": "; ".join(kind.title for kind in kinds), "content": content}


def rendered(app: FastAPI) -> str:
    """The description as one text, the same for the same description: sorted and indented JSON."""
    return json.dumps(app.openapi(), ensure_ascii=False, indent=2, sort_keys=True) + "\n"


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
        title=app.title, version=app.version, description=app.description, routes=app.routes, tags=app.openapi_tags,
        license_info=app.license_info,
    )  # fmt: skip
    definitions = models_json_schema([(body, "validation") for body in _BODIES], ref_template=_COMPONENT)[1]["$defs"]
    components = schema.setdefault("components", {}).setdefault("schemas", {})
    components.update(definitions)
    for unused in ("HTTPValidationError", "ValidationError"):  # FastAPI's own form of 422, which is never answered
        components.pop(unused, None)
    for operations in schema["paths"].values():
        for operation in operations.values():
            _add_summary(operation)
            _add_examples(operation)
            for kind in _WRITTEN_ONCE:
                if str(kind.status) in operation["responses"]:
                    operation["responses"][str(kind.status)] = {"$ref": f"#/components/responses/{kind.code}"}
    described = problems(*_WRITTEN_ONCE, scope="recommend")
    schema["components"]["responses"] = {kind.code: described[kind.status] for kind in _WRITTEN_ONCE}
    schema["components"]["examples"] = {
        kind.code: {"summary": kind.title, "value": Problem(kind, f"{kind.title}.").members("7f3a")}
        for kind in PROBLEM_TYPES
    }
    if serving is None:  # whether this one will ask for keys is not known here
        _add_keys(schema, [{"key": []}, {}])
    else:
        _add_limits(components, serving)
        if serving.keys is not None:
            _add_keys(schema, [{"key": []}])
    return schema


def _add_summary(operation: dict[str, Any]) -> None:
    """The first sentence of what a route says of itself stands where lists of routes show it."""
    text = " ".join(operation["description"].split())
    first, _, rest = text.partition(". ")
    operation["summary"] = first.removesuffix(".")
    if rest:
        operation["description"] = rest
    else:
        del operation["description"]


def _add_examples(operation: dict[str, Any]) -> None:
    parts = [operation.get("requestBody", {}), *operation["responses"].values()]
    for media in (part.get("content", {}).get("application/json") for part in parts):
        if media is not None:
            named = EXAMPLES[media["schema"]["$ref"].rpartition("/")[2]]
            media["examples"] = {name: {"value": deepcopy(value)} for name, value in named.items()}


def _add_keys(schema: dict[str, Any], security: list[dict[str, Any]]) -> None:
    schema["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": SCHEME.lower()}}
    for operations in schema["paths"].values():
        for operation in operations.values():
            if "401" in operation["responses"]:
                operation["security"] = security


def _add_limits(components: dict[str, Any], serving: Serving) -> None:
    manifest, limits = serving.model.manifest, serving.settings.limits
    actions = list(manifest.action_numbers)
    body = components["RecommendBody"]["properties"]
    body["slate_size"]["maximum"] = manifest.slate_size
    body["num_slates"]["maximum"] = manifest.beam_width
    _non_null(body["beam_width"])["maximum"] = limits.widest_beam(manifest)
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
