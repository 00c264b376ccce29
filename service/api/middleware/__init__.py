"""Pure ASGI, one concern per file."""

from service.api.middleware.access import AccessMiddleware
from service.api.middleware.auth import AuthMiddleware
from service.api.middleware.body_limit import BodyLimitMiddleware
from service.api.middleware.request_id import RequestIdMiddleware

__all__ = ["AccessMiddleware", "AuthMiddleware", "BodyLimitMiddleware", "RequestIdMiddleware"]
