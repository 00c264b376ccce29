"""The ways to get M sampled passes that `benchmarks.forward` compares."""

import copy
from collections.abc import Callable
from typing import Any, cast, get_args

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from benchmarks.roofline import SHAPES
from dalorra.adapter.layer import (
    StochasticPeftModel,
    attach,
    lora_config,
    low_rank_updates,
    mask_logits,
)
from dalorra.forward.batches import DEFAULT_ROW_BUDGET, Batching, packed_row_count
from dalorra.forward.llama.base import ArrangedLlama
from dalorra.forward.llama.network import PackedLlama
from dalorra.forward.llama.recorded import CudaGraphs, RecordedNetwork, capture, row_step
from dalorra.forward.reference import answer_logits
from dalorra.forward.reference_rows import pack
from dalorra.labels import Labels
from dalorra.posteriors import RankMasks
from dalorra.posteriors.bank import BankSpec, MaskBank
from dalorra.prompts import Prompt, Scope

MODULES = ["q_proj", "v_proj", "lm_head"]
PLANS = {
    "lora": "one plain LoRA pass",
    "answer_tokens": "ours, answer_tokens",
    "one sample": "ours, one sample alone",
    "all_tokens": "ours, all_tokens",
    "unmodified packed": "answer_tokens rows, unmodified model",
    "loop": "PEFT, loop of M",
    "rows": "PEFT, M rows",
}
ON_GPU = {
    "recorded": "ours, answer_tokens, CUDA graph",
    "one sample recorded": "ours, one sample alone, CUDA graph",
    "lora recorded": "one plain LoRA pass, CUDA graph",
}
ON_REQUEST = {"compiled": "one plain LoRA pass, compiled"}


