"""The server that is soaked, a process of its own, and what it says of itself."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import httpx
from prometheus_client.parser import text_string_to_metric_families

from benchmarks.serving_load.contenders import environment_of_servers
from dalorra.errors import DalorraError

_START_SECONDS = 300
_STOP_SECONDS = 60


class SoakError(DalorraError):
    """The server cannot be soaked."""


@dataclass(frozen=True)
class Reading:
    """What a server says of itself at one moment.

    Attributes:
        at: seconds since the traffic began.
        seconds: that it took to say so.
        memory_mib: resident.
        cache_mib: of it, the prefix cache's.
        queue_rows: rows that wait.
        rows: that went through the model so far.
        requests: of predictions that have ended so far, by outcome.
    """

    at: float
    seconds: float
    memory_mib: float
    cache_mib: float
    queue_rows: float
    rows: float
    requests: Mapping[str, float]


class Server:
    """`dalorra serve`, until the end of its `with`.

    Args:
        options: for the command line.
        log: file for what it prints.
    """

    def __init__(self, options: Sequence[str], log: Path) -> None:
        self._log = log
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "dalorra", "serve", "--port", "0", *options],
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment_of_servers(os.environ),
            )
        self.url = ""

    def __enter__(self) -> Self:
        """Waits until it is ready.

        Raises:
            SoakError: it ended, or takes too long.
        """
        deadline = time.monotonic() + _START_SECONDS
        while time.monotonic() < deadline and self._process.poll() is None:
            self.url = self.url or self._listening_at()
            if self.url and self._ready():
                return self
            time.sleep(0.2)
        self.stop()
        words = "\n".join(self._log.read_text(errors="replace").splitlines()[-15:])
        raise SoakError(f"the server does not become ready:\n{words}")

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> int | None:
        """Ends it; its exit code, None where it had to be killed."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
        try:
            return self._process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            return None

    def _ready(self) -> bool:
        try:
            return httpx.get(f"{self.url}/health/ready", trust_env=False).is_success
        except httpx.HTTPError:
            return False

    def _listening_at(self) -> str:
        for line in self._log.read_text(errors="replace").splitlines():
            if '"listening"' in line:
                return f"http://127.0.0.1:{json.loads(line)['port']}"
        return ""


async def read(url: str, at: float) -> Reading:
    """Asks a server for its metrics.

    Args:
        url: of the server.
        at: seconds since the traffic began.

    Raises:
        httpx.HTTPError: it does not answer.
    """
    began = time.perf_counter()
    async with httpx.AsyncClient(timeout=_STOP_SECONDS, trust_env=False) as http:
        text = (await http.get(f"{url}/metrics")).raise_for_status().text
    seconds = time.perf_counter() - began
    return await asyncio.to_thread(_reading, text, at, seconds)


def _reading(text: str, at: float, seconds: float) -> Reading:
    samples = [one for family in text_string_to_metric_families(text) for one in family.samples]
    values = {one.name: one.value for one in samples}
    return Reading(
        at=at,
        seconds=seconds,
        memory_mib=values.get("process_resident_memory_bytes", float("nan")) / 2**20,
        cache_mib=values.get("dalorra_prefix_cache_bytes", 0.0) / 2**20,
        queue_rows=values["dalorra_queue_rows"],
        rows=values["dalorra_batch_rows_sum"],
        requests={
            one.labels["outcome"]: one.value
            for one in samples
            if one.name == "dalorra_requests_total"
        },
    )
