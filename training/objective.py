"""The objective of every method on a mini-batch, per training example:

    mean over the batch of [ −(1/S) Σ_s log p(y | x, z_s) + example penalty ] + penalty / N

N is the number of training examples. For DALorRA the penalty is the KL summed over every module and
rank, so that one epoch of mini-batches adds up to Eq. 4 divided by N, with no weight on the KL: the
negative ELBO, but for masks that are relaxed in training.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from dalorra.adapter.layer import StochasticPeftModel, module_tensors
from dalorra.base.families import is_encoder
from dalorra.forward.reference import answer_logits, class_logits
from dalorra.forward.reference_rows import PackedRows, pack, pack_texts
from dalorra.labels import Labels, LabelTrie
from dalorra.posteriors.bank import NoiseBank
from dalorra.prompts import Prompt, Scope
from training.attention import differentiable_attention
from training.methods.method import Method
from training.prompt_cache import PromptCache


@dataclass(frozen=True, slots=True)
class Loss:
    """Nats per training example.

    Attributes:
        total: what is minimised, `nll + penalty / N`.
        nll: mean over the batch and the S samples.
        penalty: of the method, for the whole training set, such as KL_total. What every example
            adds of its own counts N times, as its mean over the batch.
    """

    total: Tensor
    nll: Tensor
    penalty: Tensor


class Objective:
    """Computes `Loss` for one mini-batch.

    Args:
        method: draws the noise and sets the penalty.
        labels: where they are read off; the likelihood is over these alone (section 3.2). An
            encoder's is over the classes of its head. None: each prompt has its own.
        scope: rows that the adapter acts on.
        train_size: N, training examples.
        cache: keys and values of prompts, used when `scope` is `answer_tokens`.
    """

    def __init__(
        self,
        method: Method,
        labels: Labels | None,
        scope: Scope,
        train_size: int,
        cache: PromptCache | None,
    ) -> None:
        self.method = method
        self.labels = labels
        self.scope = scope
        self.train_size = train_size
        self.cache = cache if scope == "answer_tokens" else None

    def __call__(
        self,
        model: StochasticPeftModel,
        prompts: Sequence[Prompt],
        labels: Tensor,
        generator: torch.Generator,
    ) -> Loss:
        """The loss of a mini-batch.

        Args:
            model: the base with the adapter attached.
            prompts: B inputs.
            labels: `[B]`, indices into the label set; or `[B, K]`, distributions over the labels,
                0 behind the last of a prompt's own.
            generator: of the noise.
        """
        modules = module_tensors(model)
        samples = self.method.samples_of(len(prompts))  # [B or 1, S]
        bank = self.method.draw(modules, samples.numel(), generator)
        scores, rows = self.logits(model, prompts, samples, bank)  # [B, S, K]
        nll = cross_entropy(scores, labels)
        own = self.method.example_penalty(bank, rows)
        penalty = self.method.penalty(modules) + self.train_size * own
        total = nll + penalty / self.train_size
        return Loss(total=total, nll=nll.detach(), penalty=penalty.detach())

    def logits(
        self,
        model: StochasticPeftModel,
        prompts: Sequence[Prompt],
        samples: Tensor,
        bank: NoiseBank,
    ) -> tuple[Tensor, PackedRows]:
        """Logits of the labels `[B, S, K]`, and the rows of their forward.

        Args:
            model: the base with the adapter attached.
            prompts: B inputs.
            samples: `[B or 1, S]`, which samples of the bank each one is asked under.
            bank: the samples; the logits are differentiable in them.
        """
        base = cast(PreTrainedModel, model.get_base_model())
        if is_encoder(base):
            rows = pack_texts(prompts, samples).to(base.device)
            return class_logits(base, rows, bank)[0], rows
        rows = pack(prompts, samples, self.scope).to(base.device)
        past = self.cache.past(model, prompts) if self.cache else None
        with differentiable_attention(base):
            return answer_logits(model, rows, bank, self.labels_of(prompts), past), rows

    def labels_of(self, prompts: Sequence[Prompt]) -> Labels | Sequence[LabelTrie]:
        """Where the labels of prompts are read off."""
        if self.labels is not None:
            return self.labels
        return [prompt.trie for prompt in prompts if prompt.trie is not None]


def cross_entropy(scores: Tensor, labels: Tensor) -> Tensor:
    """Mean over B inputs and S samples of −Σ t log p.

    Args:
        scores: `[B, S, K]` logits, −∞ where there is no label.
        labels: `[B]` indices, or `[B, K]` probabilities t.
    """
    if labels.dim() == 1:
        return F.cross_entropy(scores.flatten(0, 1), labels.repeat_interleave(scores.shape[1]))
    targets = labels[:, None]  # [B, 1, K]
    logs = scores.log_softmax(dim=-1).masked_fill(targets == 0.0, 0.0)
    return -(targets * logs).sum(dim=-1).mean()
