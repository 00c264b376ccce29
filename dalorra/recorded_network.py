"""Forwards recorded once per shape and replayed: on a GPU, CUDA graphs.

A short forward is hundreds of kernels of a few microseconds each, which the host cannot launch as
fast as a GPU runs them. A graph launches all of them at once, for inputs of one shape; so prompts
are padded to a few shapes, which costs rows and changes no answer. Long forwards keep a GPU busy
by themselves and are not recorded.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

import torch
from torch import Tensor

from dalorra.bank import NoiseBank
from dalorra.bound_noise import ForwardNoise
from dalorra.network import Answers
from dalorra.packed_llama import PackedLlama
from dalorra.packing import Scope
from dalorra.prompts import Prompt
from dalorra.staging import StagedPrompts

Forward = Callable[[StagedPrompts], Answers]
"""Answers to prompts of one shape."""

Recorder = Callable[[Forward, StagedPrompts], Forward]
"""Records what a forward does to prompts of this shape; what it returns does the same again."""

TOKEN_STEP: Final = 64
"""Prompts are padded to multiples of this many tokens, and batches to powers of two."""

MAX_ROWS: Final = 1024
"""Most packed rows of a recorded forward; not measured."""

_KEPT: Final = 128  # recordings


class CudaGraphs:
    """A `Recorder` whose recordings share memory; one of them is replayed at a time."""

    def __init__(self) -> None:
        self._pool: Any = None

    def __call__(self, forward: Forward, prompts: StagedPrompts) -> Forward:
        with torch.cuda.device(prompts.ids.device):
            if self._pool is None:
                self._pool = torch.cuda.graph_pool_handle()
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                forward(prompts)  # libraries set themselves up, which a graph must not hold
            torch.cuda.current_stream().wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
                answers = forward(prompts)

        def replay(others: StagedPrompts) -> Answers:
            prompts.copy_(others)
            graph.replay()
            # The next replay writes where this one wrote.
            return Answers(answers.probabilities.clone(), answers.weights, answers.features.clone())

        return replay


class RecordedNetwork:
    """A packed network that records its short forwards. It leaves the prefix cache alone.

    Args:
        network: of one adapter.
        record: shared by the adapters of a base.
        device: of the network.
    """

    def __init__(self, network: PackedLlama, record: Recorder, device: torch.device) -> None:
        self._network = network
        self._record = record
        self._device = device
        self._recorded: OrderedDict[tuple[Any, ...], tuple[Forward, ForwardNoise, NoiseBank]] = (
            OrderedDict()
        )

    @property
    def nbytes(self) -> int:
        """Memory of the adapter beside the base; recordings take more."""
        return self._network.nbytes

    @torch.inference_mode()
    def answers(
        self, prompts: Sequence[Prompt], members: range, bank: NoiseBank, scope: Scope
    ) -> Answers:
        """See `Network`."""
        batch, cue_tokens = len(prompts), len(prompts[0].cue_ids)
        staged = StagedPrompts.of(prompts, scope)
        shape = padded_shape(batch, staged.ids.shape[1])
        if _rows(*shape, cue_tokens, len(members), scope) > MAX_ROWS:
            return self._network.answers(prompts, members, bank, scope)
        staged = staged.padded(*shape).to(self._device)
        key = (id(bank), members, scope, shape, cue_tokens)
        if key not in self._recorded:
            noise = self._network.noise.bind(bank, members, scope, shape[0], cue_tokens)
            forward = self._record(lambda some: self._network.staged_answers(some, noise), staged)
            # A recording reads the noise where it lies; id(bank) must not be another's.
            self._recorded[key] = (forward, noise, bank)
            if len(self._recorded) > _KEPT:
                self._recorded.popitem(last=False)
        self._recorded.move_to_end(key)
        found = self._recorded[key][0](staged)
        return Answers(found.probabilities[:batch], found.weights, found.features[:batch])

    def label_logits(
        self, prompts: Sequence[Prompt], members: range, bank: NoiseBank, scope: Scope
    ) -> Tensor:
        """See `Network`; nothing is recorded."""
        return self._network.label_logits(prompts, members, bank, scope)


def padded_shape(batch: int, tokens: int) -> tuple[int, int]:
    """B and P that a batch with P rows of prompt is padded to."""
    return 1 << (batch - 1).bit_length(), max(-(-tokens // TOKEN_STEP), 1) * TOKEN_STEP


def recorded_shapes(
    longest: int, cue_tokens: int, samples: int, scope: Scope
) -> Iterator[tuple[int, int]]:
    """Every B and number of prompt tokens, the most of its shape, that is recorded.

    Args:
        longest: most tokens of a prompt, without its cue.
        cue_tokens: k.
        samples: M.
        scope: of the adapter.
    """
    beside = cue_tokens if scope == "all_tokens" else 0
    _, most = padded_shape(1, longest + beside)
    for padded in range(TOKEN_STEP, most + 1, TOKEN_STEP):
        batch = 1
        while _rows(batch, padded, cue_tokens, samples, scope) <= MAX_ROWS:
            yield batch, min(padded - beside, longest)
            batch *= 2


def _rows(batch: int, tokens: int, cue_tokens: int, samples: int, scope: Scope) -> int:
    each = samples * tokens if scope == "all_tokens" else tokens + samples * cue_tokens
    return batch * each
