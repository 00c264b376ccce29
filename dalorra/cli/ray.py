"""The server as a Ray Serve application: as many replicas as the load needs, one GPU each.

`deploy/ray/serve.yaml` names `build`. Ray's processes find `service`, and OpenMP its variables,
because this module belongs to the command line. Every replica is the whole server with its model.
What differs from `dalorra serve` is that Ray's proxy listens, and that Ray starts and ends them.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import ray
from fastapi import FastAPI
from prometheus_client import CollectorRegistry, Metric
from ray import serve

from dalorra.errors import ConfigError
from service.app import create_app
from service.errors import UnavailableError
from service.instances import OneAtATime, together
from service.lifecycle import Lifecycle
from service.logs import configure_logging
from service.run import END_SECONDS
from service.settings import load_settings
from service.telemetry import Telemetry

NAME = "dalorra"
SCRAPE_SECONDS = 5
"""In which every replica says what it counted; Prometheus itself waits for ten."""


def build(args: dict[str, Any]) -> serve.Application:
    """The application, for `serve run` and `serve deploy`.

    Args:
        args: settings of `dalorra serve` by name; `DALORRA_…` variables of the replicas count, too.

    Raises:
        ConfigError: a setting is unknown or wrong.
    """
    # Other machines reach a replica by way of the proxy, whatever `host` would be on its own.
    given = {"host": "0.0.0.0", **args}  # noqa: S104
    settings = load_settings(**given)
    if settings.adapter_roots:
        raise ConfigError(
            "adapter_roots: an adapter that is loaded over HTTP reaches one replica only; leave it "
            "out, name the adapters in args, and deploy again to change them"
        )

    def application() -> FastAPI:
        return replica_app(given)

    gpus = _gpus()
    deployment = serve.deployment(
        name=NAME,
        ray_actor_options={"num_cpus": 2, "num_gpus": gpus},
        # A new one answers before an old one goes; GPUs are rarely left over for that.
        max_surge_percent=0 if gpus else 1,
        # The engine batches and sheds load itself: it must see the requests that wait.
        max_ongoing_requests=settings.max_queue_requests,
        autoscaling_config={"min_replicas": 1, "max_replicas": 4, "target_ongoing_requests": 32},
        graceful_shutdown_timeout_s=settings.drain_seconds + END_SECONDS,
    )
    return deployment(serve.ingress(application)(Replica)).bind()


class Replica:
    """One server; Ray replaces it when its health check fails."""

    app: FastAPI

    def check_health(self) -> None:
        """Called by Ray before the replica takes requests, and then again and again.

        Raises:
            UnavailableError: only a restart can help; `serve status` says why.
        """
        lifecycle: Lifecycle = self.app.state.lifecycle
        if (failure := lifecycle.not_alive()) is not None:
            raise failure

    async def metrics(self) -> tuple[str, list[Metric]]:
        """Called by the replica that is scraped: the name of this one, and what it counted."""
        telemetry: Telemetry = self.app.state.telemetry
        name = serve.get_replica_context().replica_id.unique_id
        return name, list(telemetry.registry.collect())


def replica_app(given: dict[str, Any]) -> FastAPI:
    """The ASGI application of one replica; it has started once its model is loaded, or failed."""
    settings = load_settings(**given)
    configure_logging(settings.log_level, settings.log_format)
    app = create_app(settings)
    app.state.telemetry.exposed = OneAtATime(_of_all)
    starting = app.router.lifespan_context

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with starting(app):
            lifecycle: Lifecycle = app.state.lifecycle
            if lifecycle.loading is not None:
                await asyncio.wait([lifecycle.loading])
            yield

    app.router.lifespan_context = lifespan
    return app


async def _of_all() -> CollectorRegistry:
    """The metrics of all replicas, asked for now.

    Raises:
        UnavailableError: one of them does not answer.
    """
    handle = serve.get_deployment_handle(NAME, serve.get_replica_context().app_name)
    asked = handle.broadcast(Replica.metrics.__name__)
    try:
        answers = await asked.results_async(timeout_s=SCRAPE_SECONDS, return_exceptions=True)
    except TimeoutError:
        raise UnavailableError(
            f"a replica did not say within {SCRAPE_SECONDS} s what it counted: try again", 1
        ) from None
    # The others died, and Serve has not noticed yet.
    alive = [answer for answer in answers if not isinstance(answer, Exception)]
    return together(alive)


def _gpus() -> int:
    """GPUs of a replica: one where the cluster has any."""
    return int(ray.cluster_resources().get("GPU", 0) > 0)
