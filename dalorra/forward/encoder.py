"""The forward that serves an encoder: M rows per text in one batch of the unmodified model.

Every adapter has a model of its own, a copy of the module tree that shares the base's weights; what
it adds to memory is A, B and the head. So any number of adapters share a base that none of them
touches.
"""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from dalorra.adapter.layer import StochasticPeftModel
from dalorra.forward.batches import sample_groups
from dalorra.forward.network import Answers
from dalorra.forward.reference import class_logits
from dalorra.forward.reference_rows import pack_texts
from dalorra.posteriors.bank import NoiseBank
from dalorra.prompts import Prompt


class ArrangedEncoder:
    """An encoder under adapters: nothing is rearranged.

    Args:
        model: for sequence classification.
    """

    prefix_cache = None  # a text's rows see what follows them, so that no prefix can be reused
    bits = None  # it is small, and never quantised

    def __init__(self, model: PreTrainedModel) -> None:
        self.device = model.device
        self.dtype = model.dtype
        self.hidden_size = int(model.config.hidden_size)


class EncoderNetwork:
    """The forward of one adapter on its encoder.

    Args:
        model: with the adapter attached, as it is now; it may be detached or trained on afterwards.
        bank: what it runs under.
    """

    pads = True

    def __init__(self, model: StochasticPeftModel, bank: NoiseBank) -> None:
        base: nn.Module = model.get_base_model()
        own = {id(tensor) for tensor in _own(base)}
        shared = {id(p): p for p in base.parameters() if id(p) not in own}
        self._model = copy.deepcopy(base, dict(shared)).eval().requires_grad_(False)
        self._device = model.device
        self.bank = bank

    @property
    def nbytes(self) -> int:
        """Memory of A, B and the head."""
        return sum(tensor.nbytes for tensor in _own(self._model))

    def under(self, bank: NoiseBank) -> "EncoderNetwork":
        """See `Network`."""
        other = copy.copy(self)
        other.bank = bank
        return other

    @torch.inference_mode()
    def answers(self, prompts: Sequence[Prompt], samples: range) -> Answers:
        """See `Network`; the features are the last hidden states of the text's first row: D = 1."""
        logits, states = self._run(prompts, samples)
        features = states.float()[:, :, None]
        return Answers(logits.softmax(dim=-1)[:, :, None], logits.new_ones(1), features)

    def in_pieces(self, prompt: Prompt, samples: range, budget: int) -> Answers:
        """See `Network`; a text is never cut, as its rows see each other in both directions."""
        groups = sample_groups(samples, prompt.tokens, budget)
        return Answers.joined([self.answers([prompt], group) for group in groups])

    @torch.inference_mode()
    def label_logits(self, prompts: Sequence[Prompt], samples: range) -> Tensor:
        """Logits of the classes, `[B, M, K]` float32."""
        return self._run(prompts, samples)[0]

    def _run(self, prompts: Sequence[Prompt], samples: range) -> tuple[Tensor, Tensor]:
        rows = pack_texts(prompts, samples).to(self._device)
        return class_logits(self._model, rows, self.bank)


def _own(model: nn.Module) -> list[nn.Parameter]:
    """What an adapter added to an encoder: A, B, the posterior's tensors, and its head."""
    return [
        parameter
        for name, parameter in model.named_parameters()
        if ".lora_" in name or ".modules_to_save." in name
    ]
