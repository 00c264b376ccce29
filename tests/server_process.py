"""A server in a process of its own, for tests that ask it over real HTTP."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, Self

import httpx
import pytest

ROOT = Path(__file__).parents[1]
KEY = "integration-key"
HEADERS = {"Authorization": f"Bearer {KEY}"}
START_SECONDS = 120
TOLERANCE = 1e-5  # of an answer alone and in a batch, in float32

SENTENCES = [
    "This movie was fantastic!",
    "The plot was hard to follow.",
    "I've seen better films",
    "The quarterly earnings exceeded expectations.",
    "florgle wumpus theory extrapolates",
    *(f"Scene {n} was {word}." for n in range(9) for word in ("dull", "a joy", "fine")),
]


class ServerProcess:
    """A server on a free port, until the end of its `with`; its log lines are kept as they come."""

    def __init__(self, command: list[str]) -> None:
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        self.process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True
        )
        self.lines: list[str] = []
        self._listening = threading.Event()
        self._port = 0
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def url(self) -> str:
        if not self._listening.wait(START_SECONDS):
            pytest.fail("the server does not listen:\n" + "".join(self.lines))
        return f"http://127.0.0.1:{self._port}"

    def until_ready(self) -> Self:
        deadline = time.monotonic() + START_SECONDS
        while httpx.get(f"{self.url}/health/ready").status_code != 200:
            if time.monotonic() > deadline or self.process.poll() is not None:
                pytest.fail("the server does not become ready:\n" + "".join(self.lines))
            time.sleep(0.05)
        return self

    def stop(self, *, within: float = 30) -> int:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            code = self.process.wait(within)
        finally:
            self.process.kill()
            self._reader.join(5)
        return code

    def events(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.lines if line.startswith("{")]

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append(line)
            if '"listening"' in line:
                self._port = json.loads(line)["port"]
                self._listening.set()


def start(
    kind: str,
    *,
    predictor: dict[str, Any] | None = None,
    open_files: int | None = None,
    **settings: Any,
) -> ServerProcess:
    """The real server: `fake` around a fake predictor with these options, else the default one.

    It may open so many files, if that is said.
    """
    settings = {"port": 0, "api_keys": KEY, **settings}
    if kind == "fake":
        arguments = ["tests.fake_server", json.dumps(settings), json.dumps(predictor or {})]
    else:
        settings |= {"device": "cpu", "dtype": "float32"}
        named = {"port", "device", "dtype", "adapter"}
        arguments = ["dalorra", "serve"]
        for name, value in settings.items():
            flag = [f"--{name}", str(value)] if name in named else ["--set", f"{name}={value}"]
            arguments += flag
    command = [sys.executable, "-m", *arguments]
    if open_files is not None:
        command = ["sh", "-c", f'ulimit -n {open_files} && exec "$@"', "sh", *command]
    return ServerProcess(command)
