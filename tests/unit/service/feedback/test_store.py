"""One SQLite file: what it keeps, for how long, and what it makes of what it is told."""

import sqlite3
import stat
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from dalorra.decision.metrics import expected_calibration_error
from dalorra.decision.policy import Policy
from dalorra.errors import ConfigError
from service.feedback.export import read_labelled
from service.feedback.live import measure
from service.feedback.records import KeptAnswer, LabelledAnswer, Source
from service.feedback.store import FeedbackStore
from tests.fakes import FakePredictor

POLICY = FakePredictor().policy.model_dump_json()
SOURCE = Source("d1", '{"samples": 10}', POLICY, None)


def answer(request_id: str, at: float = 0.0, **changes: object) -> KeptAnswer:
    usual = KeptAnswer(request_id, at, "yes", 0.9, 0.01, None, None, 10, "accept", True, None)
    return usual._replace(**changes)  # type: ignore[arg-type]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "feedback.sqlite"


@pytest.fixture
def store(path: Path):
    store = FeedbackStore(path)
    yield store
    store.close()


def ids(store: FeedbackStore, *names: str) -> list[str]:
    return [name for name in names if store.find(name, "") is not None]


def test_only_its_owner_may_read_it(store: FeedbackStore, path: Path):
    with store.transaction():
        store.add(store.source_id(SOURCE), [answer("a")])
    for file in path.parent.iterdir():
        assert stat.S_IMODE(file.stat().st_mode) == 0o600, file


def test_equal_sources_are_one(store: FeedbackStore):
    one = store.source_id(SOURCE)
    assert store.source_id(SOURCE) == one
    for other in (
        SOURCE._replace(adapter_digest="d2"),
        SOURCE._replace(policy="{}"),
        SOURCE._replace(novelty_digest="n"),
    ):
        number = store.source_id(other)
        assert number != one
        assert store.source_id(other) == number
        assert store.source(number) == (other, None)


def test_a_repeated_id_is_the_later_answer_until_it_is_judged(store: FeedbackStore):
    source = store.source_id(SOURCE)
    store.add(source, [answer("a"), answer("a", label="no")])
    assert store.find("a", "").label == "no"  # type: ignore[union-attr]
    store.judge("a", "", "no", now=1.0)
    store.add(source, [answer("a", label="yes")])
    assert store.find("a", "").label == "no"  # type: ignore[union-attr]
    assert store.find("b", "") is None


def test_a_transaction_is_written_as_a_whole_or_not_at_all(store: FeedbackStore):
    source = store.source_id(SOURCE)

    def write_and_fail() -> None:
        with store.transaction():
            store.add(source, [answer("a")])
            store.set_watch(source, "{}")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        write_and_fail()
    assert ids(store, "a") == []
    assert store.source(source)[1] is None


def test_what_is_too_old_is_deleted_whatever_it_is(store: FeedbackStore):
    source = store.source_id(SOURCE)
    store.add(source, [answer("old", 1.0), answer("judged", 2.0), answer("new", 3.0)])
    store.judge("judged", "", "no", now=9.0)
    assert store.prune(oldest=2.5, most=100) == 2
    assert ids(store, "old", "judged", "new") == ["new"]


def test_what_is_too_many_goes_oldest_first_and_what_was_judged_last(store: FeedbackStore):
    source = store.source_id(SOURCE)
    store.add(source, [answer(str(n), float(n)) for n in range(6)])
    store.judge("0", "", "no", now=9.0)
    store.judge("1", "", "no", now=9.0)
    assert store.prune(oldest=-1.0, most=4) == 2
    assert ids(store, *"012345") == ["0", "1", "4", "5"]
    assert store.prune(oldest=-1.0, most=1) == 3
    assert ids(store, *"012345") == ["1"]


def test_the_sums_are_those_of_all_answers(store: FeedbackStore):
    generator = np.random.default_rng(0)
    # On the edges of the bins, too.
    probability = np.r_[generator.uniform(0.0, 1.0, 400), np.arange(16) / 15]
    accepted = generator.random(416) < 0.6
    correct = generator.random(416) < probability
    source = store.source_id(SOURCE)
    for n in range(416):
        one = answer(str(n), probability=float(probability[n]), accepted=bool(accepted[n]))
        store.add(source, [one])
        store.judge(str(n), "", "yes" if correct[n] else "no", now=1.0)
    store.add(source, [answer("not judged")])
    store.add(store.source_id(SOURCE._replace(adapter_digest="d2")), [answer("another's")])

    live = measure(store.groups(source), None, alpha=0.05)

    assert (live.judged, live.accepted) == (416, accepted.sum())
    assert live.errors == (accepted & ~correct).sum()
    assert live.error == live.errors / live.accepted
    assert live.lower < live.error < live.upper
    assert live.ece == pytest.approx(expected_calibration_error(probability, correct), abs=1e-9)


