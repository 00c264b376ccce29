"""The end of a server whose store is locked: nothing is lost, or the loss is said."""

import asyncio
import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from service.feedback.ledger import STOP_SECONDS
from service.feedback.store import LOCK_SECONDS
from tests.serving import RunningServer, serving


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "f.sqlite"


@contextmanager
def locked(path: Path) -> Iterator[sqlite3.Connection]:
    """Another process's transaction, until the end or until it is rolled back."""
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        yield other
        if other.in_transaction:
            other.execute("ROLLBACK")


def kept(path: Path) -> int:
    with closing(sqlite3.connect(path)) as database:
        return int(database.execute("SELECT count(*) FROM answers").fetchone()[0])


async def answered(server: RunningServer, answers: int) -> None:
    for n in range(answers):
        assert (await server.predict(f"text {n}")).status_code == 200


def test_the_end_waits_longer_than_a_lock():
    assert STOP_SECONDS > LOCK_SECONDS


async def test_what_waits_for_a_lock_is_written_at_the_end(path: Path):
    async with serving(feedback_store=path) as server:
        with locked(path) as other:
            await answered(server, 5)
            stopping = asyncio.create_task(server.ledger.stop())
            await asyncio.sleep(0.3)
            assert not stopping.done()
            other.execute("ROLLBACK")
            await stopping
    assert kept(path) == 5
    assert server.ledger.lost == 0


async def test_what_a_lock_outlasts_is_counted_and_logged(
    path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("service.feedback.store.LOCK_SECONDS", 0.2)
    with capture_logs() as logs:
        async with serving(feedback_store=path) as server:
            with locked(path):
                await answered(server, 5)
                await server.ledger.stop()
    assert kept(path) == 0
    assert server.ledger.lost == 5
    assert sum(line["lost"] for line in logs if line["event"] == "feedback_not_written") == 5
    assert [line["answers"] for line in logs if line["event"] == "answers_not_kept"] == [5]


@pytest.mark.parametrize("at_once", [False, True])
async def test_what_the_end_does_not_wait_for_is_counted_and_logged(
    path: Path, monkeypatch: pytest.MonkeyPatch, at_once: bool
):
    monkeypatch.setattr("service.feedback.store.LOCK_SECONDS", 3.0)
    monkeypatch.setattr("service.feedback.ledger.STOP_SECONDS", 0.2)
    with capture_logs() as logs:
        async with serving(feedback_store=path) as server:
            with locked(path):
                await answered(server, 5)
                await server.ledger.stop(at_once=at_once)
                await answered(server, 2)  # too late, though there is an answer
    assert server.ledger.lost == 7
    assert [line["answers"] for line in logs if line["event"] == "answers_not_kept"] == [5]


async def test_a_judgement_is_only_acknowledged_once_it_is_written(path: Path):
    async with serving(feedback_store=path) as server:
        request_id = (await server.predict("a")).json()["request_id"]
        await server.ledger.caught_up()
        with locked(path) as other:
            judgement = {"request_id": request_id, "label": "positive"}
            judging = asyncio.create_task(server.client.post("/feedback", json=judgement))
            await asyncio.sleep(0.2)
            assert not judging.done()
            other.execute("ROLLBACK")
        assert (await judging).status_code == 200
        with closing(sqlite3.connect(path)) as database:
            found = database.execute("SELECT true_label FROM answers").fetchall()
    assert json.dumps(found) == '[["positive"]]'
