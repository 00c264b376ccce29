"""Laplace-LoRA's gradients and curvature, against dense and independent computations."""

import pytest
import torch
from torch import Tensor

from dalorra.adapter.layer import module_tensors, stochastic_layers
from dalorra.errors import AdapterError
from dalorra.forward.reference import answer_logits
from dalorra.forward.reference_rows import pack
from dalorra.posteriors import Deterministic
from dalorra.prompts import PromptTokenizer
from tests.tiny import FORMAT, MODULES, tiny_adapter, tiny_base, tiny_prompts
from training.laplace import (
    Curvature,
    LabelGradients,
    fit_curvature,
)
from training.laplace.curvature import (
    KroneckerBlock,
    SecondMoment,
    contrasts,
    fisher_root,
    in_batches,
)
from training.prompt_cache import PromptCache

SCOPES = ("answer_tokens", "all_tokens")
THREE = FORMAT.model_copy(update={"labels": {**FORMAT.labels, "neutral": " neutral"}})


def label_ids(base, prompt=THREE) -> Tensor:
    return torch.tensor(PromptTokenizer(base.tokenizer, prompt).label_ids)


def setting(scope, modules=MODULES, prompt=THREE, **options):
    """A tiny adapter, ragged prompts and its gradients."""
    base = tiny_base()
    model = tiny_adapter(base, rank=2, modules=modules, **options)
    gradients = LabelGradients(model, label_ids(base, prompt), scope, PromptCache(2**30))
    return base, model, tiny_prompts(base), gradients


def every_logit(logits: Tensor) -> Tensor:
    return torch.eye(logits.shape[1])[:, None].expand(-1, len(logits), -1)


def dense_jacobian(model, prompts, ids, scope) -> Tensor:
    """`[B, K, P]` by autograd with respect to A and B themselves, one prompt at a time."""
    head = list(stochastic_layers(model).values())[-1]
    parameters = [m[name] for m in module_tensors(model) for name in ("down", "up")]
    for parameter in parameters:
        parameter.requires_grad_()
    bank = Deterministic().mean(module_tensors(model))
    rows = []
    for prompt in prompts:
        logits = answer_logits(model, pack([prompt], range(1), scope), bank, ids)[0, 0]
        for logit in logits:
            found = list(torch.autograd.grad(logit, parameters, retain_graph=True))
            if head.up is parameters[-1] and len(head.up) == model.config.vocab_size:
                found[-1] = found[-1][ids]
            rows.append(torch.cat([g.flatten() for g in found]).double())
    return torch.stack(rows).view(len(prompts), len(ids), -1)


def matrix(block: KroneckerBlock) -> Tensor:
    """The block as a dense matrix, in the order of a row-major weight."""
    sides = [
        (v.double() * s.double()) @ v.double().T
        for v, s in (
            (block.out_vectors, block.out_values),
            (block.in_vectors, block.in_values),
        )
    ]
    return torch.kron(*sides)


def dense(curvature: Curvature) -> Tensor:
    return torch.block_diag(*[matrix(block) for block in curvature.blocks.values()])


# --- gradients ---


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("modules", [MODULES, ("q_proj", "v_proj"), ("k_proj", "down_proj")])
def test_the_jacobian_is_that_of_each_prompt_alone(scope, modules):
    base, model, prompts, gradients = setting(scope, modules)
    logits, weights = gradients(prompts, every_logit)
    found = torch.cat([rows.jacobian.flatten(2) for rows in weights], dim=2).transpose(0, 1)
    expected = dense_jacobian(model, prompts, label_ids(base), scope)
    assert found.shape == expected.shape
    torch.testing.assert_close(found.double(), expected, rtol=1e-3, atol=2e-4)
    bank = Deterministic().mean(module_tensors(model))
    packed = pack(prompts, range(1), scope)
    torch.testing.assert_close(
        logits, answer_logits(model, packed, bank, label_ids(base))[:, 0].detach()
    )


@pytest.mark.parametrize("scope", SCOPES)
def test_the_jacobian_is_the_slope_of_the_logits(scope):
    _, model, prompts, gradients = setting(scope)
    logits, weights = gradients(prompts, every_logit)
    generator = torch.Generator().manual_seed(5)
    tensors = [m[name] for m in module_tensors(model) for name in ("down", "up")]
    steps = [torch.randn(t.shape, generator=generator) for t in tensors]
    slope = torch.zeros_like(logits).T
    for rows, step in zip(weights, steps, strict=True):
        rows_of_step = step if step.shape == rows.jacobian.shape[2:] else step[gradients.label_ids]
        slope += (rows.jacobian * rows_of_step).sum(dim=(2, 3))

    def moved(size: float) -> Tensor:
        with torch.no_grad():
            for tensor, step in zip(tensors, steps, strict=True):
                tensor.add_(step, alpha=size)
        found = gradients(prompts, every_logit)[0]
        with torch.no_grad():
            for tensor, step in zip(tensors, steps, strict=True):
                tensor.sub_(step, alpha=size)
        return found

    numeric = (moved(1e-3) - moved(-1e-3)) / 2e-3
    torch.testing.assert_close(slope.T, numeric, rtol=0.02, atol=0.02 * numeric.abs().max().item())


