"""OpenTelemetry spans of a request: itself, and its stages tokenize, queue and inference.

Off unless the setting `otel` is on, and then configured by the standard `OTEL_…` variables: where
the spans go (`OTEL_EXPORTER_OTLP_ENDPOINT`), under what name (`OTEL_SERVICE_NAME`), how many are
kept (`OTEL_TRACES_SAMPLER`).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from opentelemetry import propagate, trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from starlette.types import Scope

from service.engine import Answer
from service.telemetry import package_version


class Tracing:
    """Makes the spans of one application, without touching what is global to the process.

    Args:
        provider: makes and exports spans; by default one as the environment says.
    """

    def __init__(self, provider: TracerProvider | None = None) -> None:
        self._provider = provider or _provider_of_the_environment()
        self._tracer = self._provider.get_tracer("dalorra", package_version())

    @contextmanager
    def request(self, scope: Scope, headers: Mapping[str, str]) -> Iterator[dict[str, str]]:
        """A span while the request is answered; its ids as the log has them."""
        state: dict[str, Any] = scope.setdefault("state", {})
        method = scope["method"]
        with self._tracer.start_as_current_span(
            method,
            context=propagate.extract(headers),
            kind=trace.SpanKind.SERVER,
            attributes={
                "http.request.method": method,
                "url.path": scope["path"],
                "url.scheme": scope["scheme"],
                "dalorra.request_id": state.get("request_id", ""),
            },
            record_exception=False,  # the log has it; a message may quote an input
        ) as span:
            context = span.get_span_context()
            yield {
                "trace_id": trace.format_trace_id(context.trace_id),
                "span_id": trace.format_span_id(context.span_id),
            }
            route = getattr(scope.get("route"), "path", None)
            if route:
                span.update_name(f"{method} {route}")
                span.set_attribute("http.route", route)
            if status := state.get("status"):  # none: the client left before
                span.set_attribute("http.response.status_code", status)
            if problem := state.get("problem"):  # a Problem of the API, left by its errors
                span.set_attribute("error.type", problem.error_type)
                if problem.status >= 500:
                    span.set_status(trace.StatusCode.ERROR)

    def stages(self, answers: Sequence[Answer]) -> None:
        """Spans of what was done for the answers to one request, in hindsight.

        `tokenize` and `queue` cover all its inputs, and each forward they went through is an
        `inference`. What an equal input had begun before this request came is part of it.
        """
        # Not is_recording(): a library in between may have put a span of its own that does nothing.
        if not trace.get_current_span().get_span_context().trace_flags.sampled:
            return
        epoch = time.time_ns() - round(1e9 * asyncio.get_running_loop().time())
        queued = [one.queued_at for one in answers]
        started = [one.queued_at + one.queue_seconds for one in answers]
        self._stage(
            "tokenize",
            epoch,
            min(one.queued_at - one.tokenize_seconds for one in answers),
            max(queued),
            {"dalorra.inputs": len(answers), "dalorra.tokens": sum(one.tokens for one in answers)},
        )
        self._stage("queue", epoch, min(queued), max(started), {})
        for start, one in dict(zip(started, answers, strict=True)).items():
            attributes = {"dalorra.batch_requests": one.batch_requests}
            self._stage("inference", epoch, start, start + one.inference_seconds, attributes)

    def _stage(
        self, name: str, epoch: int, start: float, end: float, attributes: dict[str, int]
    ) -> None:
        """One span; its times are in seconds of the loop, whose zero is `epoch` in nanoseconds."""
        span = self._tracer.start_span(
            name, start_time=epoch + round(1e9 * start), attributes=attributes
        )
        span.end(epoch + round(1e9 * end))

    async def close(self) -> None:
        """Sends what is left."""
        await asyncio.to_thread(self._provider.shutdown)


def _provider_of_the_environment() -> TracerProvider:
    ours = Resource({"service.name": "dalorra", "service.version": package_version()})
    sdk = Resource.create().attributes
    described = {name: sdk[name] for name in sdk if name.startswith("telemetry.")}
    resource = Resource(described).merge(ours).merge(OTELResourceDetector().detect())
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return provider
