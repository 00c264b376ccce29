from pathlib import Path

import pytest
import yaml

from dalorra.errors import ConfigError
from training.config import TrainingConfig, read_config
from training.methods import Dalorra
from training.tasks import TASKS

MINIMAL = {"name": "mine", "output_dir": "runs/mine", "task": "sst2"}
TASK = {
    "name": "reviews",
    "template": "Review: {text}",
    "answer_cue": "\nSentiment:",
    "labels": {"good": " good", "bad": " bad"},
}


@pytest.fixture
def write(tmp_path):
    def write(content: object) -> object:
        path = tmp_path / "config.yaml"
        text = content if isinstance(content, str) else yaml.safe_dump(content)
        path.write_text(text, encoding="utf-8")
        return path

    return write


def test_a_minimal_file_has_the_papers_defaults(write):
    config = read_config(write(MINIMAL))
    assert (config.adapter.rank, config.adapter.alpha) == (8, 16.0)
    assert config.adapter.modules == ("q_proj", "v_proj", "lm_head")
    assert config.adapter.max_tokens == 300
    assert config.adapter.scope == "answer_tokens"
    assert (config.optimizer.learning_rate, config.optimizer.batch_size) == (1e-4, 4)
    assert config.optimizer.warmup == 0.06
    assert config.method.mask_learning_rate == 1e-2
    assert config.bank.samples == 10
    assert config.resolved_task() is TASKS["sst2"]


def test_the_papers_own_run_is_a_shipped_configuration():
    """Section 5.1 and appendix A.3."""
    config = read_config(Path(__file__).parents[3] / "training" / "configs" / "paper.yaml")
    assert (config.adapter.rank, config.adapter.alpha) == (8, 16.0)
    assert config.adapter.modules == ("q_proj", "v_proj", "lm_head")
    assert (config.adapter.scope, config.adapter.last_layers) == ("all_tokens", None)
    assert config.adapter.max_tokens == 300
    optimizer = config.optimizer
    assert (optimizer.steps, optimizer.batch_size, optimizer.accumulation) == (5000, 4, 1)
    assert (optimizer.learning_rate, optimizer.warmup) == (1e-4, 0.06)
    method = config.method
    assert isinstance(method, Dalorra)
    assert (method.mask_learning_rate, method.noise_per) == (1e-2, "batch")
    assert not config.evaluation.keep_best
    bank = config.bank
    assert (bank.samples, bank.sampler, bank.head) == (10, "iid", "sampled")
    assert config.resolved_task() is TASKS["winogrande_s"]


