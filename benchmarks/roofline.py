"""How near a plan comes to what the machine can do at best.

    python -m benchmarks.roofline --json benchmarks/results/forward.json

measures the machine's rate of bfloat16 products and its copy bandwidth, and adds to every line of
the JSON the work of its plan, the least time for it and the share of that in the time taken.

The work is that of the rows which a plan needs, padding left out, multiplications and additions
counted as two, attention by the pairs of query and key that see each other. No plan can take less
than

    max(work / rate, bytes of the weights it reads / bandwidth)
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from statistics import median
from time import perf_counter
from typing import Any, Self

import torch

from benchmarks.report import arguments, print_table, read_json, write_json

RANK = 8
LABELS = 2
COLUMNS = ("plan", "tokens", "batch", "gflop", "roofline_ms", "median_ms", "roofline_share")


@dataclass(frozen=True, slots=True)
class Shape:
    """Dimensions of a Llama with adapters of rank `RANK` on `q_proj`, `v_proj` and `lm_head`."""

    layers: int
    width: int
    heads: int
    kv_heads: int
    head_dim: int
    mlp: int
    vocabulary: int

    @classmethod
    def of(cls, config: Any) -> Self:
        """The shape of a transformers configuration."""
        return cls(
            layers=config.num_hidden_layers,
            width=config.hidden_size,
            heads=config.num_attention_heads,
            kv_heads=config.num_key_value_heads,
            head_dim=config.head_dim,
            mlp=config.intermediate_size,
            vocabulary=config.vocab_size,
        )

    @property
    def query(self) -> int:
        """Outputs of `q_proj`."""
        return self.heads * self.head_dim

    @property
    def kv(self) -> int:
        """Outputs of `k_proj`, and of `v_proj`."""
        return self.kv_heads * self.head_dim

    @property
    def layer_weights(self) -> int:
        """Weights of one layer's projections."""
        return self.width * (2 * self.query + 2 * self.kv + 3 * self.mlp)


SHAPES = {
    "default": Shape(30, 576, 9, 3, 64, 1536, 49_152),  # SmolLM2-135M
    "llama-3.1-8b": Shape(32, 4096, 32, 8, 128, 14_336, 128_256),
}


@dataclass(frozen=True, slots=True)
class Work:
    """What a plan computes and reads.

    Attributes:
        products: FLOP in projections, adapters and head.
        attention: FLOP in scores and averages of values.
        weights: numbers read from the frozen weights.
    """

    products: int
    attention: int
    weights: int

    @property
    def flop(self) -> int:
        """All of it."""
        return self.products + self.attention

    def times(self, count: int) -> Self:
        """One after the other."""
        return type(self)(self.products * count, self.attention * count, self.weights * count)


def work(
    plan: str, shape: Shape, *, batch: int, tokens: int, cue_tokens: int, samples: int
) -> Work:
    """What a plan of `benchmarks.forward` runs for B prompts of T tokens."""
    plan = {"recorded": "answer_tokens"}.get(plan, plan.removesuffix(" recorded"))
    if plan == "one sample":
        plan, samples = "answer_tokens", 1
    prompt, cues = tokens - cue_tokens, samples * cue_tokens
    causal = _triangle(tokens)
    packed = _triangle(prompt) + cues * prompt + samples * _triangle(cue_tokens)
    if plan in ("lora", "compiled", "loop"):
        once = _unmodified(shape, batch * tokens, batch * causal, batch, shape.vocabulary)
        return once.times(samples) if plan == "loop" else once
    if plan == "rows":
        batch *= samples
        return _unmodified(shape, batch * tokens, batch * causal, batch, shape.vocabulary)
    if plan == "unmodified packed":
        rows = batch * (prompt + cues)
        return _unmodified(shape, rows, batch * packed, batch * samples, LABELS)
    if plan == "answer_tokens":
        rows = batch * (prompt + cues)
        return _ours(shape, rows, rows, batch * cues, batch * packed, batch * samples, tokens)
    if plan == "all_tokens":
        rows = batch * samples * tokens
        pairs = batch * samples * causal
        return _ours(shape, batch * tokens, rows, rows, pairs, batch * samples, tokens)
    raise ValueError(f"no plan is called {plan!r}")


def _unmodified(shape: Shape, rows: int, pairs: int, head_rows: int, head_outputs: int) -> Work:
    """All rows through every layer of the transformers model, adapters apart."""
    adapters = _adapter(shape.width, shape.query) + _adapter(shape.width, shape.kv)
    products = rows * shape.layers * (shape.layer_weights + adapters)
    head = shape.width * head_outputs + _adapter(shape.width, head_outputs)
    return Work(
        products=2 * (products + head_rows * head),
        attention=4 * shape.query * shape.layers * pairs,
        weights=shape.layers * shape.layer_weights + shape.width * head_outputs,
    )


