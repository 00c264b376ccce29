"""What each method costs, in units of plain LoRA: parameters, training step, memory, evaluation.

    python -m benchmarks.methods --json OUT

The form of DALorRA's Tables 2 and 6. One training step is forward, backward and AdamW update of a
mini-batch, its prompts' keys and values in memory (`answer_tokens`) or recomputed with the rest
(`all_tokens`); memory is what the step keeps for its backward; one evaluation is the packed forward
of a batch under the method's bank, for Laplace the differentiated pass of its linearisation. What a
method fits after training, TFB's scale and Laplace's curvature, is there when it is evaluated, and
is no part of the step. Contenders take turns.
"""

import argparse
import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.prompts import CUE, random_prompts
from benchmarks.report import arguments, interleaved, print_table, write_json
from dalorra.adapter.layer import attach, lora_config, low_rank_updates, module_tensors
from dalorra.base.model import load_base_model
from dalorra.forward.llama.base import ArrangedLlama
from dalorra.forward.llama.network import PackedLlama
from dalorra.posteriors import POSTERIORS, ColumnSpaceNoise
from dalorra.posteriors.bank import BankSpec
from dalorra.prompts import Prompt, Scope
from training.laplace import LabelGradients, fit_curvature
from training.laplace.curvature import along_contrasts
from training.methods import METHODS, Method
from training.methods.laplace import Laplace
from training.objective import Objective
from training.prompt_cache import PromptCache

MODULES = ["q_proj", "v_proj", "lm_head"]
LABELS = torch.tensor([5, 9])
UNIT = "mle"
_TFB_SCALE = 0.005  # any but 0 takes the same time


def main() -> None:
    """Runs the benchmark and writes its JSON."""
    parser = arguments(__doc__, "methods")
    parser.add_argument("--tokens", type=int, default=40)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--samples", type=int, default=10)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--scopes", nargs="+", default=["answer_tokens", "all_tokens"])
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()

    base = load_base_model().model
    arranged = ArrangedLlama(base)
    prompts, labels = _examples(options.tokens, options.batch)
    results = []
    for scope in options.scopes:
        contenders = {
            kind.key(): Contender(kind(), base, arranged, prompts, labels, scope, options)
            for kind in kinds()
        }
        steps = interleaved({n: c.step for n, c in contenders.items()}, options.repeats)
        answers = interleaved({n: c.answer for n, c in contenders.items()}, options.repeats)
        for name, contender in contenders.items():
            cost = contender.cost(contenders[UNIT], steps[name], answers[name])
            results.append({"method": name, "scope": scope, "repeats": options.repeats, **cost})
    print_table(
        "Cost of each method",
        results,
        ("method", "scope", "trainable", "extra", "step_ratio", "kept_ratio", "evaluation_ratio"),
    )
    write_json(options.json, results)


def kinds() -> list[type[Method]]:
    """Methods that are trained by gradient steps, plain LoRA first."""
    found = [kind for kind in METHODS if kind.key() in POSTERIORS]
    return sorted(found, key=lambda kind: kind.key() != UNIT)


class Contender:
    """One method's training step and evaluation on the same examples."""

    def __init__(
        self,
        method: Method,
        base: nn.Module,
        arranged: ArrangedLlama,
        prompts: list[Prompt],
        labels: Tensor,
        scope: Scope,
        options: argparse.Namespace,
    ) -> None:
        self._prompts, self._rank = prompts, options.rank
        rank = options.rank * method.adapters
        weights: dict[int, Any] = {id(p): p for p in base.parameters()}
        model = copy.deepcopy(base, weights)  # its own modules, everybody's weights
        config = lora_config(rank, 2.0 * rank, MODULES, "benchmark")
        self.model = attach(model, config, method.posterior())
        parameters = [p for p in self.model.parameters() if p.requires_grad]
        self.trainable = sum(p.numel() for p in parameters)
        cache = PromptCache(1 << 30)
        if scope == "answer_tokens":
            cache.plan(self.model, prompts, 100 * len(prompts))
        objective = Objective(method, LABELS, scope, 1000, cache)
        optimizer = torch.optim.AdamW(parameters, lr=1e-6)
        self.loss: Callable[[], Tensor] = lambda: (
            objective(self.model, prompts, labels, torch.Generator().manual_seed(0)).total
        )

        def step() -> None:
            optimizer.zero_grad()
            self.loss().backward()
            optimizer.step()

        self.step = step
        self.fitted = 0  # numbers that are kept beside A and B, but not trained
        posterior = method.posterior()
        if isinstance(posterior, ColumnSpaceNoise):
            posterior = ColumnSpaceNoise(scale=_TFB_SCALE)
        self.bank = posterior.bank(module_tensors(self.model), BankSpec(samples=options.samples))
        updates = low_rank_updates(self.model)
        network = PackedLlama(arranged, updates, LABELS, self.bank, scope)
        samples = range(self.bank.samples)
        self.answer: Callable[[], object] = lambda: network.label_logits(prompts, samples)
        if isinstance(method, Laplace):
            self._linearise(prompts, scope)

    def _linearise(self, prompts: list[Prompt], scope: Scope) -> None:
        """Answers as `LaplacePredictor` does: Jacobian of the logits, and their covariance."""
        gradients = LabelGradients(self.model.eval(), LABELS, scope, PromptCache(0))
        curvature = fit_curvature(gradients, prompts)
        blocks = curvature.blocks.values()
        self.fitted = sum(b.out_vectors.numel() + b.in_vectors.numel() for b in blocks)

        def answer() -> Tensor:
            _, weights = gradients(prompts, along_contrasts)
            return curvature.covariance(weights, precision=1.0)

        self.answer = answer

    def cost(
        self, unit: "Contender", steps: Mapping[str, float], answers: Mapping[str, float]
    ) -> dict[str, Any]:
        """What it takes, beside plain LoRA.

        Args:
            unit: plain LoRA.
            steps: times of its training step, see `interleaved`.
            answers: times of its evaluation.
        """
        return {
            "tokens": self._prompts[0].tokens,
            "batch": len(self._prompts),
            "samples": self.bank.samples,
            "rank": self._rank,
            "trainable": self.trainable,
            "extra": self.trainable - unit.trainable + self.fitted,
            "step_ms": steps["median_ms"],
            "step_ratio": steps["ratio_to_single"],
            "kept_mib": self.kept_mib(),
            "kept_ratio": self.kept_mib() / unit.kept_mib(),
            "evaluation_ms": answers["median_ms"],
            "evaluation_ratio": answers["ratio_to_single"],
        }

    def kept_mib(self) -> float:
        """Memory of the tensors that a step keeps for its backward, weights left out."""
        weights = {p.untyped_storage().data_ptr() for p in self.model.parameters()}
        kept: dict[int, int] = {}

        def keep(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in weights:
                kept[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss = self.loss()
        del loss
        return sum(kept.values()) / 2**20


def _examples(tokens: int, batch: int) -> tuple[list[Prompt], Tensor]:
    generator = torch.Generator().manual_seed(0)
    prompts = random_prompts([tokens - len(CUE)] * batch, generator)
    return prompts, torch.randint(0, 2, (batch,), generator=generator)


if __name__ == "__main__":
    main()
