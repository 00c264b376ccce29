"""Laplace-LoRA's curvature, against dense and independent computations."""

import pytest
import torch
from torch import Tensor

from dalorra.adapter.layer import stochastic_layers
from dalorra.errors import AdapterError
from tests.tiny import FORMAT
from tests.tiny_laplace import SCOPES, dense, every_logit, matrix, setting
from training.laplace import Curvature, fit_curvature
from training.laplace.curvature import SecondMoment, contrasts, fisher_root, in_batches


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
    tiny = setting(scope)
    curvature = fit_curvature(tiny.gradients, tiny.prompts, kfac=kfac)
    probabilities = tiny.probabilities

    def scores(logits: Tensor) -> Tensor:  # ∂ log p(y) / ∂ logits, for every label y
        return every_logit(logits) - logits.softmax(-1)

    sums = {name: [0.0, 0.0, 0.0] for name in curvature.blocks}
    for index, prompt in enumerate(tiny.prompts):  # alone: without padding
        _, weights = tiny.gradients([prompt], scores)
        for (name, total), rows in zip(sums.items(), weights, strict=True):
            assert rows.valid.all(), name
            x, g = rows.inputs[0].double(), rows.gradients[:, 0].double()
            for label in range(3):
                p = probabilities[index, label]
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


def test_the_trace_of_whole_examples_is_that_of_the_fisher_information():
    tiny = setting("answer_tokens")
    curvature = fit_curvature(tiny.gradients, tiny.prompts, kfac="examples")
    jacobian = tiny.jacobian
    expected = torch.einsum("bip,bij,bjp->", jacobian, tiny.hessian, jacobian)
    assert curvature.eigenvalues.sum().item() == pytest.approx(expected.item(), rel=1e-4)


@pytest.mark.parametrize("scope", SCOPES)
def test_whole_examples_are_closer_to_the_fisher_information_than_rows(scope):
    """Frobenius distance to the exact block of each weight, relative to that block's norm."""
    tiny = setting(scope)
    parts = tiny.jacobian.split([weight.numel() for _, weight in tiny.gradients.weights], 2)
    exact = [torch.einsum("bip,bij,bjq->pq", part, tiny.hessian, part) for part in parts]

    def distance(kfac: str) -> Tensor:
        blocks = fit_curvature(tiny.gradients, tiny.prompts, kfac=kfac).blocks.values()
        pairs = zip(blocks, exact, strict=True)
        return torch.stack([(matrix(block) - e).norm() / e.norm() for block, e in pairs])

    examples, expand = distance("examples"), distance("expand")
    assert examples.mean() < 0.8 * expand.mean()
    assert (examples < expand + 0.05).all()


def test_one_example_of_a_head_is_exact():
    """One row, two labels: the product is no approximation, and B = 0 leaves A no curvature."""
    tiny = setting("answer_tokens", ("lm_head",), FORMAT)
    with torch.no_grad():
        stochastic_layers(tiny.model)["lm_head"].up.zero_()
    curvature = fit_curvature(tiny.gradients, tiny.prompts[:1])
    jacobian = tiny.jacobian
    fisher = jacobian[0].T @ tiny.hessian[0] @ jacobian[0]
    torch.testing.assert_close(dense(curvature), fisher, rtol=1e-4, atol=1e-6)

    precision = 0.7
    basis = contrasts(2)
    _, weights = tiny.gradients(tiny.prompts, lambda _: basis.T.float()[:, None].expand(-1, 4, -1))
    found = curvature.covariance(weights, precision)
    posterior = torch.linalg.inv(fisher + precision * torch.eye(len(fisher)))
    along = torch.einsum("kc,bkp->bcp", basis, jacobian)
    expected = along @ posterior @ along.mT
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("limit", [None, 3])
def test_the_covariance_is_that_of_the_dense_posterior(scope, limit):
    tiny = setting(scope)
    curvature = fit_curvature(tiny.gradients, tiny.prompts, limit=limit)
    precision = 0.3
    _, weights = tiny.gradients(tiny.prompts, every_logit)
    found = curvature.covariance(weights, precision).double()
    fisher, jacobian = dense(curvature), tiny.jacobian
    posterior = torch.linalg.inv(fisher + precision * torch.eye(len(fisher)))
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
    tiny = setting("answer_tokens")
    curvature = fit_curvature(tiny.gradients, tiny.prompts)
    path = tmp_path / "laplace.safetensors"
    curvature.save(path)
    read = Curvature.load(path, tiny.gradients.weights)
    assert read.digest == curvature.digest
    assert torch.equal(read.eigenvalues, curvature.eigenvalues)
    other = setting("answer_tokens", ("q_proj", "up_proj")).gradients
    with pytest.raises(AdapterError, match=r"holds no factors that fit .*up_proj\.A"):
        Curvature.load(path, other.weights)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(AdapterError, match="missing or damaged"):
        Curvature.load(path, tiny.gradients.weights)


@pytest.mark.parametrize("scope", SCOPES)
def test_batches_fit_their_budgets_and_change_no_factor(scope, monkeypatch):
    tiny = setting(scope)
    gradients, prompts = tiny.gradients, tiny.prompts
    expected = fit_curvature(gradients, prompts)
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
            found = fit_curvature(gradients, prompts)
            for one, other in zip(found.blocks.values(), expected.blocks.values(), strict=True):
                torch.testing.assert_close(matrix(one), matrix(other), rtol=1e-3, atol=1e-4)
    assert len(list(in_batches(gradients, prompts))) == 1
