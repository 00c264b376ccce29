"""Attention of joined prompts and their cues on a GPU: spread out, or by segments.

    python -m benchmarks.joined_attention --json OUT

One layer of Llama-3.1-8B's heads, from fused query, key and value of all rows to attended rows,
with a four-token cue under ten samples after each prompt, prompts of half to all of T tokens:

- spread: `dalorra.forward.llama.layout`, PyTorch's fused attention in padded slots, and back;
- varlen: flash attention by segments, each row with its own prompt or cue, and the cue rows with
  their prompts once more; the two parts of a cue row are weighted by their sums of exponentials.

All run as CUDA graphs of 16 layers, masks and segments made once before; results are compared.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.report import arguments, interleaved, print_table, write_json
from dalorra.forward.llama.attention import causal_attention, masked_attention
from dalorra.forward.llama.layout import lay_out_cues
from dalorra.forward.llama.recorded import capture
from dalorra.forward.llama.staging import StagedPrompts

HEADS, KV_HEADS, WIDTH = 32, 8, 128
CUE, SAMPLES, LAYERS = 4, 10, 16
CUES = CUE * SAMPLES
COLUMNS = ("batch", "tokens", "rows", "plan", "median_ms", "ratio_to_single", "error")


@dataclass(frozen=True)
class Rows:
    """Joined rows: prompts one after the other, then the cues of each.

    Attributes:
        qkv: `[N + B · M·k, heads + 2 kv_heads, head_dim]`.
        lengths: `[B]`.
    """

    qkv: Tensor
    lengths: Tensor

    @classmethod
    def random(cls, batch: int, tokens: int) -> "Rows":
        """Reproducible ones."""
        generator = torch.Generator().manual_seed(0)
        lengths = torch.randint(tokens // 2, tokens + 1, (batch,), generator=generator)
        shape = (int(lengths.sum()) + batch * CUES, HEADS + 2 * KV_HEADS, WIDTH)
        qkv = torch.randn(shape, generator=generator)
        return cls(qkv.to("cuda", torch.bfloat16), lengths.cuda())

    def parts(self) -> tuple[Tensor, Tensor, Tensor]:
        """Query, key and value."""
        return self.qkv.split([HEADS, KV_HEADS, KV_HEADS], dim=1)

    @property
    def prompt_rows(self) -> int:
        """N."""
        return len(self.qkv) - len(self.lengths) * CUES


def spread(rows: Rows) -> Callable[[], Tensor]:
    """As `dalorra.forward.llama.network` does it."""
    longest, like = int(rows.lengths.max()), rows.qkv
    prompts = StagedPrompts(
        ids=rows.lengths.new_zeros(1, rows.prompt_rows),
        lengths=rows.lengths,
        known=torch.zeros_like(rows.lengths),
        cue_ids=rows.lengths.new_zeros(CUE),
        longest=longest,
        joined=True,
    )
    unturned = like.new_ones(1), like.new_zeros(1)  # cos and sin; nothing is rotated here
    layout = lay_out_cues(prompts, SAMPLES, 0, lambda _: unturned)

    def run() -> Tensor:
        heads = layout.spread(like.flatten(1)[None]).unflatten(-1, (-1, WIDTH)).transpose(1, 2)
        query, key, value = heads.split([HEADS, KV_HEADS, KV_HEADS], dim=1)
        before = (part[:, :, :longest] for part in (query, key, value))
        cues = masked_attention(query[:, :, longest:], key, value, layout.visible)
        attended = [causal_attention(*before), cues]
        return layout.collect(attended)[0].unflatten(-1, (-1, WIDTH))

    return run


def varlen(rows: Rows) -> Callable[[], Tensor]:
    """Two calls of flash attention."""
    batch, n = len(rows.lengths), rows.prompt_rows
    longest = int(rows.lengths.max())
    prompts = torch.nn.functional.pad(rows.lengths.cumsum(0), (1, 0)).int()
    own_cues = n + CUE * torch.arange(1, batch * SAMPLES + 1, device="cuda").int()
    own = torch.cat([prompts, own_cues])
    cues = CUES * torch.arange(batch + 1, device="cuda").int()
    flash = torch.ops.aten._flash_attention_forward  # noqa: SLF001 - public ones came later

    def run() -> Tensor:
        query, key, value = rows.parts()
        out, own_sum, *_ = flash(query, key, value, own, own, longest, longest, 0.0, True, False)
        prompt, prompt_sum, *_ = flash(
            query[n:], key[:n], value[:n], cues, prompts, CUES, longest, 0.0, False, False
        )
        weight = torch.sigmoid(prompt_sum - own_sum[:, n:]).t()[:, :, None].to(out.dtype)
        out[n:].lerp_(prompt, weight)
        return out

    return run


PLANS = {"spread": spread, "varlen": varlen}


def main() -> None:
    """Runs the comparison and writes its JSON."""
    parser = arguments(__doc__, "joined_attention")
    parser.add_argument("--tokens", type=int, nargs="+", default=[40, 200])
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--repeats", type=int, default=15)
    options = parser.parse_args()
    results = []
    for batch in options.batch:
        for tokens in options.tokens:
            rows = Rows.random(batch, tokens)
            runs = {plan: arrange(rows) for plan, arrange in PLANS.items()}
            expected = next(iter(runs.values()))().float()
            errors = {
                plan: float((run().float() - expected).norm() / expected.norm())
                for plan, run in runs.items()
            }
            graphs = {plan: _graph(run) for plan, run in runs.items()}
            sizes = {"batch": batch, "tokens": tokens, "rows": len(rows.qkv), "layers": LAYERS}
            for plan, numbers in interleaved(graphs, options.repeats, warm_up=2).items():
                results.append({**sizes, "plan": plan, "error": errors[plan], **numbers})
    print_table(f"Attention of {LAYERS} layers", results, COLUMNS)
    write_json(options.json, results)


@torch.inference_mode()
def _graph(run: Callable[[], Tensor]) -> Callable[[], None]:
    """16 layers of it, and the wait for them."""
    graph, _ = capture(lambda: [run() for _ in range(LAYERS)])

    def replay() -> None:
        graph.replay()
        torch.cuda.synchronize()

    return replay


if __name__ == "__main__":
    main()
