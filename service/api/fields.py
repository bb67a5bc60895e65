"""The kinds of values that requests and answers are made of."""

import re
from datetime import datetime
from typing import Annotated, Any, Final

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic_core import PydanticCustomError, core_schema

ID_PATTERN: Final = r"^[^\u0000-\u001f\u007f-\u009f]+$"
"""No control characters: ids end up in keys, logs and file lines."""
MAX_ID_CHARS: Final = 256
_MAX_SECONDS: Final = 1e11
"""Year 5138: beyond it a client most likely sends milliseconds."""
_RFC3339: Final = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)", re.ASCII | re.IGNORECASE)

ExternalId = Annotated[str, Field(min_length=1, max_length=MAX_ID_CHARS, pattern=ID_PATTERN)]
"""A user, item, event or recommendation id."""
RecommendationId = Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
"""As answers give it."""
Name = Annotated[str, Field(min_length=1, max_length=100, pattern=ID_PATTERN)]
"""An action, a tag, or a named filter."""
Value = Annotated[float, Field(allow_inf_nan=False, ge=-3.4e38, le=3.4e38)]
"""A raw figure that fits 32 bits."""


def _whole(value: object) -> object:
    """JSON Schema counts 3.0 among the integers."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


Count = Annotated[int, Field(ge=1), BeforeValidator(_whole)]
Seed = Annotated[int, Field(ge=0, le=2**32 - 1), BeforeValidator(_whole)]
"""Of a draw."""


class _Timestamp:
    """Unix seconds or an RFC 3339 time, read as Unix milliseconds."""

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        return core_schema.no_info_plain_validator_function(_to_milliseconds)

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: core_schema.CoreSchema, handler: GetJsonSchemaHandler) -> Any:
        return {
            "anyOf": [
                {"type": "number", "minimum": -_MAX_SECONDS, "maximum": _MAX_SECONDS},
                {"type": "string", "format": "date-time"},
            ],
            "description": "Unix seconds, or a time as in RFC 3339.",
            "examples": [1732100000, "2024-11-20T10:53:20Z"],
        }


TimestampMs = Annotated[int, _Timestamp]


def _to_milliseconds(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise PydanticCustomError("timestamp", "Input should be Unix seconds or an RFC 3339 time")
    if isinstance(value, str):
        return _parse_rfc3339(value)
    # A NaN compares false with everything.
    if not -_MAX_SECONDS <= value <= _MAX_SECONDS:
        raise PydanticCustomError("timestamp", "Input should be finite Unix seconds, not milliseconds")
    return round(value * 1000)


def _parse_rfc3339(text: str) -> int:
    # fromisoformat alone reads more of ISO 8601 than RFC 3339 has.
    if _RFC3339.fullmatch(text):
        try:
            return round(datetime.fromisoformat(text.upper()).timestamp() * 1000)
        except ValueError as error:
            raise PydanticCustomError("timestamp", "Input should be a time: {error}", {"error": str(error)}) from error
    raise PydanticCustomError("timestamp", "Input should be a time as in RFC 3339, like 2024-11-20T10:53:20Z")


class StrictModel(BaseModel):
    """A request: no unknown field, no value of another type."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class AnswerModel(BaseModel):
    """An answer: documents and types what is sent."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())
