"""Encoders as base models: the forward, the head, saving and loading, one base for many."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification

from dalorra.adapter.directory import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    adapter_tensors,
    load_adapter,
    read_adapter,
    save_adapter,
)
from dalorra.adapter.export import export_bank, export_mean
from dalorra.adapter.layer import module_tensors, stochastic_layers
from dalorra.adapter.manifest import MANIFEST_FILE
from dalorra.base.model import load_base_model
from dalorra.decision.policy import Policy
from dalorra.errors import AdapterError, BaseModelError, InputError
from dalorra.forward.reference import class_logits
from dalorra.forward.reference_rows import pack_texts
from dalorra.posteriors import (
    AdapterDropout,
    ContextualMatrix,
    Deterministic,
    GaussianDown,
    RandomMasks,
    RankMasks,
)
from dalorra.posteriors.bank import BankSpec
from dalorra.predictor import Predictor
from dalorra.prompts import PromptTokenizer
from dalorra.shared_base import SharedBase
from tests.tiny import save_tiny_adapter, tiny_base
from tests.tiny_encoder import (
    FORMAT,
    KINDS,
    TEXTS,
    save_tiny_encoder_adapter,
    tiny_encoder,
    tiny_encoder_adapter,
    tiny_encoder_base,
    tiny_encoder_folder,
    tiny_encoder_manifest,
    tiny_texts,
)

POSTERIORS = {
    "dalorra": RankMasks(),
    "mle": Deterministic(),
    "dropout of the input": AdapterDropout(rate=0.4),
    "dropout of the rank": AdapterDropout(rate=0.4, position="rank"),
    "blob": GaussianDown(initial_rho=0.5),
    "random masks": RandomMasks(off=1),
    "c_lora": ContextualMatrix(hidden=4),
}


def predictor_of(folder: Path, kind: str = "bert", **options: Any) -> Predictor:
    return Predictor.from_adapter(read_adapter(folder), tiny_encoder_base(kind), **options)


def edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


# --- texts ---


def test_a_text_is_read_as_the_tokenizer_frames_it():
    base = tiny_encoder_base()
    for text, prompt in zip(TEXTS, tiny_texts(base), strict=True):
        assert [*prompt.prompt_ids, *prompt.cue_ids] == base.tokenizer(text).input_ids
    tokenizer = PromptTokenizer(base.tokenizer, FORMAT, max_tokens=8)
    assert tokenizer.label_ids == (0, 1, 2)
    cut = tokenizer.encode("bad " * 20)
    assert (cut.truncated, cut.tokens) == (True, 8)
    assert [cut.prompt_ids[0], *cut.cue_ids] == base.tokenizer("").input_ids
    with pytest.raises(InputError, match="the limit is 8"):
        PromptTokenizer(base.tokenizer, FORMAT, 8, "reject").encode("bad " * 20)


# --- the forward ---


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("posterior", POSTERIORS.values(), ids=POSTERIORS)
def test_rows_of_one_batch_equal_separate_passes_of_the_plain_model(kind, posterior):
    base = tiny_encoder_base(kind)
    model = tiny_encoder_adapter(base, posterior)
    bank = posterior.bank(module_tensors(model), BankSpec(samples=3, seed=5))
    texts = tiny_texts(base)
    found, states = class_logits(base.model, pack_texts(texts, range(bank.samples)), bank)
    assert found.shape == (4, bank.samples, 3)
    assert states.shape == (4, bank.samples, 16)
    layers = list(stochastic_layers(model).values())
    for b, text in enumerate(texts):
        ids = torch.tensor([[*text.prompt_ids, *text.cue_ids]])
        for m in range(bank.samples):
            for layer, noise in zip(layers, bank.noise(torch.tensor([[m]])), strict=True):
                layer.rank_noise = noise
            alone = base.model(ids, output_hidden_states=True)
            torch.testing.assert_close(found[b, m], alone.logits[0], rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(
                states[b, m], alone.hidden_states[-1][0, 0], rtol=1e-4, atol=1e-4
            )
    if bank.samples > 1:
        assert found.std(dim=1).min() > 1e-4, "every member answers otherwise"


@pytest.mark.parametrize("kind", KINDS)
def test_each_text_may_run_under_members_of_its_own(kind):
    base = tiny_encoder_base(kind)
    model = tiny_encoder_adapter(base)
    bank = RankMasks().bank(module_tensors(model), BankSpec(samples=4, seed=5))
    texts = tiny_texts(base)
    all_of_them, _ = class_logits(base.model, pack_texts(texts, range(4)), bank)
    own = torch.tensor([[3], [0], [2], [1]])
    found, _ = class_logits(base.model, pack_texts(texts, own), bank)
    expected = all_of_them[torch.arange(4), own[:, 0]]
    torch.testing.assert_close(found[:, 0], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("row_budget", [1, 40, 10_000])
def test_neither_padding_nor_the_batch_changes_an_answer(tmp_path, kind, row_budget):
    folder = save_tiny_encoder_adapter(tmp_path / "adapter", tiny_encoder_base(kind))
    predictor = predictor_of(folder, kind, row_budget=row_budget)
    prompts = [predictor.encode(text) for text in TEXTS]
    together = predictor.predict(prompts)
    for prompt, answer in zip(prompts, together, strict=True):
        (alone,) = predictor.predict([prompt])
        assert alone.probabilities == pytest.approx(answer.probabilities, abs=1e-5)
        assert alone.variance == pytest.approx(answer.variance, abs=1e-6)
    assert predictor.packed_rows(prompts[0]) == 5 * prompts[0].tokens
    assert predictor.novelty_features(prompts).shape == (4, 16)
    (mean,) = predictor.predict_mean(prompts[:1])
    assert (mean.variance, mean.samples) == (0.0, 1)


def test_a_bfloat16_encoder_has_a_float32_head(tmp_path):
    folder = save_tiny_encoder_adapter(tmp_path / "adapter", tiny_encoder_base())
    half = tiny_encoder_base()
    half.model.to(torch.bfloat16)
    predictor = Predictor.from_adapter(read_adapter(folder), half, golden=True)
    prompts = [predictor.encode(text) for text in TEXTS]
    samples = predictor.sample_probabilities(prompts)
    assert samples.dtype == torch.float32
    exact = predictor_of(folder).sample_probabilities(prompts)
    assert (samples - exact).abs().max() < 0.1


# --- on disk ---


@pytest.mark.parametrize("kind", KINDS)
def test_save_load_predict_is_bit_identical(tmp_path, kind):
    base = tiny_encoder_base(kind)
    model = tiny_encoder_adapter(base)
    manifest = tiny_encoder_manifest(base, model)
    trained = Predictor(
        model,
        PromptTokenizer(base.tokenizer, FORMAT, manifest.max_tokens),
        RankMasks(),
        manifest.bank,
        "all_tokens",
        policy=Policy.never(),
        model_name=base.name,
        adapter_name="tiny",
        adapter_digest="",
        method="dalorra",
    )
    before = trained.sample_probabilities(tiny_texts(base))
    save_adapter(model, manifest, tmp_path / "adapter", "float32")
    with torch.no_grad():  # what is trained afterwards is not what the predictor holds
        stochastic_layers(model).popitem()[1].up.zero_()
    assert torch.equal(trained.sample_probabilities(tiny_texts(base)), before)
    loaded = predictor_of(tmp_path / "adapter", kind, golden=True)
    assert torch.equal(loaded.sample_probabilities(tiny_texts(base)), before)

    names = load_file(tmp_path / "adapter" / WEIGHTS_FILE).keys()
    head = {name for name in names if ".lora_" not in name}
    modules = ("classifier",) if kind == "bert" else ("classifier", "pre_classifier")
    assert head == {
        f"base_model.model.{module}.{part}" for module in modules for part in ("weight", "bias")
    }


def test_loading_a_folder_needs_no_head_and_the_digest_is_without_it(tmp_path):
    for kind in KINDS:
        base = load_base_model(str(tiny_encoder_folder(tmp_path / kind, kind)), device="cpu")
        assert (base.kind, base.name) == ("encoder", kind)
        assert base.digest == tiny_encoder_base(kind).digest
    whole = tiny_encoder("bert")
    whole.save_pretrained(tmp_path / "with-head")
    tiny_encoder_base().tokenizer.save_pretrained(tmp_path / "with-head")
    base = load_base_model(str(tmp_path / "with-head"), device="cpu")
    assert base.digest == tiny_encoder_base().digest


def test_an_encoder_that_lacks_other_weights_is_refused(tmp_path):
    folder = tiny_encoder_folder(tmp_path / "bert")
    tensors = load_file(folder / "model.safetensors")
    del tensors["bert.pooler.dense.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(BaseModelError, match=r"lacks 1 weights \(bert\.pooler\.dense\.weight"):
        load_base_model(str(folder), device="cpu")


def _without_head(tensors: dict[str, torch.Tensor]) -> None:
    del tensors["base_model.model.classifier.weight"]


def _smaller_head(tensors: dict[str, torch.Tensor]) -> None:
    name = "base_model.model.classifier.weight"
    tensors[name] = tensors[name][:2].clone()


def _infinite_head(tensors: dict[str, torch.Tensor]) -> None:
    tensors["base_model.model.classifier.bias"][0] = torch.inf


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (_without_head, r"classifier\.weight is missing"),
        (_smaller_head, r"classifier\.weight has shape \[2, 16\], .* need \[3, 16\]"),
        (_infinite_head, r"classifier\.bias holds a non-finite value"),
    ],
)
def test_a_damaged_head_is_refused(tmp_path, damage, sentence):
    folder = save_tiny_encoder_adapter(tmp_path / "adapter", tiny_encoder_base())
    tensors = load_file(folder / WEIGHTS_FILE)
    damage(tensors)
    save_file(tensors, folder / WEIGHTS_FILE, metadata={"format": "pt"})
    with pytest.raises(AdapterError, match=sentence):
        predictor_of(folder)


@pytest.mark.parametrize(
    ("file", "changes", "sentence"),
    [
        (MANIFEST_FILE, {"scope": "answer_tokens"}, "an encoder acts on all_tokens"),
        (MANIFEST_FILE, {"max_tokens": 49}, "reads at most 48"),
        (MANIFEST_FILE, {"cue_tokens": [7]}, "use the tokenizer of tiny-bert"),
        (
            MANIFEST_FILE,
            {"prompt": FORMAT.model_dump() | {"answer_cue": ":"}},
            "an adapter on an encoder has none",
        ),
        (CONFIG_FILE, {"modules_to_save": ["word_embeddings"]}, "the head of tiny-bert"),
        (CONFIG_FILE, {"use_dora": True}, "use_dora is True"),
    ],
    ids=str,
)
def test_a_directory_that_does_not_hold_together_is_refused(tmp_path, file, changes, sentence):
    folder = save_tiny_encoder_adapter(tmp_path / "adapter", tiny_encoder_base())
    edit(folder / file, **changes)
    with pytest.raises(AdapterError, match=sentence):
        predictor_of(folder)


def test_adapters_of_the_two_kinds_are_not_mixed_up(tmp_path):
    on_encoder = save_tiny_encoder_adapter(tmp_path / "encoder", tiny_encoder_base())
    on_llama = save_tiny_adapter(tmp_path / "llama", tiny_base())
    with pytest.raises(AdapterError, match=r"was trained on tiny-bert .* is tiny-llama"):
        Predictor.from_adapter(read_adapter(on_encoder), tiny_base())
    with pytest.raises(AdapterError, match=r"was trained on tiny-llama .* is tiny-bert"):
        predictor_of(on_llama)
    reference = json.loads((on_llama / MANIFEST_FILE).read_text())["base_model"]
    edit(on_llama / MANIFEST_FILE, base_model=reference | {"kind": "encoder"})
    with pytest.raises(AdapterError, match=r"answer_cue|all_tokens"):
        read_adapter(on_llama)
    edit(on_llama / CONFIG_FILE, modules_to_save=["lm_head"])
    edit(on_llama / MANIFEST_FILE, base_model=reference)
    with pytest.raises(AdapterError, match="modules_to_save is"):
        read_adapter(on_llama)


# --- one base ---


def test_adapters_share_an_encoder_and_leave_it_as_it_was(tmp_path):
    base = tiny_encoder_base()
    trunk = {name: p.clone() for name, p in base.model.base_model.named_parameters()}
    shared = SharedBase(base, prefix_cache_bytes=1 << 20)
    assert shared.prefix_cache is None
    folders = [
        save_tiny_encoder_adapter(tmp_path / str(seed), tiny_encoder_base(), seed=seed)
        for seed in (1, 2)
    ]
    one, other = (shared.bind(shared.read(folder)) for folder in folders)
    prompts = [one.encode(text) for text in TEXTS]
    for predictor, folder in zip((one, other), folders, strict=True):
        assert predictor.predict(prompts) == predictor_of(folder).predict(prompts)
    assert one.predict(prompts) != other.predict(prompts)
    assert not stochastic_layers(base.model)
    clone = {
        name.replace(".base_layer", ""): parameter
        for name, parameter in one._network._model.base_model.named_parameters()
    }
    for name, parameter in base.model.base_model.named_parameters():
        assert torch.equal(parameter, trunk[name])
        assert clone[name].data_ptr() == parameter.data_ptr(), "weights are in memory once"
    adapter = read_adapter(folders[0])
    assert one.nbytes == sum(4 * tensor.numel() for tensor in adapter.tensors.values())


def test_a_failing_load_leaves_the_encoder_without_an_adapter(tmp_path):
    folder = save_tiny_encoder_adapter(tmp_path / "adapter", tiny_encoder_base())
    base = tiny_encoder_base()
    model = load_adapter(read_adapter(folder), base)
    assert set(adapter_tensors(model)) == set(read_adapter(folder).tensors)
    assert not any(parameter.requires_grad for parameter in model.parameters())


# --- export ---


@pytest.mark.parametrize("kind", KINDS)
def test_an_export_answers_alike_in_plain_peft(tmp_path, kind):
    tiny = tiny_encoder_folder(tmp_path / "base", kind)
    folder = save_tiny_encoder_adapter(
        tmp_path / "adapter", tiny_encoder_base(kind), bank=BankSpec(samples=2)
    )
    predictor = predictor_of(folder, kind)
    (prompt,) = tiny_texts(tiny_encoder_base(kind), TEXTS[1:2])
    ids = torch.tensor([[*prompt.prompt_ids, *prompt.cue_ids]])

    def plain(path: Path) -> torch.Tensor:
        base = AutoModelForSequenceClassification.from_pretrained(tiny, num_labels=3)
        with torch.inference_mode():
            return PeftModel.from_pretrained(base, str(path)).eval()(ids).logits.softmax(-1)[0]

    (mean,) = predictor.predict_mean([prompt])
    found = plain(export_mean(folder, tmp_path / "mean"))
    torch.testing.assert_close(
        found, torch.tensor(list(mean.probabilities.values())), rtol=1e-4, atol=1e-5
    )
    members = export_bank(folder, tmp_path / "bank")
    samples = predictor.sample_probabilities([prompt])[0]
    for m in range(2):
        torch.testing.assert_close(
            plain(members / f"member-{m:02d}"), samples[m], rtol=1e-4, atol=1e-5
        )
