"""Attention on a CPU: PyTorch's fused kernel against plain products.

    python -m benchmarks.attention --json OUT

`forward.llama.attention` takes the first with AMX and the second without, for a prompt's rows,
causal, and those of a four-token cue under ten samples, masked. Nine heads share three key heads,
as in SmolLM2-135M. `--backward` times a forward and a backward.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.report import arguments, interleaved, print_table, write_json
from dalorra.forward.llama.attention import causal_by_products, grouped_attention

HEADS, KV_HEADS, WIDTH, CUES = 9, 3, 64, 40
COLUMNS = ("dtype", "rows", "batch", "tokens", "plan", "median_ms", "ratio_to_single")


def main() -> None:
    """Runs the comparison and writes its JSON."""
    parser = arguments(__doc__, "attention")
    parser.add_argument("--tokens", type=int, nargs="+", default=[40, 100, 200, 300])
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--backward", action="store_true")
    options = parser.parse_args()
    results = []
    for dtype in (torch.bfloat16, torch.float32):
        for batch in options.batch:
            for tokens in options.tokens:
                for rows, plans in contenders(batch, tokens, dtype, options.backward).items():
                    for plan, numbers in interleaved(plans, options.repeats, warm_up=2).items():
                        sizes = {"dtype": str(dtype), "rows": rows, "batch": batch}
                        results.append({**sizes, "tokens": tokens, "plan": plan, **numbers})
    print_table("Attention", results, COLUMNS)
    write_json(options.json, results)


def contenders(
    batch: int, tokens: int, dtype: torch.dtype, backward: bool
) -> dict[str, dict[str, Callable[[], Tensor]]]:
    """Kind of rows → plan → what computes them, plain products first."""
    query, key, value, cue_query, cue_key, cue_value = (
        torch.randn(batch, heads, rows, WIDTH).to(dtype).requires_grad_(backward)
        for rows in (tokens, tokens + CUES)
        for heads in (HEADS, KV_HEADS, KV_HEADS)
    )
    cue_query = cue_query[:, :, tokens:]
    visible = torch.ones((1, 1, CUES, tokens + CUES), dtype=torch.bool).tril(tokens)
    fused = F.scaled_dot_product_attention
    plans: dict[str, dict[str, Callable[[], Tensor]]] = {
        "causal": {
            "products": lambda: causal_by_products(query, key, value),
            "fused": lambda: fused(query, key, value, is_causal=True, enable_gqa=True),
        },
        "cues": {
            "products": lambda: grouped_attention(cue_query, cue_key, cue_value, visible),
            "fused": lambda: fused(cue_query, cue_key, cue_value, visible, enable_gqa=True),
        },
    }

    def timed(run: Callable[[], Tensor]) -> Callable[[], Tensor]:
        def once() -> Tensor:
            with torch.inference_mode(not backward):
                out = run()
                if backward:
                    out.sum().backward()  # type: ignore[no-untyped-call]
            return out

        return once

    return {rows: {plan: timed(run) for plan, run in both.items()} for rows, both in plans.items()}


if __name__ == "__main__":
    main()
