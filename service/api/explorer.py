"""The explorer: a page that shows what the API answers, and why. It ships with the service and asks nobody else."""

from importlib.resources import files
from typing import Final

from fastapi import APIRouter
from starlette.responses import Response

router = APIRouter(include_in_schema=False)
_POLICY: Final = (
    "default-src 'self'; img-src 'self' data:; base-uri 'none'; form-action 'self'; frame-ancestors 'none'; "
    "object-src 'none'"
)
_MEDIA_TYPES: Final = {
    "index.html": "text/html; charset=utf-8",
    "explorer.css": "text/css; charset=utf-8",
    "explorer.js": "text/javascript; charset=utf-8",
}
_PAGES: Final = {name: files("service").joinpath("web", name).read_bytes() for name in _MEDIA_TYPES}


def _page(name: str) -> Response:
    return Response(_PAGES[name], media_type=_MEDIA_TYPES[name], headers={"Content-Security-Policy": _POLICY})


@router.get("/")
async def explorer() -> Response:
    """The page."""
    return _page("index.html")


@router.get("/explorer.css")
async def style() -> Response:
    """How it looks."""
    return _page("explorer.css")


@router.get("/explorer.js")
async def script() -> Response:
    """What it does."""
    return _page("explorer.js")
