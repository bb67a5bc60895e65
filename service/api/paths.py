"""What may stand in a path."""

from typing import Annotated

from fastapi import Path
from starlette.convertors import Convertor, register_url_convertor

from service.api.fields import ID_PATTERN, MAX_ID_CHARS


class _AnyText(Convertor[str]):
    """Ids may hold slashes; and one with a line end must be told why it is refused, not that there is nothing."""

    regex = r"[\s\S]*"

    def convert(self, value: str) -> str:
        return value

    def to_string(self, value: str) -> str:
        return value


class _ItemText(_AnyText):
    """An item's id; what ends like a route below items is that route. Such an item is changed in bulk."""

    regex = r"(?![\s\S]*/similar$)[\s\S]*"


register_url_convertor("any_text", _AnyText())
register_url_convertor("item_text", _ItemText())
PathId = Annotated[str, Path(min_length=1, max_length=MAX_ID_CHARS, pattern=ID_PATTERN)]
"""An id in a path, of the convertor `any_text`."""
