"""Reads bodies: none longer than the server takes, none for ever, and not too much in all."""

import asyncio

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.api.errors import error_response
from service.errors import BodyTooLargeError, BusyError, TooSlowError


class BodyMiddleware:
    """Reads the body of a request before it goes on.

    Answers 413 at once where the declared length is too long, else once too much has come; 408 once
    it takes too long; 503 where the bodies in hand, those that wait for their answer included, take
    all the memory that there is for them; 400 for what is not UTF-8.

    Args:
        max_bytes: of one body.
        max_total: bytes of all bodies in hand.
        seconds: for one body to come.
    """

    def __init__(self, app: ASGIApp, *, max_bytes: int, max_total: int, seconds: float) -> None:
        self.app = app
        self._max_bytes = max_bytes
        self._max_total = max_total
        self._seconds = seconds
        self._held = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes on the whole body, or refuses it."""
        if scope["type"] != "http" or scope["method"] == "GET":
            await self.app(scope, receive, send)
            return
        body = bytearray()
        try:
            try:
                complete = await self._read(body, scope, receive)
            except (BodyTooLargeError, BusyError, TooSlowError, HTTPException) as error:
                response = error_response(error, scope)
                if isinstance(error, TooSlowError):
                    response.headers["Connection"] = "close"
                await response(scope, receive, send)
                return
            if complete:
                await self.app(scope, _first(bytes(body), receive), send)
        finally:
            self._held -= len(body)

    async def _read(self, body: bytearray, scope: Scope, receive: Receive) -> bool:
        """Reads into `body`; False when the client left before it was complete.

        Raises:
            BodyTooLargeError, BusyError, TooSlowError, HTTPException: it is refused.
        """
        headers = Headers(scope=scope)
        declared = headers.get("content-length", "0")
        self._check_length(int(declared) if declared.isdigit() else 0)
        try:
            async with asyncio.timeout(self._seconds):
                more = True
                while more:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return False
                    self._take(body, message.get("body", b""))
                    more = message.get("more_body", False)
        except TimeoutError:
            raise TooSlowError(f"the body was not here within {self._seconds:g} s") from None
        if "content-encoding" not in headers and not _is_utf8(body):
            raise HTTPException(400)
        return True

    def _take(self, body: bytearray, chunk: bytes) -> None:
        self._check_length(len(body) + len(chunk))
        if self._held + len(chunk) > self._max_total:
            raise BusyError("the server has as many requests in hand as it takes: try again in 1 s")
        self._held += len(chunk)
        body += chunk

    def _check_length(self, length: int) -> None:
        if length > self._max_bytes:
            raise BodyTooLargeError(f"the body is longer than {self._max_bytes} bytes")


def _first(body: bytes, receive: Receive) -> Receive:
    """A `receive` that begins with the body that was read."""
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        return messages.pop() if messages else await receive()

    return replay


def _is_utf8(body: bytearray) -> bool:
    """Whether it is text in UTF-8: JSON in UTF-16 or UTF-32 has zeros, which JSON has not."""
    try:
        body.decode()
    except UnicodeDecodeError:
        return False
    return 0 not in body
