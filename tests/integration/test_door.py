"""Attacks on the door of a real process: few descriptors, much that is never finished."""

import re
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

from tests.certificates import write
from tests.listening import head
from tests.server_process import HEADERS, ServerProcess, start

pytestmark = pytest.mark.integration

AUTHORIZED = f"Authorization: {HEADERS['Authorization']}"
FEW = 230  # of which some are for other things, and the rest is fewer than the attackers


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
        assert time.monotonic() - started < 2, path


@pytest.mark.parametrize(
    ("said", "size"),
    [
        (b"", 300),
        (b"GET /health/live HTTP/1.1\r\nHost: local", 300),
        (head("POST", "/predict", "Content-Length: 1900000") + b"x" * 1_899_000, 60),
        (head("POST", "/metrics", "Content-Length: 1900000") + b"x" * 1_899_000, 60),
        (head("GET", "/metrics", "Content-Length: 1900000") + b"x" * 1_899_000, 60),
        (head("GET", "/metrics") * 200, 300),
    ],
    ids=["silence", "half heads", "bodies", "bodies on an open path", "bodies of GET", "unread"],
)
def test_probes_answer_whatever_others_leave_unfinished(said: bytes, size: int):
    with start("fake", open_files=FEW, header_seconds=5, body_seconds=5) as server:
        server.until_ready()
        before = resident_mib(server)
        with crowd(server, said, size):
            for _ in range(3):
                assert_answers(lambda path: httpx.get(f"{server.url}{path}", timeout=5))
            grown = resident_mib(server) - before
            body = {"input": "and so are clients"}
            response = httpx.post(f"{server.url}/predict", json=body, headers=HEADERS)
            assert response.status_code == 200
        assert server.process.poll() is None
        assert not [line for line in server.lines if "out of system resource" in line]
    assert grown < 60


def test_bodies_of_those_who_have_a_key_have_a_limit_in_all():
    said = head("POST", "/predict", "Content-Length: 1900000", AUTHORIZED)
    with start("fake", bodies_mib=8, body_seconds=30) as server:
        server.until_ready()
        before = resident_mib(server)
        with crowd(server, said + b"x" * 1_899_000, 60):
            assert_answers(lambda path: httpx.get(f"{server.url}{path}", timeout=5))
            grown = resident_mib(server) - before
    assert grown < 60


def test_what_is_never_finished_is_closed_in_time():
    with start("fake", header_seconds=0.5, body_seconds=1) as server:
        server.until_ready()
        for said in (
            b"",
            b"GET / HTTP/1.1\r\nX: ",
            head("POST", "/metrics", "Content-Length: 1900000") + b"x" * 1_000,
            head("POST", "/predict", "Content-Length: 1900000", AUTHORIZED),
        ):
            started = time.monotonic()
            with connected(server, said) as client:
                client.settimeout(10)
                while client.recv(65_536):
                    pass
            assert time.monotonic() - started < 4


def test_half_a_handshake_keeps_no_place(tmp_path: Path):
    cert, key = write(tmp_path / "cert.pem", tmp_path / "key.pem")
    tls = {"ssl_certfile": str(cert), "ssl_keyfile": str(key)}
    trusting = ssl.create_default_context(cafile=str(cert))
    with start("fake", open_files=FEW, header_seconds=1, **tls) as server:
        secure = server.url.replace("http://", "https://")
        with httpx.Client(verify=trusting, timeout=5) as client:
            while client.get(f"{secure}/health/ready").status_code != 200:
                time.sleep(0.05)
            for said in (b"", b"\x16\x03\x01", b"GET / HTTP/1.1\r\n\r\n"):
                with crowd(server, said, 200):
                    assert_answers(lambda path: httpx.get(f"{secure}{path}", verify=trusting))
            with connected(server, b"") as silent:
                silent.settimeout(10)
                started = time.monotonic()
                assert silent.recv(1) == b""
                assert time.monotonic() - started < 3
