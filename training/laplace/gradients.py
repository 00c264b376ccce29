"""Gradients of the label logits with respect to A and B, example by example.

For a linear map W x the gradient of an example is a sum over its rows, Σ_r g_r x_rᵀ: x_r is the
input on row r, g_r the gradient with respect to the output. With y = W₀ x + s B A x, s = α / r and
g = ∂/∂y:

    A:  x_r and s Bᵀ g_r        B:  A x_r and s g_r

so the inputs and the output gradients of each adapted module serve both. Only rows that the adapter
acts on are run: under `answer_tokens` the k cue rows, behind keys and values of the prompt that are
computed once.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from dalorra.adapter.layer import StochasticLoraLinear, StochasticPeftModel, stochastic_layers
from dalorra.forward.reference import answer_logits
from dalorra.forward.reference_rows import pack
from dalorra.posteriors.bank import MaskBank
from dalorra.posteriors.noise import RankNoise
from dalorra.prompts import Prompt, Scope
from training.attention import differentiable_attention
from training.prompt_cache import PromptCache

Seeds = Callable[[Tensor], Tensor]
"""Label logits `[B, K]` → C directions per example, `[C, B, K]`, along which to differentiate."""


@dataclass(frozen=True, slots=True, eq=False)
class WeightRows:
    """One weight W `[d_out, d_in]` under B examples of R rows.

    Attributes:
        inputs: `[B, R, d_in]` float32, x; zero where a row is padding.
        gradients: `[C, B, R, d_out]` float32, g, for each of C directions.
        valid: `[B, R]`, False where a row is padding.
    """

    inputs: Tensor
    gradients: Tensor
    valid: Tensor

    @property
    def jacobian(self) -> Tensor:
        """Σ_r g_r x_rᵀ, `[C, B, d_out, d_in]`."""
        return torch.einsum("cbro,bri->cboi", self.gradients, self.inputs)


class LabelGradients:
    """Differentiates the label logits of a trained adapter without noise.

    Args:
        model: the base with the adapter attached, in evaluation mode.
        label_ids: `[K]` token ids; of a head's B only these rows have a gradient.
        scope: rows that the adapter acts on.
        cache: keys and values of prompts, used under `answer_tokens`.
    """

    def __init__(
        self, model: StochasticPeftModel, label_ids: Tensor, scope: Scope, cache: PromptCache
    ) -> None:
        self.model = model
        self.label_ids = label_ids
        self.scope = scope
        self._cache = cache if scope == "answer_tokens" else None
        self._layers = list(stochastic_layers(model).values())
        head = cast(Any, model.get_base_model()).lm_head
        self._trunk = [layer for layer in self._layers if layer is not head]
        self._adapted_head = head if isinstance(head, StochasticLoraLinear) else None

    @property
    def weights(self) -> list[tuple[str, Tensor]]:
        """Name and values of every weight, in the order of `__call__`; a head's B by label rows."""
        named = stochastic_layers(self.model)
        found = []
        for name, layer in named.items():
            found += [(f"{name}.A", layer.down.detach()), (f"{name}.B", self._up(layer))]
        return found

    def rows(self, prompt: Prompt) -> int:
        """Rows of one prompt that are differentiated."""
        return len(prompt.cue_ids) if self._cache else prompt.tokens

    def __call__(
        self, prompts: Sequence[Prompt], seeds: Seeds
    ) -> tuple[Tensor, Iterator[WeightRows]]:
        """Logits, and the parts of their derivatives with respect to every weight.

        Args:
            prompts: B prompts with the same cue.
            seeds: which C combinations of the logits to differentiate.

        Returns:
            `[B, K]` float32, and A and B of every module, in model order.
        """
        packed = pack(prompts, range(1), self.scope).to(self.model.device)
        past = self._cache.past(self.model, prompts) if self._cache else None
        bank = _ListeningBank(torch.ones((1, len(self._layers), 1), device=self.model.device))
        base = cast(PreTrainedModel, self.model.get_base_model())
        with torch.enable_grad(), differentiable_attention(base), _outputs(self._trunk) as outputs:
            logits = answer_logits(self.model, packed, bank, self.label_ids, past)  # [B, 1, K]
            if self._adapted_head is not None:
                outputs.append(logits)
            directions = seeds(logits[:, 0].detach())  # [C, B, K]
            gradients = _gradients(logits, outputs, directions)
        inputs = [bank.inputs[index] for index in range(len(self._layers))]
        lengths = torch.tensor([self.rows(prompt) for prompt in prompts])
        return logits[:, 0].detach(), self._weight_rows(inputs, gradients, lengths)

    def _weight_rows(
        self, inputs: list[Tensor], gradients: list[list[Tensor]], lengths: Tensor
    ) -> Iterator[WeightRows]:
        for index, (layer, given) in enumerate(zip(self._layers, inputs, strict=True)):
            rows = given.shape[1]  # a head has the answer's row alone
            valid = torch.arange(rows) >= rows - lengths[:, None]  # padding is on the left
            valid = valid.to(given.device)
            x = given.float() * valid[..., None]
            g = layer.scale * torch.stack([each[index].float() for each in gradients])
            down, up = layer.down.detach().float(), self._up(layer).float()
            yield WeightRows(x, g @ up, valid)
            yield WeightRows(x @ down.T, g, valid)

    def _up(self, layer: StochasticLoraLinear) -> Tensor:
        up = layer.up.detach()
        return up[self.label_ids] if layer is self._adapted_head else up


def _gradients(logits: Tensor, outputs: list[Tensor], directions: Tensor) -> list[list[Tensor]]:
    """∂(direction · logits) / ∂ every output, for each of C directions: one backward each."""
    last = len(directions) - 1
    return [
        list(torch.autograd.grad(logits, outputs, direction[:, None], retain_graph=c < last))
        for c, direction in enumerate(directions)
    ]


@dataclass(frozen=True, eq=False)
class _ListeningBank(MaskBank):
    """The adapter without noise; keeps the inputs of each module's A, `[B, R, d_in]`."""

    inputs: dict[int, Tensor] = field(default_factory=dict)

    def noise(self, sample_index: Tensor) -> list[RankNoise]:
        def listening(index: int) -> RankNoise:
            def keep(activations: Tensor, inputs: Tensor) -> Tensor:
                self.inputs[index] = inputs.detach()
                return activations

            return keep

        return [listening(index) for index in range(self.masks.shape[1])]


@contextmanager
def _outputs(layers: Sequence[StochasticLoraLinear]) -> Iterator[list[Tensor]]:
    """The layers' outputs inside the block, differentiable even where their inputs are not."""
    collected: list[Tensor] = []

    def collect(_module: nn.Module, _args: Any, output: Tensor) -> None:
        collected.append(output if output.requires_grad else output.requires_grad_())

    with ExitStack() as stack:
        for layer in layers:
            stack.callback(layer.register_forward_hook(collect).remove)
        yield collected
