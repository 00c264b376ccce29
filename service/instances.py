"""The metrics of several processes of one service, for whoever can only ask one of them."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Iterator
from typing import Generic, TypeVar

from prometheus_client import CollectorRegistry, Metric
from prometheus_client.registry import Collector

T = TypeVar("T")


def together(instances: Iterable[tuple[str, Iterable[Metric]]]) -> CollectorRegistry:
    """What each process counted, side by side; nothing is added up.

    Args:
        instances: the name of each, which becomes the label `instance`, and its metrics.
    """
    families: dict[str, Metric] = {}
    for instance, metrics in instances:
        for metric in metrics:
            empty = Metric(metric.name, metric.documentation, metric.type, metric.unit)
            families.setdefault(metric.name, empty).samples += [
                sample._replace(labels={"instance": instance, **sample.labels})
                for sample in metric.samples
            ]
    registry = CollectorRegistry()
    registry.register(_Collected(families.values()))
    return registry


class _Collected(Collector):
    def __init__(self, metrics: Iterable[Metric]) -> None:
        self._metrics = metrics

    def collect(self) -> Iterator[Metric]:
        yield from self._metrics


class OneAtATime(Generic[T]):
    """Asks others once for all who want to know meanwhile: `/metrics` is open to everyone."""

    def __init__(self, ask: Callable[[], Awaitable[T]]) -> None:
        self._ask = ask
        self._asked: asyncio.Future[T] | None = None

    async def __call__(self) -> T:
        """The answer; whoever leaves before it is there takes it from nobody else."""
        if self._asked is None or self._asked.done():
            self._asked = asyncio.ensure_future(self._ask())
        return await asyncio.shield(self._asked)
