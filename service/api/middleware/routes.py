"""Only what some route takes goes on: nothing is read for a path or a method that there is not."""

from starlette.exceptions import HTTPException
from starlette.routing import BaseRoute, Match
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.api.errors import error_response

_METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")


class RoutesMiddleware:
    """Answers 404 and 405 before the body is read, and HEAD wherever GET is answered."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes on what a route takes, or refuses it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        head = scope["method"] == "HEAD"
        asked = {**scope, "method": "GET"} if head else scope
        routes = scope["app"].router.routes
        if not _taken(asked, asked["method"], routes):
            await error_response(_refusal(scope, routes), scope)(scope, receive, send)
            return

        async def send_head(message: Message) -> None:
            await send({**message, "body": b""} if "body" in message else message)

        await self.app(asked, receive, send_head if head else send)


def _taken(scope: Scope, method: str, routes: list[BaseRoute]) -> bool:
    """Whether a route answers this path and method."""
    asked = {**scope, "method": method}  # matching leaves marks in the scope
    return any(route.matches(asked)[0] is Match.FULL for route in routes)


def _refusal(scope: Scope, routes: list[BaseRoute]) -> HTTPException:
    allowed = [method for method in _METHODS if _taken(scope, method, routes)]
    if not allowed:
        return HTTPException(404)
    if "GET" in allowed:
        allowed.insert(1, "HEAD")
    return HTTPException(405, headers={"Allow": ", ".join(allowed)})
