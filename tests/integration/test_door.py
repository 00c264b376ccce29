"""Attacks on the door of a real process: few descriptors, much that is never finished."""

import re
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

from tests.listening import head
from tests.server_process import HEADERS, ServerProcess, start

pytestmark = pytest.mark.integration

AUTHORIZED = f"Authorization: {HEADERS['Authorization']}"
PROBE_SECONDS = 5  # what a liveness probe waits
LONG = "Content-Length: 1900000"
FEW = 360  # of which some are for other things, and the rest is fewer than the attackers


def connected(server: ServerProcess, said: bytes) -> socket.socket:
    """A connection on which this has been said, as far as the server takes it."""
    where = urlsplit(server.url)
    client = socket.create_connection((where.hostname or "", where.port or 0), timeout=5)
    try:
        client.settimeout(0.2)
        client.sendall(said)
    except OSError:  # it is closed, or full
        pass
    return client


@contextmanager
def crowd(server: ServerProcess, said: bytes, size: int) -> Iterator[None]:
    with ExitStack() as stack:
        for _ in range(size):
            stack.enter_context(connected(server, said))
        yield


def resident_mib(server: ServerProcess) -> float:
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    return int(re.findall(r"VmRSS:\s+(\d+)", status)[0]) / 1024


def assert_answers(ask: Callable[[str], httpx.Response]) -> None:
    for path in ("/health/live", "/health/ready", "/metrics"):
        started = time.monotonic()
        assert ask(path).status_code == 200, path
        assert time.monotonic() - started < PROBE_SECONDS, path


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    settings = {"header_seconds": 5, "body_seconds": 5, "bodies_mib": 8}
    with start("fake", open_files=FEW, **settings) as process:
        yield process.until_ready()


def probe(server: ServerProcess) -> Callable[[str], httpx.Response]:
    return lambda path: httpx.get(f"{server.url}{path}", timeout=10)


@pytest.mark.parametrize(
    ("said", "size"),
    [
        (b"", 300),
        (b"GET /health/live HTTP/1.1\r\nHost: local", 300),
        (head("POST", "/predict", LONG) + b"x" * 1_899_000, 60),
        (head("POST", "/predict", LONG, AUTHORIZED) + b"x" * 1_899_000, 60),
        (head("POST", "/metrics", LONG) + b"x" * 1_899_000, 60),
        (head("GET", "/metrics", LONG) + b"x" * 1_899_000, 60),
    ],
    ids=[
        "silence",
        "half heads",
        "strangers' bodies",
        "bodies",
        "bodies on an open path",
        "of GET",
    ],
)
def test_probes_answer_whatever_others_leave_unfinished(
    server: ServerProcess, said: bytes, size: int
):
    before = resident_mib(server)
    with crowd(server, said, size):
        for _ in range(3):
            assert_answers(probe(server))
        grown = resident_mib(server) - before
        body = {"input": "and so are clients"}
        if AUTHORIZED.encode() not in said:  # the memory for bodies may be taken by those
            response = httpx.post(f"{server.url}/predict", json=body, headers=HEADERS)
            assert response.status_code == 200
    assert server.process.poll() is None
    assert not [line for line in server.lines if "out of system resource" in line]
    assert grown < 40


@pytest.mark.parametrize(
    "said",
    [
        b"",
        b"GET / HTTP/1.1\r\nX: ",
        head("POST", "/metrics", LONG) + b"x" * 1_000,
        head("POST", "/predict", LONG, AUTHORIZED),
    ],
    ids=["silence", "half a head", "a body that is answered", "a body"],
)
def test_what_is_never_finished_is_closed_in_time(server: ServerProcess, said: bytes):
    started = time.monotonic()
    with connected(server, said) as client:
        client.settimeout(20)
        while client.recv(65_536):
            pass
    assert time.monotonic() - started < 10
