"""An adapter on its base model, ready to answer."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from dalorra.adapter.directory import (
    Adapter,
    bundled_adapter,
    check_base,
    load_adapter,
    read_adapter,
)
from dalorra.adapter.layer import StochasticPeftModel, detach, module_tensors
from dalorra.adapter.manifest import check_tokens
from dalorra.base.model import DEFAULT_BASE_MODEL, BaseModel, load_base_model
from dalorra.decision.novelty import Novelty
from dalorra.decision.policy import Policy
from dalorra.decision.predictive import PosteriorSamples, Prediction, summarise
from dalorra.early_stop import predict_in_stages
from dalorra.errors import AdapterError
from dalorra.forward.arranged import ArrangedBase, arrange, network_on
from dalorra.forward.batches import DEFAULT_ROW_BUDGET, forward_cost, forwards, packed_row_count
from dalorra.forward.llama.recorded import RecordedNetwork
from dalorra.golden import check_golden
from dalorra.posteriors import Posterior
from dalorra.posteriors.bank import BankSpec, NoiseBank
from dalorra.prompts import InputFields, Overflow, Prompt, PromptTokenizer, Scope


class Predictor:
    """Answers inputs with M sampled passes packed into one forward.

    Args:
        model: the base with the adapter attached, which may be detached afterwards; the base's
            weights must not change.
        tokenizer: tokeniser of the adapter's prompts and labels.
        posterior: how the adapter is stochastic.
        bank: how its M samples are drawn.
        scope: rows the adapter acts on.
        policy: thresholds; one that never accepts when the adapter has none.
        model_name, adapter_name, adapter_digest, method: what the answers carry.
        novelty: where the training data lie; None: answers carry no novelty.
        row_budget: most packed rows of one forward; a longer prompt is split along M.
        packed: the base as arranged for other adapters, too; None: for this one alone.

    Attributes:
        forward_cost: by which batches are split; see `dalorra.forward.batches`.

    One caller at a time: the model thread of the service.
    """

    def __init__(
        self,
        model: StochasticPeftModel,
        tokenizer: PromptTokenizer,
        posterior: Posterior,
        bank: BankSpec,
        scope: Scope,
        *,
        policy: Policy,
        model_name: str,
        adapter_name: str,
        adapter_digest: str,
        method: str,
        novelty: Novelty | None = None,
        row_budget: int = DEFAULT_ROW_BUDGET,
        packed: ArrangedBase | None = None,
    ) -> None:
        self.tokenizer = tokenizer
        modules = module_tensors(model)
        self.bank = posterior.bank(modules, bank)
        self.scope = scope
        self.policy = policy
        self.model_name = model_name
        self.adapter_name = adapter_name
        self.adapter_digest = adapter_digest
        self.method = method
        self.novelty = novelty
        self.row_budget = row_budget
        packed = packed or arrange(model.get_base_model())
        self.dtype = packed.dtype
        self._hidden_size = packed.hidden_size
        self.prefix_cache = packed.prefix_cache
        self._network = network_on(packed, model, tokenizer.label_ids)
        self.forward_cost = forward_cost(packed.device, joined=self._network.joins_prompts)
        self._mean_bank = posterior.mean(modules)

    @classmethod
    def load(
        cls,
        adapter_dir: Path | None = None,
        base_model: str | None = None,
        *,
        device: str = "auto",
        dtype: str = "auto",
        on_overflow: Overflow = "truncate",
        row_budget: int = DEFAULT_ROW_BUDGET,
    ) -> "Predictor":
        """Loads an adapter (the bundled one by default) and the base model it was trained on.

        Raises:
            AdapterError: the directory is damaged or does not fit the base model.
            BaseModelError: the base model cannot be had.
        """
        adapter = read_adapter(adapter_dir or bundled_adapter())
        adapter.posterior.check_servable()
        reference = base_model or adapter.manifest.base_model.name or DEFAULT_BASE_MODEL
        base = load_base_model(reference, device=device, dtype=dtype)
        return cls.from_adapter(adapter, base, on_overflow=on_overflow, row_budget=row_budget)

    @classmethod
    def from_adapter(
        cls,
        adapter: Adapter,
        base: BaseModel,
        *,
        packed: ArrangedBase | None = None,
        name: str | None = None,
        golden: bool = False,
        on_overflow: Overflow = "truncate",
        row_budget: int = DEFAULT_ROW_BUDGET,
    ) -> "Predictor":
        """Reads an adapter's updates off `base`, which is as it was afterwards, and draws its bank.

        Args:
            adapter: read and verified.
            base: no adapter may be attached to it.
            packed: the base as arranged for other adapters, too; None: for this one alone.
            name: what answers call it; its own name by default.
            golden: whether to run the golden check.
            on_overflow: what happens to an over-long input.
            row_budget: see the class.

        Raises:
            AdapterError: see `check_base`, `load_adapter` and `check_golden`.
        """
        check_base(adapter, base)
        manifest = adapter.manifest
        adapter.posterior.check_servable()
        tokenizer = PromptTokenizer(
            base.tokenizer, manifest.prompt, manifest.max_tokens, on_overflow
        )
        check_tokens(manifest, tokenizer)
        model = load_adapter(adapter, base)
        try:
            predictor = cls(
                model,
                tokenizer,
                adapter.posterior,
                manifest.bank,
                manifest.scope,
                policy=adapter.policy or Policy.never(adapter.digest),
                model_name=base.name,
                adapter_name=name or manifest.name,
                adapter_digest=adapter.digest,
                method=manifest.method,
                novelty=adapter.novelty,
                row_budget=row_budget,
                packed=packed,
            )
            if golden:
                check_golden(predictor, model)
        except AdapterError as error:
            raise AdapterError(f"{adapter.path}: {error}") from error
        finally:
            detach(model)
        return predictor

    @property
    def labels(self) -> tuple[str, ...]:
        """Label names, in the order of the adapter."""
        return tuple(self.tokenizer.format.labels)

    @property
    def fields(self) -> tuple[str, ...]:
        """Fields of the adapter's template."""
        return self.tokenizer.format.fields

    @property
    def samples(self) -> int:
        """M."""
        return self.bank.samples

    @property
    def nbytes(self) -> int:
        """Memory that the adapter takes beside the base."""
        return self._network.nbytes

    @property
    def max_tokens(self) -> int:
        """Limit on the tokens of one input, template and cue included."""
        return self.tokenizer.max_tokens

    def encode(self, value: InputFields) -> Prompt:
        """Tokenises one input; may run beside `predict` on another thread.

        Raises:
            InputError: see `PromptTokenizer.encode`.
        """
        return self.tokenizer.encode(value)

    def packed_rows(self, prompt: Prompt) -> int:
        """Rows that this prompt adds to a forward."""
        return packed_row_count(prompt, self.samples, self.scope)

    def predict(
        self, prompts: Sequence[Prompt], deciders: Sequence[Policy | None] = ()
    ) -> list[Prediction]:
        """Predictive moments of each prompt, and how novel it is; order kept.

        Args:
            prompts: B prompts.
            deciders: for each prompt the policy that decides on it, where members of the bank may
                be left out that can change neither label nor decision (`dalorra.early_stop`);
                None: all are used, as by default. Novelty is a mean over the whole bank, so an
                adapter that tells it uses all of it.
        """
        if any(deciders) and self.novelty is None:
            return predict_in_stages(
                lambda some, members: self._run(some, self.bank, members)[0],
                prompts,
                deciders,
                members=self.samples,
                labels=self.labels,
            )
        samples, features = self._run(prompts, self.bank)
        predictions = summarise(samples, self.labels)
        if self.novelty is None:
            return predictions
        novelty = self.novelty.p_values(features)
        return [replace(p, novelty=value) for p, value in zip(predictions, novelty, strict=True)]

    def predict_mean(self, prompts: Sequence[Prompt]) -> list[Prediction]:
        """The same with the posterior's mean: one deterministic pass, variance 0."""
        return summarise(self.posterior_samples(prompts, self._mean_bank), self.labels)

    def sample_probabilities(self, prompts: Sequence[Prompt]) -> Tensor:
        """Softmax over the label tokens under each of the M samples, `[B, M, K]` float32."""
        return self.posterior_samples(prompts).by_sample

    def label_logits(self, prompts: Sequence[Prompt]) -> Tensor:
        """Of the label tokens, every module under one sample, `[B, M, K]` float32."""
        return self._network.label_logits(prompts, range(self.samples), self.bank, self.scope)

    def novelty_features(self, prompts: Sequence[Prompt]) -> Tensor:
        """What `Novelty` is fitted on and asked about, `[B, d]` float32 on the CPU.

        The hidden state at the end of the cue after the final norm, or an encoder's last one at the
        start of the text, averaged over the samples.
        """
        return self._run(prompts, self.bank)[1]

    def posterior_samples(
        self, prompts: Sequence[Prompt], bank: NoiseBank | None = None
    ) -> PosteriorSamples:
        """Distributions over the label tokens under each member of the bank, on the CPU.

        The policy's temperature divides the label logits of each of them.
        """
        return self._run(prompts, bank or self.bank)[0]

    @torch.inference_mode()
    def _run(
        self, prompts: Sequence[Prompt], bank: NoiseBank, members: range | None = None
    ) -> tuple[PosteriorSamples, Tensor]:
        """Samples of the posterior, and the features of `novelty_features`."""
        chosen = members or range(bank.samples)
        if not prompts:
            nothing = torch.empty(0, len(chosen), 1, len(self.labels))
            return PosteriorSamples(nothing, torch.ones(1)), torch.empty(0, self._hidden_size)
        parts, features, weights = [], [], torch.ones(1)
        order: list[int] = []
        for indices, member_groups in forwards(
            prompts, chosen, self.scope, self.row_budget, self.forward_cost
        ):
            group = [prompts[i] for i in indices]
            by_members, ends = [], []
            for part_of_bank in member_groups:
                found = self._network.answers(group, part_of_bank, bank, self.scope)
                weights = found.weights
                by_members.append(found.probabilities)
                ends.append(found.features.sum(dim=1))
            parts.append(torch.cat(by_members, dim=1))
            features.append(torch.stack(ends).sum(dim=0) / len(chosen))
            order += indices
        back = torch.tensor(order).argsort()  # on the host, and only now a GPU is waited for
        samples = PosteriorSamples(torch.cat(parts).cpu()[back], weights.cpu())
        return samples.tempered(self.policy.temperature), torch.cat(features).cpu()[back]

    def warm_up(self) -> Iterator[Callable[[], object]]:
        """Steps before the first answer: the smallest and the largest input, and each recording."""
        cue, network = self.tokenizer.cue_ids, self._network
        filler = self.tokenizer.encode(dict.fromkeys(self.fields, "warm up")).prompt_ids
        most = self.max_tokens - len(cue)
        for tokens in (len(filler), most):
            yield partial(self.predict, [Prompt((filler * tokens)[:tokens], cue)])
        if isinstance(network, RecordedNetwork):
            members = range(self.samples)
            for lengths in network.recordable(most, len(cue), self.samples, self.scope):
                prompts = [Prompt((filler * tokens)[:tokens], cue) for tokens in lengths]
                yield partial(network.record, prompts, members, self.bank, self.scope)
