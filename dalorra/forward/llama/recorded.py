"""Forwards recorded once per shape and replayed: on a GPU, CUDA graphs.

A short forward is hundreds of kernels of a few microseconds each, which the host cannot launch as
fast as a GPU runs them. A graph launches all of them at once, for inputs of one shape; so prompts
are padded to a few shapes, which costs rows and changes no answer. Long forwards keep a GPU busy
by themselves and are not recorded.

A shape is the number of prompts, their rows, and the slots of the longest in attention. Several
prompts are joined, so that padding is at the end of all of them.
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from itertools import product
from typing import Any, Final, NamedTuple, Self, TypeVar

import torch
from torch import Tensor

from dalorra.forward.llama.network import PackedLlama
from dalorra.forward.llama.staging import Forward, Recorder, StagedPrompts
from dalorra.forward.network import Answers
from dalorra.posteriors.bank import NoiseBank
from dalorra.prompts import Prompt, Scope

T = TypeVar("T")

STEPS: Final = 16
"""Prompts, alone or joined, are padded to multiples of a step of rows, and a recorded forward has
at most as many steps in all."""

_STEP, _WEIGHTS = 32, 218_000_000  # of Llama-3.1-8B, and of each of its layers
_LONGEST_STEP: Final = 128


def row_step(layer_weights: int) -> int:
    """Rows of a step, a power of two.

    On an H100 the host launches forwards of Llama-3.1-8B's shape with more than 16 · 32 rows about
    as fast as the GPU runs them (docs/performance.md). With smaller layers it takes more rows to
    keep a GPU as busy, in proportion; that was not measured.

    Args:
        layer_weights: numbers in the projections of one layer.
    """
    step = _STEP
    while 2 * step <= _LONGEST_STEP and 2 * step * layer_weights <= _STEP * _WEIGHTS:
        step *= 2
    return step


class PaddedShape(NamedTuple):
    """What prompts of a recorded forward are padded to.

    Attributes:
        batch: B.
        rows: of all prompts together.
        longest: P.
    """

    batch: int
    rows: int
    longest: int

    @classmethod
    def of(cls, lengths: Sequence[int], step: int) -> Self:
        """The smallest for prompts of these lengths."""
        rows = max(-(-sum(lengths) // step), 1) * step
        if len(lengths) == 1:
            return cls(1, rows, rows)
        width = 1 << (max(*lengths, step) - 1).bit_length()
        return cls(_rounded(len(lengths)), rows, min(width, rows))

    def packed_rows(self, tail_rows: int, samples: int, scope: Scope) -> int:
        """Rows of a forward."""
        if scope == "all_tokens":
            return samples * self.rows
        return self.rows + self.batch * samples * tail_rows


class _Key(NamedTuple):
    """What a recording is for."""

    samples: range
    tail_rows: int
    shape: PaddedShape


def capture(run: Callable[[], T], pool: Any = None) -> tuple[torch.cuda.CUDAGraph, T]:
    """A CUDA graph of what `run` does on the current device, and the result that it overwrites."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        run()  # libraries set themselves up, which a graph must not hold
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
        result = run()
    return graph, result


class CudaGraphs:
    """A `Recorder` whose recordings share memory; one of them is replayed at a time."""

    def __init__(self) -> None:
        self._pool: Any = None

    def __call__(self, forward: Forward, prompts: StagedPrompts) -> Forward:
        with torch.cuda.device(prompts.ids.device):
            if self._pool is None:
                self._pool = torch.cuda.graph_pool_handle()
            graph, answers = capture(lambda: forward(prompts), self._pool)

        def replay(others: StagedPrompts) -> Answers:
            prompts.copy_(others)
            graph.replay()
            # The next replay writes where this one wrote.
            return Answers(answers.probabilities.clone(), answers.weights, answers.features.clone())

        return replay


