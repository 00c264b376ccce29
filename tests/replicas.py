"""A Ray cluster on this machine, the service on it as an operator deploys it, and its callers."""

import json
import math
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import psutil
import pytest
import ray
import yaml
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample
from ray import serve
from ray.serve.schema import ApplicationStatusOverview
from ray.serve.scripts import run

from dalorra.cli.ray import NAME
from dalorra.client import Client
from tests.tiny import SENTENCES

CONFIG = Path(__file__).parents[1] / "deploy/ray/serve.yaml"
REPLICA, SCORER = f"ray::ServeReplica:{NAME}:{NAME}", "ray::MapWorker"
"""How the processes call themselves that answer requests, and windows of a file."""
SECONDS = 300  # on a busy machine


@contextmanager
def cluster() -> Iterator[None]:
    """On one machine, with more cores than it has: nothing here waits for one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))
        proxy = "dalorra.cli.ray_proxy:middlewares"
        patch.setenv("RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH", proxy)
        ray.init(
            num_cpus=8,
            include_dashboard=False,
            object_store_memory=200 * 2**20,
            logging_level="error",
            log_to_driver=False,
        )
        try:
            yield
        finally:
            ray.shutdown()


def processes(title: str) -> list[psutil.Process]:
    """Those of this test's own cluster that call themselves so."""
    own = psutil.Process().children(recursive=True)
    return [one for one in own if "".join(one.cmdline()).startswith(title)]


def until(holds: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + SECONDS
    while not holds():
        if time.monotonic() > deadline:
            pytest.fail(f"not within {SECONDS} s: {what}")
        time.sleep(0.2)


class Service:
    """The shipped configuration with changes, deployed again and again.

    Args:
        folder: for its files.
        args: settings of every replica.
    """

    def __init__(self, folder: Path, **args: Any) -> None:
        self._folder = folder
        self._args = args
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self._port}"

    def deploy(self, replicas: int, **changed: Any) -> None:
        """Returns once so many replicas, and no others, have these settings and are ready."""
        self.submit(replicas, **changed)
        until(lambda: self._settled(replicas), f"{replicas} replicas")

    def submit(self, replicas: int, **changed: Any) -> None:
        """Tells Serve, and does not wait."""
        self._args |= changed
        config = yaml.safe_load(CONFIG.read_text())
        config["http_options"]["port"] = self._port
        [application] = config["applications"]
        application["args"] |= self._args
        [deployment] = application["deployments"]
        deployment["autoscaling_config"] |= {"min_replicas": replicas, "max_replicas": replicas}
        deployment["ray_actor_options"] = {"num_cpus": 1, "num_gpus": 0}
        file = self._folder / "serve.yaml"
        file.write_text(yaml.safe_dump(config))
        run.main(["--non-blocking", str(file)], standalone_mode=False)

    @property
    def status(self) -> ApplicationStatusOverview:
        """What `serve status` says."""
        return serve.status().applications[NAME]

    def _settled(self, replicas: int) -> bool:
        application = self.status
        states = application.deployments[NAME].replica_states if application.deployments else {}
        return application.status == "RUNNING" and dict(states) == {"RUNNING": replicas}

    def metrics(self, name: str) -> list[Sample]:
        """Every series of that name, once every replica has answered."""
        scrapes: list[httpx.Response] = []

        def scraped() -> bool:
            scrapes.append(httpx.get(f"{self.url}/metrics", timeout=30))
            return scrapes[-1].status_code != 503

        until(scraped, "metrics")
        return [
            sample
            for family in text_string_to_metric_families(scrapes[-1].raise_for_status().text)
            for sample in family.samples
            if sample.name == name
        ]

    def of_each(self, name: str) -> dict[str, float]:
        """The sum of these series for each instance."""
        sums: dict[str, float] = {}
        for sample in self.metrics(name):
            instance = sample.labels["instance"]
            sums[instance] = sums.get(instance, 0.0) + sample.value
        return sums

    def instances(self) -> dict[str, str]:
        """Every replica that answers, and the digest of its adapter."""
        adapters = self.metrics("dalorra_adapter_info")
        return {one.labels["instance"]: one.labels["digest"] for one in adapters}


class Answered(NamedTuple):
    """A request, when it was made, and what came back; times by `time.monotonic`."""

    asked: float
    answered: float
    status: int
    body: dict[str, Any]
    headers: httpx.Headers


class Callers:
    """Asks without a pause, many at a time, until the `with` block ends.

    Attributes:
        answers: to plain requests, which nobody sends again.
        patient: answers that the Python client got.
        errors: what went wrong with either.
    """

    def __init__(self, url: str, plain: int = 4, patient: int = 1) -> None:
        self._url = url
        self._over = threading.Event()
        self._threads = [
            threading.Thread(target=self._watched, args=(work,), daemon=True)
            for work in (*[self._ask] * plain, *[self._ask_patiently] * patient)
        ]
        self.answers: list[Answered] = []
        self.patient = 0
        self.errors: list[Exception] = []
        self._waiting: dict[int, float] = {}

    @property
    def overtaken(self) -> int:
        """Plain requests that were answered and asked later than one that still waits."""
        first = min(self._waiting.copy().values(), default=math.inf)
        return sum(answer.asked > first for answer in self.answers.copy())

    def __enter__(self) -> "Callers":
        for thread in self._threads:
            thread.start()
        until(lambda: self.patient and len(self.answers) > len(self._threads), "answers")
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(SECONDS)

    def _watched(self, work: Callable[[], None]) -> None:
        try:
            work()
        except Exception as error:  # noqa: BLE001 - the test asks for it
            self.errors.append(error)

    def _ask(self) -> None:
        with httpx.Client(base_url=self._url, timeout=SECONDS) as client:
            while not self._over.wait(0.02):
                asked = self._waiting[threading.get_ident()] = time.monotonic()
                answer = client.post("/predict/batch", json={"inputs": list(SENTENCES)})
                answered = time.monotonic()
                del self._waiting[threading.get_ident()]
                self.answers.append(
                    Answered(asked, answered, answer.status_code, _json(answer), answer.headers)
                )

    def _ask_patiently(self) -> None:
        with Client(self._url, timeout=SECONDS) as client:
            while not self._over.wait(0.02):
                self.patient += len(client.predict_batch(SENTENCES)) == len(SENTENCES)


def _json(answer: httpx.Response) -> dict[str, Any]:
    try:
        body: dict[str, Any] = json.loads(answer.text)
    except ValueError:
        body = {"error": answer.text}
    return body
