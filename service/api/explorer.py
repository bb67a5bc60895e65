"""Pages for people: the explorer, which shows what the API answers and why, and the API's description.

They ship with the service and ask nobody else: what ran here from another host could read the key of the tab.
"""

from importlib.resources import files
from typing import Final

from fastapi import APIRouter
from starlette.responses import Response

router = APIRouter(include_in_schema=False)
_POLICY: Final = (
    "default-src 'self'; img-src 'self' data:; base-uri 'none'; form-action 'self'; frame-ancestors 'none'; "
    "object-src 'none'"
)
_FILES: Final = ("explorer.css", "api.js", "docs.js", "explorer.js", "live.js", "page.js")
_MEDIA_TYPES: Final = {"html": "text/html", "css": "text/css", "js": "text/javascript"}


def _add(path: str, name: str) -> None:
    content = files("service").joinpath("web", name).read_bytes()
    media_type = f"{_MEDIA_TYPES[name.rpartition('.')[2]]}; charset=utf-8"

    @router.get(path, name=name)
    async def page() -> Response:
        return Response(content, media_type=media_type, headers={"Content-Security-Policy": _POLICY})


_add("/", "index.html")
_add("/docs", "docs.html")
for _name in _FILES:
    _add(f"/{_name}", _name)
