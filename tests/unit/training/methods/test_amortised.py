"""Masks that depend on the input: nested in DALorRA, their KL against torch and enumeration."""

from itertools import product

import pytest
import torch
from torch.distributions import Bernoulli, kl_divergence

from dalorra.adapter.export import export_bank, export_mean
from dalorra.adapter.layer import module_tensors
from dalorra.errors import ConfigError
from dalorra.forward.reference_rows import pack
from dalorra.labels import LabelTrie
from dalorra.posteriors import AmortisedBank, AmortisedMasks, RankMasks
from dalorra.posteriors.bank import BankSpec
from dalorra.prompts import Prompt
from tests.tiny import save_tiny_adapter, tiny_base, tiny_prompts
from training.methods.amortised import Amortised
from training.methods.c_lora import CLora
from training.methods.dalorra import Dalorra
from training.objective import Objective

RANK, WIDTH = 3, 6


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=seeded(seed))


def module(seed: int = 0, context: float = 1.0) -> dict[str, torch.Tensor]:
    return {
        "down": random(RANK, WIDTH, seed=seed),
        "up": random(9, RANK, seed=seed + 1),
        "mask_logits": random(RANK, seed=seed + 2),
        "mask_context": context * random(RANK, RANK, seed=seed + 3),
    }


@pytest.fixture
def both(beside_dalorra):
    """An amortised adapter with W = 0, and DALorRA with the same φ, A and B."""
    return beside_dalorra(Amortised(), "mask_context")


@pytest.mark.parametrize("scope", ["answer_tokens", "all_tokens"])
def test_without_context_its_training_is_that_of_dalorra(both, loss_of, scope):
    settings = {"prior": 0.3, "samples": 2}
    amortised, dalorra = (
        loss_of(method(**settings), model, scope=scope)
        for method, model in zip((Amortised, Dalorra), both, strict=True)
    )
    for name in ("total", "nll", "penalty"):
        assert torch.equal(getattr(amortised, name), getattr(dalorra, name)), name
    gradients = []
    for loss, model in zip((amortised, dalorra), both, strict=True):
        loss.total.backward()
        gradients.append({n: p.grad for n, p in model.named_parameters() if p.requires_grad})
    for name, gradient in gradients[1].items():
        torch.testing.assert_close(gradients[0][name], gradient, msg=name)


@pytest.mark.parametrize("sampler", ["stratified", "iid"])
def test_without_context_its_bank_is_that_of_dalorra(both, sampler):
    modules, spec = module_tensors(both[0]), BankSpec(samples=7, seed=4, sampler=sampler)
    index = torch.tensor([[0, 3, -1], [6, 6, 2]])
    for bank_of in ("bank", "mean"):
        arguments = (modules, spec) if bank_of == "bank" else (modules,)
        banks = [getattr(kind(), bank_of)(*arguments) for kind in (AmortisedMasks, RankMasks)]
        assert banks[0].samples == banks[1].samples
        rows = index if bank_of == "bank" else index.clamp_max(0)
        for number, (one, other) in enumerate(zip(*(b.noise(rows) for b in banks), strict=True)):
            a = random(2, 3, 4, seed=number)
            assert torch.equal(one(a, a), other(a, a))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_row_has_the_mask_that_its_own_activations_and_its_samples_uniforms_decide(dtype):
    modules = [module(10 * i) for i in range(2)]
    bank = AmortisedMasks().bank(modules, BankSpec(samples=3, seed=1))
    index = torch.tensor([[0, 2, -1], [1, 1, 2]])
    u = torch.sigmoid(-bank.epsilon)
    assert u.unique().numel() == u.numel()
    for number, (m, noise) in enumerate(zip(modules, bank.noise(index), strict=True)):
        a = random(2, 3, RANK, seed=number).to(dtype)
        found = noise(a, a)
        assert found.dtype == dtype
        for b, row in product(range(2), range(3)):
            sample, own = int(index[b, row]), a[b, row].float()
            probability = torch.sigmoid(m["mask_logits"] + m["mask_context"] @ own)
            on = (u[sample, number] < probability).float() if sample >= 0 else torch.zeros(RANK)
            assert torch.equal(found[b, row].float(), on * own)


def test_a_bit_is_on_as_often_as_the_input_says():
    m, a = module(), random(RANK, seed=9)
    many = 20_000
    bank = AmortisedMasks().bank([m], BankSpec(samples=many, sampler="iid"))
    (noise,) = bank.noise(torch.arange(many)[:, None])
    share = (noise(a.expand(many, 1, -1), a)[:, 0] != 0).float().mean(dim=0)
    p = torch.sigmoid(m["mask_logits"] + m["mask_context"] @ a)
    assert ((share - p).abs() < 4.5 * (p * (1 - p) / many).sqrt()).all()
    (mean,) = AmortisedMasks().mean([m]).noise(torch.tensor([[0]]))
    torch.testing.assert_close(mean(a[None, None], a)[0, 0], p * a)


def test_relaxed_masks_tend_to_hard_ones_and_carry_a_gradient_to_the_context():
    m = {name: tensor.requires_grad_() for name, tensor in module().items()}
    a = random(5, 1, RANK, seed=9)
    drawn = {
        tau: Amortised(temperature=tau).draw([m], 5, seeded(0)).noise(torch.arange(5)[:, None])[0]
        for tau in (1e-6, 0.5)
    }
    hard, soft = drawn[1e-6](a, a), drawn[0.5](a, a)
    share = (soft / a).detach()
    torch.testing.assert_close((hard / a).detach(), share.round(), rtol=0, atol=1e-5)
    soft.sum().backward()
    slope = (a * share * (1 - share) / 0.5)[:, 0]  # of the sum by φ + W a, each sample's
    torch.testing.assert_close(m["mask_logits"].grad, slope.sum(dim=0))
    torch.testing.assert_close(m["mask_context"].grad, slope.T @ a[:, 0])


