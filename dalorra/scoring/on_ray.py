"""The same answers from many processes: Ray Data hands the windows to actors that hold the model.

One task beside the driver reads the file, so no other node needs it. Each node needs the adapter's
folder, and the base model or a way to fetch it.

Nothing here imports torch before an actor has told OpenMP how to wait.
"""

from __future__ import annotations

import logging
import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from dalorra.errors import ConfigError, DalorraError
from dalorra.kernels import keep_few
from dalorra.threads import leave_threads_open, settle

if TYPE_CHECKING:
    from dalorra.scoring.answers import Line, Scorer
    from dalorra.scoring.questions import Questions
    from dalorra.scoring.run import AnswerWindows

Batch = dict[str, list[bytes]]
"""Windows and lines travel pickled, one in each row, so that Arrow need not guess their types."""


def on_ray(load: Callable[[], Scorer], workers: int | None = None) -> AnswerWindows:
    """Answers on the cluster that this machine or RAY_ADDRESS names, or on one started here.

    Args:
        load: makes the predictor, on another machine.
        workers: copies of the model; by default one for each GPU, or for each node without any.

    Raises:
        ConfigError: Ray is not installed.
    """
    if find_spec("ray") is None:
        raise ConfigError("--ray needs Ray: pip install 'dalorra-service[ray]'")

    def answer_windows(questions: Questions) -> Iterator[list[Line]]:
        with _cluster():
            for row in _dataset(questions, load, workers).iter_rows():
                lines = pickle.loads(row["lines"])  # noqa: S301 - our own actors wrote it
                if isinstance(lines, DalorraError):
                    raise lines
                yield lines

    return answer_windows


class WindowScorer:
    """One actor, with the predictor that `load` makes, which arrives pickled."""

    def __init__(self, load: bytes) -> None:
        settle()  # before unpickling, which imports torch
        keep_few()
        self._refusal: DalorraError | None = None
        try:
            self._predictor: Scorer = pickle.loads(load)()  # noqa: S301 - our own driver wrote it
        except DalorraError as error:  # a value, because of an actor that dies Ray keeps a text
            self._refusal = error

    def __call__(self, batch: Batch) -> Batch:
        """Answers the one window of a batch, or says why no model was loaded."""
        from dalorra.scoring.answers import answer

        (window,) = map(pickle.loads, batch["window"])
        result = self._refusal or answer(self._predictor, window)
        return {"lines": [pickle.dumps(result)]}


def _dataset(questions: Questions, load: Callable[[], Scorer], workers: int | None) -> Any:
    """The windows as they are answered, in order."""
    import ray

    context = ray.data.DataContext.get_current()
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False
    context.target_max_block_size = 1  # bytes: a window is handed on as soon as it is read

    def windows(_: Any) -> Iterator[Batch]:
        for window in questions:
            yield {"window": [pickle.dumps(window)]}

    here = {f"node:{ray.util.get_node_ip_address()}": 0.001}
    count, resources = _share(workers)
    return (
        ray.data.from_items([None])  # one task, which yields all windows
        .map_batches(windows, num_cpus=0, resources=here)
        .map_batches(
            WindowScorer,
            fn_constructor_args=(ray.cloudpickle.dumps(load),),
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(size=count),
            **resources,
        )
    )


def _share(workers: int | None) -> tuple[int, dict[str, float]]:
    """How many actors there are, and what each of them takes of the cluster."""
    import ray

    cluster = ray.cluster_resources()
    if gpus := int(cluster.get("GPU", 0)):
        return workers or gpus, {"num_gpus": 1}
    cpus = cluster.get("CPU", 1)
    count = workers or sum(node["Alive"] and "CPU" in node["Resources"] for node in ray.nodes())
    share = cpus / count
    # Ray gives an actor's process as many threads as it has whole cores.
    return count, {"num_cpus": share if share < 1 else int(share)}


@contextmanager
def _cluster() -> Iterator[None]:
    import ray

    if ray.is_initialized():
        yield
        return
    leave_threads_open()  # Ray shares the cores out, unless an operator's own variable does
    ray.init(include_dashboard=False, logging_level="error", log_to_driver=False)
    logging.getLogger("ray.data").setLevel(logging.ERROR)  # our bar and errors say enough
    try:
        yield
    finally:
        ray.shutdown()
