"""How a server process ends: told twice, with a dead engine, with requests in hand."""

import asyncio
import signal
import socket
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from service.run import CLOSE_SECONDS, EXIT_DEAD, EXIT_SIGNALLED
from tests.listening import head
from tests.server_process import HEADERS, KEY, ServerProcess, start

pytestmark = pytest.mark.integration

FOR_EVER = {"seconds": 3_600}


@contextmanager
def asking(server: ServerProcess, *texts: str) -> Iterator[list[Future[httpx.Response]]]:
    """Requests that are under way; entered once all of them are."""

    def ask(text: str) -> httpx.Response:
        body = {"input": text}
        return httpx.post(f"{server.url}/predict", json=body, headers=HEADERS, timeout=60)

    with ThreadPoolExecutor(len(texts)) as pool:
        asked = [pool.submit(ask, text) for text in texts]
        deadline = time.monotonic() + 20
        while f"dalorra_inflight_requests {len(texts)}.0" not in _metrics(server):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        yield asked


def _metrics(server: ServerProcess) -> str:
    return httpx.get(f"{server.url}/metrics").text


def refused(response: httpx.Response, error_type: str) -> None:
    assert (response.status_code, response.json()["error_type"]) == (503, error_type)
    assert set(response.json()) == {"error", "error_type", "request_id"}


def assert_no_traceback(server: ServerProcess) -> None:
    assert "Traceback" not in "".join(server.lines)


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_stops_at_once_though_a_forward_hangs(second: int):
    with start("fake", predictor=FOR_EVER, batch_rows=1, drain_seconds=300) as server:
        server.until_ready()
        with asking(server, "hangs", "waits", "waits, too") as asked:
            server.process.send_signal(signal.SIGTERM)
            while httpx.get(f"{server.url}/health/ready").json()["error_type"] != "draining":
                time.sleep(0.01)
            told = time.monotonic()
            server.process.send_signal(second)
            code = server.process.wait(20)
            took = time.monotonic() - told
            for one in asked:
                refused(one.result(), "draining")
    assert code == EXIT_SIGNALLED + second
    assert took < 5
    assert_no_traceback(server)


def test_a_second_signal_while_connections_close_stops_at_once():
    with start("fake") as server:
        server.until_ready()
        with half_a_request(server) as client:
            server.process.send_signal(signal.SIGTERM)
            _until_logged(server, "drained")
            time.sleep(0.3)  # the connection is waited for now
            told = time.monotonic()
            server.process.send_signal(signal.SIGTERM)
            assert server.process.wait(20) == EXIT_SIGNALLED + signal.SIGTERM
            assert time.monotonic() - told < 3 < CLOSE_SECONDS
            assert b'"draining"' in client.recv(65_536)
    assert_no_traceback(server)


def test_one_signal_ends_a_server_whose_forward_hangs_once_its_time_is_up():
    with start("fake", predictor=FOR_EVER, drain_seconds=1) as server:
        server.until_ready()
        with asking(server, "hangs") as [asked]:
            server.process.send_signal(signal.SIGTERM)
            refused(asked.result(), "draining")
            assert server.process.wait(1 + CLOSE_SECONDS + 5) == 0
    assert_no_traceback(server)


def test_a_signal_while_the_model_loads_stops_it():
    with start("fake", predictor={"load_seconds": 3_600}) as server:
        assert server.url
        assert server.stop(within=10) == 0


def test_a_broken_device_ends_the_process_so_that_something_restarts_it():
    with start("fake", predictor={"seconds": 0.3}, batch_rows=1, dead_seconds=2) as server:
        server.until_ready()
        with asking(server, "⚡ breaks it") as [breaks]:
            later = httpx.post(f"{server.url}/predict", json={"input": "a"}, headers=HEADERS)
            refused(breaks.result(), "unavailable")
            refused(later, "unavailable")
            refused(httpx.get(f"{server.url}/health/live"), "unavailable")
        assert server.process.wait(10) == EXIT_DEAD
    [dead] = [event for event in server.events() if event["event"] == "engine_dead"]
    assert (dead["level"], dead["ends_in_seconds"]) == ("critical", 2)


def test_a_hung_forward_ends_the_process_and_what_waits_is_told_so():
    with start("fake", predictor=FOR_EVER, stall_seconds=0.5, dead_seconds=1) as server:
        server.until_ready()
        with asking(server, "hangs") as [asked]:
            told = time.monotonic()
            assert server.process.wait(20) == EXIT_DEAD
            assert time.monotonic() - told < 8
            refused(asked.result(), "draining")
    assert_no_traceback(server)


def test_a_slow_forward_that_comes_back_does_not():
    with start("fake", predictor={"seconds": 2}, stall_seconds=0.5, dead_seconds=30) as server:
        server.until_ready()
        with asking(server, "slow") as [asked]:
            time.sleep(1)
            assert httpx.get(f"{server.url}/health/live").status_code == 503
            assert asked.result().status_code == 200
        assert httpx.get(f"{server.url}/health/live").status_code == 200
        assert server.stop() == 0


@contextmanager
def half_a_request(server: ServerProcess) -> Iterator[socket.socket]:
    """A request whose body does not come."""
    where = urlsplit(server.url)
    with socket.create_connection((where.hostname or "", where.port or 0), timeout=30) as client:
        lines = ["Content-Length: 100", f"Authorization: Bearer {KEY}"]
        client.sendall(head("POST", "/predict", *lines) + b'{"inp')
        deadline = time.monotonic() + 10
        while "dalorra_inflight_requests 1.0" not in _metrics(server):
            assert time.monotonic() < deadline
        yield client


def test_a_request_that_is_cancelled_at_the_end_is_told_draining():
    with start("fake") as server:
        server.until_ready()
        with half_a_request(server) as client:
            server.process.send_signal(signal.SIGTERM)
            answer = b"".join(iter(lambda: client.recv(65_536), b""))
            assert server.process.wait(20) == 0
    assert answer.startswith(b"HTTP/1.1 503 ")
    assert b'"draining"' in answer
    assert_no_traceback(server)
    [logged] = [e for e in server.events() if e["event"] == "request"]
    assert (logged["status"], logged["outcome"]) == (503, "rejected")


def _until_logged(server: ServerProcess, event: str) -> dict[str, Any]:
    deadline = time.monotonic() + 10
    while True:
        for line in server.events():
            if line["event"] == event:
                return line
        assert time.monotonic() < deadline
        time.sleep(0.01)


async def test_nothing_that_was_accepted_is_lost_by_one_signal():
    with start("fake", predictor={"seconds": 0.2}, batch_rows=64) as server:
        server.until_ready()
        async with httpx.AsyncClient(base_url=server.url, headers=HEADERS, timeout=30) as client:
            asked = [
                asyncio.create_task(client.post("/predict", json={"input": f"text {n}"}))
                for n in range(12)
            ]
            async with asyncio.timeout(10):
                while "dalorra_inflight_requests 12.0" not in (await client.get("/metrics")).text:
                    pass
            server.process.send_signal(signal.SIGTERM)
            assert [(await one).status_code for one in asked] == [200] * 12
        assert server.process.wait(20) == 0
