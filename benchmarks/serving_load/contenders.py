"""The servers that are compared, each a process of its own, and the process of the client."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import httpx

from benchmarks.serving_load.client import Cell, Outcome, numbered
from dalorra.errors import DalorraError

OURS = "ours"
OURS_UNCACHED = "ours uncached"
FASTAPI = "FastAPI loop"
LITSERVE = "LitServe loop"
NAMES = (FASTAPI, LITSERVE, OURS_UNCACHED, OURS)

_START_SECONDS = 180
_ANSWER_SECONDS = 60
_STOP_SECONDS = 15
_KEPT = {"DALORRA_CACHE"}  # the other DALORRA_… are settings


class BenchmarkError(DalorraError):
    """A contender cannot be measured."""


@dataclass(frozen=True)
class Setup:
    """What all contenders have in common.

    Attributes:
        adapter: the adapter folder.
        loras: the same adapter as M plain LoRAs.
        base_model, device, dtype: see `load_base_model`.
        litserve_batch: inputs that LitServe answers together.
        logs: folder for what the servers print.
    """

    adapter: Path
    loras: Path
    base_model: str
    device: str
    dtype: str
    litserve_batch: int
    logs: Path


class Contender:
    """A server process; suspended unless it is measured, so that it takes nothing from another."""

    def __init__(self, name: str, setup: Setup) -> None:
        self.name = name
        self.says_until = name in (FASTAPI, LITSERVE)
        port = _free_port()
        self.url = f"http://127.0.0.1:{port}/predict"
        self._log = setup.logs / f"{name}.log"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                _command(name, setup, port),
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment_of_servers(os.environ),
                start_new_session=True,
            )

    def wait_until_ready(self) -> None:
        """Asks until the first answer.

        Raises:
            BenchmarkError: it ended, or takes too long.
        """
        deadline = time.monotonic() + _START_SECONDS
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                raise BenchmarkError(f"{self.name} ended while it started:\n{self._last_words()}")
            try:
                self.ask("is it any good?")
            except (httpx.TransportError, httpx.HTTPStatusError):
                time.sleep(0.5)
            else:
                return
        raise BenchmarkError(
            f"{self.name} is not ready after {_START_SECONDS} s:\n{self._last_words()}"
        )

    def ask(self, text: str) -> dict[str, Any]:
        """One answer.

        Raises:
            httpx.HTTPError: there is none.
        """
        body: dict[str, object] = {"input": text}
        if self.says_until:
            body["until"] = time.time() + _ANSWER_SECONDS
        response = httpx.post(self.url, json=body, timeout=_ANSWER_SECONDS, trust_env=False)
        response.raise_for_status()
        answer: dict[str, Any] = response.json()
        return answer

    @contextmanager
    def awake(self) -> Iterator[None]:
        """Runs for as long as the context, with nothing left to do from before."""
        os.killpg(self._process.pid, signal.SIGCONT)
        try:
            self.ask(numbered("is it any good?", time.monotonic_ns() % 1_000_000))
            yield
        finally:
            os.killpg(self._process.pid, signal.SIGSTOP)

    def suspend(self) -> None:
        os.killpg(self._process.pid, signal.SIGSTOP)

    def stop(self) -> None:
        """Ends the process and its children."""
        for ending in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(self._process.pid, ending)
                os.killpg(self._process.pid, signal.SIGCONT)
                self._process.wait(_STOP_SECONDS)
            except ProcessLookupError:
                return
            except subprocess.TimeoutExpired:
                continue

    def _last_words(self) -> str:
        return "\n".join(self._log.read_text(errors="replace").splitlines()[-15:])


class Client:
    """The process that makes the load."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.serving_load.client"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, cell: Cell) -> Outcome:
        """Measures one cell.

        Raises:
            BenchmarkError: a server refused a request; the client has said why.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(asdict(cell)) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise BenchmarkError(f"the client failed on {cell.url}")
        return Outcome(**json.loads(line))

    def stop(self) -> None:
        """Ends the process."""
        self._process.terminate()
        self._process.wait(_STOP_SECONDS)


@contextmanager
def started(names: Sequence[str], setup: Setup) -> Iterator[list[Contender]]:
    """The contenders, ready and suspended; started one after the other, ended whatever happens.

    Raises:
        BenchmarkError: one does not start, or litserve is not installed.
    """
    if LITSERVE in names and find_spec("litserve") is None:
        raise BenchmarkError(
            "litserve is not installed: pip install 'dalorra-service[bench]' brings it, "
            "and --contenders leaves it out"
        )
    contenders: list[Contender] = []
    try:
        for name in names:
            contenders.append(Contender(name, setup))
            contenders[-1].wait_until_ready()
            contenders[-1].suspend()
        yield contenders
    finally:
        for contender in contenders:
            contender.stop()


def _command(name: str, setup: Setup, port: int) -> list[str]:
    shared = ["--port", str(port), "--adapter", str(setup.adapter)]
    shared += ["--base-model", setup.base_model, "--device", setup.device, "--dtype", setup.dtype]
    if name in (OURS, OURS_UNCACHED):
        uncached = ["--set", "prefix_cache_mib=0"] if name == OURS_UNCACHED else []
        return [sys.executable, "-m", "dalorra", "serve", *shared, *uncached]
    module = {FASTAPI: "fastapi_server", LITSERVE: "litserve_server"}[name]
    own = ["--loras", str(setup.loras), "--max-batch", str(setup.litserve_batch)]
    return [sys.executable, "-m", f"benchmarks.serving_load.{module}", *shared, *own]


def environment_of_servers(environ: Mapping[str, str]) -> dict[str, str]:
    """This process's without the settings of a server, which are the benchmark's to say."""
    return {
        name: value
        for name, value in environ.items()
        if not name.startswith("DALORRA_") or name in _KEPT
    }


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port