def test_a_task_may_be_a_file_or_written_in_place(write, tmp_path):
    file = tmp_path / "task.yaml"
    file.write_text(yaml.safe_dump(TASK))
    from_file = read_config(write(MINIMAL | {"task": str(file)})).resolved_task()
    in_place = read_config(write(MINIMAL | {"task": TASK})).resolved_task()
    assert from_file == in_place
    assert in_place.labels == TASK["labels"]


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"optimizer": {"steps": 0}}, "optimizer.steps"),
        ({"optimizer": {"batch_size": "many"}}, "optimizer.batch_size"),
        ({"optimizer": {"warmup": 1.0}}, "optimizer.warmup"),
        ({"optimizer": {"lr": 1e-3}}, "optimizer.lr"),
        ({"optimizer": {"learning_rate": float("nan")}}, "optimizer.learning_rate"),
        ({"method": {"prior": 1.0}}, "method.prior"),
        ({"method": {"temperature": 0}}, "method.temperature"),
        ({"method": {"noise_per": "epoch"}}, "method.noise_per"),
        ({"method": {"name": "swag"}}, "method.name: .swag. is none of mle"),
        ({"method": {"samples": 0}}, "method.samples"),
        ({"adapter": {"scope": "prompt"}}, "adapter.scope"),
        ({"adapter": {"rank": 0}}, "adapter.rank"),
        ({"adapter": {"last_layers": 0}}, "adapter.last_layers"),
        ({"adapter": {"weight_dtype": "float16"}}, "adapter.weight_dtype"),
        ({"data": {"holdout": 0}}, "data.holdout"),
        ({"data": {"train_limit": 0}}, "data.train_limit"),
        ({"data": {"calibration": -1}}, "data.calibration"),
        ({"data": {"calibration": 1.0}}, "data.calibration"),
        ({"data": {"calibration": "some"}}, "data.calibration"),
        ({"data": {"augment": "synonyms"}}, "data.augment"),
        ({"evaluation": {"every": 0}}, "evaluation.every"),
        ({"evaluation": {"target_error": 2}}, "evaluation.target_error"),
        ({"bank": {"samples": 0}}, "bank.samples"),
        ({"prompt_cache_gib": -1}, "prompt_cache_gib"),
        ({"colour": "blue"}, "colour"),
        ({"name": None}, "name"),
        ({"task": {key: TASK[key] for key in TASK if key != "labels"}}, "task.*labels"),
        ({"task": TASK | {"template": "no field"}}, "template 'no field'"),
    ],
)
def test_an_impossible_value_is_refused_by_name(write, changes, field):
    with pytest.raises(ConfigError, match=rf"config\.yaml: {field}|config\.yaml: .*{field}"):
        read_config(write(MINIMAL | changes))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"optimizer": {"step": 3}},
            "optimizer.step: there is no such setting; did you mean steps",
        ),
        (
            {"optimiser": {"steps": 3}},
            "optimiser: there is no such setting; did you mean optimizer",
        ),
        ({"task": TASK | {"templat": "x"}}, "task.templat: there is no such setting; did you mean"),
        ({"task": TASK | {"hub": {"idd": "x"}}}, "task.hub.idd: there is no such setting; did you"),
        (
            {"method": {"priors": 0.3}},
            "method.priors: there is no such setting; did you mean prior",
        ),
        (
            {"method": {"name": "mle", "rho": 1}},
            "method.rho: there is no such setting; known: name, samples, noise_per",
        ),
        ({"bank": {"sample": 4}}, "bank.sample: there is no such setting; did you mean samples?"),
        ({"data": {"calibration": 1.0}}, "data.calibration: Input should be less than 1"),
        ({"task": TASK | {"labels": {"a": [1]}}}, "task.labels.a: Input should be a valid string"),
        ({"adapter": {"modules": ["q", 3]}}, "adapter.modules.1: Input should be a valid string"),
        ({"adapter": {"modules": "q"}}, "adapter.modules: should be a list"),
        ({"task": 3}, "task: should be a section: `name: value` lines"),
    ],
)
def test_a_message_speaks_of_the_file_alone(write, changes, sentence):
    path = write(MINIMAL | changes)
    with pytest.raises(ConfigError) as refused:
        read_config(path)
    assert str(refused.value).startswith(f"{path}: {sentence}")


@pytest.mark.parametrize("field", MINIMAL)
def test_a_missing_field_is_named(write, field):
    content = {key: value for key, value in MINIMAL.items() if key != field}
    with pytest.raises(ConfigError, match=f"config.yaml: {field}: Field required"):
        read_config(write(content))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: [unclosed", "is not YAML"),
        ("- a\n- b\n", "holds no mapping"),
        ("", "holds no mapping"),
        ("just text", "holds no mapping"),
    ],
)
def test_what_is_no_configuration_is_refused(write, text, message):
    with pytest.raises(ConfigError, match=message):
        read_config(write(text))


def test_a_file_that_is_not_there_or_not_text_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"nowhere\.yaml cannot be read: No such file"):
        read_config(tmp_path / "nowhere.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"name: \xff\xfe")
    with pytest.raises(ConfigError, match=r"binary\.yaml is not "):
        read_config(tmp_path / "binary.yaml")


def test_an_unknown_task_is_refused(write):
    with pytest.raises(ConfigError, match="unknown task 'sst3'"):
        read_config(write(MINIMAL | {"task": "sst3"})).resolved_task()


def test_overrides_replace_single_values_and_make_missing_sections(write):
    path = write(MINIMAL | {"optimizer": {"steps": 10, "batch_size": 2}})
    config = read_config(
        path,
        {
            "optimizer.steps": "20",
            "method.prior": "0.7",
            "adapter.modules": "[q_proj]",
            "adapter.last_layers": "null",
            "name": "other",
        },
    )
    assert (config.optimizer.steps, config.optimizer.batch_size) == (20, 2)
    assert config.method.prior == 0.7
    assert config.adapter.modules == ("q_proj",)
    assert config.name == "other"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"optimizer.stepz": "1"}, "optimizer.stepz"),
        ({"optimizer.steps": "none"}, "optimizer.steps"),
        ({"name.first": "x"}, "name.first is inside 'name', which is not a section"),
        ({"optimizer.steps": "[1"}, "optimizer.steps"),
    ],
)
def test_an_impossible_override_is_refused_by_name(write, overrides, message):
    with pytest.raises(ConfigError, match=message):
        read_config(write(MINIMAL), overrides)


def test_a_configuration_cannot_change_during_a_run(write):
    config = read_config(write(MINIMAL))
    with pytest.raises(ValueError, match="frozen"):
        config.seed = 2
    assert TrainingConfig.model_validate(config.model_dump()) == config