class Contenders:
    """Every plan on one base model and one set of adapter values."""

    def __init__(self, base: PreTrainedModel, samples: int) -> None:
        self.samples = samples
        self.device = base.device
        self.vocabulary = int(base.config.vocab_size)
        plain = get_peft_model(
            copy.deepcopy(base),
            LoraConfig(r=8, lora_alpha=16, target_modules=MODULES),
            autocast_adapter_dtype=False,
        ).eval()
        self.plain: Any = plain
        self.model: StochasticPeftModel = attach(
            base, lora_config(8, 16, MODULES, "benchmark"), RankMasks()
        )
        _same_values(self.plain, self.model)
        self.model.eval()
        self.bank = MaskBank.draw(mask_logits(self.model).detach(), BankSpec(samples=samples))
        self.labels = torch.tensor([5, 9], device=self.device)
        self.arranged = ArrangedLlama(base)
        self.networks = {scope: self.network(self.labels, scope) for scope in get_args(Scope)}
        self.batching = Batching.on(self.device, pads=False, budget=DEFAULT_ROW_BUDGET)
        self.step = row_step(self.arranged.layer_weights)
        self.recorded = RecordedNetwork(
            self.networks["answer_tokens"], CudaGraphs(), self.device, self.step
        )

    def network(
        self, labels: Labels, scope: Scope, class_head: nn.Linear | None = None
    ) -> PackedLlama:
        """Ours, with other labels."""
        updates = low_rank_updates(self.model)
        return PackedLlama(self.arranged, updates, labels, self.bank, scope, class_head)

    def on(self, prompts: list[Prompt], plans: list[str]) -> dict[str, Callable[[], object]]:
        """The chosen plans as functions without arguments, the unit first."""
        ids = torch.tensor([[*p.prompt_ids, *p.cue_ids] for p in prompts], device=self.device)
        samples = range(self.samples)

        def recorded(samples: range) -> Callable[[], object]:
            if self.device.type == "cuda":
                self.recorded.record(prompts, samples)
            return self.synchronised(lambda: self.recorded.answers(prompts, samples))

        def unmodified() -> Tensor:
            rows = pack(prompts, samples, "answer_tokens").to(self.device)
            return answer_logits(self.model, rows, self.bank, self.labels)

        every: dict[str, Callable[[], object]] = {
            "lora": self.plain_pass(prompts),
            "answer_tokens": self.ours(self.networks["answer_tokens"], prompts, samples),
            "one sample": self.ours(self.networks["answer_tokens"], prompts, range(1)),
            "all_tokens": self.ours(self.networks["all_tokens"], prompts, samples),
            "unmodified packed": self.synchronised(torch.inference_mode()(unmodified)),
            "loop": self.synchronised(lambda: [self._plain_pass(ids) for _ in samples]),
            "rows": self.synchronised(lambda: self._plain_pass(ids.repeat(self.samples, 1))),
            "recorded": recorded(samples),
            "one sample recorded": recorded(range(1)),
        }
        if "compiled" in plans:
            every["compiled"] = self.synchronised(self._compiled(ids))
        if "lora recorded" in plans:
            every["lora recorded"] = self.synchronised(self._graph(ids))
        return {name: every[name] for name in plans}

    def plain_pass(self, prompts: list[Prompt]) -> Callable[[], object]:
        """One plain LoRA pass over prompts of one length."""
        ids = torch.tensor([[*p.prompt_ids, *p.cue_ids] for p in prompts], device=self.device)
        return self.synchronised(lambda: self._plain_pass(ids))

    def ours(
        self, network: PackedLlama, prompts: list[Prompt], samples: range
    ) -> Callable[[], object]:
        """In the forwards that a predictor would have."""
        budget = self.batching.budget
        rows = [packed_row_count(prompt, len(samples), network.scope) for prompt in prompts]

        def run() -> None:
            for places in self.batching.forwards(rows):
                if rows[places[0]] > budget:
                    network.in_pieces(prompts[places[0]], samples, budget)
                else:
                    network.label_logits([prompts[i] for i in places], samples)

        return self.synchronised(run)

    @torch.inference_mode()
    def _plain_pass(self, ids: Tensor) -> Tensor:
        return _last_logits(self.plain, ids)

    def _compiled(self, ids: Tensor) -> Callable[[], object]:
        """A plain pass of this shape, its weights frozen into the code."""
        plain = torch.compile(self.plain, dynamic=False, options={"freezing": True})

        @torch.no_grad()  # frozen weights exclude inference mode
        def run() -> Tensor:
            return _last_logits(plain, ids)

        run()
        return run

    def _graph(self, ids: Tensor) -> Callable[[], object]:
        """A plain pass of this shape as a CUDA graph, for the ids as they are."""
        graph, _ = capture(lambda: self._plain_pass(ids))
        return graph.replay

    def synchronised(self, run: Callable[[], object]) -> Callable[[], object]:
        """It, and the wait for a GPU to have done it."""

        def timed() -> object:
            result = run()
            if self.device.type == "cuda":
                torch.cuda.synchronize()
            return result

        return timed


def _last_logits(model: Any, ids: Tensor) -> Tensor:
    logits: Tensor = model(input_ids=ids, logits_to_keep=1, use_cache=False).logits
    return logits


def _same_values(plain: nn.Module, ours: nn.Module) -> None:
    """Random B in both, A copied."""
    generator = torch.Generator().manual_seed(1)
    target = dict(plain.named_parameters())
    with torch.no_grad():
        for name, parameter in ours.named_parameters():
            if "lora_B" in name:
                values = 0.02 * torch.randn(parameter.shape, generator=generator)
                parameter.copy_(values.to(torch.bfloat16))
            if "lora_A" in name or "lora_B" in name:
                target[name].copy_(parameter)


def llama_8b() -> PreTrainedModel:
    """Llama-3.1-8B's shape with random weights, on the GPU where there is one."""
    shape = SHAPES["llama-3.1-8b"]
    config = LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.width,
        intermediate_size=shape.mlp,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        rope_parameters={"rope_type": "default", "rope_theta": 500_000.0},
        dtype=torch.bfloat16,
    )
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with device:
        torch.set_default_dtype(torch.bfloat16)
        model = LlamaForCausalLM(config)
        torch.set_default_dtype(torch.float32)
    model.eval().requires_grad_(requires_grad=False)
    return cast(PreTrainedModel, model)