def _ours(
    shape: Shape, first_rows: int, rows: int, updated: int, pairs: int, ends: int, end_keys: int
) -> Work:
    """The layers of `PackedLlama`.

    Args:
        shape: of the base.
        first_rows: rows of the first layer's fused product and its A.
        rows: rows of everything else but the last layer's end.
        updated: rows that an adapter acts on.
        pairs: of query and key, in all layers but the last.
        ends: rows that end a cue.
        end_keys: keys that each of them sees.
    """
    d, q, kv, mlp = shape.width, shape.query, shape.kv, 3 * shape.width * shape.mlp
    first_updated = min(first_rows, updated)
    fused, down, up = d * (q + 2 * kv), 2 * RANK * d, 2 * RANK * (q + 2 * kv)
    first = first_rows * fused + first_updated * down + updated * up
    middle = (shape.layers - 2) * (rows * fused + updated * (down + up))
    after = (shape.layers - 1) * rows * (q * d + mlp)
    keys_values = rows * 2 * kv * d + updated * _adapter(d, 2 * kv)
    last = ends * (2 * q * d + _adapter(d, q) + mlp)
    head = ends * (d * LABELS + _adapter(d, LABELS))
    return Work(
        products=2 * (first + middle + after + keys_values + last + head),
        attention=4 * q * ((shape.layers - 1) * pairs + ends * end_keys),
        weights=shape.layers * shape.layer_weights + d * LABELS,
    )


def _adapter(inputs: int, outputs: int) -> int:
    return RANK * (inputs + outputs)


def _triangle(n: int) -> int:
    return n * (n + 1) // 2


@dataclass(frozen=True, slots=True)
class Machine:
    """What a device reaches at best.

    Attributes:
        matmul_tflops: 10¹² FLOP per second in a large bfloat16 product.
        copy_gb_per_s: 10⁹ bytes per second, read or written, in a large copy.
    """

    matmul_tflops: float
    copy_gb_per_s: float

    @classmethod
    def measure(cls, device: torch.device, repeats: int = 9) -> Self:
        """Medians on this device."""
        size = 8192 if device.type == "cuda" else 3072
        a = torch.randn(size, size).to(device, torch.bfloat16)
        source = torch.ones(2**28, dtype=torch.uint8, device=device)  # larger than any cache
        target = torch.empty_like(source)
        product = _seconds(lambda: a @ a, device, repeats)
        copy = _seconds(lambda: target.copy_(source), device, repeats)
        return cls(2 * size**3 / product / 1e12, 2 * source.nbytes / copy / 1e9)

    def least_ms(self, plan_work: Work) -> float:
        """No plan with this work can take less: all weights are read once, in two bytes each."""
        computing = plan_work.flop / (1e12 * self.matmul_tflops)
        reading = 2 * plan_work.weights / (1e9 * self.copy_gb_per_s)
        return 1e3 * max(computing, reading)


def _seconds(run: Callable[[], object], device: torch.device, repeats: int) -> float:
    def once() -> float:
        started = perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize()
        return perf_counter() - started

    once()
    return median(once() for _ in range(repeats))


def with_roofline(
    results: Iterable[Mapping[str, Any]], shape: Shape, machine: Machine
) -> list[dict[str, Any]]:
    """The lines of `benchmarks.forward` with the work of their plans beside the times."""
    lines = []
    for result in results:
        sizes = {name: result[name] for name in ("batch", "tokens", "cue_tokens", "samples")}
        least = machine.least_ms(plan_work := work(result["plan"], shape, **sizes))
        lines.append(
            {
                **result,
                "gflop": plan_work.flop / 1e9,
                "roofline_ms": least,
                "roofline_share": least / result["median_ms"],
                "matmul_tflops": machine.matmul_tflops,
                "copy_gb_per_s": machine.copy_gb_per_s,
            }
        )
    return lines


def main() -> None:
    """Measures the machine and adds it to an existing JSON."""
    parser = arguments(__doc__, "forward")
    options = parser.parse_args()
    results = read_json(options.json)
    device = torch.device("cuda" if "gpu" in results[0]["hardware"] else "cpu")
    machine = Machine.measure(device)
    results = with_roofline(results, SHAPES[results[0]["shape"]], machine)
    title = f"{machine.matmul_tflops:.3g} TFLOP/s, {machine.copy_gb_per_s:.3g} GB/s"
    print_table(title, results, COLUMNS)
    write_json(options.json, results)


if __name__ == "__main__":
    main()
