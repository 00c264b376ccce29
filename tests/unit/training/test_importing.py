"""A plain LoRA becomes a complete adapter that answers as PEFT does."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from dalorra.adapter.directory import CONFIG_FILE, WEIGHTS_FILE, read_adapter
from dalorra.adapter.export import export_bank, export_mean
from dalorra.cli import app
from dalorra.decision.policy import Decision
from dalorra.errors import AdapterError, ConfigError
from dalorra.posteriors import ColumnSpaceNoise, Ensemble
from dalorra.predictor import Predictor
from tests.plain_loras import by_peft, plain_lora
from tests.tiny import (
    EVERY_LINEAR,
    predictor_on,
    save_tiny_adapter,
    tiny_base,
    tiny_llama,
    tiny_prompts,
)
from training.importing import Wanted, import_loras
from training.methods.mle import Mle
from training.methods.tfb import Tfb
from training.tasks import load_examples, load_task


@pytest.fixture
def wanted(files):
    def of(method: Mle | Tfb | None = None, **options: Any) -> Wanted:
        task = load_task(files / "task.yaml")
        return Wanted("tiny", task, method or Mle(), max_tokens=64, **options)

    return of


@pytest.fixture
def make(files, wanted, tmp_path):
    """`make(source)` → the imported adapter on its base."""

    def imported(source: Path, name: str = "imported", **options: Any) -> Predictor:
        folder = import_loras(
            source,
            tmp_path / name,
            options.pop("wanted", wanted()),
            base_model=str(files / "base"),
            device="cpu",
            dtype="float32",
        )
        return predictor_on(folder, tiny_base())

    return imported


def probabilities(predictor: Predictor, prompts, *, mean: bool = False) -> torch.Tensor:
    answers = predictor.predict_mean(prompts) if mean else predictor.predict(prompts)
    return torch.tensor([list(answer.probabilities.values()) for answer in answers])


SHAPES = {
    "as usual": {},
    "every linear module": {"target_modules": list(EVERY_LINEAR)},
    "chosen by a pattern": {"target_modules": r".*layers\.1\..*(k_proj|down_proj)"},
    "with the head": {"target_modules": ["q_proj", "lm_head"]},
    "in one layer": {"target_modules": ["o_proj", "up_proj"], "layers_to_transform": [1]},
    "rank-stabilised": {"use_rslora": True, "r": 3},
    "of several ranks": {"rank_pattern": {"v_proj": 2}, "alpha_pattern": {"0.self_attn.q_proj": 5}},
    "rank-stabilised, several ranks": {"use_rslora": True, "rank_pattern": {"q_proj": 7}},
    "in bfloat16": {"dtype": torch.bfloat16},
    "in float16": {"dtype": torch.float16, "lora_alpha": 3},
}


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_it_answers_as_peft_does(make, tmp_path, shape):
    model = tiny_llama()
    source = plain_lora(tmp_path / "lora", model, **shape)
    predictor = make(source)
    prompts = tiny_prompts(tiny_base())
    expected = by_peft(source, model, prompts, predictor.tokenizer.label_ids)
    found = probabilities(predictor, prompts)
    torch.testing.assert_close(found, expected, rtol=2e-5, atol=2e-5)
    without = plain_lora(tmp_path / "without", model, lora_alpha=0)
    bare = by_peft(without, model, prompts, predictor.tokenizer.label_ids)
    assert (expected - bare).abs().max() > 0.01, "the LoRA makes a difference"
    assert predictor.scope == "all_tokens"
    assert [a.variance for a in predictor.predict(prompts)] == [0.0] * len(prompts)


def test_it_accepts_nothing_yet_and_its_card_says_what_it_is(make, tmp_path):
    predictor = make(plain_lora(tmp_path / "my-lora", tiny_llama()))
    (answer,) = predictor.predict([predictor.encode("good")])
    assert predictor.policy.decide(answer).decision is Decision.ESCALATE
    card = (tmp_path / "imported" / "README.md").read_text()
    assert "Made of my-lora, which was trained elsewhere." in card
    assert card.startswith("---\nlibrary_name: peft\n")
    assert str(tmp_path) not in (tmp_path / "imported" / "dalorra.json").read_text()


@pytest.mark.parametrize("scope", ["answer_tokens", "all_tokens"])
def test_both_exports_come_back_with_the_same_answers(make, tmp_path, scope):
    source = save_tiny_adapter(tmp_path / "adapter", tiny_base(), scope)
    original = predictor_on(source, tiny_base())
    prompts = tiny_prompts(tiny_base())

    mean = make(export_mean(source, tmp_path / "mean"), "from-mean")
    torch.testing.assert_close(
        probabilities(mean, prompts),
        probabilities(original, prompts, mean=True),
        rtol=2e-5,
        atol=2e-5,
    )
    bank = make(export_bank(source, tmp_path / "bank"), "from-bank")
    assert bank.scope == mean.scope == scope
    assert read_adapter(tmp_path / "from-bank").posterior == Ensemble(members=original.samples)
    for found, expected in zip(bank.predict(prompts), original.predict(prompts), strict=True):
        assert found.probabilities == pytest.approx(expected.probabilities, abs=2e-5)
        assert found.variance == pytest.approx(expected.variance, abs=2e-5)
    assert max(answer.variance for answer in bank.predict(prompts)) > 1e-3


def test_an_activated_lora_of_another_cue_is_refused(make, tmp_path):
    source = plain_lora(tmp_path / "lora", tiny_llama(), alora_invocation_tokens=[5, 6])
    with pytest.raises(AdapterError, match=r"invoked by the tokens \[5, 6\], but the task"):
        make(source)


def test_several_loras_are_an_ensemble(make, wanted, tmp_path):
    model, folder = tiny_llama(), tmp_path / "several"
    shapes = ({"r": 2}, {"r": 4, "use_rslora": True}, {"target_modules": ["down_proj"]})
    for seed, shape in enumerate(shapes):
        plain_lora(folder / f"seed-{seed}", model, seed=seed, **shape)
    predictor = make(folder)
    prompts = tiny_prompts(tiny_base())
    label_ids = predictor.tokenizer.label_ids
    expected = [by_peft(path, model, prompts, label_ids) for path in sorted(folder.iterdir())]
    found = predictor.posterior_samples(prompts).by_sample  # [B, M, K]
    torch.testing.assert_close(found, torch.stack(expected, dim=1), rtol=2e-5, atol=2e-5)
    with pytest.raises(ConfigError, match="several holds 3 LoRAs, which are an ensemble; tfb is"):
        make(folder, "another", wanted=wanted(Tfb()))


def test_tfb_adds_as_much_noise_as_the_anchors_bear(files, make, wanted, tmp_path):
    model = tiny_llama()
    source = plain_lora(tmp_path / "lora", model, target_modules=["q_proj", "k_proj", "up_proj"])
    task = load_task(files / "task.yaml")
    anchors = load_examples(task, "train", files / "data")
    predictor = make(source, wanted=wanted(Tfb(bisections=3), anchors=anchors))
    posterior = read_adapter(tmp_path / "imported").posterior
    assert isinstance(posterior, ColumnSpaceNoise)
    assert posterior.scale > 0.0
    prompts = tiny_prompts(tiny_base())
    expected = by_peft(source, model, prompts, predictor.tokenizer.label_ids)
    torch.testing.assert_close(
        probabilities(predictor, prompts, mean=True), expected, rtol=5e-5, atol=5e-5
    )
    assert predictor.samples == 10
    assert min(answer.variance for answer in predictor.predict(prompts)) > 0.0


def test_tfb_without_anchors_is_refused(make, wanted, tmp_path):
    with pytest.raises(ConfigError, match="tfb needs anchors, examples of the task"):
        make(plain_lora(tmp_path / "lora", tiny_llama()), wanted=wanted(Tfb()))


def test_a_lora_of_another_model_is_refused(make, tmp_path):
    source = plain_lora(tmp_path / "deep", tiny_llama(layers=3))
    with pytest.raises(AdapterError, match=r"adapts model\.layers\.2\.self_attn\.q_proj, which"):
        make(source)
    source = plain_lora(tmp_path / "wide", tiny_llama())
    tensors = {
        name: torch.cat([tensor, tensor], dim=1) if "lora_A" in name else tensor
        for name, tensor in load_file(source / WEIGHTS_FILE).items()
    }
    save_file(tensors, source / WEIGHTS_FILE)
    with pytest.raises(AdapterError, match="is 32 × 64, but base has 32 × 32 there"):
        make(source)


def test_weights_of_its_own_for_the_base_are_refused(make, tmp_path):
    source = plain_lora(tmp_path / "lora", tiny_llama(), target_modules=["lm_head"])
    tensors = load_file(source / WEIGHTS_FILE)
    name = next(name for name in tensors if name.endswith("base_layer.weight"))
    tensors[name] += 0.1
    save_file(tensors, source / WEIGHTS_FILE)
    with pytest.raises(AdapterError, match="brings weights of its own for lm_head"):
        make(source)


def test_the_base_model_is_the_one_that_the_lora_names(files, wanted, tmp_path):
    base = str(files / "base")
    source = plain_lora(tmp_path / "lora", tiny_llama(), base=base)
    options = {"device": "cpu", "dtype": "float32"}
    folder = import_loras(source, tmp_path / "imported", wanted(), **options)
    assert read_adapter(folder).manifest.base_model.name == "base"
    config = json.loads((source / CONFIG_FILE).read_text())
    (source / CONFIG_FILE).write_text(json.dumps(config | {"revision": "v2"}))
    with pytest.raises(ConfigError, match="at revision v2: download that, and name its folder"):
        import_loras(source, tmp_path / "other", wanted(), **options)
    (source / CONFIG_FILE).write_text(json.dumps(config | {"base_model_name_or_path": None}))
    with pytest.raises(ConfigError, match="does not name its base model: give it with"):
        import_loras(source, tmp_path / "other", wanted(), **options)


def test_what_exists_is_not_overwritten(make, tmp_path):
    (tmp_path / "imported").mkdir()
    with pytest.raises(AdapterError, match="imported exists: name a folder that does not"):
        make(plain_lora(tmp_path / "lora", tiny_llama()))


def test_the_commands_from_a_lora_to_a_promise(files, tmp_path):
    source = plain_lora(tmp_path / "lora", tiny_llama(), base=str(files / "base"))
    out, base = (
        str(tmp_path / "tickets"),
        ["--base-model", str(files / "base"), "--dtype", "float32"],
    )
    runner = CliRunner()
    task = str(files / "task.yaml")
    command = ["import", str(source), out, "--task", task, "--max-tokens", "64", *base]
    result = runner.invoke(app, command)
    assert result.exit_code == 0, result.stderr
    assert result.stdout == f"{out}\n"
    assert "it accepts nothing yet: dalorra calibrate" in result.stderr
    assert read_adapter(Path(out)).manifest.name == "tickets"

    labelled = tmp_path / "labelled.jsonl"
    rows = [{"text": f"film {i}", "label": i % 2} for i in range(200)]
    labelled.write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = ["calibrate", out, "--target-error", "0.9", "--data", str(labelled), *base]
    result = runner.invoke(app, command)
    assert result.exit_code == 0, result.stderr
    result = runner.invoke(app, ["predict", "good", "--adapter", out, *base])
    assert json.loads(result.stdout)["decision"] == "accept"

    novelty = ["novelty", out, "--data", str(labelled), *base]
    result = runner.invoke(app, novelty)
    assert result.exit_code == 0, result.stderr
    refused = runner.invoke(app, ["import", str(source), out, "--task", task, "--data", "x"])
    assert "mle needs none" in refused.stderr
