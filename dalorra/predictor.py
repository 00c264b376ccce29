"""An adapter on its base model, ready to answer."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from dalorra.adapter.directory import Adapter, attached, bundled_adapter, read_adapter
from dalorra.adapter.layer import StochasticPeftModel, module_tensors
from dalorra.adapter.manifest import Card, check_tokens
from dalorra.base.model import DEFAULT_BASE_MODEL, BaseModel, load_base_model
from dalorra.decision.novelty import Novelty
from dalorra.decision.policy import Policy
from dalorra.decision.predictive import PosteriorSamples, Prediction
from dalorra.forward.arranged import ArrangedBase, arrange, network_on
from dalorra.forward.batches import DEFAULT_ROW_BUDGET, Batching, packed_row_count
from dalorra.forward.llama.recorded import RecordedNetwork
from dalorra.forward.network import Network
from dalorra.posteriors import Posterior
from dalorra.posteriors.bank import BankSpec, NoiseBank
from dalorra.prompts import InputFields, Overflow, Prompt, PromptTokenizer, Scope


class Predictor:
    """Answers inputs with M samples packed into one forward.

    Args:
        model: the base with the adapter attached, which may be detached afterwards; the base's
            weights must not change.
        tokenizer: of the adapter's prompts and labels.
        posterior: how the adapter is stochastic.
        bank: how its M samples are drawn.
        scope: rows the adapter acts on.
        card: who answers.
        policy: thresholds and temperature; one that never accepts when the adapter has none.
        novelty: where the training data lie; None: answers carry no novelty.
        row_budget: most packed rows of one forward; a longer prompt takes several.
        arranged: the base as arranged for other adapters, too; None: for this one alone.

    Attributes:
        batching: which prompts share a forward.

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
        card: Card,
        policy: Policy,
        novelty: Novelty | None = None,
        row_budget: int = DEFAULT_ROW_BUDGET,
        arranged: ArrangedBase | None = None,
    ) -> None:
        self.tokenizer = tokenizer
        self.scope = scope
        self.card = card
        self.policy = policy
        self.novelty = novelty
        arranged = arranged or arrange(model.get_base_model())
        self.dtype, self._device_type = arranged.dtype, arranged.device.type
        self._hidden_size = arranged.hidden_size
        self._error_ratio = bank.error_ratio
        modules = module_tensors(model)
        labels = tokenizer.labels_on(arranged.device)
        self._network = network_on(arranged, model, labels, posterior.bank(modules, bank), scope)
        self._mean = self._network.under(posterior.mean(modules))
        self.batching = Batching.on(arranged.device, pads=self._network.pads, budget=row_budget)

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
        adapter.posterior.check_servable()  # before minutes are spent on a base model
        reference = base_model or adapter.manifest.base_model.name or DEFAULT_BASE_MODEL
        base = load_base_model(reference, device=device, dtype=dtype)
        with attached(adapter, base) as model:
            return cls.of(adapter, base, model, on_overflow=on_overflow, row_budget=row_budget)

    @classmethod
    def of(
        cls,
        adapter: Adapter,
        base: BaseModel,
        model: StochasticPeftModel,
        *,
        name: str | None = None,
        on_overflow: Overflow = "truncate",
        max_tokens: int | None = None,
        row_budget: int = DEFAULT_ROW_BUDGET,
        arranged: ArrangedBase | None = None,
    ) -> "Predictor":
        """The predictor of an adapter that is attached to its base, see `attached`.

        Args:
            adapter: read and verified.
            base: the base model.
            model: the base with the adapter; what is needed of it is read off.
            name: what answers call the adapter; its own name by default.
            on_overflow: what happens to an input that is longer than the adapter's limit.
            max_tokens: a lower limit; between the two an input is refused, for the adapter's
                policy was tested on answers to the whole of it.
            row_budget: see the class.
            arranged: likewise.

        Raises:
            AdapterError: its tokens are others in this base's tokeniser, or it cannot be served.
        """
        manifest = adapter.manifest
        limit = min(manifest.max_tokens, max_tokens or manifest.max_tokens)
        if limit < manifest.max_tokens:
            on_overflow = "reject"
        tokenizer = PromptTokenizer(base.tokenizer, manifest.prompt, limit, on_overflow)
        check_tokens(manifest, tokenizer)
        predictor = cls(
            model,
            tokenizer,
            adapter.posterior,
            manifest.bank,
            manifest.scope,
            card=Card(base.name, name or manifest.name, adapter.digest, manifest.method),
            policy=Policy.never(adapter.digest),
            novelty=adapter.novelty,
            row_budget=row_budget,
            arranged=arranged,
        )
        policy = adapter.policy or predictor.policy
        predictor.policy = policy.served_in(predictor.precision)
        return predictor

    @property
    def precision(self) -> str:
        """What its answers are computed in, such as `bfloat16 on cpu`."""
        return f"{str(self.dtype).removeprefix('torch.')} on {self._device_type}"

    @property
    def bank(self) -> NoiseBank:
        """The M samples."""
        return self._network.bank

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

    def predict(self, prompts: Sequence[Prompt]) -> list[Prediction]:
        """Predictive moments of each prompt, and how novel it is; order kept.

        Args:
            prompts: any number of them; they share forwards as `batching` says.
        """
        samples, features = self._run(self._network, prompts)
        predictions = self.policy.summarise(samples, self.labels)
        novelty = self.novelty.p_values(features) if self.novelty else None
        return about_inputs(predictions, prompts, novelty)

    def predict_mean(self, prompts: Sequence[Prompt]) -> list[Prediction]:
        """The same with the posterior's mean: one deterministic sample, variance 0."""
        return self.policy.summarise(self._run(self._mean, prompts)[0], self.labels)

    def label_logits(self, prompts: Sequence[Prompt]) -> Tensor:
        """Of the labels, see `Network`, every module under one sample, `[B, M, K]` float32."""
        return self._network.label_logits(prompts, range(self.samples))

    def novelty_features(self, prompts: Sequence[Prompt]) -> Tensor:
        """What `Novelty` is fitted on and asked about, `[B, D, d]` float32 on the CPU.

        The hidden states at the end of the cue after each third of the layers, the last one after
        the final norm, or an encoder's last one at the start of the text; averaged over the
        samples.
        """
        return self._run(self._network, prompts)[1]

    def posterior_samples(
        self, prompts: Sequence[Prompt], bank: NoiseBank | None = None
    ) -> PosteriorSamples:
        """Distributions over the label tokens under each sample, on the CPU.

        Args:
            prompts: B prompts.
            bank: in place of the adapter's own.
        """
        network = self._network.under(bank) if bank else self._network
        return self.policy.tempered(self._run(network, prompts)[0])

    @torch.inference_mode()
    def _run(self, network: Network, prompts: Sequence[Prompt]) -> tuple[PosteriorSamples, Tensor]:
        """Samples of the posterior, and the features of `novelty_features`."""
        every = range(network.bank.samples)
        if not prompts:
            nothing = torch.empty(0, len(every), 1, len(self.labels))
            return PosteriorSamples(nothing, torch.ones(1)), torch.empty(0, 1, self._hidden_size)
        error_ratio = self._error_ratio if network is self._network else 1.0
        parts, features, weights = [], [], torch.ones(1)
        order: list[int] = []
        rows = [packed_row_count(prompt, len(every), self.scope) for prompt in prompts]
        budget = self.batching.budget
        for places in self.batching.forwards(rows):
            group = [prompts[i] for i in places]
            if rows[places[0]] > budget:  # it is alone
                answers = network.in_pieces(group[0], every, budget)
            else:
                answers = network.answers(group, every)
            weights = answers.weights
            parts.append(answers.probabilities)
            features.append(answers.features.mean(dim=1))
            order += places
        back = torch.tensor(order).argsort()  # on the host, and only now a GPU is waited for
        samples = PosteriorSamples(torch.cat(parts).cpu()[back], weights.cpu(), error_ratio)
        return samples, torch.cat(features).cpu()[back]

    def examples(self) -> list[Prompt]:
        """Three short prompts that mean nothing, of which no two begin alike; to measure with."""
        like = self.encode(dict.fromkeys(self.fields, "warm up"))
        ids = like.prompt_ids
        return [replace(like, prompt_ids=ids[turn:] + ids[:turn]) for turn in (1, 2, 3)]

    def warm_up(self) -> Iterator[Callable[[], object]]:
        """Steps before the first answer: the smallest and the largest input, and each recording."""
        like, network = self.encode(dict.fromkeys(self.fields, "warm up")), self._network
        most = self.max_tokens - len(like.cue_ids)

        def of(tokens: int) -> Prompt:
            return replace(like, prompt_ids=(like.prompt_ids * tokens)[:tokens])

        for tokens in (len(like.prompt_ids), most):
            yield partial(self.predict, [of(tokens)])
        if isinstance(network, RecordedNetwork):
            for lengths in network.recordable(most, like.tail_rows):
                yield partial(network.record, [*map(of, lengths)], range(self.samples))


def about_inputs(
    predictions: Sequence[Prediction],
    prompts: Sequence[Prompt],
    novelty: Sequence[float] | None,
) -> list[Prediction]:
    """Predictions with what is known of their inputs.

    Args:
        predictions: one for each prompt.
        prompts: tells which inputs were cut, and where.
        novelty: p-values; None: the adapter cannot tell.
    """
    p_values: Sequence[float | None] = novelty or [None] * len(prompts)
    return [
        replace(p, novelty=value, cut_at=prompt.tokens if prompt.truncated else None)
        for p, prompt, value in zip(predictions, prompts, p_values, strict=True)
    ]
