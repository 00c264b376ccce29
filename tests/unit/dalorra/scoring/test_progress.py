"""What is seen of a long run, and what is left of one that was killed."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dalorra.scoring import progress
from dalorra.scoring.questions import Columns, Questions
from dalorra.scoring.run import locally, score_file
from tests.fakes import FakePredictor
from tests.killed_scoring import slow_job
from tests.scoring import read, records_of
from tests.tiny import FORMAT

ROOT = Path(__file__).parents[4]


def write_texts(path: Path, texts: list[str]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records_of(texts)))
    return path


def test_a_killed_run_has_kept_all_but_a_few_seconds(tmp_path):
    source = write_texts(tmp_path / "in.jsonl", [f"text {n}" for n in range(500)])
    job = slow_job(source, tmp_path / "out.jsonl")
    command = [sys.executable, "-m", "tests.killed_scoring", str(source), str(job.out)]
    with subprocess.Popen(
        command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, start_new_session=True
    ) as process:
        deadline = time.monotonic() + 120
        while not job.journal.exists() or job.journal.read_bytes().count(b"\n") < 42:
            assert process.poll() is None, "the run ended by itself"
            assert time.monotonic() < deadline, "nothing was saved"
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    kept = job.journal.read_bytes().count(b"\n") - 1  # its first line is no answer
    predictor = FakePredictor()
    score_file(job, locally(lambda: predictor), resume=True)
    assert sum(map(len, predictor.batches)) == 500 - kept
    assert max(map(len, predictor.batches)) == 10
    assert [line["sentence"] for line in read(job.out)] == [f"text {n}" for n in range(500)]


@pytest.mark.parametrize(
    ("lengths", "batch_rows", "windows"),
    [
        ([10] * 130, 2048, [64, 64, 2]),  # records end a window
        ([10_000] * 9, 2048, [4, 4, 1]),  # or characters
        ([140_000] * 3, 2048, [1, 1, 1]),
        ([10] * 1100, 16_384, [512, 512, 76]),  # more where a forward takes more
        ([10] * 3, 1, [1, 1, 1]),
    ],
)
def test_a_window_is_a_few_forwards(tmp_path, lengths, batch_rows, windows):
    source = write_texts(tmp_path / "in.jsonl", ["x" * length for length in lengths])
    questions = Questions(source, Columns(FORMAT, {}), batch_rows=batch_rows)
    assert [len(window) for window in questions] == windows


def test_a_log_gets_a_line_now_and_then(capsys, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    with progress.progress(records=5000, done=1000) as advance:
        for seconds, rows in ((14.0, 100), (20.0, 100), (30.0, 50), (36.0, 90)):
            now[0] = seconds
            advance(rows)
    assert capsys.readouterr().err.splitlines() == [
        "scored 1200 of 5000 rows, 10 rows/s, 6 min left",
        "scored 1340 of 5000 rows, 8.75 rows/s, 7 min left",
    ]
