"""Replicas of one service with one PostgreSQL database: one store, and one live check."""

import threading
from collections.abc import Iterator
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
import pytest

from dalorra.errors import ConfigError
from service.feedback.export import read_labelled
from service.feedback.live import measure
from service.feedback.places import open_store, open_to_read
from service.feedback.records import KeptAnswer, Source
from service.feedback.tables import AnswerTables
from tests.databases import Postgres, postgres
from tests.fakes import PROMISE, FakePredictor, expected_prediction
from tests.serving import RunningServer, serving

pytestmark = [pytest.mark.integration, pytest.mark.slow]

SOURCE = Source("d1", '{"samples": 10}', FakePredictor().policy.model_dump_json(), None)
ANN, BOB = ({"Authorization": f"Bearer the-key-of-{name}"} for name in ("ann", "bob"))


def answer(request_id: str, at: float = 0.0, **changes: Any) -> KeptAnswer:
    usual = KeptAnswer(request_id, at, "yes", 0.9, 0.01, None, None, 10, "accept", True, None)
    return usual._replace(**changes)


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    with postgres() as running:
        yield running


@pytest.fixture
def url(server: Postgres) -> str:
    """Of a database without a store."""
    with psycopg.connect(server.url, autocommit=True) as connection:
        connection.execute("DROP SCHEMA IF EXISTS dalorra_feedback CASCADE")
    return server.url


