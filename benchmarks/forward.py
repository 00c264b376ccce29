"""What M sampled passes cost, in units of one plain LoRA pass.

    python -m benchmarks.forward --tokens 40 100 200 300 --samples 10 --batch 1 8 --json OUT

Contenders, in turn on the same prompts: one pass of a plain PEFT LoRA with
`logits_to_keep=1` (the unit); ours, packed, for `answer_tokens` and `all_tokens`, in forwards of
at most as many rows as the server puts into one; one sample of it, which is what a plain pass
would cost in our arrangement of the model; the `answer_tokens` rows through the unmodified model;
PEFT in a loop of M, as published implementations do it; and M rows of the batch through PEFT; on a
GPU ours recorded as a CUDA graph, too. `--plans` adds a plain pass compiled by TorchInductor for
each shape, which takes a C++ compiler and about a minute a shape.
`--shape llama-3.1-8b` builds that shape with random weights, for a GPU.
"""

import argparse
import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import torch
from matplotlib.figure import Figure
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from benchmarks.report import (
    interleaved,
    legend_below,
    print_table,
    read_json,
    save_figure,
    write_json,
)
from benchmarks.roofline import COLUMNS, SHAPES, Machine, Shape, with_roofline
from dalorra.bank import BankSpec, MaskBank
from dalorra.base_model import load_base_model
from dalorra.forward import answer_logits
from dalorra.grouping import DEFAULT_ROW_BUDGET, forward_rows, forwards
from dalorra.packed_llama import PackedLlama
from dalorra.packing import Scope, pack
from dalorra.posteriors import RankMasks
from dalorra.prompts import Prompt
from dalorra.recorded_network import CudaGraphs, RecordedNetwork
from dalorra.stochastic_lora import StochasticPeftModel, attach, lora_config, mask_logits

MODULES = ["q_proj", "v_proj", "lm_head"]
SLOW_ABOVE = 400  # tokens · batch: the loop over M is then timed fewer times
PLANS = {
    "lora": "one plain LoRA pass",
    "answer_tokens": "ours, answer_tokens",
    "one sample": "ours, one sample alone",
    "all_tokens": "ours, all_tokens",
    "unmodified packed": "answer_tokens rows, unmodified model",
    "loop": "PEFT, loop of M",
    "rows": "PEFT, M rows",
}
ON_GPU = {"recorded": "ours, answer_tokens, CUDA graph"}
ON_REQUEST = {"compiled": "one plain LoRA pass, compiled"}
COLOURS = {
    "lora": "#666666",
    "answer_tokens": "#D55E00",
    "one sample": "#CC79A7",
    "all_tokens": "#0072B2",
    "unmodified packed": "#E69F00",
    "loop": "#999999",
    "rows": "#56B4E9",
    "recorded": "#009E73",
    "compiled": "#000000",
}


class Contenders:
    """Every plan on one base model and one set of adapter values."""

    def __init__(self, base: PreTrainedModel, samples: int) -> None:
        self.samples = samples
        self.device = base.device
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
        self.network = PackedLlama.of(self.model, self.labels)
        self.recorded = RecordedNetwork(self.network, CudaGraphs(), self.device)

    def on(self, prompts: list[Prompt], plans: list[str]) -> dict[str, Callable[[], object]]:
        """The chosen plans as functions without arguments, the unit first."""
        ids = torch.tensor([[*p.prompt_ids, *p.cue_ids] for p in prompts], device=self.device)
        members = range(self.samples)

        def ours(scope: Scope, members: range) -> Callable[[], object]:
            price = forward_rows(self.device)
            return self._synchronised(
                lambda: [
                    self.network.label_logits([prompts[i] for i in group], part, self.bank, scope)
                    for group, parts in forwards(prompts, members, scope, DEFAULT_ROW_BUDGET, price)
                    for part in parts
                ]
            )

        def unmodified() -> Tensor:
            rows = pack(prompts, members, "answer_tokens").to(self.device)
            return answer_logits(self.model, rows, self.bank, self.labels)

        every: dict[str, Callable[[], object]] = {
            "lora": self._synchronised(lambda: self._plain_pass(ids)),
            "answer_tokens": ours("answer_tokens", members),
            "one sample": ours("answer_tokens", range(1)),
            "all_tokens": ours("all_tokens", members),
            "unmodified packed": self._synchronised(torch.inference_mode()(unmodified)),
            "loop": self._synchronised(lambda: [self._plain_pass(ids) for _ in members]),
            "rows": self._synchronised(lambda: self._plain_pass(ids.repeat(self.samples, 1))),
            "recorded": self._synchronised(
                lambda: self.recorded.answers(prompts, members, self.bank, "answer_tokens")
            ),
        }
        if "compiled" in plans:
            every["compiled"] = self._synchronised(self._compiled(ids))
        return {name: every[name] for name in plans}

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

    def _synchronised(self, run: Callable[[], object]) -> Callable[[], object]:
        def timed() -> object:
            result = run()
            if self.device.type == "cuda":
                torch.cuda.synchronize()
            return result

        return timed


