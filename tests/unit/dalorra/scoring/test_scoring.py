"""Whole files on a predictor without weights: every record answered, order kept, resumable."""

import math
from dataclasses import replace

import pytest

from dalorra.errors import ConfigError
from dalorra.scoring.job import Job
from dalorra.scoring.questions import Columns
from dalorra.scoring.run import locally, score_file
from tests.fakes import FakePredictor, expected_prediction
from tests.scoring import TEXTS, left_over, never_loaded, read, records_of, run
from tests.tiny import FORMAT

# --- answers ---


@pytest.mark.parametrize("out", ["out.jsonl", "out.parquet"])
def test_every_record_is_answered_in_order(job, predictor, out):
    asked = job(records_of(TEXTS, id="a"), out)
    answered = run(asked, predictor)
    assert [line["row"] for line in answered] == [1, 2, 3, 4, 5]
    assert [line["sentence"] for line in answered] == TEXTS
    for line, text in zip(answered, TEXTS, strict=True):
        expected = expected_prediction(predictor.encode(text))
        verdict = predictor.policy.decide(expected)
        assert line == {
            "row": line["row"],
            "sentence": text,
            "id": "a",
            "label": "positive",
            "probability": expected.probability,
            "variance": expected.variance,
            "decision": verdict.decision,
            "reason": verdict.reason,
            "probabilities": expected.probabilities,
            "entropy": expected.entropy,
            "mutual_information": expected.mutual_information,
            "novelty": expected.novelty,
            "truncated": False,
            "error": None,
        }
    assert left_over(asked) == {out}


def test_a_window_is_handed_over_whole(job, predictor):
    run(job(records_of(TEXTS)), predictor)
    assert [len(batch) for batch in predictor.batches] == [2, 2, 1]


def test_a_number_that_is_none_stops_the_run(job, predictor, monkeypatch):
    def broken(prompts):
        return [replace(expected_prediction(prompt), probability=math.nan) for prompt in prompts]

    monkeypatch.setattr(predictor, "predict", broken)
    with pytest.raises(FloatingPointError, match="row 1: the forward"):
        run(job(records_of(TEXTS)), predictor)


def test_decisions_are_counted(job, predictor):
    counts = score_file(
        job(records_of([*TEXTS, ""]), on_error="record"), locally(lambda: predictor)
    )
    assert counts["error"] == 1
    assert counts.total() == 6


# --- interruption ---


class Interrupted(FakePredictor):
    """Stops at the n-th window."""

    def __init__(self, windows: int) -> None:
        super().__init__()
        self._left = windows

    def predict(self, prompts):
        if not self._left:
            raise KeyboardInterrupt
        self._left -= 1
        return super().predict(prompts)


@pytest.fixture
def interrupted(job) -> Job:
    """A run that ended after its first window of two records."""
    asked = job(records_of(TEXTS))
    with pytest.raises(KeyboardInterrupt):
        run(asked, Interrupted(windows=1))
    return asked


def test_a_resumed_run_ends_like_an_unbroken_one(interrupted, job, predictor, tmp_path):
    assert left_over(interrupted) == {"out.jsonl.partial"}
    run(interrupted, predictor, resume=True)
    assert sum(map(len, predictor.batches)) == 3
    assert left_over(interrupted) == {"out.jsonl"}
    unbroken = replace(interrupted, out=tmp_path / "unbroken.jsonl")
    run(unbroken, FakePredictor())
    assert interrupted.out.read_bytes() == unbroken.out.read_bytes()


def test_a_line_that_was_cut_short_is_answered_again(interrupted, predictor):
    whole = interrupted.journal.read_bytes()
    interrupted.journal.write_bytes(whole[:-9])
    answered = run(interrupted, predictor, resume=True)
    assert sum(map(len, predictor.batches)) == 4
    assert [line["sentence"] for line in answered] == TEXTS


def test_only_the_finished_file_was_missing(interrupted, predictor, monkeypatch):
    def full_disk(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(interrupted.output, "write", full_disk)
        with pytest.raises(OSError, match="No space"):
            run(interrupted, predictor, resume=True)
    score_file(interrupted, locally(never_loaded), resume=True)
    assert [line["sentence"] for line in read(interrupted.out)] == TEXTS


def test_an_unfinished_run_is_not_taken_over_unasked(interrupted):
    with pytest.raises(ConfigError, match=r"partial holds an unfinished run: .*--resume"):
        run(interrupted, never_loaded)


def test_resume_starts_where_there_is_nothing_to_resume(job, predictor):
    assert len(run(job(records_of(TEXTS)), predictor, resume=True)) == 5


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"identity": {"adapter": "another"}}, "adapter"),
        ({"columns": Columns(FORMAT, {"sentence": "other"})}, "column mapping"),
    ],
)
def test_another_run_is_not_resumed(job, changes, word):
    asked = job(records_of(TEXTS, other="text"), identity={"adapter": "this one"})
    with pytest.raises(KeyboardInterrupt):
        run(asked, Interrupted(windows=1))
    with pytest.raises(ConfigError, match=f"begun with another {word}"):
        score_file(replace(asked, **changes), locally(never_loaded), resume=True)


def test_a_changed_input_is_not_resumed(interrupted):
    content = interrupted.source.read_text()
    interrupted.source.write_text(content.replace("good fun", "bad fun "))
    with pytest.raises(ConfigError, match="begun with another input"):
        score_file(interrupted, locally(never_loaded), resume=True)


@pytest.mark.parametrize("content", [b"", b"[1]\n", b"no journal\n", b'{"input": "no line en'])
def test_a_file_that_is_no_journal_is_left_alone(job, content):
    asked = job(records_of(TEXTS))
    asked.journal.write_bytes(content)
    with pytest.raises(ConfigError, match="no journal"):
        score_file(asked, locally(never_loaded), resume=True)
    assert asked.journal.read_bytes() == content


def test_a_journal_out_of_order_is_noticed(interrupted, predictor):
    head, first, second = interrupted.journal.read_bytes().splitlines(keepends=True)
    interrupted.journal.write_bytes(head + second + first)
    with pytest.raises(ConfigError, match="row by row"):
        run(interrupted, predictor, resume=True)
    assert left_over(interrupted) == {"out.jsonl.partial"}


def test_a_finished_file_is_not_overwritten(job):
    asked = job(records_of(TEXTS))
    asked.out.write_text("precious")
    with pytest.raises(ConfigError, match="is there already"):
        score_file(asked, locally(never_loaded), resume=True)
    assert asked.out.read_text() == "precious"
