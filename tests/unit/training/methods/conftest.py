from collections.abc import Callable

import pytest
import torch

from dalorra.adapter.layer import StochasticPeftModel
from dalorra.prompts import Scope
from tests.tiny import tiny_adapter, tiny_base, tiny_prompts
from training.methods import Method
from training.objective import Loss, Objective
from training.prompt_cache import PromptCache


@pytest.fixture
def adapted() -> Callable[..., StochasticPeftModel]:
    """`adapted(method)`: a tiny adapter with the method's tensors; options of `tiny_adapter`."""
    return lambda method, **options: tiny_adapter(tiny_base(), method.posterior(), **options)


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