def _last_logits(model: Any, ids: Tensor) -> Tensor:
    logits: Tensor = model(input_ids=ids, logits_to_keep=1, use_cache=False).logits
    return logits


def main() -> None:
    """Runs the benchmark and writes its JSON and figure."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--tokens", type=int, nargs="+", default=[40, 100, 200, 300])
    parser.add_argument("--cue-tokens", type=int, default=4)
    parser.add_argument("--samples", type=int, default=10)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--repeats", type=int, default=9)
    known = PLANS | ON_GPU if torch.cuda.is_available() else PLANS
    parser.add_argument("--plans", nargs="+", choices=known | ON_REQUEST, default=list(known))
    parser.add_argument("--shape", choices=["default", "llama-3.1-8b"], default="default")
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/forward.json"))
    parser.add_argument(
        "--render", action="store_true", help="draw the JSON again, measure nothing"
    )
    options = parser.parse_args()
    if options.render:
        _figure(read_json(options.json), options.json.with_suffix(".png"))
        return

    base = load_base_model().model if options.shape == "default" else _llama_8b()
    contenders = Contenders(base, options.samples)
    plans = ["lora", *(plan for plan in options.plans if plan != "lora")]
    machine = Machine.measure(contenders.device)
    results = list(_measure(contenders, plans, options))
    results = with_roofline(results, Shape.of(base.config), machine)
    print_table(
        f"M = {options.samples} samples, {machine.matmul_tflops:.3g} TFLOP/s, "
        f"{machine.copy_gb_per_s:.3g} GB/s",
        results,
        (*COLUMNS, "ratio_to_single"),
    )
    write_json(options.json, results)
    _figure(results, options.json.with_suffix(".png"))


def _measure(
    contenders: Contenders, plans: list[str], options: argparse.Namespace
) -> Iterator[dict[str, Any]]:
    generator = torch.Generator().manual_seed(0)
    for batch in options.batch:
        for tokens in options.tokens:
            prompts = [
                Prompt(
                    tuple(
                        torch.randint(
                            100, 20_000, (tokens - options.cue_tokens,), generator=generator
                        ).tolist()
                    ),
                    tuple(range(100, 100 + options.cue_tokens)),
                )
                for _ in range(batch)
            ]
            quick = tokens * batch <= SLOW_ABOVE
            repeats = options.repeats if quick else max(options.repeats // 2, 3)
            timed = interleaved(contenders.on(prompts, plans), repeats, warm_up=1)
            for plan, numbers in timed.items():
                yield {
                    "plan": plan,
                    "tokens": tokens,
                    "cue_tokens": options.cue_tokens,
                    "samples": options.samples,
                    "batch": batch,
                    "repeats": repeats,
                    "shape": options.shape,
                    "dtype": str(contenders.model.get_base_model().dtype),
                    **numbers,
                }


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


def _llama_8b() -> PreTrainedModel:
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


def _figure(results: list[dict[str, Any]], path: Path) -> None:
    batches = sorted({r["batch"] for r in results})
    figure = Figure(figsize=(4.4 * len(batches), 3.6), layout="constrained")
    names = PLANS | ON_GPU | ON_REQUEST
    for axes, batch in zip(
        figure.subplots(1, len(batches), squeeze=False)[0], batches, strict=True
    ):
        for plan, name in names.items():
            own = [r for r in results if r["plan"] == plan and r["batch"] == batch]
            if own:
                axes.plot(
                    [r["tokens"] for r in own],
                    [r["ratio_to_single"] for r in own],
                    color=COLOURS[plan],
                    marker="o",
                    markersize=4,
                    label=name,
                )
        axes.set(xlabel="tokens of the prompt", title=f"batch {batch}", yscale="log")
        axes.set_yticks([0.2, 0.5, 1, 2, 5, 10], ["0.2×", "0.5×", "1×", "2×", "5×", "10×"])
        axes.minorticks_off()
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color="#E6E6E6", linewidth=0.6)
    figure.axes[0].set_ylabel("time, in plain LoRA passes")
    legend_below(figure)
    save_figure(figure, path)


if __name__ == "__main__":
    main()
