"""Training an adapter on a base in 8 bit, as QLoRA does."""

import pytest
import torch

from dalorra.adapter.directory import read_adapter
from dalorra.adapter.layer import detach
from dalorra.errors import ConfigError
from dalorra.forward.arranged import arrange
from tests.tiny import predictor_on
from tests.tiny_quantized import in_8bit
from training.config import read_config
from training.frozen import FrozenBase
from training.output import portable
from training.prompt_cache import PromptCache
from training.run import Run


@pytest.mark.parametrize("scope", ["answer_tokens", "all_tokens"])
def test_it_learns_on_it_and_answers_as_it_was_trained(
    files, configure, tmp_path, no_figures, answers_as_evaluated, scope
):
    base = in_8bit(files / "base")
    frozen = FrozenBase(base, arrange(base.model), PromptCache(1 << 20))
    adapter = {"scope": scope, "modules": ["q_proj", "up_proj", "lm_head"]}
    config = read_config(configure(adapter=adapter, quantize="8bit", optimizer={"steps": 12}))
    before = {name: weight.clone() for name, weight in base.model.named_parameters()}
    config.output_dir.mkdir()
    run = Run(config, frozen)
    start = run.holdout_metrics()["nll"]
    folder = run.execute(None)
    assert run.holdout_metrics()["nll"] < start
    for name, weight in detach(run.model).named_parameters():
        assert torch.equal(weight, before[name])
    manifest = read_adapter(folder).manifest
    assert manifest.base_model.quantized == "8bit"
    assert manifest.training["config"]["quantize"] == "8bit"
    answers_as_evaluated(predictor_on(folder, in_8bit(files / "base")))


def test_records_of_other_runs_say_nothing_of_it(configure):
    assert "quantize" not in portable(read_config(configure()))


def test_what_has_no_backward_is_refused(configure):
    with pytest.raises(ConfigError, match="quantize: 4bit is trained on a GPU"):
        Run(read_config(configure(quantize="4bit")))
