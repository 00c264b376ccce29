"""Every posterior: what its samples are, and that the packed forward runs them exactly."""

import copy

import pytest
import torch
from safetensors.torch import load_file

from dalorra.adapter.directory import WEIGHTS_FILE, load_adapter, read_adapter, save_adapter
from dalorra.adapter.export import export_bank
from dalorra.adapter.layer import (
    StochasticPeftModel,
    attach,
    lora_config,
    module_tensors,
    stochastic_layers,
)
from dalorra.errors import AdapterError, ConfigError
from dalorra.forward.reference import answer_logits
from dalorra.forward.reference_rows import pack
from dalorra.posteriors import (
    POSTERIORS,
    AdapterDropout,
    Ensemble,
    Posterior,
    RandomMasks,
    RankMasks,
    find_posterior,
)
from dalorra.posteriors.bank import BankSpec, MaskBank
from dalorra.prompts import Scope
from tests.reference import PlainLora
from tests.tiny import (
    EXAMPLES,
    MODULES,
    packed,
    predictor_on,
    tiny_adapter,
    tiny_base,
    tiny_llama,
    tiny_manifest,
    tiny_prompts,
)

RANK = 4
LABELS = torch.tensor([20, 33, 50])
SPEC = BankSpec(samples=3, seed=5)
PLAIN = [name for name in EXAMPLES if name not in ("c_lora", "amortised")]
"""Those whose samples are plain LoRAs."""


def adapted(posterior: Posterior) -> StochasticPeftModel:
    return tiny_adapter(tiny_base(), posterior)


def test_every_method_has_an_example():
    assert {method for method, _ in EXAMPLES.values()} | {"laplace"} == set(POSTERIORS)
    assert all(type(example) is POSTERIORS[method] for method, example in EXAMPLES.values())