def test_of_nothing_nothing_is_known(store: FeedbackStore):
    live = measure(store.groups(store.source_id(SOURCE)), None, alpha=0.05)
    assert (live.judged, live.broken) == (0, False)
    assert all(np.isnan([live.error, live.lower, live.upper, live.ece, live.e_value]))


def test_another_process_may_use_it_too(store: FeedbackStore, path: Path):
    source = store.source_id(SOURCE)
    before = store.changes_of_others
    other = FeedbackStore(path)
    with other.transaction():
        other.add(other.source_id(SOURCE), [answer("a")])
    other.close()
    assert store.changes_of_others != before
    assert store.find("a", "").source == source  # type: ignore[union-attr]


def test_it_is_there_when_it_is_opened_again(path: Path):
    first = FeedbackStore(path)
    number = first.source_id(SOURCE)
    first.add(number, [answer("a")])
    first.set_watch(number, '{"peak": 3}')
    first.close()
    again = FeedbackStore(path)
    assert again.source(number) == (SOURCE, '{"peak": 3}')
    assert ids(again, "a") == ["a"]
    again.close()


def test_a_file_of_another_kind_is_refused_and_left_as_it_is(path: Path):
    path.write_text("these are no pages of a database, and never were, however long one looks")
    with pytest.raises(ConfigError, match=r"cannot be opened: file is not a database"):
        FeedbackStore(path)
    path.unlink()
    with closing(sqlite3.connect(path)) as database:
        database.execute("CREATE TABLE theirs (x)")
    before = path.read_bytes()
    with pytest.raises(ConfigError, match="is a database of another program"):
        FeedbackStore(path)
    assert path.read_bytes() == before


def test_a_store_of_another_version_is_refused(store: FeedbackStore, path: Path):
    with closing(sqlite3.connect(path)) as database:
        database.execute("PRAGMA user_version = 5")
    with pytest.raises(ConfigError, match="version 5, but this software reads versions up to 4"):
        FeedbackStore(path)


EARLIER = """
CREATE TABLE sources (
    id INTEGER PRIMARY KEY, adapter_digest TEXT NOT NULL, bank TEXT NOT NULL, policy TEXT NOT NULL,
    novelty_digest TEXT, watch TEXT
);
CREATE TABLE answers (
    request_id TEXT NOT NULL PRIMARY KEY, answered_at REAL NOT NULL, label TEXT NOT NULL,
    probability REAL NOT NULL, variance REAL NOT NULL, novelty REAL, {cut_at}
    samples INTEGER NOT NULL,
    decision TEXT NOT NULL, accepted INTEGER NOT NULL, input TEXT, {called}
    source INTEGER NOT NULL REFERENCES sources (id), true_label TEXT, labelled_at REAL
);
CREATE INDEX answers_by_worth ON answers (true_label IS NOT NULL, answered_at);
CREATE INDEX answers_by_age ON answers (answered_at);
CREATE INDEX answers_with_truth ON answers (source) WHERE true_label IS NOT NULL;
PRAGMA application_id = {application};
PRAGMA user_version = {version};
"""


@pytest.mark.parametrize("version", [1, 2, 3])
def test_an_earlier_store_is_brought_up_to_date_when_a_server_opens_it(path: Path, version: int):
    cut_at = "cut_at INTEGER," if version > 1 else ""
    called = "called TEXT," if version > 2 else ""
    with closing(sqlite3.connect(path)) as database:
        tables = EARLIER.format(
            cut_at=cut_at, called=called, version=version, application=0x44414C46
        )
        database.executescript(tables)
        database.execute("INSERT INTO sources VALUES (7, ?, ?, ?, ?, '{}')", SOURCE)
        database.executemany(
            "INSERT INTO answers (request_id, answered_at, label, probability, variance, samples, "
            "decision, accepted, input, source, true_label, labelled_at) "
            "VALUES (?, ?, 'yes', 0.9, 0.01, 10, 'accept', 1, '\"x\"', 7, ?, ?)",
            [("a", 3.0, "no", 4.0), ("b", 5.0, None, None)],
        )
        database.commit()
    with pytest.raises(ConfigError, match="of an earlier version: start the server with it"):
        read_labelled(path, "d1", temperature=1.0, samples=10)
    FeedbackStore(path).close()
    [found] = read_labelled(path, "d1", temperature=1.0, samples=10)
    assert (found.request_id, found.cut_at) == ("a", None)
    with closing(FeedbackStore(path)) as opened:
        assert opened.source(7) == (SOURCE, "{}")
        kept = opened.find("a", "")
        assert kept is not None
        assert (kept.true_label, kept.called) == ("no", None)
        opened.add(7, [answer("a", owner="o")])
        assert opened.owners("a") == ["", "o"]
        opened.judge("b", "", "yes", now=9.0)
        assert opened.prune(oldest=4.0, most=100) == 2, "with the time that each was given at"
    with closing(sqlite3.connect(path)) as fresh, closing(sqlite3.connect(":memory:")) as none:
        FeedbackStore(path.with_name("new")).close()
        none.execute("ATTACH ? AS new", (str(path.with_name("new")),))
        names = "SELECT type, name FROM {}sqlite_master ORDER BY 1, 2"
        found = fresh.execute(names.format("")).fetchall()
        assert found == none.execute(names.format("new.")).fetchall()


