"""A feedback store outlives its server, however that ends."""

import sqlite3
from contextlib import closing
from pathlib import Path

import httpx
import pytest

from dalorra.client import Client, ConflictError, NotFoundError
from tests.server_process import ServerProcess, start

pytestmark = pytest.mark.integration

TEXTS = [f"text {n}" for n in range(6)]


def server_with(store: Path) -> ServerProcess:
    return start("fake", api_keys=[], feedback_store=str(store))


def judged(url: str) -> float:
    text = httpx.get(f"{url}/metrics").text
    [line] = [line for line in text.splitlines() if line.startswith("dalorra_judged_answers{")]
    return float(line.rpartition(" ")[2])


def test_feedback_that_was_taken_survives_a_server_that_is_killed(tmp_path: Path):
    store = tmp_path / "feedback.sqlite"
    with server_with(store) as server, Client(server.until_ready().url) as client:
        answers = client.predict_batch(TEXTS, request_id="before")
        assert [answer.request_id for answer in answers] == [f"before-{n}" for n in range(6)]
        for answer in answers[:4]:
            assert client.feedback(answer.request_id, answer.label).correct
        server.process.kill()
        server.process.wait()

    with server_with(store) as server, Client(server.until_ready().url) as client:
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
