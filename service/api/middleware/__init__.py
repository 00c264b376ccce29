"""Pure ASGI, one concern per file."""

from service.api.middleware.access import AccessMiddleware
from service.api.middleware.auth import AuthMiddleware
from service.api.middleware.body import BodyMiddleware
from service.api.middleware.cross_origin import cross_origin
from service.api.middleware.door import DoorMiddleware
from service.api.middleware.rate_limit import RateLimitMiddleware
from service.api.middleware.request_id import RequestIdMiddleware
from service.api.middleware.routes import RoutesMiddleware
from service.api.middleware.trace import TraceMiddleware

__all__ = [
    "AccessMiddleware",
    "AuthMiddleware",
    "BodyMiddleware",
    "DoorMiddleware",
    "RateLimitMiddleware",
    "RequestIdMiddleware",
    "RoutesMiddleware",
    "TraceMiddleware",
    "cross_origin",
]
