"""What every method does in training, on a model of a few thousand weights."""

import math

import pytest
import torch
import yaml
from pydantic import TypeAdapter

from dalorra.adapter.directory import read_adapter
from dalorra.adapter.layer import module_tensors, stochastic_layers
from dalorra.predictor import Predictor
from training.config import read_config
from training.methods import METHODS, AnyMethod, Dalorra
from training.methods.ensemble import Ensemble
from training.methods.map import Map
from training.methods.mle import Mle
from training.prompt_cache import PromptCache
from training.run import Run, train

SERVED = [method for method in METHODS if method.key() != "laplace"]


def test_names_are_told_apart_and_dalorra_is_the_default():
    section = TypeAdapter(AnyMethod)
    assert isinstance(section.validate_python({"prior": 0.3}), Dalorra)
    for method in METHODS:
        assert type(section.validate_python({"name": method.key()})) is method
    assert len({method.key() for method in METHODS}) == len(METHODS)
    assert all(method.title for method in METHODS)


@pytest.mark.parametrize("scope", ["answer_tokens", "all_tokens"])
@pytest.mark.parametrize("kind", METHODS, ids=lambda kind: kind.key())
def test_every_trained_tensor_gets_a_finite_gradient_that_the_seed_decides(
    adapted, loss_of, kind, scope
):
    gradients = []
    for seed in (0, 0, 1):
        method = kind()
        model = adapted(method, rank=6)
        loss_of(method, model, seed, scope, PromptCache(2**20)).total.backward()
        found = {n: p.grad for n, p in model.named_parameters() if p.requires_grad}
        assert all(g is not None and g.isfinite().all() for g in found.values())
        # Rows of B that belong to no label get none; every tensor as a whole does.
        assert all(g.abs().max() > 0 for g in found.values()), kind
        gradients.append(torch.cat([g.flatten() for g in found.values()]))
    assert torch.equal(gradients[0], gradients[1])
    noisy = kind.key() not in ("mle", "map", "ensemble", "tfb", "laplace")
    assert torch.equal(gradients[0], gradients[2]) != noisy


def test_map_pays_for_large_weights_and_mle_does_not(adapted, loss_of):
    model = adapted(Map(prior_precision=3.0))
    modules = module_tensors(model)
    normal = torch.distributions.Normal(0.0, 3.0**-0.5)
    log_prior = sum(normal.log_prob(m[n]).sum() for m in modules for n in ("down", "up"))
    at_zero = sum(normal.log_prob(0 * m[n]).sum() for m in modules for n in ("down", "up"))
    penalty = Map(prior_precision=3.0).penalty(modules)
    torch.testing.assert_close(penalty, at_zero - log_prior, rtol=1e-4, atol=1e-3)
    loss, plain = loss_of(Map(prior_precision=3.0), model), loss_of(Mle(), model)
    torch.testing.assert_close(loss.total, plain.total + penalty / 640)


def test_dalorra_pays_for_large_weights_where_they_have_a_prior(adapted):
    modules = module_tensors(adapted(Dalorra()))
    free, held = Dalorra(), Dalorra(prior_precision=3.0)
    paid = Map(prior_precision=3.0).penalty(modules)
    torch.testing.assert_close(held.penalty(modules), free.penalty(modules) + paid)
    assert "prior_precision" not in free.model_dump()  # records of the paper's method stay


def test_an_ensembles_members_learn_from_their_own_likelihood_alone(adapted, loss_of):
    """The gradient of member e is 1/E of that of a plain LoRA with its weights."""
    method = Ensemble(size=2)
    model = adapted(method, rank=4)
    loss_of(method, model).total.backward()
    for member in range(2):
        block = slice(2 * member, 2 * member + 2)
        single = adapted(Mle(), rank=2)
        layers = (stochastic_layers(part).values() for part in (single, model))
        pairs = list(zip(*layers, strict=True))
        with torch.no_grad():
            for one, both in pairs:
                one.down.copy_(both.down[block])
                one.up.copy_(both.up[:, block])
        loss_of(Mle(), single).total.backward()
        for one, both in pairs:
            torch.testing.assert_close(both.down.grad[block], one.down.grad / 2)
            torch.testing.assert_close(both.up.grad[:, block], one.up.grad / 2)


@pytest.mark.parametrize("scope", ["answer_tokens", "all_tokens"])
@pytest.mark.parametrize("kind", SERVED, ids=lambda kind: kind.key())
def test_a_trained_adapter_is_served_by_its_method(kind, scope, configure, no_figures):
    options = {"off": 1} if kind.key() == "random_mask" else {}
    path = configure(method={"name": kind.key(), **options}, adapter={"scope": scope})
    folder = train(path, overrides={"optimizer.steps": "4"})
    adapter = read_adapter(folder)
    assert adapter.manifest.method == kind.key()
    predictor = Predictor.load(folder, yaml.safe_load(path.read_text())["base_model"])
    (prediction,) = predictor.predict([predictor.encode("good")])
    assert prediction.samples == predictor.samples
    deterministic = kind.key() in ("mle", "map")
    assert (prediction.variance == 0.0) == deterministic
    assert math.isclose(sum(prediction.probabilities.values()), 1.0, rel_tol=1e-6)


def test_an_ensemble_has_the_rank_of_its_members(configure):
    config = read_config(configure(method={"name": "ensemble", "size": 3}))
    run = Run(config)
    layer = next(iter(stochastic_layers(run.model).values()))
    assert layer.down.shape[0] == 3 * config.adapter.rank
    assert layer.scale == config.adapter.alpha / config.adapter.rank