def test_a_trained_and_a_loaded_adapter_have_the_same_gradients():
    _, model, prompts, gradients = setting("answer_tokens")
    first = [rows.jacobian for rows in gradients(prompts, every_logit)[1]]
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    again = [rows.jacobian for rows in gradients(prompts, every_logit)[1]]
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


# --- curvature ---


def test_roots_and_contrasts():
    logits = torch.tensor([[0.3, -1.0, 2.0], [20.0, -20.0, 0.0]])
    p = logits.double().softmax(-1)
    roots = fisher_root(logits).double()
    assert roots.shape == (2, 2, 3)
    expected = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
    torch.testing.assert_close(
        torch.einsum("cbi,cbj->bij", roots, roots), expected, rtol=1e-5, atol=1e-7
    )
    for count in (2, 3, 6):
        basis = contrasts(count)
        torch.testing.assert_close(basis.T @ basis, torch.eye(count - 1).double())
        assert basis.sum(dim=0).abs().max() < 1e-12


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("kfac", ["expand", "examples"])
def test_the_factors_are_the_explicit_sums(scope, kfac):
    _, _, prompts, gradients = setting(scope)
    curvature, log_p = fit_curvature(gradients, prompts, kfac=kfac)

    def scores(logits: Tensor) -> Tensor:  # ∂ log p(y) / ∂ logits, for every label y
        return every_logit(logits) - logits.softmax(-1)

    sums = {name: [0.0, 0.0, 0.0] for name in curvature.blocks}
    for index, prompt in enumerate(prompts):  # alone: without padding
        _, weights = gradients([prompt], scores)
        for (name, total), rows in zip(sums.items(), weights, strict=True):
            assert rows.valid.all(), name
            x, g = rows.inputs[0].double(), rows.gradients[:, 0].double()
            for label in range(3):
                p = log_p[index, label].exp()
                if kfac == "expand":
                    total[0] += p * sum(torch.outer(v, v) for v in g[label])
                else:
                    gradient = g[label].T @ x
                    total[0] += p * gradient @ gradient.T
                    total[1] += p * gradient.T @ gradient
                    total[2] += p * gradient.square().sum()
            if kfac == "expand":
                total[1] += sum(torch.outer(v, v) for v in x)
                total[2] += len(x)
    for name, (outputs, inputs, normaliser) in sums.items():
        expected = torch.kron(outputs, inputs) / normaliser
        found = matrix(curvature.blocks[name])
        torch.testing.assert_close(
            found, expected, rtol=1e-3, atol=1e-4 * expected.abs().max().item(), msg=name
        )
    torch.testing.assert_close(log_p.exp().sum(-1), torch.ones(4).double())


def test_the_trace_of_whole_examples_is_that_of_the_fisher_information():
    base, model, prompts, gradients = setting("answer_tokens")
    curvature, log_p = fit_curvature(gradients, prompts, kfac="examples")
    jacobian = dense_jacobian(model, prompts, label_ids(base), "answer_tokens")
    p = log_p.exp()
    hessian = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
    expected = torch.einsum("bip,bij,bjp->", jacobian, hessian, jacobian)
    assert curvature.eigenvalues.sum().item() == pytest.approx(expected.item(), rel=1e-4)


@pytest.mark.parametrize("scope", SCOPES)
def test_whole_examples_are_closer_to_the_fisher_information_than_rows(scope):
    """Frobenius distance to the exact block of each weight, relative to that block's norm."""
    base, model, prompts, gradients = setting(scope)
    jacobian = dense_jacobian(model, prompts, label_ids(base), scope)
    distance = {}
    for kfac in ("examples", "expand"):
        curvature, log_p = fit_curvature(gradients, prompts, kfac=kfac)
        p = log_p.exp()
        hessian = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
        sizes = [weight.numel() for _, weight in gradients.weights]
        distance[kfac] = []
        for part, block in zip(jacobian.split(sizes, 2), curvature.blocks.values(), strict=True):
            exact = torch.einsum("bip,bij,bjq->pq", part, hessian, part)
            distance[kfac].append((matrix(block) - exact).norm() / exact.norm())
    examples, expand = (torch.stack(distance[kfac]) for kfac in ("examples", "expand"))
    assert examples.mean() < 0.8 * expand.mean()
    assert (examples < expand + 0.05).all()


