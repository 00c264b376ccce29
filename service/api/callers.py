"""Who asks, and what names the answers."""

from __future__ import annotations

from typing import NamedTuple

from fastapi import Request
from starlette.datastructures import Headers
from starlette.types import Scope

from service.keys import owner_name


class Caller(NamedTuple):
    """Who made a request.

    Attributes:
        owner: whose its answers are, see `owner_name`.
        request_id: names its answers among the owner's.
    """

    owner: str
    request_id: str

    def at(self, place: int) -> Caller:
        """The same for one of several answers."""
        return self._replace(request_id=f"{self.request_id}-{place}")


def caller_of(request: Request) -> Caller:
    """Who made a request, as the middleware found out."""
    return Caller(owner_name(getattr(request.state, "key", None)), request.state.request_id)


def bearer_key(scope: Scope) -> str | None:
    """The key that a request brings, known or not; None where it brings none."""
    scheme, _, key = Headers(scope=scope).get("authorization", "").partition(" ")
    return key.strip() if scheme.lower() == "bearer" else None
