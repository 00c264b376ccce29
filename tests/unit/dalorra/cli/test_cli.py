import json
import subprocess
import sys
import types
from dataclasses import asdict
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from dalorra.cli import app
from dalorra.cli.options import set_aside
from dalorra.errors import BaseModelError
from service.keys import digest, hash_key, known_digest
from tests.fakes import FakePredictor, expected_prediction
from training.config import TrainingConfig
from training.methods import METHODS

COMMANDS = (
    "calibrate",
    "fetch",
    "serve",
    "train",
    "evaluate",
    "experiment",
    "export",
    "hash-key",
    "import",
    "info",
    "methods",
    "novelty",
    "predict",
    "pull",
    "push",
    "report",
)


@pytest.fixture
def run():
    runner = CliRunner()
    return lambda *arguments, **options: runner.invoke(app, list(arguments), **options)


@pytest.fixture
def stand_in(monkeypatch):
    """Replaces a module by one with a single function that keeps its calls."""

    def replace(name: str, function: str, result: object = None) -> list[tuple[tuple, dict]]:
        calls: list[tuple[tuple, dict]] = []

        def keep(*args: object, **kwargs: object) -> object:
            calls.append((args, kwargs))
            return result

        module = types.ModuleType(name)
        setattr(module, function, keep)
        monkeypatch.setitem(sys.modules, name, module)
        return calls

    return replace


def test_help_names_every_command(run):
    result = run("--help")
    assert result.exit_code == 0
    for command in COMMANDS:
        assert command in result.stdout
        assert run(command, "--help").exit_code == 0


def test_methods_lists_settings_that_a_configuration_takes(run):
    listed = [line.split("  ")[0] for line in run("methods").stdout.splitlines()]
    assert len(listed) == len(set(listed)) == len(METHODS) + 3
    for line in listed:
        dotted, _, value = line.replace("=K", "=2").partition("=")
        section, name = dotted.split(".")
        TrainingConfig.model_validate(
            {
                "name": "a",
                "task": "sst2",
                "output_dir": "out",
                section: {name: yaml.safe_load(value)},
            }
        )


