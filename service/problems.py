"""Errors as RFC 9457 problem details: one list of types, and which exception becomes which."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import ceil
from typing import Any, Final

import orjson

from service.errors import (
    CatalogUnavailable,
    EventLogFull,
    HistoryUnavailable,
    ModelsUnavailable,
    NoEarlierModel,
    OneSlateError,
    Overloaded,
    UnknownModel,
)

MEDIA_TYPE: Final = "application/problem+json"
_TYPE_PREFIX: Final = "urn:oneslate:problem:"


@dataclass(frozen=True, slots=True)
class ProblemType:
    """A kind of problem; `code` ends its type URI and labels its metric."""

    code: str
    status: int
    title: str

    @property
    def uri(self) -> str:
        """`type` of the problem object."""
        return _TYPE_PREFIX + self.code


MALFORMED_REQUEST = ProblemType("malformed-request", 400, "This is no HTTP request")
MALFORMED_JSON = ProblemType("malformed-json", 400, "The body is not JSON")
UNAUTHORIZED = ProblemType("unauthorized", 401, "A key is needed")
FORBIDDEN = ProblemType("forbidden", 403, "The key does not allow this")
NOT_FOUND = ProblemType("not-found", 404, "There is nothing here")
METHOD_NOT_ALLOWED = ProblemType("method-not-allowed", 405, "The method is not allowed here")
REQUEST_TIMEOUT = ProblemType("request-timeout", 408, "The request did not come in time")
BODY_TOO_LARGE = ProblemType("body-too-large", 413, "The body is too large")
UNSUPPORTED_MEDIA_TYPE = ProblemType("unsupported-media-type", 415, "The body must be application/json")
INVALID_REQUEST = ProblemType("invalid-request", 422, "The request is not valid")
HEAD_TOO_LARGE = ProblemType("head-too-large", 431, "The head of the request is too large")
OVERLOADED = ProblemType("overloaded", 429, "Too many requests wait already")
RATE_LIMITED = ProblemType("rate-limited", 429, "The key sends too many requests")
INTERNAL_ERROR = ProblemType("internal-error", 500, "Something went wrong on our side")
TOO_MANY_CONNECTIONS = ProblemType("too-many-connections", 503, "Too many connections are open")
EVENT_LOG_FULL = ProblemType("event-log-full", 503, "The event log is full")
HISTORY_UNAVAILABLE = ProblemType("history-unavailable", 503, "The history store does not answer")
CATALOG_UNAVAILABLE = ProblemType("catalog-unavailable", 503, "The catalog's log does not answer")
NOT_READY = ProblemType("not-ready", 503, "The service is not ready")

UNKNOWN_ITEM = ProblemType("unknown-item", 422, "The catalog does not hold the item")
UNKNOWN_VERSION = ProblemType("unknown-version", 409, "The catalog cannot be taken back to this version")
REFUSED_ITEM = ProblemType("refused-item", 409, "The item cannot be taken into the catalog")
UNKNOWN_MODEL = ProblemType("unknown-model", 404, "No registered model has this version")
REFUSED_MODEL = ProblemType("refused-model", 409, "The model cannot be served")
NO_EARLIER_MODEL = ProblemType("no-earlier-model", 409, "There is no model to go back to")
MODELS_UNAVAILABLE = ProblemType("models-unavailable", 503, "The state of the models cannot be changed now")
UNKNOWN_ACTION = ProblemType("unknown-action", 422, "The model does not know the action")
REFUSED_EVENT = ProblemType("refused-event", 422, "The event cannot be stored")

PROBLEM_TYPES: Final = (
    MALFORMED_REQUEST, MALFORMED_JSON, UNAUTHORIZED, FORBIDDEN, NOT_FOUND, METHOD_NOT_ALLOWED, REQUEST_TIMEOUT,
    BODY_TOO_LARGE, UNSUPPORTED_MEDIA_TYPE, HEAD_TOO_LARGE, INVALID_REQUEST, OVERLOADED, RATE_LIMITED, INTERNAL_ERROR,
    TOO_MANY_CONNECTIONS, EVENT_LOG_FULL, HISTORY_UNAVAILABLE, CATALOG_UNAVAILABLE, NOT_READY,
    UNKNOWN_ITEM, UNKNOWN_VERSION, REFUSED_ITEM, UNKNOWN_ACTION, REFUSED_EVENT,
    UNKNOWN_MODEL, REFUSED_MODEL, NO_EARLIER_MODEL, MODELS_UNAVAILABLE,
)  # fmt: skip
"""Every type that is ever answered."""


@dataclass(frozen=True, slots=True)
class FieldError:
    """What is wrong at one place of the request."""

    pointer: str
    """JSON pointer into the body, or the name of a path parameter."""
    detail: str


@dataclass(frozen=True, slots=True)
class Problem:
    """One problem object."""

    type: ProblemType
    detail: str
    errors: Sequence[FieldError] = ()
    headers: dict[str, str] = field(default_factory=dict)

    def members(self, request_id: str = "") -> dict[str, Any]:
        """The JSON object."""
        members: dict[str, Any] = {
            "type": self.type.uri,
            "title": self.type.title,
            "status": self.type.status,
            "detail": self.detail,
        }
        if self.errors:
            members["errors"] = [{"pointer": error.pointer, "detail": error.detail} for error in self.errors]
        if request_id:
            members["request_id"] = request_id
        return members

    def below(self, pointer: str) -> "Problem":
        """The same problem of a part of a larger body: places in the part become places in the body."""
        errors = [FieldError(pointer + error.pointer, error.detail) for error in self.errors]
        return Problem(self.type, self.detail, errors, self.headers)

    def body(self, request_id: str = "") -> bytes:
        """The JSON text."""
        return orjson.dumps(self.members(request_id))


class ProblemError(OneSlateError):
    """Ends a request with a problem."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.detail)
        self.problem = problem


def problem_of(error: Exception) -> Problem:
    """What a client is told about an exception; nothing of what we did not raise on purpose."""
    if isinstance(error, ProblemError):
        return error.problem
    if isinstance(error, Overloaded):
        return Problem(OVERLOADED, str(error), headers={"Retry-After": str(max(1, ceil(error.retry_after_s)))})
    for kind, problem, detail in _OF_ERRORS:
        if isinstance(error, kind):
            return Problem(problem, detail or str(error))
    return Problem(INTERNAL_ERROR, "The error is logged under the request id.")


_OF_ERRORS: Final[tuple[tuple[type[Exception], ProblemType, str], ...]] = (
    # Messages of what is unavailable name hosts; they go to the log.
    (HistoryUnavailable, HISTORY_UNAVAILABLE, "The history store did not answer in time; nothing was acknowledged."),
    (
        EventLogFull,
        EVENT_LOG_FULL,
        "Nothing was acknowledged; sending all again does no harm, once the log is drained.",
    ),
    (
        CatalogUnavailable,
        CATALOG_UNAVAILABLE,
        "The catalog's log did not answer in time; sending all again does no harm.",
    ),
    (
        ModelsUnavailable,
        MODELS_UNAVAILABLE,
        "It is not known whether the models in service were changed: GET /v1/models says.",
    ),
    (UnknownModel, UNKNOWN_MODEL, ""),
    (NoEarlierModel, NO_EARLIER_MODEL, ""),
)
"""What else is raised on purpose, what it becomes, and what is said of it; empty: its own words."""
