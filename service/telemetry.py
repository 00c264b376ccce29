"""Prometheus metrics on a registry of their own: one app, one set of series.

Base units, bounded labels only, and every label value exists from the start: a series that
appears with its first failure has no rate when the alert needs one.
"""

import math
import platform
from collections.abc import Awaitable, Callable, Iterable, Iterator
from enum import StrEnum
from importlib.metadata import PackageNotFoundError, version

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Info,
    Metric,
    ProcessCollector,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from dalorra.decision.policy import Decision
from dalorra.decision.predictive import Prediction
from dalorra.forward.llama.prefix_cache import PrefixCache
from service.engine import Predictor
from service.exemplars import exemplar
from service.policies import hand_made_policies

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
SHORT_SECONDS = (0.0001, 0.00025, 0.0005, *SECONDS)
ROWS = tuple(float(2**n) for n in range(5, 17))
REQUESTS = tuple(float(2**n) for n in range(9))
# A variance of a probability is at most 1/4, and thresholds lie near its low end.
VARIANCE = (0.00001, 0.0001, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25)
# Policies look at small p-values; usual inputs are spread evenly over all.
NOVELTY_P = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 0.75, 1.0)
CONFIDENCE = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1.0)


class Outcome(StrEnum):
    """How a prediction request ended."""

    OK = "ok"
    INVALID = "invalid"  # the client's fault: 4xx
    REJECTED = "rejected"  # not now: 429, 503
    FAILED = "failed"  # the server's fault: 500, 504
    CANCELLED = "cancelled"  # the client left


