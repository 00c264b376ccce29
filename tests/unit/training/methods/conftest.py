from collections.abc import Callable

import pytest
import torch

from dalorra.adapter.layer import StochasticPeftModel, stochastic_layers
from dalorra.prompts import Scope
from tests.tiny import tiny_adapter, tiny_base, tiny_prompts
from training.methods import Dalorra, Method
from training.objective import Loss, Objective
from training.prompt_cache import PromptCache


@pytest.fixture
def adapted() -> Callable[..., StochasticPeftModel]:
    """`adapted(method)`: a tiny adapter with the method's tensors; options of `tiny_adapter`."""
    return lambda method, **options: tiny_adapter(tiny_base(), method.posterior(), **options)


@pytest.fixture
def beside_dalorra(adapted) -> Callable[..., tuple[StochasticPeftModel, StochasticPeftModel]]:
    """`beside_dalorra(method, tensor, value)`: its adapter with that tensor filled so, and DALorRA.

    Both have the same φ, A and B.
    """

    def make(
        method: Method, tensor: str, value: float = 0.0
    ) -> tuple[StochasticPeftModel, StochasticPeftModel]:
        nested, dalorra = adapted(method), adapted(Dalorra())
        layers = (stochastic_layers(model).values() for model in (nested, dalorra))
        with torch.no_grad():
            for one, other in zip(*layers, strict=True):
                one.posterior_tensor(tensor).fill_(value)
                for name in other.tensors:
                    one.tensors[name].copy_(other.tensors[name])
        return nested, dalorra

    return make


@pytest.fixture
def loss_of() -> Callable[..., Loss]:
    """`loss_of(method, model)`: that of four examples, of a training set of 640."""

    def compute(
        method: Method,
        model: StochasticPeftModel,
        seed: int = 0,
        scope: Scope = "answer_tokens",
        cache: PromptCache | None = None,
    ) -> Loss:
        objective = Objective(method, torch.tensor([20, 33]), scope, 640, cache)
        generator = torch.Generator().manual_seed(seed)
        return objective(model, tiny_prompts(tiny_base()), torch.tensor([0, 1, 1, 0]), generator)

    return compute
