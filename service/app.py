"""The ASGI application."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, nullcontext
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from starlette.middleware import Middleware

from dalorra.errors import ConfigError
from service.api import errors, problems
from service.api.adapters import adapter_routes
from service.api.answering import Answering
from service.api.decisions import decisions_routes
from service.api.docs import docs_routes
from service.api.feedback import feedback_routes
from service.api.middleware import (
    AccessMiddleware,
    AuthMiddleware,
    BodyMiddleware,
    DoorMiddleware,
    RateLimitMiddleware,
    RequestIdMiddleware,
    RoutesMiddleware,
    TraceMiddleware,
    cross_origin,
)
from service.api.middleware.auth import OPEN_PATHS
from service.api.middleware.door import has_one_length, has_room, is_for
from service.api.openinference import openinference_routes
from service.api.page import page_routes
from service.api.questions import TypedQuestions
from service.api.routes import operation_routes, prediction_routes
from service.api.systemone import systemone_routes
from service.feedback import Ledger
from service.feedback.metrics import FeedbackCollector
from service.lifecycle import Lifecycle, LoadBase
from service.limits import Buckets, buckets_for
from service.telemetry import Telemetry, package_version

if TYPE_CHECKING:
    from service.adapters import Base
    from service.mcp import McpEndpoint
    from service.settings import Settings
    from service.tracing import Tracing


def create_app(
    settings: Settings,
    load_base: LoadBase | None = None,
    *,
    tracing: Tracing | None = None,
) -> FastAPI:
    """Builds the application; it loads its model once it is started, while health answers.

    Args:
        settings: see `service.settings`.
        load_base: loads the base model; `dalorra`'s by default.
        tracing: makes spans; if the settings say so, as the environment says, by default.

    Returns:
        An application whose `state.lifecycle` says what it is doing, whose `state.ledger` has what
        is kept of its answers, and whose `state.telemetry` has its metrics.
    """
    telemetry = Telemetry(problems.ERROR_TYPES)
    ledger = Ledger(settings.feedback_options())
    telemetry.registry.register(FeedbackCollector(ledger))
    lifecycle = Lifecycle(settings, load_base or load_shared_base, telemetry, ledger)
    tracing = tracing or _tracing(settings)
    answering = Answering(
        lifecycle,
        telemetry,
        ledger,
        timeout_seconds=settings.request_timeout_seconds,
        tracing=tracing,
        log_inputs=settings.log_inputs,
    )
    clients, administrators = settings.key_digests(), settings.admin_key_digests()
    keys = (*clients, *administrators) if clients else ()  # open to all if clients need none
    questions = TypedQuestions(settings, lifecycle, answering)
    buckets = _buckets(settings)
    mcp = _mcp_endpoint(settings, lifecycle, answering, questions, telemetry)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with mcp.running() if mcp else nullcontext():
            ledger.start()
            lifecycle.start()
            yield
            await lifecycle.drain()
            await ledger.stop(at_once=lifecycle.abandoned)
            if buckets:
                await buckets.close()
            if tracing and not lifecycle.abandoned:
                await tracing.close()

    app = FastAPI(
        title="DALorRA Service",
        summary="Decisions with an honest probability and a measure of doubt.",
        description=errors.OF_EVERY_PATH,
        version=package_version(),
        lifespan=lifespan,
        docs_url=None,  # they load scripts from elsewhere
        redoc_url=None,
        redirect_slashes=False,  # a redirect would go to whatever host the client names
        middleware=_middleware(settings, keys, telemetry, tracing, buckets),
    )
    app.state.lifecycle, app.state.ledger, app.state.telemetry = lifecycle, ledger, telemetry
    errors.install(app)
    app.include_router(prediction_routes(settings, answering))
    app.include_router(systemone_routes(settings, questions))
    app.include_router(decisions_routes(settings, questions))
    app.include_router(feedback_routes(settings, ledger))
    app.include_router(operation_routes(settings, lifecycle, telemetry))
    app.include_router(adapter_routes(settings, lifecycle))
    app.include_router(openinference_routes(settings, lifecycle, answering))
    app.include_router(page_routes())
    app.include_router(docs_routes(app))
    if mcp:
        app.router.routes.append(mcp.route)
    if keys:
        _document_keys(app)
    return app


def _middleware(
    settings: Settings,
    keys: Sequence[bytes],
    telemetry: Telemetry,
    tracing: Tracing | None,
    buckets: Buckets | None,
) -> list[Middleware]:
    """What a request passes on its way to its route, outermost first."""
    limit, hosts = settings.rate_limit, settings.hosts
    checks = (has_room, has_one_length, *([is_for(hosts)] if hosts else []))
    return [
        Middleware(RequestIdMiddleware),
        Middleware(TraceMiddleware, tracing=tracing),
        *([cross_origin(settings.cors_origins)] if settings.cors_origins else []),
        Middleware(AccessMiddleware, telemetry=telemetry),
        Middleware(DoorMiddleware, checks=checks),
        *([Middleware(AuthMiddleware, keys=keys)] if keys else []),
        *(
            [Middleware(RateLimitMiddleware, per_second=limit, buckets=buckets)]
            if limit is not None and buckets is not None
            else []
        ),
        Middleware(RoutesMiddleware),
        Middleware(
            BodyMiddleware,
            max_bytes=settings.max_body_bytes,
            max_total=settings.bodies_mib * 2**20,
            seconds=settings.body_seconds,
        ),
    ]


def _buckets(settings: Settings) -> Buckets | None:
    """What counts the requests of each key; None where there is no limit."""
    if settings.rate_limit is None:
        return None
    url = settings.limits_url.get_secret_value() if settings.limits_url else None
    return buckets_for(url, settings.rate_limit, settings.rate_burst)


def load_shared_base(settings: Settings) -> Base:
    """Loads the base model that the settings name, or the one of the first adapter."""
    from dalorra.shared_base import SharedBase

    _, first = settings.first_adapters()[0]
    return SharedBase.load(
        settings.base_model,
        first,
        device=settings.device,
        dtype=settings.dtype,
        quantize=settings.quantize,
        on_overflow=settings.on_overflow,
        max_tokens=settings.max_tokens,
        row_budget=settings.batch_rows,
        prefix_cache_bytes=settings.prefix_cache_mib * 2**20,
        cuda_graphs=settings.cuda_graphs,
        hand_made_policies=settings.hand_made_policies,
    )


def _mcp_endpoint(
    settings: Settings,
    lifecycle: Lifecycle,
    answering: Answering,
    questions: TypedQuestions,
    telemetry: Telemetry,
) -> McpEndpoint | None:
    """The endpoint that serves /mcp; None where it is off or not installed.

    Raises:
        ConfigError: the setting turns it on, but it is not installed.
    """
    installed = find_spec("mcp") is not None
    if settings.mcp and not installed:
        raise ConfigError("mcp is on, but not installed: pip install 'dalorra-service[mcp]'")
    if settings.mcp is False or not installed:
        return None
    from service.mcp import McpEndpoint

    return McpEndpoint(
        lifecycle,
        answering,
        questions,
        telemetry,
        max_body_bytes=settings.max_body_bytes,
        hosts=settings.hosts if settings.on_loopback and not settings.key_digests() else (),
    )


def _tracing(settings: Settings) -> Tracing | None:
    """What makes spans; None where the setting does not turn them on.

    Raises:
        ConfigError: the setting turns them on, but OpenTelemetry is not installed.
    """
    if not settings.otel:
        return None
    try:
        from service.tracing import Tracing
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"otel is on, but {error.name} is not installed: pip install 'dalorra-service[otel]'"
        ) from error
    return Tracing()


def _document_keys(app: FastAPI) -> None:
    """Says in the OpenAPI document which paths need a bearer key."""
    document = get_openapi(
        title=app.title,
        summary=app.summary,
        description=app.description,
        version=app.version,
        routes=app.routes,
    )
    document["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    for path, operations in document["paths"].items():
        if path not in OPEN_PATHS:
            for operation in operations.values():
                operation["security"] = [{"key": []}]

    def openapi() -> dict[str, Any]:
        return document

    app.openapi = openapi  # type: ignore[method-assign]  # the way FastAPI documents