# --- the KL ---


@pytest.mark.parametrize("samples", [1, 2])
@pytest.mark.parametrize("scope", ["answer_tokens", "all_tokens"])
def test_every_example_pays_the_mean_of_its_own_rows_without_padding(scope, samples):
    prompts = [Prompt((11, 12, 13), (91, 92)), Prompt((21,), (91, 92))]
    rows = pack(prompts, torch.arange(2 * samples).view(2, samples), scope)
    modules = (module(), module(5))
    shapes = [(*rows.input_ids.shape, RANK), (2, samples, RANK)]  # a layer's, the head's
    seen = {i: random(*shape, seed=i) for i, shape in enumerate(shapes)}
    expected = 0.0
    for number, logits in seen.items():
        prior = Bernoulli(logits=modules[number]["mask_logits"].expand_as(logits))
        kl = kl_divergence(Bernoulli(logits=logits), prior).sum(dim=-1)
        per_sequence = []
        for b, row in enumerate(kl):
            first = 0  # the head reads the ends of the cues alone
            if number == 0 and scope == "answer_tokens":
                first = 3
            elif number == 0:
                first = (0, 2)[b // samples]  # the shorter prompt has two rows of padding
            per_sequence.append(row[first:].mean())
        expected += torch.stack(per_sequence).mean().item()
    bank = AmortisedBank(torch.zeros(1, 2, RANK), modules, 0.5, seen)
    found = Amortised().example_penalty(bank, rows)
    assert found.item() == pytest.approx(expected, rel=1e-5)


def test_the_kl_of_a_pass_is_that_of_its_enumerated_masks():
    """One prompt, one row that the adapter acts on, one module: all 2^r masks are tried."""
    m, method = module(), Amortised(prior=0.3)
    bank = method.draw([m], 1, seeded(0))
    a = random(1, 1, RANK, seed=9)
    bank.noise(torch.tensor([[0]]))[0](a, a)
    masks = torch.tensor(list(product((0.0, 1.0), repeat=RANK)))
    q = Bernoulli(torch.sigmoid(m["mask_logits"] + m["mask_context"] @ a[0, 0]))
    p = Bernoulli(torch.sigmoid(m["mask_logits"]))
    log_q, log_p = q.log_prob(masks).sum(-1), p.log_prob(masks).sum(-1)
    rows = pack([Prompt((11,), (91,))], [0], "answer_tokens")
    found = method.example_penalty(bank, rows)
    torch.testing.assert_close(found, (log_q.exp() * (log_q - log_p)).sum())


@pytest.mark.parametrize("scope", ["answer_tokens", "all_tokens"])
def test_an_example_pays_in_full_and_the_shared_part_once(adapted, loss_of, scope):
    method = Amortised(prior=0.3)
    model = adapted(method)
    loss = loss_of(method, model, scope=scope)
    shared = method.penalty(module_tensors(model))
    expected = kl_divergence(
        Bernoulli(logits=torch.stack([m["mask_logits"] for m in module_tensors(model)])),
        Bernoulli(torch.full((len(module_tensors(model)), 4), 0.3)),
    ).sum()
    torch.testing.assert_close(shared, expected)
    own = loss.total - loss.nll - shared / 640
    assert own > 0.01
    torch.testing.assert_close(loss.penalty, shared + 640 * own, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("method", [Amortised(), CLora()], ids=lambda method: method.name)
def test_every_module_pays_once_where_labels_are_read_by_a_trie(adapted, method):
    """The head is asked for its path tokens, and again for each piece of the vocabulary."""
    model = adapted(method)
    trie = LabelTrie(((20, 21), (20, 33), (50,)))
    objective = Objective(method, trie, "answer_tokens", 640, None)
    prompts, modules = tiny_prompts(tiny_base())[:2], module_tensors(model)
    prompts = [Prompt(p.prompt_ids, p.cue_ids, trie=trie) for p in prompts]
    bank = method.draw(modules, 2, seeded(0))
    scores, rows = objective.logits(model, prompts, torch.tensor([[0], [1]]), bank)
    (scores.sum() + method.example_penalty(bank, rows)).backward()
    assert sorted(bank.seen) == list(range(len(modules)))
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


# --- what it is served and exported as ---


def test_its_bank_is_drawn_from_its_specification_alone():
    def epsilon(**spec):
        return AmortisedMasks().bank([module(), module(5)], BankSpec(samples=4, **spec)).epsilon

    torch.manual_seed(99)
    assert torch.equal(epsilon(seed=3), epsilon(seed=3))
    assert not torch.equal(epsilon(seed=3), epsilon(seed=4))
    assert not torch.equal(epsilon(seed=3), epsilon(seed=3, sampler="iid"))
    u = torch.sigmoid(-epsilon(seed=3)).double()
    assert torch.equal((u * 4).ceil().sort(dim=0).values[:, 0, 0], torch.arange(1.0, 5.0).double())


def test_it_cannot_be_matched():
    with pytest.raises(ConfigError, match="masks that depend on the input cannot be matched"):
        AmortisedMasks().bank([module()], BankSpec(sampler="matched"))


@pytest.mark.parametrize("export", [export_bank, export_mean])
def test_it_is_no_plain_lora(export, tmp_path):
    posterior = AmortisedMasks()
    path = save_tiny_adapter(
        tmp_path / "adapter", tiny_base(), method="amortised", posterior=posterior
    )
    with pytest.raises(ConfigError, match="its masks depend on the input"):
        export(path, tmp_path / "out")
    assert not (tmp_path / "out").exists()
