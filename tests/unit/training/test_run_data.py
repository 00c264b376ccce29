"""What a run refuses, and what it makes of the data."""

from pathlib import Path

import pytest
import yaml

from dalorra.errors import ConfigError
from training.config import read_config
from training.run import Run, train


def run(path: Path) -> Path:
    return train(path, overrides={})


def test_more_layers_than_the_base_has_are_refused(configure):
    with pytest.raises(ConfigError, match=r"adapter\.last_layers: the base model has only 2"):
        run(configure(adapter={"last_layers": 3}))


def test_modules_that_the_base_lacks_are_refused(configure):
    with pytest.raises(ConfigError, match=r"adapter\.modules: .*'no_such_proj'"):
        run(configure(adapter={"modules": ["q_proj", "no_such_proj"]}))


def test_data_that_are_not_there_are_refused_before_the_base_is_loaded(configure, files):
    with pytest.raises(ConfigError, match="nowhere"):
        run(configure(base_model="/no/such/base", data={"source": "/nowhere"}))


def test_training_examples_are_never_held_out_and_limits_are_kept(configure):
    config = read_config(configure(data={"train_limit": 5}))
    data = Run(config).data
    assert len(data.train) == 5
    texts = [{e.input["sentence"] for e in part} for part in (data.train, data.holdout, data.test)]
    assert not texts[0] & texts[1]
    assert len(texts[2]) == 12


def test_over_long_examples_are_cut_to_the_limit(configure):
    tight = Run(read_config(configure(adapter={"max_tokens": 16})))
    prompts = [prompt for prompt, _ in tight._encoded(tight.data.train)]
    assert any(prompt.truncated for prompt in prompts)
    assert max(prompt.tokens for prompt in prompts) <= 16


def test_labels_are_indices_in_the_order_of_the_task(configure, files):
    training = Run(read_config(configure()))
    names = list(yaml.safe_load((files / "task.yaml").read_text())["labels"])
    for (_, index), example in zip(
        training._encoded(training.data.train), training.data.train, strict=True
    ):
        assert names[index] == example.label
