"""The page for people: seven files of this package, nothing from elsewhere."""

from collections.abc import Awaitable, Callable
from importlib.resources import files

from fastapi import APIRouter, Response

_FILES = {
    "/": ("page.html", "text/html; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
    "/charts.js": ("charts.js", "text/javascript; charset=utf-8"),
    "/predict.js": ("predict.js", "text/javascript; charset=utf-8"),
    "/questions.js": ("questions.js", "text/javascript; charset=utf-8"),
    "/server.js": ("server.js", "text/javascript; charset=utf-8"),
}
PATHS = frozenset(_FILES)
"""Open to all: the page has no secret, and is where a key is typed in."""

HEADERS = {
    # Nothing inline, nothing from elsewhere, and no other page may frame it.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


def page_routes() -> APIRouter:
    """The page and what it is made of; not part of the API, so not in its document."""
    router = APIRouter(include_in_schema=False)
    for path, (name, content_type) in _FILES.items():
        content = (files("service") / "page" / name).read_bytes()
        router.add_api_route(path, _serve(content, content_type), response_class=Response)
    return router


def _serve(content: bytes, content_type: str) -> Callable[[], Awaitable[Response]]:
    async def serve() -> Response:
        return Response(content, headers={"Content-Type": content_type, **HEADERS})

    return serve
