"""Real servers of databases, for as long as a test needs them."""

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psycopg
import pytest
import redis

from tests.contract.programs import find

BROUGHT_BY = "make system-deps"
SECONDS = 30


class Postgres:
    """A PostgreSQL server on a socket in a folder of its own.

    Attributes:
        url: of its database.
    """

    def __init__(self, folder: Path) -> None:
        self._programs = _postgres_programs()
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        # It refuses to run as root.
        self._user = "postgres" if os.getuid() == 0 else None
        if self._user:
            shutil.chown(folder, self._user)
        self.url = f"postgresql:///postgres?host={folder}&user=owner"
        arguments = ["--pgdata", str(folder / "data"), "--username=owner", "--no-sync"]
        subprocess.run(
            [self._programs / "initdb", *arguments, "--auth=trust", "--encoding=UTF8"],
            check=True,
            capture_output=True,
            cwd=folder,
            user=self._user,
        )

    def start(self) -> None:
        """Returns once it takes connections."""
        options = ["-D", self._folder / "data", "-k", self._folder, "-h", "", "-F"]
        self._process = subprocess.Popen(
            [self._programs / "postgres", *options],
            cwd=self._folder,
            user=self._user,
            stderr=subprocess.DEVNULL,
        )
        _until(lambda: psycopg.connect(self.url).close(), psycopg.OperationalError)

    def stop(self) -> None:
        """Ends it at once: connections break."""
        if self._process is not None:
            self._process.send_signal(signal.SIGINT)
            self._process.wait(SECONDS)
            self._process = None


def _postgres_programs() -> Path:
    installed = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    return installed[-1].parent if installed else Path(find("initdb", BROUGHT_BY)).resolve().parent


@contextmanager
def postgres() -> Iterator[Postgres]:
    """A running one with nothing in it."""
    with tempfile.TemporaryDirectory(prefix="dalorra-") as name:
        server = Postgres(Path(name))
        server.start()
        try:
            yield server
        finally:
            server.stop()


class RedisServer:
    """A Redis server, which forgets everything when it stops.

    Attributes:
        url: of its first database.
    """

    def __init__(self) -> None:
        self._program = find("redis-server", BROUGHT_BY)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port = free.getsockname()[1]
        self.url = f"redis://127.0.0.1:{self._port}/0"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Returns once it takes connections."""
        options = ["--port", str(self._port), "--bind", "127.0.0.1", "--save", ""]
        self._process = subprocess.Popen([self._program, *options], stdout=subprocess.DEVNULL)
        with redis.Redis.from_url(self.url) as client:
            _until(client.ping, redis.ConnectionError)

    def stop(self) -> None:
        """Ends it at once."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(SECONDS)
            self._process = None


@contextmanager
def redis_server() -> Iterator[RedisServer]:
    """A running one with nothing in it."""
    server = RedisServer()
    server.start()
    try:
        yield server
    finally:
        server.stop()


def _until(works: Callable[[], object], error: type[Exception]) -> None:
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        with suppress(error):
            works()
            return
        time.sleep(0.05)
    pytest.fail("the server does not start")
