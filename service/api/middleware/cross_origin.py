"""Web pages from elsewhere may ask only where the operator names their origin."""

from collections.abc import Sequence

from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware


def cross_origin(origins: Sequence[str]) -> Middleware:
    """Lets pages of these origins ask, with a bearer key and without cookies."""
    return Middleware(
        CORSMiddleware,
        allow_origins=list(origins),
        allow_methods=["GET", "POST"],
        allow_headers=["Authorization", "Content-Type", "X-Request-Id", "traceparent"],
        expose_headers=["X-Request-Id", "Retry-After", "Server-Timing"],
    )