def test_one_example_of_a_head_is_exact():
    """One row, two labels: the product is no approximation, and B = 0 leaves A no curvature."""
    base, model, prompts, gradients = setting("answer_tokens", ("lm_head",), FORMAT)
    with torch.no_grad():
        stochastic_layers(model)["lm_head"].up.zero_()
    ids = label_ids(base, FORMAT)
    curvature, log_p = fit_curvature(gradients, prompts[:1])
    jacobian = dense_jacobian(model, prompts, ids, "answer_tokens")
    p = log_p[0].exp()
    fisher = jacobian[0].T @ (torch.diag(p) - torch.outer(p, p)) @ jacobian[0]
    torch.testing.assert_close(dense(curvature), fisher, rtol=1e-4, atol=1e-6)

    precision = 0.7
    basis = contrasts(2)
    _, weights = gradients(prompts, lambda logits: basis.T.float()[:, None].expand(-1, 4, -1))
    found = curvature.covariance(weights, precision)
    posterior = torch.linalg.inv(fisher + precision * torch.eye(len(fisher)))
    along = torch.einsum("kc,bkp->bcp", basis, jacobian)
    expected = along @ posterior @ along.mT
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("limit", [None, 3])
def test_the_covariance_is_that_of_the_dense_posterior(scope, limit):
    base, model, prompts, gradients = setting(scope)
    curvature, _ = fit_curvature(gradients, prompts, limit=limit)
    precision = 0.3
    _, weights = gradients(prompts, every_logit)
    found = curvature.covariance(weights, precision).double()
    hessian = dense(curvature)
    jacobian = dense_jacobian(model, prompts, label_ids(base), scope)
    posterior = torch.linalg.inv(hessian + precision * torch.eye(len(hessian)))
    expected = jacobian @ posterior @ jacobian.mT
    torch.testing.assert_close(found, expected, rtol=2e-3, atol=1e-3)


def test_a_low_rank_moment_is_exact_for_what_it_can_hold_and_keeps_the_largest():
    generator = torch.Generator().manual_seed(0)
    directions = torch.linalg.qr(torch.randn(10, 4, generator=generator)).Q
    vectors = torch.randn(40, 4, generator=generator) * torch.tensor([3.0, 2.0, 1.0, 0.01])
    vectors = vectors @ directions.T
    expected = vectors.T @ vectors
    for limit, tolerance in ((None, 1e-3), (4, 1e-3), (3, 0.02)):
        moment = SecondMoment(limit)
        for batch in vectors.split(7):
            moment.add(batch)
        u, values = moment.eigen()
        assert (values.diff() >= 0).all()
        assert u.shape == (10, limit or 10)
        torch.testing.assert_close(u.T @ u, torch.eye(u.shape[1]), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close((u * values) @ u.T, expected, rtol=0, atol=tolerance)


def test_factors_are_read_as_they_were_written(tmp_path):
    _, _, prompts, gradients = setting("answer_tokens")
    curvature, _ = fit_curvature(gradients, prompts)
    path = tmp_path / "laplace.safetensors"
    curvature.save(path)
    read = Curvature.load(path, gradients.weights)
    assert read.digest == curvature.digest
    assert torch.equal(read.eigenvalues, curvature.eigenvalues)
    other = setting("answer_tokens", ("q_proj", "up_proj"))[3]
    with pytest.raises(AdapterError, match=r"holds no factors that fit .*up_proj\.A"):
        Curvature.load(path, other.weights)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(AdapterError, match="missing or damaged"):
        Curvature.load(path, gradients.weights)


@pytest.mark.parametrize("scope", SCOPES)
def test_batches_fit_their_budgets_and_change_no_factor(scope, monkeypatch):
    _, _, prompts, gradients = setting(scope)
    expected = fit_curvature(gradients, prompts)[0]
    for budget, size in (("ROW_BUDGET", 200), ("TOKEN_BUDGET", 100)):
        with monkeypatch.context() as patch:
            patch.setattr(f"training.laplace.curvature.{budget}", size)
            batches = list(in_batches(gradients, prompts))
            assert sorted(i for batch in batches for i in batch) == [0, 1, 2, 3]
            for batch in batches:
                tokens = [prompts[i].tokens for i in batch]
                rows = max(gradients.rows(prompts[i]) for i in batch) * 2  # K − 1 directions
                used = rows if budget == "ROW_BUDGET" else max(tokens)
                assert len(batch) == 1 or len(batch) * used <= size
            found = fit_curvature(gradients, prompts)[0]
            for one, other in zip(found.blocks.values(), expected.blocks.values(), strict=True):
                torch.testing.assert_close(matrix(one), matrix(other), rtol=1e-3, atol=1e-4)
    assert len(list(in_batches(gradients, prompts))) == 1
