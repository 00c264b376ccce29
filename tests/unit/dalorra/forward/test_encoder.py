"""The forward of an encoder: its texts, its rows, and one base for many adapters."""

import pytest
import torch

from dalorra.adapter.directory import read_adapter
from dalorra.adapter.layer import module_tensors, stochastic_layers
from dalorra.errors import InputError
from dalorra.forward.reference import class_logits
from dalorra.forward.reference_rows import pack_texts
from dalorra.posteriors import RankMasks
from dalorra.posteriors.bank import BankSpec
from dalorra.prompts import PromptTokenizer
from dalorra.shared_base import SharedBase
from tests.tiny import EXAMPLES, predictor_on
from tests.tiny_encoder import (
    FORMAT,
    KINDS,
    TEXTS,
    save_tiny_encoder_adapter,
    tiny_encoder_adapter,
    tiny_encoder_base,
    tiny_texts,
)

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
@pytest.mark.parametrize("name", EXAMPLES)
def test_rows_of_one_batch_equal_separate_passes_of_the_plain_model(kind, name):
    base, posterior = tiny_encoder_base(kind), EXAMPLES[name][1]
    model = tiny_encoder_adapter(base, posterior, rank=4)
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
        assert found.std(dim=1).min() > 1e-4, "every sample answers otherwise"


@pytest.mark.parametrize("kind", KINDS)
def test_each_text_may_run_under_samples_of_its_own(kind):
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
    predictor = predictor_on(folder, tiny_encoder_base(kind), row_budget=row_budget)
    prompts = [predictor.encode(text) for text in TEXTS]
    together = predictor.predict(prompts)
    for prompt, answer in zip(prompts, together, strict=True):
        (alone,) = predictor.predict([prompt])
        assert alone.probabilities == pytest.approx(answer.probabilities, abs=1e-5)
        assert alone.variance == pytest.approx(answer.variance, abs=1e-6)
    assert predictor.packed_rows(prompts[0]) == 5 * prompts[0].tokens
    assert predictor.novelty_features(prompts).shape == (4, 1, 16)
    (mean,) = predictor.predict_mean(prompts[:1])
    assert (mean.variance, mean.samples) == (0.0, 1)


def test_a_bfloat16_encoder_has_a_float32_head(tmp_path):
    folder = save_tiny_encoder_adapter(tmp_path / "adapter", tiny_encoder_base())
    half = tiny_encoder_base()
    half.model.to(torch.bfloat16)
    predictor = SharedBase(half).bind(read_adapter(folder))
    prompts = [predictor.encode(text) for text in TEXTS]
    found = predictor.posterior_samples(prompts).probabilities
    assert found.dtype == torch.float32
    exact = predictor_on(folder, tiny_encoder_base()).posterior_samples(prompts).probabilities
    assert (found - exact).abs().max() < 0.1


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
        alone = predictor_on(folder, tiny_encoder_base())
        assert predictor.predict(prompts) == alone.predict(prompts)
    assert one.predict(prompts) != other.predict(prompts)
    assert not stochastic_layers(base.model)
    for name, parameter in base.model.base_model.named_parameters():
        assert torch.equal(parameter, trunk[name])
    adapter = read_adapter(folders[0])
    assert one.nbytes == sum(4 * tensor.numel() for tensor in adapter.tensors.values())

    before = one.predict(prompts)
    for parameter in base.model.base_model.parameters():
        parameter.mul_(1.1)
    assert one.predict(prompts) == shared.bind(adapter).predict(prompts) != before, (
        "weights are in memory once: an adapter bound before a change of them sees it"
    )
