"""Laplace's approximation of a tiny adapter, and the same by dense matrices."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dalorra.adapter.layer import StochasticPeftModel, module_tensors, stochastic_layers
from dalorra.base.model import BaseModel
from dalorra.forward.reference import answer_logits
from dalorra.forward.reference_rows import pack
from dalorra.posteriors import Deterministic
from dalorra.prompts import Prompt, PromptFormat, PromptTokenizer, Scope
from tests.tiny import FORMAT, MODULES, tiny_adapter, tiny_base, tiny_prompts
from training.laplace import Curvature, LabelGradients
from training.laplace.curvature import KroneckerBlock
from training.prompt_cache import PromptCache

SCOPES: tuple[Scope, ...] = ("answer_tokens", "all_tokens")
THREE = FORMAT.model_copy(update={"labels": {**FORMAT.labels, "neutral": " neutral"}})


@dataclass(frozen=True)
class Setting:
    """A tiny adapter of plain LoRA, ragged prompts, and the gradients of its label logits."""

    base: BaseModel
    model: StochasticPeftModel
    prompts: list[Prompt]
    gradients: LabelGradients

    @property
    def probabilities(self) -> Tensor:
        """Of the labels, `[B, K]` float64."""
        return self.gradients(self.prompts, every_logit)[0].double().softmax(-1)

    @property
    def jacobian(self) -> Tensor:
        """Dense: `[B, K, P]` by autograd with respect to A and B, one prompt at a time."""
        ids, head = self.gradients.label_ids, list(stochastic_layers(self.model).values())[-1]
        parameters = [m[name] for m in module_tensors(self.model) for name in ("down", "up")]
        for parameter in parameters:
            parameter.requires_grad_()
        found = []
        for prompt in self.prompts:
            for logit in self.logits([prompt])[0]:
                parts = list(torch.autograd.grad(logit, parameters, retain_graph=True))
                if head.up is parameters[-1] and len(head.up) == self.model.config.vocab_size:
                    parts[-1] = parts[-1][ids]
                found.append(torch.cat([part.flatten() for part in parts]).double())
        return torch.stack(found).view(len(self.prompts), len(ids), -1)

    @property
    def hessian(self) -> Tensor:
        """Of −log p with respect to the logits: diag(p) − p pᵀ, `[B, K, K]`."""
        p = self.probabilities
        return torch.diag_embed(p) - p[:, :, None] * p[:, None, :]

    def logits(self, prompts: Sequence[Prompt]) -> Tensor:
        """Of the labels, `[B, K]`, by the reference forward."""
        bank = Deterministic().mean(module_tensors(self.model))
        rows = pack(prompts, range(1), self.gradients.scope)
        return answer_logits(self.model, rows, bank, self.gradients.label_ids)[:, 0]


def setting(
    scope: Scope, modules: Sequence[str] = MODULES, prompt: PromptFormat = THREE
) -> Setting:
    base = tiny_base()
    model = tiny_adapter(base, Deterministic(), rank=2, modules=modules)
    label_ids = torch.tensor(PromptTokenizer(base.tokenizer, prompt).label_ids)
    gradients = LabelGradients(model, label_ids, scope, PromptCache(2**30))
    return Setting(base, model, tiny_prompts(base), gradients)


def every_logit(logits: Tensor) -> Tensor:
    """Directions that are the logits themselves."""
    return torch.eye(logits.shape[1])[:, None].expand(-1, len(logits), -1)


def matrix(block: KroneckerBlock) -> Tensor:
    """The block as a dense matrix, in the order of a row-major weight."""
    sides = [
        (v.double() * s.double()) @ v.double().T
        for v, s in ((block.out_vectors, block.out_values), (block.in_vectors, block.in_values))
    ]
    return torch.kron(*sides)


def dense(curvature: Curvature) -> Tensor:
    """All blocks as one matrix."""
    return torch.block_diag(*[matrix(block) for block in curvature.blocks.values()])