@pytest.mark.parametrize("scope", ["answer_tokens", "all_tokens"])
@pytest.mark.parametrize("name", EXAMPLES)
def test_the_packed_forward_equals_each_sample_alone(name: str, scope: Scope):
    """By the unmodified model, and as a plain LoRA where it is one."""
    posterior = EXAMPLES[name][1]
    model = adapted(posterior)
    modules, prompts = module_tensors(model), tiny_prompts(tiny_base())
    plain_lora = PlainLora(tiny_llama(), model, scope)
    for bank in (posterior.bank(modules, SPEC), posterior.mean(modules)):
        samples, network = range(bank.samples), packed(model, LABELS, bank, scope)
        found = network.label_logits(prompts, samples)
        part = network.label_logits(prompts[:1] * 2, samples[-1:])  # of one length: not joined
        torch.testing.assert_close(part, found[:1, -1:].repeat(2, 1, 1), rtol=2e-5, atol=2e-5)
        assert bank.samples == 1 or (found.std(dim=1) > 1e-3).any(), "samples differ"
        for m in samples:
            plain = bank.plain(m, modules) if name in PLAIN else None
            for b, prompt in enumerate(prompts):
                with torch.no_grad():
                    alone = answer_logits(model, pack([prompt], [m], scope), bank, LABELS)
                torch.testing.assert_close(found[b, m], alone[0, 0], rtol=2e-5, atol=2e-5)
                if plain:
                    expected = plain_lora.plain_logits(prompt, plain)[LABELS]
                    torch.testing.assert_close(found[b, m], expected, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("name", EXAMPLES)
def test_saved_and_loaded_it_answers_the_same_alone_and_in_a_batch(name: str, tmp_path):
    method, posterior = EXAMPLES[name]
    base = tiny_base()
    model = tiny_adapter(base, posterior)
    manifest = tiny_manifest(base, model, method=method, posterior=posterior, bank=SPEC)
    save_adapter(model, manifest, tmp_path / "adapter", "float32")
    read = read_adapter(tmp_path / "adapter")
    assert read.posterior == posterior
    predictor, prompts = predictor_on(read, tiny_base()), tiny_prompts(base)
    together = predictor.posterior_samples(prompts).by_sample
    for prompt, row in zip(prompts, together, strict=True):
        alone = predictor.posterior_samples([prompt]).by_sample[0]
        torch.testing.assert_close(alone, row, rtol=0, atol=1e-5)
    fresh = load_adapter(read, tiny_base())
    for before, after in zip(module_tensors(model), module_tensors(fresh), strict=True):
        assert before.keys() == after.keys()
        assert all(torch.equal(before[key], after[key]) for key in before)


@pytest.mark.parametrize("name", [n for n in EXAMPLES if n != "dalorra"])
def test_only_rank_masks_can_be_integrated(name: str):
    posterior = EXAMPLES[name][1]
    with pytest.raises(ConfigError, match="cannot be integrated"):
        posterior.bank(module_tensors(adapted(posterior)), BankSpec(head="integrated"))


def test_an_ensemble_is_its_members_and_exports_them(tmp_path):
    posterior = Ensemble(members=2)
    base = tiny_base()
    model = tiny_adapter(base, posterior)
    spec = BankSpec(samples=10)
    manifest = tiny_manifest(base, model, method="ensemble", posterior=posterior, bank=spec)
    save_adapter(model, manifest, tmp_path / "adapter", "float32")
    assert predictor_on(tmp_path / "adapter", tiny_base()).samples == 2
    out = export_bank(tmp_path / "adapter", tmp_path / "members")
    assert len(list(out.iterdir())) == 2
    modules = module_tensors(model)
    for m in range(2):
        block = slice(2 * m, 2 * m + 2)  # rank 4: two members of rank 2
        tensors = load_file(out / f"member-{m:02d}" / WEIGHTS_FILE)
        for name, module in zip(manifest.modules, modules, strict=True):
            prefix = f"base_model.model.{name}"
            found = tensors[f"{prefix}.lora_B.weight"] @ tensors[f"{prefix}.lora_A.weight"]
            expected = module["up"][:, block] @ module["down"][block]
            torch.testing.assert_close(found, expected)


def test_random_masks_leave_exactly_k_off_and_never_all():
    modules = module_tensors(adapted(RandomMasks(off=3)))
    bank = RandomMasks(off=3).bank(modules, BankSpec(samples=200))
    assert bank.masks.sum(dim=-1).unique().tolist() == [1.0]
    share = bank.masks.mean(dim=(0, 1))  # each component is on equally often
    assert (share - 0.25).abs().max() < 4.5 * (0.25 * 0.75 / (200 * len(modules))) ** 0.5
    with pytest.raises(ValueError, match="at least one must be on"):
        RandomMasks(off=RANK).bank(modules, BankSpec())


def test_the_variance_of_rank_dropout_is_that_of_the_paper():
    """Var[B (m ⊙ A x)] = p / (1 − p) · B diag((A x)²) Bᵀ, and zero in the null space of A."""
    posterior = AdapterDropout(rate=0.3, position="rank")
    model = adapted(posterior)
    (module,) = module_tensors(model)[-1:]
    bank = posterior.bank([module], BankSpec(samples=40_000))
    assert isinstance(bank, MaskBank)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(module["down"].shape[1], generator=generator)
    activations = module["down"].detach() @ x
    (noise,) = bank.noise(torch.arange(bank.samples)[:, None])
    updates = noise(activations.expand(bank.samples, 1, -1), x)[:, 0] @ module["up"].detach().T
    up = module["up"].detach()
    expected = 0.3 / 0.7 * up @ torch.diag(activations**2) @ up.T
    torch.testing.assert_close(updates.T.cov(), expected, rtol=0.1, atol=0.02)
    torch.testing.assert_close(updates.mean(0), up @ activations, rtol=0.05, atol=0.02)

    null = torch.linalg.svd(module["down"].detach()).Vh[-1]  # A x = 0
    silent = noise((module["down"].detach() @ null).expand(bank.samples, 1, -1), null)
    assert silent.abs().max() < 1e-6


def test_input_dropout_keeps_the_mean_and_is_felt_in_the_null_space_of_a():
    posterior = AdapterDropout(rate=0.3)
    (module,) = module_tensors(adapted(posterior))[-1:]
    down = module["down"].detach()
    bank = posterior.bank([{"down": down, "up": module["up"]}], BankSpec(samples=40_000))
    (noise,) = bank.noise(torch.arange(bank.samples)[:, None])
    null = torch.linalg.svd(down).Vh[-1]
    felt = noise(torch.zeros(bank.samples, 1, RANK), null.expand(bank.samples, 1, -1))[:, 0]
    assert felt.std(dim=0).min() > 0.05
    assert felt.mean(dim=0).abs().max() < 4.5 * felt.std(dim=0).max() / bank.samples**0.5


def test_unknown_methods_and_parameters_are_refused():
    with pytest.raises(AdapterError, match="unknown method 'swag': this release knows dalorra"):
        find_posterior("swag", {})
    laplace = find_posterior("laplace", {"prior_precision": 1.0, "draws": 9, "factors": ""})
    with pytest.raises(AdapterError, match="laplace adapter cannot be served"):
        laplace.bank([], BankSpec())
    with pytest.raises(AdapterError, match="laplace adapter cannot be served"):
        laplace.check_servable()
    with pytest.raises(AdapterError, match=r"posterior\.rate: Input should be less than 1"):
        find_posterior("mc_dropout", {"rate": 1.0})


def test_the_attached_tensors_are_copies():
    posterior = RankMasks(prior=0.7)
    model = attach(tiny_llama(), lora_config(RANK, 8.0, MODULES, "tiny"), posterior)
    first, *others = stochastic_layers(model).values()
    others_before = [copy.deepcopy(layer.mask_logits) for layer in others]
    with torch.no_grad():
        first.mask_logits.fill_(9.0)
    assert all(torch.equal(a.mask_logits, b) for a, b in zip(others, others_before, strict=True))
