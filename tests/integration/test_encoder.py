"""The real encoder out of its wheel."""

from pathlib import Path

import pytest
import torch

from dalorra.adapter.directory import save_adapter
from dalorra.adapter.layer import attach, detach, lora_config, stochastic_layers
from dalorra.base.cache import is_complete
from dalorra.base.families import head_modules, set_head
from dalorra.base.fetch import ENCODER, pinned_folder
from dalorra.base.model import load_base_model
from dalorra.posteriors import AdapterDropout
from dalorra.posteriors.bank import BankSpec
from dalorra.predictor import Predictor
from dalorra.prompts import PromptFormat
from tests.tiny import tiny_manifest

pytestmark = pytest.mark.integration

FORMAT = PromptFormat(template="{sentence}", labels={"negative": "", "positive": ""})


def test_it_is_fetched_whole_and_answers_under_an_adapter(tmp_path: Path) -> None:
    base = load_base_model(ENCODER, device="cpu", dtype="float32")
    assert is_complete(pinned_folder(ENCODER), hashes=True)
    assert (base.kind, base.model.config.hidden_size) == ("encoder", 384)

    torch.manual_seed(0)
    set_head(base.model, 2)
    posterior = AdapterDropout(rate=0.1)
    modules = ("query", "key", "value", "dense")
    config = lora_config(8, 16.0, modules, base.name, None, head_modules(base.model))
    model = attach(base.model, config, posterior)
    with torch.no_grad():
        for layer in stochastic_layers(model).values():
            layer.up.normal_(std=0.05)
    manifest = tiny_manifest(
        base,
        model,
        "all_tokens",
        method="mc_dropout",
        posterior=posterior,
        prompt=FORMAT,
        bank=BankSpec(samples=4),
        max_tokens=128,
    )
    save_adapter(model, manifest, tmp_path / "adapter")
    detach(model)

    predictor = Predictor.load(tmp_path / "adapter", device="cpu", dtype="float32")
    prompts = [predictor.encode(text) for text in ("A fine film.", "so dull that I slept")]
    assert prompts[0].prompt_ids == (101, 1037, 2986, 2143, 1012)
    for prompt, answer in zip(prompts, predictor.predict(prompts), strict=True):
        (alone,) = predictor.predict([prompt])
        assert answer.variance > 0
        assert alone.probabilities == pytest.approx(answer.probabilities, abs=1e-5)
