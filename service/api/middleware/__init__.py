"""Pure ASGI, one concern per file."""

from service.api.middleware.access import AccessMiddleware
from service.api.middleware.auth import AuthMiddleware
from service.api.middleware.body_limit import BodyLimitMiddleware
from service.api.middleware.cross_origin import cross_origin
from service.api.middleware.rate_limit import RateLimitMiddleware
from service.api.middleware.request_id import RequestIdMiddleware
from service.api.middleware.trace import TraceMiddleware

__all__ = [
    "AccessMiddleware",
    "AuthMiddleware",
    "BodyLimitMiddleware",
    "RateLimitMiddleware",
    "RequestIdMiddleware",
    "TraceMiddleware",
    "cross_origin",
]