def test_one_id_of_two_owners_is_two_answers(store: FeedbackStore, path: Path):
    source = store.source_id(SOURCE)
    store.add(source, [answer("a", owner="one"), answer("a", owner="two", label="no")])
    store.add(source, [answer("a", owner="one", label="perhaps")])
    store.judge("a", "two", "no", now=1.0)
    assert store.owners("a") == ["one", "two"]
    assert store.find("a", "one")._replace(source=0) == (0, "perhaps", "accept", True, None, None)  # type: ignore[union-attr]
    assert store.find("a", "two").true_label == "no"  # type: ignore[union-attr]
    assert store.find("a", "") is None
    [exported] = read_labelled(path, "d1", temperature=1.0, samples=10)
    assert exported.request_id == "two/a", "so that equal ids are not taken for one answer"


def test_a_folder_that_is_not_there_is_named(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"nowhere/f.sqlite cannot be opened: .*No such file"):
        FeedbackStore(tmp_path / "nowhere" / "f.sqlite")


def test_judged_answers_are_read_beside_a_server(store: FeedbackStore, path: Path):
    source = store.source_id(SOURCE)
    store.add(
        source, [answer("b", novelty=0.4, cut_at=300), answer("a", input='"hello"'), answer("c")]
    )
    store.add(source, [answer("few", samples=4)])
    for name in ("a", "b", "few"):
        store.judge(name, "", "no", now=1.0)

    found = read_labelled(path, "d1", temperature=1.0, samples=10)

    assert found == [
        LabelledAnswer("a", "yes", 0.9, 0.01, None, None, "no", ""),
        LabelledAnswer("b", "yes", 0.9, 0.01, 0.4, 300, "no", ""),
    ]


def test_they_come_in_the_order_in_which_they_were_judged(store: FeedbackStore, path: Path):
    other = SOURCE._replace(bank="{}")
    store.add(store.source_id(SOURCE), [answer("a"), answer("c"), answer("d")])
    store.add(store.source_id(other), [answer("b"), answer("e")])
    for now, name in enumerate("cbead"):
        store.judge(name, "", "no", now=float(now))
    found = read_labelled(path, "d1", temperature=1.0, samples=10)
    assert "".join(one.request_id for one in found) == "cbead"


def test_only_those_of_the_last_precision_come(store: FeedbackStore, path: Path):
    """Where a store was moved to another kind of machine."""
    for now, (name, precision) in enumerate(
        zip("abc", ("float32", "bfloat16", "bfloat16"), strict=True)
    ):
        policy = Policy.never().served_in(f"{precision} on cpu")
        source = SOURCE._replace(policy=policy.model_dump_json())
        store.add(store.source_id(source), [answer(name)])
        store.judge(name, "", "no", now=float(now))
    found = read_labelled(path, "d1", temperature=1.0, samples=10)
    assert [(one.request_id, one.precision) for one in found] == [
        ("b", "bfloat16 on cpu"),
        ("c", "bfloat16 on cpu"),
    ]


@pytest.mark.parametrize(
    ("digest", "temperature", "novelty", "samples"),
    [("d2", 1.0, None, 10), ("d1", 2.0, None, 10), ("d1", 1.0, "n", 10), ("d1", 1.0, None, 11)],
)
def test_answers_that_were_made_otherwise_are_left_out(
    store: FeedbackStore,
    path: Path,
    digest: str,
    temperature: float,
    novelty: str | None,
    samples: int,
):
    store.add(store.source_id(SOURCE), [answer("a")])
    store.judge("a", "", "no", now=1.0)
    with pytest.raises(ConfigError, match=f"no judged answers of adapter {digest}…"):
        read_labelled(
            path, digest, temperature=temperature, samples=samples, novelty_digest=novelty
        )


def test_a_store_that_is_not_there_cannot_be_read(tmp_path: Path):
    with pytest.raises(ConfigError, match="cannot be read"):
        read_labelled(tmp_path / "no.sqlite", "d1", temperature=1.0, samples=10)
    assert not list(tmp_path.iterdir())
