"""What a training step costs, against plain PEFT LoRA on the same examples.

    python -m benchmarks.training --json OUT

A step is forward, backward and AdamW update of one mini-batch. `answer_tokens` is measured with
its prompts' keys and values computed in the step (the first epoch) and taken from the cache (every
later one).
"""

import copy
import resource
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from torch import nn

from benchmarks.prompts import CUE, random_prompts
from benchmarks.report import arguments, interleaved, print_table, write_json
from dalorra.adapter.layer import attach, lora_config
from dalorra.base.model import load_base_model
from dalorra.posteriors import RankMasks
from dalorra.prompts import Prompt, Scope
from training.methods import Dalorra
from training.objective import Objective
from training.prompt_cache import PromptCache

MODULES = ["q_proj", "v_proj", "lm_head"]
LABELS = (5, 9)


def main() -> None:
    """Runs the benchmark and writes its JSON."""
    parser = arguments(__doc__, "training")
    parser.add_argument("--tokens", type=int, nargs="+", default=[40, 200])
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()

    base = load_base_model().model
    plain = get_peft_model(
        copy.deepcopy(base), LoraConfig(r=8, lora_alpha=16, target_modules=MODULES)
    )
    ours = attach(base, lora_config(8, 16, MODULES, "benchmark"), RankMasks())
    results = []
    for tokens in options.tokens:
        generator = torch.Generator().manual_seed(0)
        prompts = random_prompts([tokens - len(CUE)] * options.batch, generator)
        labels = torch.randint(0, 2, (options.batch,), generator=generator)
        ids = torch.tensor([[*p.prompt_ids, *p.cue_ids] for p in prompts], device=base.device)
        labels = labels.to(base.device)
        cache = PromptCache(1 << 30)
        cache.plan(ours, prompts, draws=1 << 30)
        contenders = {
            "PEFT LoRA": training_step(plain, partial(_plain_loss, plain, ids, labels)),
            "all_tokens": training_step(
                ours, objective_loss(ours, "all_tokens", prompts, labels, None)
            ),
            "answer_tokens, first epoch": training_step(
                ours, objective_loss(ours, "answer_tokens", prompts, labels, PromptCache(0))
            ),
            "answer_tokens, later epochs": training_step(
                ours, objective_loss(ours, "answer_tokens", prompts, labels, cache)
            ),
        }
        for plan, numbers in interleaved(contenders, options.repeats).items():
            results.append(
                {
                    "plan": plan,
                    "tokens": tokens,
                    "batch": options.batch,
                    "repeats": options.repeats,
                    "peak_mib": _peak_mib(contenders[plan]),
                    **numbers,
                }
            )
    print_table(
        "One training step",
        results,
        ("plan", "tokens", "batch", "median_ms", "ratio_to_single", "peak_mib"),
    )
    write_json(options.json, results)


def _plain_loss(model: Any, ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    logits = model(input_ids=ids, logits_to_keep=1).logits[:, -1, list(LABELS)]
    return F.cross_entropy(logits.float(), labels)


def objective_loss(
    model: Any, scope: Scope, prompts: list[Prompt], labels: torch.Tensor, cache: PromptCache | None
) -> Callable[[], torch.Tensor]:
    """Of DALorRA, on one mini-batch."""
    label_ids = torch.tensor(LABELS, device=model.device)
    objective = Objective(Dalorra(), label_ids, scope, 1000, cache)
    generator = torch.Generator().manual_seed(0)
    return lambda: objective(model, prompts, labels, generator).total


def training_step(model: nn.Module, loss: Callable[[], torch.Tensor]) -> Callable[[], object]:
    """Forward, backward and update of a model's trainable parameters."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-6)

    def step() -> None:
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
        if torch.cuda.is_available():
            torch.cuda.synchronize()

    return step


def _peak_mib(step: Callable[[], object]) -> float:
    """Peak memory while a step runs: of the GPU, or of the whole process so far on a CPU."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        step()
        return torch.cuda.max_memory_allocated() / 2**20
    step()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
