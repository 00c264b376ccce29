"""The objective of every method on a mini-batch, per training example:

    mean over the batch of [ −(1/S) Σ_s log p(y | x, z_s) + example penalty ] + penalty / N

N is the number of training examples. For DALorRA the penalty is the KL summed over every module and
rank, so that one epoch of mini-batches adds up to the exact negative ELBO (Eq. 4) divided by N;
there is no weight on the KL.
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
from dalorra.labels import Labels
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
            encoder's is over the classes of its head.
        scope: rows that the adapter acts on.
        train_size: N, training examples.
        cache: keys and values of prompts, used when `scope` is `answer_tokens`.
    """

    def __init__(
        self,
        method: Method,
        labels: Labels,
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
        """The loss of `prompts` with `labels` `[B]`, indices into the label set."""
        modules = module_tensors(model)
        samples = self.method.samples_of(len(prompts))  # [B or 1, S]
        bank = self.method.draw(modules, samples.numel(), generator)
        scores, rows = self.logits(model, prompts, samples, bank)  # [B, S, K]
        targets = labels.repeat_interleave(scores.shape[1])
        nll = F.cross_entropy(scores.flatten(0, 1), targets)
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
            return answer_logits(model, rows, bank, self.labels, past), rows
