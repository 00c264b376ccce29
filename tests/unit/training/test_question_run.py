"""Runs that train an adapter for questions, on few records and a tiny base."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from dalorra.adapter.directory import attached, read_adapter
from dalorra.base.model import load_base_model
from dalorra.errors import ConfigError
from dalorra.golden import check_golden
from dalorra.predictor import Predictor
from dalorra.question_prompts import QuestionFormat
from dalorra.questions import Asked, Option, Question
from tests.task_files import write_records
from training.config import TrainingConfig, read_config
from training.run import train

WORDS = ("good", "fine", "bad", "dull")


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("sets")
    reviews = [{"sentence": f"{WORDS[n % 4]} {n}", "label": int(n % 4 < 2)} for n in range(60)]
    write_records(folder / "sst2/train.jsonl", reviews)
    news = [{"text": f"News {n}", "label": n % 4} for n in range(60)]
    write_records(folder / "ag_news/train.jsonl", news)
    asked = [{"text": f"Who is {n} ?", "coarse_label": "HUM"} for n in range(50)]
    write_records(folder / "trec/train.jsonl", asked)
    return folder


@pytest.fixture
def questions(files, source, tmp_path) -> Any:
    """Writes a configuration, with these changes to its sections."""

    def configured(**changes: Any) -> Path:
        content: dict[str, Any] = {
            "name": "asked",
            "output_dir": str(tmp_path / "run"),
            "task": {
                "name": "asked",
                "sets": ["sst2", "ag_news"],
                "held_out": ["trec"],
                "per_set": 24,
                "evaluated": 40,
            },
            "base_model": str(files / "base"),
            "device": "cpu",
            "dtype": "float32",
            "data": {"source": str(source), "holdout": 8},
            "adapter": {"rank": 2, "modules": ["q_proj", "v_proj", "lm_head"], "max_tokens": 512},
            "optimizer": {"steps": 4, "batch_size": 6, "learning_rate": 0.01},
            "evaluation": {"every": 2},
            "bank": {"samples": 3, "sampler": "matched"},
        }
        for section, change in changes.items():
            old = content.get(section)
            content[section] = {**old, **change} if isinstance(old, dict) else change
        path = tmp_path / "questions.yaml"
        path.write_text(yaml.safe_dump(content))
        return path

    return configured


@pytest.mark.parametrize(
    ("scope", "readout"),
    [("answer_tokens", "texts"), ("answer_tokens", "letters"), ("all_tokens", "texts")],
)
def test_a_run_makes_an_adapter_that_answers_any_question(questions, files, scope, readout):
    task = yaml.safe_load(questions().read_text())["task"] | {"prompt": {"readout": readout}}
    folder = train(questions(adapter={"scope": scope}, task=task), overrides={})
    adapter = read_adapter(folder)
    assert adapter.manifest.prompt == QuestionFormat(readout=readout)
    base = load_base_model(str(files / "base"), dtype="float32")
    with attached(adapter, base) as model:
        predictor = Predictor.of(adapter, base, model)
        check_golden(predictor, model)
    options = tuple(map(Option, ("red", "green", "blue", "no colour")))
    asked = [Question.noul("Is it red?"), Question("choice", "Which colour?", options)]
    answers = predictor.predict([predictor.encode(Asked("The sky.", q)) for q in asked])
    assert [list(a.probabilities) for a in answers] == [
        ["true", "false"],
        [o.name for o in options],
    ]
    assert not predictor.policy.decide(answers[0]).reason.startswith("no thresholds have been")

    written = json.loads((folder.parent / "evaluation" / "metrics.json").read_text())
    assert set(written["kinds"]) == {"sst2", "ag_news", "trec"}
    assert written["kinds"]["trec"]["trained_on"] is False
    assert written["order"]["mean_change"] == pytest.approx(0.0, abs=1e-5)
    assert written["out_of_scope"]["n"] > 0
    assert written["policy"]["confidence"] is None
    assert "of other kinds they promise nothing" in written["policy"]["source"]
    card = (folder / "README.md").read_text()
    assert "## Kinds of questions" in card
    assert "| *trec* |" in card


def test_an_interrupted_run_goes_on_to_the_same_adapter(questions, tmp_path):
    whole = train(questions(output_dir=str(tmp_path / "whole")), overrides={})
    path = questions(output_dir=str(tmp_path / "parts"))
    parts = train(path, overrides={})
    assert read_adapter(whole).digest == read_adapter(parts).digest


def test_what_questions_do_not_go_with_is_refused(questions):
    for changes, message in (
        ({"method": {"name": "laplace"}}, "laplace is not for labels of several tokens"),
        ({"bank": {"head": "integrated"}}, "say sampled"),
        ({"adapter": {"max_tokens": 40}}, "a question about .*smaller task.longest_state"),
    ):
        with pytest.raises(ConfigError, match=message):
            train(questions(**changes), overrides={})


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ({"name": "q", "sets": []}, r"task\.sets: "),
        ({"name": "q", "sets": ["sst2"], "heldout": []}, "did you mean held_out"),
        ({"name": "q", "sets": ["sst2"], "prompt": {"readout": "head"}}, r"task\.prompt\.readout"),
        ({"name": "q", "sets": ["sst2"], "prompt": {"option": "x"}}, r"task\.prompt\.option"),
    ],
)
def test_a_mistake_in_the_task_is_named_by_its_place(questions, task, message):
    path = questions()
    content = yaml.safe_load(path.read_text()) | {"task": task}
    path.write_text(yaml.safe_dump(content))
    with pytest.raises(ConfigError, match=message):
        read_config(path)


@pytest.mark.parametrize("name", ["questions", "questions_llama_8b", "questions_qwen3_8b"])
def test_the_configurations_that_ship_are_read(name):
    config: TrainingConfig = read_config(Path(f"training/configs/{name}.yaml"))
    task = config.resolved_task()
    assert len({*task.sets, *task.held_out}) == 10  # type: ignore[union-attr]
