"""A task of 24 sentences, a base model folder, and configurations of runs on them."""

import gc
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from tests.tiny import FORMAT, tiny_base_model
from training.answers import Evaluable
from training.experiments import Experiment
from training.run import Run, train

POSITIVE = ("good", "great fun", "so good", "fun", "what a great film", "I laughed")
NEGATIVE = ("bad", "so dull", "dull", "what a bad film", "I slept", "bad bad bad")


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    """Tiny products are slower on several threads, and far slower when other work runs."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    gc.freeze()  # the Trainer collects garbage after every run: what is imported is none
    yield
    gc.unfreeze()
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def files(tmp_path_factory) -> Path:
    """`base/`, `data/reviews/*.jsonl` and `task.yaml`."""
    folder = tmp_path_factory.mktemp("this-machine")
    tiny_base_model(folder / "base")
    (folder / "data" / "reviews").mkdir(parents=True)
    for split, tail in (("train", ("", "!")), ("validation", (".",))):
        rows = [
            {"text": sentence + end, "label": label}
            for end in tail
            for pair in zip(POSITIVE, NEGATIVE, strict=True)
            for sentence, label in zip(pair, (1, 0), strict=True)
        ]
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / "data" / "reviews" / f"{split}.jsonl").write_text(lines)
    task = {
        "name": "reviews",
        **FORMAT.model_dump(),
        "columns": {"sentence": "text"},
        "label_values": {1: "positive", 0: "negative"},
    }
    (folder / "task.yaml").write_text(yaml.safe_dump(task))
    return folder


@pytest.fixture
def experiment(files, on_reviews) -> Experiment:
    """Two variants on few reviews, two seeds."""
    return Experiment.model_validate(
        {
            "name": "toy",
            "question": "Which of two?",
            "config": {
                **on_reviews,
                "optimizer": {"steps": 2, "batch_size": 4, "learning_rate": 0.01},
                "evaluation": {"every": 2, "keep_best": False},
                "bank": {"samples": 3},
            },
            "tasks": [
                {
                    "name": "reviews, few",
                    "config": {"data": {"train_limit": 8}},
                    "seeds": [1, 2],
                    "shifts": [{"task": str(files / "task.yaml"), "split": "train", "limit": 6}],
                    "inputs": ["good", "so bad"],
                    "plane": 4,
                }
            ],
            "variants": [
                {"name": "MLE", "config": {"method": {"name": "mle"}}, "seeds": [1]},
                {"name": "DALorRA 0.3", "config": {"method": {"prior": 0.3}}},
            ],
        }
    )


@pytest.fixture
def on_reviews(files) -> dict[str, Any]:
    """What all configurations of runs on these files have in common."""
    return {
        "task": str(files / "task.yaml"),
        "base_model": str(files / "base"),
        "device": "cpu",
        "dtype": "float32",
        "data": {"source": str(files / "data"), "holdout": 0.25},
        "adapter": {"rank": 2, "alpha": 4.0, "max_tokens": 64},
    }


@pytest.fixture
def configure(on_reviews, tmp_path) -> Callable[..., Path]:
    """Writes a configuration: `configure("run", optimizer={"steps": 3})` → its path."""

    def write(name: str = "run", **changes: Any) -> Path:
        content: dict[str, Any] = {
            "name": "tiny",
            "output_dir": str(tmp_path / name),
            **on_reviews,
            "optimizer": {"steps": 6, "batch_size": 4, "learning_rate": 0.01},
            "evaluation": {"every": 2},
            "bank": {"samples": 3},
        }
        for section, value in changes.items():
            old = content.get(section)
            content[section] = {**old, **value} if isinstance(old, dict) else value
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump(content))
        return path

    return write


@pytest.fixture
def no_figures(monkeypatch) -> None:
    """Leaves the drawing out, which takes longer than the training."""
    for name in (
        "training.run.training_figure",
        "training.evaluate.reliability_figure",
        "training.evaluate.risk_coverage_figure",
        "training.report.reliability_figure",
    ):
        monkeypatch.setattr(name, lambda *args, **kwargs: None)


@pytest.fixture
def train_with_a_crash(monkeypatch) -> Callable[[Path], Path]:
    """`train_with_a_crash(config)`: a run that fails at its second evaluation, then is resumed."""

    def broken(path: Path) -> Path:
        scores = Run.holdout_metrics
        calls = iter(range(99))

        def crash(self: Run) -> dict[str, float]:
            if next(calls) == 1:
                raise RuntimeError("power cut")
            return scores(self)

        with monkeypatch.context() as patch:
            patch.setattr(Run, "holdout_metrics", crash)
            with pytest.raises(RuntimeError, match="power cut"):
                train(path, overrides={})
        return train(path, resume=True, overrides={})

    return broken


@pytest.fixture
def answers_as_evaluated(tmp_path) -> Callable[[Evaluable], None]:
    """`answers_as_evaluated(predictor)`: as the evaluation says that the run `run` ended with."""

    def check(predictor: Evaluable) -> None:
        path = tmp_path / "run" / "evaluation" / "predictions.jsonl"
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        found = predictor.predict([predictor.encode(line["input"]) for line in lines])
        for line, answer in zip(lines, found, strict=True):
            assert answer.label == line["label"]
            assert answer.probabilities == pytest.approx(line["probabilities"], abs=1e-5)
            assert answer.variance == pytest.approx(line["variance"], abs=1e-5)
            assert answer.novelty == pytest.approx(line["novelty"])

    return check