def test_help_and_fetch_start_without_torch():
    script = (
        "import sys, dalorra.cli, dalorra.base.fetch\n"
        "from typer.testing import CliRunner\n"
        "assert CliRunner().invoke(dalorra.cli.app, ['serve', '--help']).exit_code == 0\n"
        "print({'torch', 'transformers', 'fastapi', 'numpy'} & {m for m in sys.modules})"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "set()"


def test_version(run):
    result = run("--version")
    assert result.exit_code == 0
    assert result.stdout.startswith("dalorra ")


def test_own_errors_are_one_sentence_and_exit_code_2(run):
    result = run("info", "/no/such/adapter")
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.startswith("error: /no/such/adapter is not a directory")
    assert len(result.stderr.splitlines()) == 1


def test_the_sentence_is_shown_as_it_is(run, monkeypatch):
    """Neither brackets in it nor its length change it."""
    sentence = "[bold]odd[/bold] " + "and long " * 30

    def refuse():
        raise BaseModelError(sentence)

    monkeypatch.setattr("dalorra.base.fetch.fetch", refuse)
    assert run("fetch").stderr == f"error: {sentence}\n"


def test_other_errors_are_not_hidden(run, monkeypatch):
    def fail():
        raise ZeroDivisionError

    monkeypatch.setattr("dalorra.base.fetch.fetch", fail)
    assert isinstance(run("fetch").exception, ZeroDivisionError)


def test_a_missing_extra_is_named(run, monkeypatch):
    def fail():
        raise ModuleNotFoundError("no", name="sklearn.metrics")

    monkeypatch.setattr("dalorra.base.fetch.fetch", fail)
    result = run("fetch")
    assert result.exit_code == 2
    assert "sklearn" in result.stderr
    assert "dalorra-service[training]" in result.stderr


def test_fetch_prints_the_folder(run, monkeypatch):
    monkeypatch.setattr("dalorra.base.fetch.fetch", lambda: Path("/cache/model"))
    assert run("fetch").stdout == "/cache/model\n"


def test_hash_key_makes_a_key_and_shows_it_apart_from_its_hash(run):
    made = run("hash-key")
    [said] = made.stderr.splitlines()
    key = said.removeprefix("key, shown this once: ")
    assert known_digest(made.stdout.strip()) == digest(key)
    assert key not in made.stdout
    assert run("hash-key").stdout != made.stdout


def test_hash_key_takes_a_key_that_is_there_already(run):
    done = run("hash-key", "--stdin", input="a-key-of-decent-length\n")
    assert (done.stdout.strip(), done.stderr) == (hash_key("a-key-of-decent-length"), "")
    refused = run("hash-key", "--stdin", input="short\n")
    assert (refused.exit_code, refused.stdout) == (2, "")
    assert "could be guessed from its hash" in refused.stderr


def test_serve_passes_on_only_what_is_given(run, stand_in):
    calls = stand_in("service.run", "serve")
    assert run("serve").exit_code == 0
    assert (
        run("serve", "--port", "0", "--config", "c.toml", "--set", "batch_rows=64").exit_code == 0
    )
    assert calls == [
        ((), {"config": None}),
        ((), {"config": Path("c.toml"), "port": 0, "batch_rows": "64"}),
    ]


def test_serve_refuses_a_setting_that_is_given_twice(run, stand_in):
    calls = stand_in("service.run", "serve")
    result = run("serve", "--port", "1", "--set", "port=2")
    assert result.exit_code == 2
    assert "port is given twice" in result.stderr
    assert calls == []


def test_train_passes_its_overrides(run, stand_in):
    calls = stand_in("training.run", "train", Path("runs/x/adapter"))
    result = run("train", "c.yaml", "--resume", "--set", "optimizer.steps=5", "--set", "a.b=c=d")
    assert result.stdout == "runs/x/adapter\n"
    expected = {"resume": True, "overrides": {"optimizer.steps": "5", "a.b": "c=d"}}
    assert calls == [((Path("c.yaml"),), expected)]


@pytest.mark.parametrize("pair", ["optimizer.steps", "=5"])
def test_an_override_must_be_an_assignment(run, pair):
    result = run("train", "c.yaml", "--set", pair)
    assert result.exit_code == 2
    assert "write --set name=value" in result.stderr


@pytest.mark.parametrize("form", ["mean", "bank"])
def test_export_writes_the_form_that_is_asked_for(run, stand_in, form):
    calls = stand_in("dalorra.adapter.export", f"export_{form}", Path("out"))
    module = sys.modules["dalorra.adapter.export"]
    module.where_it_runs = lambda adapter: f"where {adapter} runs"
    other = {"mean": "export_bank", "bank": "export_mean"}[form]
    setattr(module, other, lambda *_: pytest.fail(f"{other} was called"))
    result = run("export", "a", "out", "--form", form)
    assert result.stdout == "out\n"
    assert "where a runs" in result.stderr
    assert calls == [((Path("a"), Path("out")), {})]


def test_export_refuses_another_form(run):
    assert run("export", "a", "out", "--form", "median").exit_code == 2


@pytest.fixture
def predictor(monkeypatch):
    fake = FakePredictor()
    monkeypatch.setattr("dalorra.predictor.Predictor.load", lambda *_, **__: fake)
    return fake


def test_predict_prints_json(run, predictor):
    text = "Größe zählt " * 30
    answer = json.loads(run("predict", text).stdout)
    assert predictor.encoded == [text]
    prompt = predictor.encode(text)
    expected = expected_prediction(prompt)
    verdict = predictor.policy.decide(expected)
    assert prompt.truncated
    assert answer == {
        **json.loads(json.dumps(asdict(expected))),
        "decision": verdict.decision,
        "reason": verdict.reason,
        "truncated": True,
        "model": predictor.card.model,
        "adapter": predictor.card.adapter,
    }


def test_predict_takes_the_fields_of_a_template(run, predictor):
    predictor.fields = ("question", "passage")
    assert run("predict", "-f", "question=Why?", "-f", "passage=a = b").exit_code == 0
    assert predictor.encoded == [{"question": "Why?", "passage": "a = b"}]


@pytest.mark.parametrize("arguments", [(), ("text", "-f", "a=b")])
def test_predict_needs_a_text_or_fields(run, predictor, arguments):
    result = run("predict", *arguments)
    assert result.exit_code == 2
    assert "either one text or --field" in result.stderr


def test_predict_refuses_a_bad_input_in_one_sentence(run, predictor):
    result = run("predict", "")
    assert result.exit_code == 2
    assert result.stderr == "error: input is empty: send some text\n"


@pytest.fixture
def scored(monkeypatch, predictor):
    """What `evaluate` scores; the adapter says that it was trained on sst2."""
    calls: list[tuple] = []
    manifest = types.SimpleNamespace(training={"task": "sst2"}, prompt=None)
    read = types.SimpleNamespace(manifest=manifest)
    monkeypatch.setattr("dalorra.adapter.directory.read_adapter", lambda _: read)
    monkeypatch.setattr("training.load.load_evaluable", lambda *_, **__: predictor)
    monkeypatch.setattr(
        "training.evaluate.evaluate",
        lambda _, examples, out, task, outside, more: calls.append((examples, out, task)),
    )
    return types.SimpleNamespace(calls=calls, manifest=manifest)


@pytest.fixture
def labelled(tmp_path):
    path = tmp_path / "labelled.jsonl"
    path.write_text(json.dumps({"sentence": "fine", "label": 1}) + "\n")
    return path


def test_evaluate_uses_the_task_that_the_adapter_was_trained_on(run, scored, labelled, tmp_path):
    result = run("evaluate", "a", "--data", str(labelled), "--out", str(tmp_path / "out"))
    assert result.exit_code == 0, result.output
    ((examples, out, task),) = scored.calls
    assert [(dict(e.input), e.label) for e in examples] == [({"sentence": "fine"}, "positive")]
    assert (out, task) == (tmp_path / "out", "sst2 validation")


def test_evaluate_asks_in_another_spelling_and_says_so(run, scored, labelled):
    result = run("evaluate", "a", "--data", str(labelled), "--spelling", "exclamation")
    assert result.exit_code == 0, result.output
    ((examples, _, task),) = scored.calls
    assert [dict(e.input) for e in examples] == [{"sentence": "Fine!"}]
    assert task == "sst2 validation, exclamation spelling"
    refused = run("evaluate", "a", "--data", str(labelled), "--spelling", "leet")
    assert refused.exit_code == 2
    assert "no spelling is called 'leet': there are given, lower" in refused.stderr


def test_evaluate_says_when_nobody_knows_the_task(run, scored, labelled):
    scored.manifest.training = {}
    result = run("evaluate", "a", "--data", str(labelled))
    assert result.exit_code == 2
    assert "name a task with --task" in result.stderr
    assert run("evaluate", "a", "--data", str(labelled), "--task", "sst2").exit_code == 0


def test_a_file_set_aside_comes_back_unless_it_has_a_successor(tmp_path):
    path = tmp_path / "novelty.safetensors"
    path.write_text("old")
    with pytest.raises(FileNotFoundError), set_aside(path):
        path.read_text()
    assert path.read_text() == "old"
    with set_aside(path):
        path.write_text("new")
    assert path.read_text() == "new"
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
