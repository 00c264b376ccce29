"""A feedback store outlives its server, however that ends."""

import json
import sqlite3
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import httpx
import pytest

from dalorra.client import Client, ConflictError, NotFoundError
from tests.integration.test_server import ServerProcess

pytestmark = pytest.mark.integration

TEXTS = [f"text {n}" for n in range(6)]


@contextmanager
def running(store: Path) -> Iterator[ServerProcess]:
    settings = json.dumps({"port": 0, "feedback_store": str(store)})
    server = ServerProcess([sys.executable, "-m", "tests.fake_server", settings, "{}"])
    try:
        yield server.until_ready()
    finally:
        server.process.kill()
        server.process.wait()


def judged(url: str) -> float:
    text = httpx.get(f"{url}/metrics").text
    [line] = [line for line in text.splitlines() if line.startswith("dalorra_judged_answers{")]
    return float(line.rpartition(" ")[2])


def test_feedback_that_was_taken_survives_a_server_that_is_killed(tmp_path: Path):
    store = tmp_path / "feedback.sqlite"
    with running(store) as server, Client(server.url) as client:
        answers = client.predict_batch(TEXTS, request_id="before")
        assert [answer.request_id for answer in answers] == [f"before-{n}" for n in range(6)]
        for answer in answers[:4]:
            assert client.feedback(answer.request_id, answer.label).correct
        server.process.kill()
        server.process.wait()

    with running(store) as server, Client(server.url) as client:
        assert judged(server.url) == 4
        with pytest.raises(ConflictError, match="judged before, as 'positive'"):
            client.feedback("before-0", "negative")
        assert client.feedback("before-5", "negative").correct is False
        with pytest.raises(NotFoundError, match="no answer is kept"):
            client.feedback("before-6", "negative")
        # Beside the server, as calibration does.
        with closing(sqlite3.connect(store)) as database:
            [count] = database.execute("SELECT count(true_label) FROM answers").fetchone()
        assert count == 5
        assert server.stop() == 0