@pytest.fixture(params=["a file", "PostgreSQL"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Path | str:
    """Of a new store, in either."""
    if request.param == "a file":
        return tmp_path / "f.sqlite"
    return str(request.getfixturevalue("url"))


@pytest.fixture
def store(place: Path | str) -> Iterator[AnswerTables]:
    with closing(open_store(place)) as opened:
        yield opened


def ids(store: AnswerTables, *names: str) -> list[str]:
    return [name for name in names if store.find(name, "") is not None]


def test_it_keeps_what_it_is_told(store: AnswerTables, place: Path | str):
    number = store.source_id(SOURCE)
    assert store.source_id(SOURCE) == number
    other = SOURCE._replace(novelty_digest="n")
    assert store.source_id(other) != number
    full = answer("a", 3.5, novelty=0.25, cut_at=300, input='{"x": "ü"}', called='{"y": "yes"}')
    store.add(number, [full, answer("a", owner="ann", accepted=False)])
    assert store.find("a", "") == (number, "yes", "accept", True, None, '{"y": "yes"}')
    assert store.find("a", "ann") == (number, "yes", "accept", False, None, None)
    store.add(number, [answer("a", label="no")])
    store.judge("a", "", "no", now=1e9 + 0.25)
    store.add(number, [answer("a", label="later")])
    assert store.find("a", "") == (number, "no", "accept", True, "no", None)
    assert store.owners("a") == ["", "ann"]
    store.set_watch(number, "{}")
    assert store.time is None
    for now in (1e9 + 0.125, 2e9 + 0.125):
        store.set_time(now)
    with closing(open_store(place)) as again:
        assert again.time == 2e9 + 0.125
        assert again.source(number) == (SOURCE, "{}")
        assert [one for _, one in again.sources()] == [SOURCE, other]
        assert again.judged(number, 10) == [(1e9 + 0.25, "a", "no", 0.9, 0.01, None, None, "no")]


def test_labels_of_any_text_are_kept(store: AnswerTables):
    number = store.source_id(SOURCE)
    odd = "50 % or ? \0 ☃ \\ '"
    store.add(number, [answer("a", label=odd)])
    store.judge("a", "", odd, now=1.0)
    [group] = store.groups(number)
    assert group.correct


def test_what_is_too_old_or_too_much_goes_and_what_was_judged_last(store: AnswerTables):
    source = store.source_id(SOURCE)
    store.add(source, [answer(str(n), float(n)) for n in range(8)])
    for n in "012":
        store.judge(n, "", "no", now=9.0)
    assert store.prune(oldest=0.5, most=5) == 3
    assert ids(store, *"01234567") == ["1", "2", "5", "6", "7"]


def test_the_sums_are_the_same_in_both(url: str, tmp_path: Path):
    generator = np.random.default_rng(0)
    probability = np.r_[generator.uniform(0.0, 1.0, 300), np.arange(16) / 15]
    found = []
    for place in (url, tmp_path / "f.sqlite"):
        with closing(open_store(place)) as store:
            number = store.source_id(SOURCE)
            drawn = np.random.default_rng(1)
            with store.transaction():
                for n, p in enumerate(probability):
                    kept = answer(str(n), probability=float(p), accepted=bool(drawn.random() < 0.6))
                    store.add(number, [kept])
                    store.judge(str(n), "", "yes" if drawn.random() < p else "no", now=1.0)
            found.append(measure(store.groups(number), None, alpha=0.05))
    shared, own = found
    assert shared.ece == pytest.approx(own.ece, abs=1e-12)
    for name in ("judged", "accepted", "errors", "error", "lower", "upper"):
        assert getattr(shared, name) == getattr(own, name)


def test_a_transaction_is_written_as_a_whole_or_not_at_all(store: AnswerTables):
    source = store.source_id(SOURCE)

    def write_and_fail() -> None:
        with store.transaction():
            store.add(source, [answer("a")])
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        write_and_fail()
    assert ids(store, "a") == []
    with store.transaction():
        store.add(source, [answer("a")])
    assert ids(store, "a") == ["a"]


def test_one_writes_at_a_time_and_the_others_see_it(place: Path | str, store: AnswerTables):
    """Read, change, write, by several at once: nothing is lost."""
    number, rounds = store.source_id(SOURCE), 40
    store.set_watch(number, "0")
    before = store.changes_of_others

    def count() -> None:
        with closing(open_store(place)) as own:
            for _ in range(rounds):
                with own.transaction():
                    own.set_watch(number, str(int(own.source(number)[1] or 0) + 1))

    threads = [threading.Thread(target=count) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert store.source(number)[1] == str(3 * rounds)
    store.add(number, [answer("a"), answer("b")])
    with closing(open_store(place)) as other, other.transaction():
        other.judge("a", "", "yes", now=1.0)
    after = store.changes_of_others
    assert after != before
    with store.transaction():
        store.judge("b", "", "yes", now=1.0)
    assert store.changes_of_others == after, "its own are none of others"


def test_it_goes_on_after_the_database_was_away(server: Postgres, url: str):
    with closing(open_store(url)) as store:
        source = store.source_id(SOURCE)
        store.add(source, [answer("a")])
        server.stop()
        with pytest.raises(psycopg.OperationalError), store.transaction():
            pytest.fail("there is nothing to write to")
        server.start()
        assert ids(store, "a") == ["a"]
        server.stop()
        server.start()
        with store.transaction():
            store.add(source, [answer("b")])
        assert ids(store, "a", "b") == ["a", "b"], "not one is lost for a restart in between"


def test_what_cannot_be_opened_is_said_without_the_password(server: Postgres, url: str):
    with pytest.raises(ConfigError, match="cannot be opened") as refusal:
        open_store("postgresql://me:secret@127.0.0.1:1/nowhere")
    assert "secret" not in str(refusal.value)
    with pytest.raises(ConfigError, match="cannot be opened"):
        open_to_read(url)
    open_store(url).close()
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("UPDATE dalorra_feedback.about SET version = 9")
    with pytest.raises(ConfigError, match="version 9, but this software reads version 1"):
        open_store(url)


def texts(count: int) -> list[str]:
    """Inputs that the promise's thresholds accept."""
    fake = FakePredictor()
    found = (
        text
        for text in (f"text {n}" for n in range(10_000))
        if PROMISE.decide(expected_prediction(fake.encode(text))).decision == "accept"
    )
    return list(islice(found, count))


async def judge(server: RunningServer, request_id: str, key: dict[str, str]) -> int:
    body = {"request_id": request_id, "label": "negative"}
    return (await server.client.post("/feedback", json=body, headers=key)).status_code


async def test_the_replicas_of_a_service_have_one_live_check(url: str):
    settings = {
        "feedback_url": url,
        "policy_action": "strict",
        "api_keys": "the-key-of-ann,the-key-of-bob",
    }
    accepted = texts(8)

    def replica() -> Any:
        return serving(FakePredictor(policy=PROMISE, digest="d1"), **settings)

    async with replica() as one, replica() as two:
        body = {"inputs": accepted}
        response = await one.client.post("/predict/batch", json=body, headers=ANN)
        asked = [answered["request_id"] for answered in response.json()["predictions"]]
        await one.ledger.caught_up()
        assert await judge(two, asked[0], BOB) == 404
        statuses = [
            await judge((one, two)[n % 2], request_id, ANN) for n, request_id in enumerate(asked)
        ]
        assert statuses == [200] * 8
        assert await judge(two, asked[0], ANN) == 200, "again, and it counts once"
        series = '{adapter="fake-adapter"}'
        for server in (one, two):
            await server.until_metric(f"dalorra_judged_answers{series}", 8)
            await server.until_metric(f"dalorra_promise_broken{series}", 1)
            answered = (await server.predict(accepted[0], headers=BOB)).json()
            assert answered["decision"] == "escalate"
            assert "8 of 8 accepted answers were wrong" in answered["reason"]
        values = [
            (await server.metrics())[f"dalorra_promise_e_value{series}"] for server in (one, two)
        ]
        assert values[0] == values[1]

    found = read_labelled(url, "d1", temperature=1.0, samples=10)
    assert [one.true_label for one in found] == ["negative"] * 8
    with pytest.raises(ConfigError, match="in PostgreSQL has no judged answers of adapter d2"):
        read_labelled(url, "d2", temperature=1.0, samples=10)
