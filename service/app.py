"""The ASGI application."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from starlette.middleware import Middleware

from service.api import errors
from service.api.middleware import (
    AccessMiddleware,
    AuthMiddleware,
    BodyLimitMiddleware,
    RequestIdMiddleware,
)
from service.api.middleware.auth import OPEN_PATHS
from service.api.routes import operation_routes, prediction_routes
from service.lifecycle import Lifecycle, LoadPredictor
from service.telemetry import Telemetry, package_version

if TYPE_CHECKING:
    from service.engine import Predictor
    from service.settings import Settings


def create_app(settings: Settings, load_predictor: LoadPredictor | None = None) -> FastAPI:
    """Builds the application; it loads its model once it is started, while health answers.

    Args:
        settings: see `service.settings`.
        load_predictor: makes the predictor; `dalorra`'s by default.

    Returns:
        An application whose `state.lifecycle` says what it is doing.
    """
    telemetry = Telemetry(errors.ERROR_TYPES)
    lifecycle = Lifecycle(settings, load_predictor or load_adapter, telemetry)
    keys = settings.secrets()

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        lifecycle.start()
        yield
        await lifecycle.drain()

    app = FastAPI(
        title="DALorRA Service",
        summary="Decisions with an honest probability and a measure of doubt.",
        version=package_version(),
        lifespan=lifespan,
        middleware=[  # outermost first
            Middleware(RequestIdMiddleware),
            Middleware(AccessMiddleware, telemetry=telemetry),
            *([Middleware(AuthMiddleware, keys=keys)] if keys else []),
            Middleware(BodyLimitMiddleware, max_bytes=settings.max_body_bytes),
        ],
    )
    app.state.lifecycle = lifecycle
    errors.install(app)
    app.include_router(prediction_routes(settings, lifecycle, telemetry))
    app.include_router(operation_routes(settings, lifecycle, telemetry))
    if keys:
        _document_keys(app)
    return app


def load_adapter(settings: Settings) -> Predictor:
    """Loads the adapter and base model that the settings name."""
    from dalorra.predictor import Predictor as AdapterPredictor

    return AdapterPredictor.load(
        settings.adapter,
        settings.base_model,
        device=settings.device,
        dtype=settings.dtype,
        on_overflow=settings.on_overflow,
        row_budget=settings.batch_rows,
        prefix_cache_bytes=settings.prefix_cache_mib * 2**20,
    )


def _document_keys(app: FastAPI) -> None:
    """Says in the OpenAPI document which paths need a bearer key."""
    document = get_openapi(
        title=app.title, summary=app.summary, version=app.version, routes=app.routes
    )
    document["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    for path, operations in document["paths"].items():
        if path not in OPEN_PATHS:
            for operation in operations.values():
                operation["security"] = [{"key": []}]

    def openapi() -> dict[str, Any]:
        return document

    app.openapi = openapi  # type: ignore[method-assign]  # the way FastAPI documents