class RecordedNetwork:
    """A packed network with recordings of short forwards, which leave the prefix cache alone.

    What was not recorded runs as if nothing were.

    Args:
        network: of one adapter.
        record: shared by the adapters of a base.
        device: of the network.
        step: see `row_step`.
        steps: most of them in a recorded forward.
    """

    pads = False

    def __init__(
        self,
        network: PackedLlama,
        record: Recorder,
        device: torch.device,
        step: int,
        steps: int = STEPS,
    ) -> None:
        self._network = network
        self._record = record
        self._device = device
        self._step = step
        self._most_rows = steps * step
        self._recorded: dict[_Key, Forward] = {}
        self._failed = False

    @property
    def bank(self) -> NoiseBank:
        """See `Network`."""
        return self._network.bank

    @property
    def nbytes(self) -> int:
        """Memory of the adapter beside the base; recordings take more."""
        return self._network.nbytes

    def under(self, bank: NoiseBank) -> PackedLlama:
        """See `Network`; without recordings."""
        return self._network.under(bank)

    @torch.inference_mode()
    def record(self, prompts: Sequence[Prompt], samples: range) -> None:
        """Records the forward of prompts of this shape, if it is a short one.

        Where that fails, for want of memory for example, no more are recorded.
        """
        key = self._key(prompts, samples)
        rows = key.shape.packed_rows(key.tail_rows, len(samples), self._network.scope)
        if self._failed or rows > self._most_rows or key in self._recorded:
            return
        noise = self._network.noise.of(samples, key.tail_rows)  # a recording reads it in place

        def forward(staged: StagedPrompts) -> Answers:
            return self._network.staged_answers(staged, noise)

        try:
            self._recorded[key] = self._record(forward, self._staged(prompts, key))
        except RuntimeError as error:
            self._failed = True
            warnings.warn(f"forwards are not recorded from here on: {error}", stacklevel=2)

    @torch.inference_mode()
    def answers(self, prompts: Sequence[Prompt], samples: range) -> Answers:
        """See `Network`."""
        key = self._key(prompts, samples)
        if key not in self._recorded:
            return self._network.answers(prompts, samples)
        found = self._recorded[key](self._staged(prompts, key))
        batch = slice(len(prompts))
        return Answers(found.probabilities[batch], found.weights, found.features[batch])

    def in_pieces(self, prompt: Prompt, samples: range, budget: int) -> Answers:
        """See `Network`; nothing is recorded."""
        return self._network.in_pieces(prompt, samples, budget)

    def label_logits(self, prompts: Sequence[Prompt], samples: range) -> Tensor:
        """See `Network`; nothing is recorded."""
        return self._network.label_logits(prompts, samples)

    def recordable(self, longest: int, tail_rows: int) -> Iterator[list[int]]:
        """For every shape that is recorded, the tokens of prompts that have it.

        Args:
            longest: most tokens of a prompt, without its cue.
            tail_rows: t, of the cue and the trie.
        """
        step, most, samples = self._step, self._most_rows, self.bank.samples
        beside = self._beside(tail_rows)
        batches = [batch for batch in range(1, most + 1) if _rounded(batch) == batch]
        for batch, rows in product(batches, range(step, most + 1, step)):
            for width in sorted({min(step << i, rows) for i in range(rows.bit_length())}):
                shape = PaddedShape(batch, rows, width)
                lengths = _filling(shape, beside, longest + beside, step)
                packed = shape.packed_rows(tail_rows, samples, self._network.scope)
                if lengths and packed <= most:
                    yield [length - beside for length in lengths]

    def _key(self, prompts: Sequence[Prompt], samples: range) -> _Key:
        tail_rows = prompts[0].tail_rows
        beside = self._beside(tail_rows)
        shape = PaddedShape.of([len(p.prompt_ids) + beside for p in prompts], self._step)
        return _Key(samples, tail_rows, shape)

    def _staged(self, prompts: Sequence[Prompt], key: _Key) -> StagedPrompts:
        staged = StagedPrompts.of(prompts, self._network.scope, joined=len(prompts) > 1)
        return staged.padded(*key.shape).to(self._device)

    def _beside(self, tail_rows: int) -> int:
        """Rows of a prompt beside its own tokens that are laid out with them."""
        return tail_rows if self._network.scope == "all_tokens" else 0


def _filling(shape: PaddedShape, least: int, most: int, step: int) -> list[int]:
    """Lengths between these of prompts with this shape; empty if there are none."""
    others = shape.batch - 1
    first = min(shape.longest, most, shape.rows - others * least)
    if first < least:
        return []
    rest = min(shape.rows - first, others * first)
    lengths = [first, *((rest + i) // others for i in range(others))]
    return lengths if PaddedShape.of(lengths, step) == shape else []


def _rounded(batch: int) -> int:
    """To 1, 2, 3, 4, 6, 8, 12, 16, …"""
    power = 1 << (batch - 1).bit_length()
    return 3 * power // 4 if batch <= 3 * power // 4 else power
