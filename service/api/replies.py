"""Answers as bytes, and FastAPI's own errors as problems."""

import logging
from collections.abc import Awaitable, Callable
from typing import Any, Final

import orjson
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match

from service.api.body import problem_of_errors
from service.errors import OneSlateError
from service.logs import request_id
from service.metrics import Metrics
from service.problems import (
    INTERNAL_ERROR,
    INVALID_REQUEST,
    MEDIA_TYPE,
    METHOD_NOT_ALLOWED,
    NOT_FOUND,
    Problem,
    problem_of,
)

_log = logging.getLogger(__name__)
_METHODS: Final = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE")
_BY_STATUS: Final = {404: NOT_FOUND, 405: METHOD_NOT_ALLOWED}

Handler = Callable[[Request, Exception], Awaitable[Response]]


def json_response(members: Any, status_code: int = 200) -> Response:
    """JSON without a second look by pydantic."""
    return Response(orjson.dumps(members), status_code, media_type="application/json")


def problem_response(problem: Problem, metrics: Metrics) -> Response:
    """A problem, counted."""
    metrics.errors.labels(problem.type.code).inc()
    return _problem_response(problem)


def noted_response(error: Exception, metrics: Metrics) -> Response:
    """What a client is told about an exception, counted and logged."""
    problem = problem_of(error)
    note(error, problem, metrics)
    return _problem_response(problem)


def _problem_response(problem: Problem) -> Response:
    body = problem.body(request_id.get())
    return Response(body, problem.type.status, headers=problem.headers, media_type=MEDIA_TYPE)


def note(error: Exception, problem: Problem, metrics: Metrics) -> None:
    """Counts a problem, and logs what is not the client's."""
    metrics.errors.labels(problem.type.code).inc()
    if problem.type is INTERNAL_ERROR:
        _log.error("unexpected error", exc_info=error)
    elif problem.type.status >= 500:
        _log.warning("%s: %s", type(error).__name__, error)


def add_handlers(app: FastAPI, metrics: Metrics) -> None:
    """Every error that reaches FastAPI becomes a problem."""

    async def of_ours(_: Request, error: Exception) -> Response:
        return noted_response(error, metrics)

    async def of_http(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        kind = _BY_STATUS.get(error.status_code, INVALID_REQUEST)
        problem = Problem(kind, f"{request.method} {request.url.path[:200]}: {error.detail}")
        if kind is METHOD_NOT_ALLOWED:
            problem.headers["Allow"] = ", ".join(_allowed(app, request))
        return problem_response(problem, metrics)

    async def of_validation(_: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        return problem_response(problem_of_errors(error.errors(), skip=1), metrics)

    app.add_exception_handler(HTTPException, of_http)
    app.add_exception_handler(RequestValidationError, of_validation)
    app.add_exception_handler(OneSlateError, of_ours)


def _allowed(app: FastAPI, request: Request) -> list[str]:
    """Methods that some route takes at this path: Starlette's own answer names those of one route only."""
    allowed = []
    for method in _METHODS:
        scope = {**request.scope, "method": method}
        if any(route.matches(scope)[0] is Match.FULL for route in app.router.routes):
            allowed.append(method)
    return allowed
