"""Reads a JSON body into a request model in one step, and tells what is wrong with it."""

from collections.abc import Sequence
from typing import Any, TypeVar

from pydantic import ValidationError
from pydantic_core import to_json
from starlette.requests import Request

from service.api.fields import StrictModel
from service.api.requests import FILTER_BRANCHES
from service.problems import INVALID_REQUEST, MALFORMED_JSON, UNSUPPORTED_MEDIA_TYPE, FieldError, Problem, ProblemError

_MAX_ERRORS = 20
_MAX_PART_CHARS = 100
_UNION_BRANCHES = frozenset(FILTER_BRANCHES)
"""Parts of a location that name a branch of a union, not a place in the body."""

Body = TypeVar("Body", bound=StrictModel)


async def read_json(request: Request, model: type[Body]) -> Body:
    """The body as a model.

    Raises:
        ProblemError: not JSON by its type or by its text, or not what the model asks.
    """
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != "application/json":
        said = f"not {media_type[:100]}" if media_type else "and say so in Content-Type"
        raise ProblemError(Problem(UNSUPPORTED_MEDIA_TYPE, f"Send application/json, {said}."))
    try:
        return model.model_validate_json(await request.body())
    except ValidationError as error:
        found = error.errors(include_url=False, include_input=False, include_context=False)
        raise ProblemError(problem_of_errors(found)) from None


def read_part(part: object, model: type[Body]) -> Body:
    """A part of a body that is JSON already, as a model.

    Raises:
        ProblemError: not what the model asks.
    """
    try:
        return model.model_validate_json(to_json(part))
    except ValidationError as error:
        found = error.errors(include_url=False, include_input=False, include_context=False)
        raise ProblemError(problem_of_errors(found)) from None


def problem_of_errors(found: Sequence[Any], *, skip: int = 0) -> Problem:
    """One problem from pydantic's errors; the first `skip` parts of each location are left out."""
    if found[0]["type"] == "json_invalid":
        return Problem(MALFORMED_JSON, found[0]["msg"])
    # What is wrong with a whole only because of its parts ("too short", once bad items are left out) says nothing new.
    inner = {error["loc"][:end] for error in found for end in range(len(error["loc"]))}
    found = [error for error in found if error["loc"] not in inner]
    errors = [FieldError(_pointer(error["loc"][skip:]), error["msg"]) for error in found[:_MAX_ERRORS]]
    first = errors[0]
    detail = f"{first.pointer or 'body'}: {first.detail}"
    if len(found) > 1:
        detail += f" (and {len(found) - 1} more)"
    return Problem(INVALID_REQUEST, detail, errors)


def invalid(pointer: str, detail: str) -> ProblemError:
    """A request that is well formed, but asks what cannot be."""
    return ProblemError(Problem(INVALID_REQUEST, f"{pointer}: {detail}", [FieldError(pointer, detail)]))


def _pointer(location: Sequence[str | int]) -> str:
    """RFC 6901."""
    parts = [str(part).replace("~", "~0").replace("/", "~1") for part in location if part not in _UNION_BRANCHES]
    return "".join(f"/{part[:_MAX_PART_CHARS]}" for part in parts)
