"""`dalorra predict FILE --out OUT` on a tiny adapter."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from dalorra.cli import app
from dalorra.predictor import Predictor
from tests.tiny import SENTENCES, tiny_folders


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> tuple[Path, Path]:
    """An adapter and its base model."""
    return tiny_folders(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def run(folders):
    adapter, base = folders
    given = ["--adapter", str(adapter), "--base-model", str(base), "--dtype", "float32"]
    return lambda *arguments: CliRunner().invoke(app, ["predict", *map(str, arguments), *given])


@pytest.fixture
def reviews(tmp_path) -> Path:
    path = tmp_path / "reviews.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in SENTENCES))
    return path


def test_a_file_is_scored_as_its_inputs_are_one_by_one(run, folders, reviews, tmp_path):
    out = tmp_path / "scored.jsonl"
    result = run(reviews, "--out", out, "--column", "sentence=text")
    assert result.exit_code == 0, result.output
    assert result.stdout == f"{out}\n"
    assert result.stderr == "4 rows: 4 escalate\n"
    predictor = Predictor.load(folders[0], str(folders[1]), dtype="float32")
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    for line, text in zip(lines, SENTENCES, strict=True):
        (alone,) = predictor.predict([predictor.encode(text)])
        assert line["text"] == text
        assert line["label"] == alone.label
        assert line["probability"] == pytest.approx(alone.probability, abs=1e-5)
        assert line["variance"] == pytest.approx(alone.variance, abs=1e-5)


def test_ctrl_c_says_how_to_go_on(run, reviews, tmp_path, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    out = tmp_path / "scored.jsonl"
    options = (reviews, "--out", out, "--column", "sentence=text")
    with monkeypatch.context() as patch:
        patch.setattr(Predictor, "predict", stop)
        result = run(*options)
    assert result.exit_code == 130
    assert f"{out}.partial keeps what is answered: go on with --resume" in result.stderr
    assert run(*options).exit_code == 2
    assert run(*options, "--resume").exit_code == 0
    assert len(out.read_text().splitlines()) == 4


def test_a_missing_column_says_how_to_name_it(run, reviews, tmp_path):
    out = tmp_path / "scored.csv"
    refusal = run(reviews, "--out", out)
    assert refusal.exit_code == 2
    assert "say which one it is: --column 'sentence=text'" in refusal.stderr
    assert run(reviews, "--out", out, "--column", "sentence=text").exit_code == 0


def test_a_full_disk_says_how_to_go_on(run, reviews, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    options = (reviews, "--out", tmp_path / "scored.jsonl", "--column", "sentence=text")
    with monkeypatch.context() as patch:
        patch.setattr("dalorra.scoring.outputs.JsonLines.write", full)
        result = run(*options)
    assert result.exit_code == 2
    assert "No space left on device; " in result.stderr
    assert "go on with --resume" in result.stderr
    assert run(*options, "--resume").exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("reviews.jsonl",), "looks like a file: add --out"),
        (("--out", "x.jsonl"), "--out goes with one FILE"),
        (("reviews.jsonl", "--out", "x.jsonl", "-f", "a=b"), "--out goes with one FILE"),
        (("a text", "--resume"), "say with --out where its answers go"),
        (("a text", "--no-columns"), "say with --out where its answers go"),
        (("reviews.jsonl", "--out", "x.txt"), "must end in one of .jsonl, .csv, .parquet"),
        (("reviews.jsonl", "--out", "x.jsonl"), "reviews.jsonl cannot be read"),
        (("reviews.jsonl", "--out", "x.jsonl", "--workers", "2"), "--workers goes with --ray"),
        (("reviews.jsonl", "--out", "x.jsonl", "--column", "a=b"), "no field 'a'"),
    ],
)
def test_what_is_asked_for_is_never_guessed(run, arguments, sentence):
    result = run(*arguments)
    assert result.exit_code == 2
    assert sentence in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_a_text_may_speak_of_a_file(run):
    assert run("Nobody should watch reviews.csv").exit_code == 0


def test_a_file_that_is_there_is_never_taken_for_a_text(run, tmp_path):
    path = tmp_path / "two words.csv"
    path.write_text("sentence\n")
    assert "looks like a file" in run(path).stderr
