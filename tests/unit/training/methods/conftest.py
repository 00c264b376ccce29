from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from dalorra.adapter.layer import StochasticPeftModel, stochastic_layers
from dalorra.forward.reference_rows import PackedRows, pack
from dalorra.prompts import Prompt, Scope
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


@dataclass(frozen=True)
class TwoExamples:
    """Of three tokens and of one, under S samples each, and of a layer and a head what they note.

    Attributes:
        rows: of their forward.
        shapes: `[sequences, rows]` of a layer and of the head, which reads the ends of cues alone.
    """

    scope: Scope
    samples: int

    @property
    def rows(self) -> PackedRows:
        prompts = [Prompt((11, 12, 13), (91, 92)), Prompt((21,), (91, 92))]
        return pack(prompts, torch.arange(2 * self.samples).view(2, self.samples), self.scope)

    @property
    def shapes(self) -> list[tuple[int, int]]:
        batch, length = self.rows.input_ids.shape
        return [(batch, length), (2, self.samples)]

    def paid(self, of_layer: Tensor, of_head: Tensor) -> float:
        """The mean over the rows that are paid for, and over the sequences; layer and head."""
        layer = [row[self._first(b) :].mean() for b, row in enumerate(of_layer)]
        return float(torch.stack(layer).mean() + of_head.mean(dim=1).mean())

    def _first(self, sequence: int) -> int:
        if self.scope == "answer_tokens":
            return 3
        return (0, 2)[sequence // self.samples]  # the shorter prompt has two rows of padding


@pytest.fixture(params=[1, 2])
def two_examples(request: pytest.FixtureRequest, scope: Scope) -> TwoExamples:
    """For tests with a parameter `scope`."""
    return TwoExamples(scope, request.param)