class Telemetry:
    """All metrics; the `Observer` of the engine.

    Args:
        error_types: every slug that a failed request can be counted under.

    Attributes:
        registry: has them.
        exposed: what a scrape gets; the registry, unless one process is asked for several.
    """

    def __init__(self, error_types: Iterable[str]) -> None:
        self.registry = CollectorRegistry()
        self.exposed: Callable[[], Awaitable[CollectorRegistry]] = self._own
        self._requests = self._counter("requests", "Prediction requests by outcome.", ["outcome"])
        self._failures = self._counter(
            "request_failures", "Prediction requests that failed, by reason.", ["error_type"]
        )
        self._decisions = self._counter(
            "decisions", "Answers by decision.", ["adapter", "decision"]
        )
        self._labels = self._counter("labels", "Answers by predicted label.", ["adapter", "label"])
        self._tokens = self._counter("tokens", "Prompt tokens tokenised.")
        self._mask_samples = self._counter(
            "mask_samples", "Posterior samples averaged in answers.", ["adapter"]
        )
        self._coalesced = self._counter(
            "coalesced_inputs", "Inputs answered by an identical one that was in flight."
        )
        self._inflight = self._gauge("inflight_requests", "Prediction requests being answered.")
        self._queue_requests = self._gauge("queue_requests", "Inputs that wait for the model.")
        self._queue_rows = self._gauge("queue_rows", "Packed rows that wait for the model.")
        self._ready = self._gauge("ready", "1 while the server takes requests.")
        self._calibrated = {
            what: self._gauge(
                f"calibrated_{what}_ratio",
                f"{what.capitalize()} share when the policy was picked; NaN if it is unknown.",
                ["adapter"],
            )
            for what in ("acceptance", "escalation")
        }
        self._request_seconds = self._histogram(
            "request_duration_seconds", "Prediction request, first byte to last.", SECONDS
        )
        self._queue_seconds = self._histogram(
            "queue_duration_seconds", "From tokenised to the start of the batch.", SECONDS
        )
        self._tokenize_seconds = self._histogram(
            "tokenize_duration_seconds", "Tokenising one input.", SHORT_SECONDS
        )
        self._inference_seconds = self._histogram(
            "inference_duration_seconds", "One batch on the model thread.", SECONDS
        )
        self._batch_rows = self._histogram("batch_rows", "Packed rows of a batch.", ROWS)
        self._batch_requests = self._histogram("batch_requests", "Inputs of a batch.", REQUESTS)
        self._variance = self._histogram(
            "predictive_variance",
            "Variance of the predicted label's probability.",
            VARIANCE,
            ["adapter"],
        )
        self._novelty = self._histogram(
            "novelty_p_value",
            "p-value of the input among those like the training data; small is novel.",
            NOVELTY_P,
            ["adapter"],
        )
        self._confidence = self._histogram(
            "confidence", "Mean probability of the predicted label.", CONFIDENCE, ["adapter"]
        )
        self._adapter = Info(
            "adapter",
            "The adapters served.",
            ["adapter"],
            namespace="dalorra",
            registry=self.registry,
        )
        self._adapter_bytes = self._gauge(
            "adapter_bytes", "Memory that an adapter takes beside the base model.", ["adapter"]
        )
        self._hand_made = self._gauge(
            "hand_made_policies",
            "Policies of an adapter that accept, but are not as calibration wrote them.",
            ["adapter"],
        )
        self._served: dict[str, tuple[str, ...]] = {}  # labels of each adapter, if it has some
        build = Info("build", "The software.", namespace="dalorra", registry=self.registry)
        build.info({"version": package_version(), "python": platform.python_version()})
        ProcessCollector(registry=self.registry)
        for outcome in Outcome:
            self._requests.labels(outcome)
        for error_type in error_types:
            self._failures.labels(error_type)

    def watch(
        self, *, ready: Callable[[], bool], requests: Callable[[], int], rows: Callable[[], int]
    ) -> None:
        """Reads these gauges from their owners at scrape time."""
        self._ready.set_function(ready)
        self._queue_requests.set_function(requests)
        self._queue_rows.set_function(rows)

    def base_loaded(self, prefix_cache: PrefixCache | None) -> None:
        """Reads the cache that all adapters share at scrape time."""
        if prefix_cache is not None:
            self.registry.register(_PrefixCacheCollector(prefix_cache))

    def adapter_loaded(self, predictor: Predictor) -> None:
        """Creates the series of an adapter, in place of those under its name."""
        card, name = predictor.card, predictor.card.adapter
        if name in self._served:
            self.adapter_unloaded(name)
        self._served[name] = predictor.labels
        self._adapter.labels(name).info(
            {
                "digest": card.digest,
                "model": card.model,
                "method": card.method,
                "scope": str(predictor.scope),
                "samples": str(predictor.samples),
            }
        )
        policy = predictor.policy
        for what, share in (("acceptance", policy.accepted), ("escalation", policy.escalated)):
            self._calibrated[what].labels(name).set(math.nan if share is None else share)
        self._adapter_bytes.labels(name).set(predictor.nbytes)
        self._hand_made.labels(name).set(hand_made_policies(predictor))
        for decision in Decision:
            self._decisions.labels(name, decision)
        for label in predictor.labels:
            self._labels.labels(name, label)
        for metric in (self._mask_samples, self._variance, self._confidence, self._novelty):
            metric.labels(name)

    def adapter_unloaded(self, name: str) -> None:
        """Forgets the series of an adapter."""
        for label in self._served.pop(name):
            self._labels.remove(name, label)
        for decision in Decision:
            self._decisions.remove(name, decision)
        for metric in (
            self._adapter,
            self._adapter_bytes,
            self._hand_made,
            self._mask_samples,
            *self._calibrated.values(),
            self._variance,
            self._confidence,
            self._novelty,
        ):
            metric.remove(name)

    def request_started(self) -> None:
        """One prediction request arrived."""
        self._inflight.inc()

    def request_finished(self, outcome: Outcome, error_type: str | None, seconds: float) -> None:
        """One prediction request was answered, or its client left."""
        self._inflight.dec()
        self._requests.labels(outcome).inc()
        if error_type is not None:
            self._failures.labels(error_type).inc()
        self._request_seconds.observe(seconds, exemplar())

    def answered(self, adapter: str, prediction: Prediction, decision: Decision) -> None:
        """One input was answered; not counted for an adapter that was unloaded meanwhile.

        Labels that come with the questions are not counted one by one: there is no end of them.
        """
        link, labels = exemplar(), self._served.get(adapter)
        if labels is None or (labels and prediction.label not in labels):
            return
        self._mask_samples.labels(adapter).inc(prediction.samples)
        self._decisions.labels(adapter, decision).inc(exemplar=link)
        if labels:
            self._labels.labels(adapter, prediction.label).inc()
        self._variance.labels(adapter).observe(prediction.variance, link)
        self._confidence.labels(adapter).observe(prediction.probability, link)
        if prediction.novelty is not None:
            self._novelty.labels(adapter).observe(prediction.novelty, link)

    def tokenized(self, tokens: int, seconds: float) -> None:
        """See `Observer`."""
        self._tokens.inc(tokens)
        self._tokenize_seconds.observe(seconds)

    def coalesced(self) -> None:
        """See `Observer`."""
        self._coalesced.inc()

    def dequeued(self, waited: float) -> None:
        """See `Observer`."""
        self._queue_seconds.observe(waited)

    def batch_finished(self, requests: int, rows: int, seconds: float) -> None:
        """See `Observer`."""
        self._batch_requests.observe(requests)
        self._batch_rows.observe(rows)
        self._inference_seconds.observe(seconds)

    async def _own(self) -> CollectorRegistry:
        return self.registry

    def _counter(self, name: str, text: str, labels: Iterable[str] = ()) -> Counter:
        return Counter(name, text, labels, namespace="dalorra", registry=self.registry)

    def _gauge(self, name: str, text: str, labels: Iterable[str] = ()) -> Gauge:
        return Gauge(name, text, labels, namespace="dalorra", registry=self.registry)

    def _histogram(
        self, name: str, text: str, buckets: tuple[float, ...], labels: Iterable[str] = ()
    ) -> Histogram:
        return Histogram(
            name, text, labels, namespace="dalorra", registry=self.registry, buckets=buckets
        )


class _PrefixCacheCollector(Collector):
    """Reads the cache's own counts at scrape time."""

    def __init__(self, cache: PrefixCache) -> None:
        self._cache = cache

    def collect(self) -> Iterator[Metric]:
        """Prompt tokens by whether their keys and values were known, and the memory they take."""
        tokens = CounterMetricFamily(
            "dalorra_prefix_cache_tokens",
            "Prompt tokens whose keys and values were known (hit) or computed (miss).",
            labels=["result"],
        )
        found = self._cache.tokens_found
        tokens.add_metric(["hit"], found)
        tokens.add_metric(["miss"], self._cache.tokens_looked_up - found)
        yield tokens
        yield GaugeMetricFamily(
            "dalorra_prefix_cache_bytes", "Memory of the prefix cache.", self._cache.bytes
        )


def package_version() -> str:
    """Version of the installed distribution."""
    try:
        return version("dalorra-service")
    except PackageNotFoundError:  # a source tree that was never installed
        return "unknown"
