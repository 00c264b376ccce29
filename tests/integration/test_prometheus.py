"""A real Prometheus scrapes a real server and answers what the dashboards and rules ask."""

import socket
import subprocess
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from prometheus_client import start_http_server

from service.instances import together
from service.telemetry import Telemetry
from tests.contract.programs import find
from tests.contract.promql import RULES, expressions, rules
from tests.server_process import HEADERS, ServerProcess, start

pytestmark = [
    pytest.mark.integration,
    pytest.mark.slow,
]
SECONDS = 30


class Prometheus:
    """One that scrapes every second."""

    def __init__(self, folder: Path, config: dict[str, Any]) -> None:
        program = find("prometheus", brought_by="make system-deps")
        (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        with (folder / "log").open("w") as log:
            self._process = subprocess.Popen(
                [
                    program,
                    f"--config.file={folder / 'prometheus.yml'}",
                    f"--storage.tsdb.path={folder / 'data'}",
                    f"--web.listen-address=127.0.0.1:{port}",
                    "--enable-feature=exemplar-storage",
                ],
                stdout=log,
                stderr=log,
            )
        until_ready(self.url, self._process, folder / "log")

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait(SECONDS)

    def get(self, path: str, **parameters: str) -> Any:
        response = httpx.get(f"{self.url}/api/v1/{path}", params=parameters, timeout=10)
        body = response.json()
        assert body["status"] == "success", body
        return body["data"]

    def value(self, expr: str) -> float | None:
        result = self.get("query", query=expr)["result"]
        return float(result[0]["value"][1]) if result else None

    def until(self, expr: str, value: float) -> None:
        deadline = time.monotonic() + SECONDS
        while (found := self.value(expr)) != value:
            assert time.monotonic() < deadline, f"{expr} is {found}, not {value}"
            time.sleep(0.2)


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    server = start("fake")
    try:
        yield server.until_ready()
    finally:
        server.stop()


@pytest.fixture(scope="module")
def scraped(
    server: ServerProcess, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Prometheus]:
    config = configuration(server.url.removeprefix("http://"))
    prometheus = Prometheus(tmp_path_factory.mktemp("prometheus"), config)
    try:
        yield prometheus
    finally:
        prometheus.stop()


def configuration(target: str) -> dict[str, Any]:
    """The project's, with another target and less patience."""
    config: dict[str, Any] = yaml.safe_load((RULES / "prometheus.yml").read_text())
    config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    config["rule_files"] = [str(RULES / name) for name in config["rule_files"]]
    config["scrape_configs"][0]["static_configs"][0]["targets"] = [target]
    return config


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def until_ready(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            if httpx.get(f"{url}/-/ready").status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.1)
    pytest.fail(f"Prometheus does not start:\n{log.read_text()}")


def test_answers_are_counted(scraped: Prometheus, server: ServerProcess):
    url = server.url
    inputs = [f"sentence {n}" for n in range(20)]
    response = httpx.post(f"{url}/predict/batch", json={"inputs": inputs}, headers=HEADERS)
    assert response.status_code == 200
    assert httpx.post(f"{url}/predict", json={"input": 1}, headers=HEADERS).status_code == 422

    scraped.until("sum(dalorra_decisions_total)", 20)
    scraped.until("dalorra_confidence_count", 20)
    scraped.until('dalorra_requests_total{outcome="ok"}', 1)
    scraped.until('dalorra_request_failures_total{error_type="invalid_input"}', 1)
    scraped.until('sum(dalorra_ready{job="dalorra"})', 1)
    decisions = [one["decision"] for one in response.json()["predictions"]]
    for decision in set(decisions):
        expr = f'dalorra_decisions_total{{decision="{decision}"}}'
        assert scraped.value(expr) == decisions.count(decision)


def test_an_answer_leads_to_its_request(scraped: Prometheus, server: ServerProcess):
    headers = HEADERS | {"X-Request-Id": "find-me"}
    httpx.post(f"{server.url}/predict", json={"input": "who?"}, headers=headers)

    deadline = time.monotonic() + SECONDS
    query = {"query": "dalorra_confidence_bucket", "start": "0", "end": f"{time.time() + 60}"}
    while True:
        series = scraped.get("query_exemplars", **query)
        found = [one["labels"] for each in series for one in each["exemplars"]]
        if {"request_id": "find-me"} in found:
            break
        assert time.monotonic() < deadline, found
        time.sleep(0.2)


def test_every_expression_is_answered(scraped: Prometheus):
    for where, expr in expressions():
        try:
            scraped.get("query", query=expr)
        except AssertionError as error:
            pytest.fail(f"{where}: {error}")


def test_every_rule_is_evaluated_without_an_error(scraped: Prometheus):
    wanted = {rule.get("alert") or rule["record"] for rule in rules()}
    deadline = time.monotonic() + SECONDS
    while True:
        groups = scraped.get("rules")["groups"]
        loaded = {rule["name"]: rule for group in groups for rule in group["rules"]}
        assert set(loaded) == wanted
        if all(rule["health"] != "unknown" for rule in loaded.values()):
            break
        assert time.monotonic() < deadline
        time.sleep(0.2)
    errors = {name: rule.get("lastError") for name, rule in loaded.items()}
    assert {name: error for name, error in errors.items() if error} == {}
    assert [name for name, rule in loaded.items() if rule.get("alerts")] == []


def test_a_server_that_goes_is_noticed(scraped: Prometheus, server: ServerProcess):
    server.stop()
    scraped.until('up{job="dalorra"}', 0)
    scraped.until('count(ALERTS{alertname="DalorraNotReady",alertstate="pending"})', 1)


def test_behind_one_door_each_of_several_keeps_its_name(tmp_path: Path):
    ready = {"one": True, "two": True, "three": False}
    instances = []
    for name, is_ready in ready.items():
        telemetry = Telemetry([])
        telemetry.watch(ready=partial(bool, is_ready), requests=int, rows=int)
        instances.append((name, telemetry.registry.collect()))
    door, thread = start_http_server(0, "127.0.0.1", together(instances))
    config = configuration(f"127.0.0.1:{door.server_port}")
    config["scrape_configs"][0]["honor_labels"] = True  # as docs/operations.md says
    prometheus = Prometheus(tmp_path, config)
    try:
        prometheus.until("count(dalorra_ready)", 3)
        for name, is_ready in ready.items():
            assert prometheus.value(f'dalorra_ready{{instance="{name}"}}') == is_ready
        prometheus.until('count(ALERTS{alertname="DalorraNotReady",instance="three"})', 1)
        assert prometheus.value('count(ALERTS{alertname="DalorraNotReady"})') == 1
    finally:
        prometheus.stop()
        door.shutdown()
        thread.join()
