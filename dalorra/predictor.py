"""An adapter on its base model, ready to answer."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from dalorra.adapter.directory import Adapter, attached, bundled_adapter, read_adapter
from dalorra.adapter.layer import StochasticPeftModel, module_tensors
from dalorra.adapter.manifest import Card, check_tokens
from dalorra.adapter.registered import RegisteredQuestion
from dalorra.base.model import DEFAULT_BASE_MODEL, BaseModel, load_base_model
from dalorra.base.quantized import Quantize
from dalorra.decision.novelty import Novelty
from dalorra.decision.policy import Policy
from dalorra.decision.predictive import PosteriorSamples, Prediction
from dalorra.errors import AdapterError, InputError
from dalorra.forward.arranged import ArrangedBase, arrange, network_on, question_network_on
from dalorra.forward.batches import (
    DEFAULT_ROW_BUDGET,
    Batching,
    State,
    packed_row_count,
    shared_row_count,
)
from dalorra.forward.in_forwards import posterior_samples, question_samples
from dalorra.forward.llama.questions import QuestionLlama
from dalorra.forward.llama.recorded import RecordedNetwork
from dalorra.forward.network import Network
from dalorra.labels import Labels, TokenIds
from dalorra.posteriors import Posterior
from dalorra.posteriors.bank import BankSpec, NoiseBank
from dalorra.prompts import InputFields, Overflow, Prompt, Scope
from dalorra.question_prompts import AnyTokenizer, QuestionTokenizer, tokenizer_for
from dalorra.questions import Asked, Question

_LARGE_ON_CPU: Final = 512
"""Tokens."""


class Predictor:
    """Answers inputs with M samples packed into one forward.

    Args:
        model: the base with the adapter attached, which may be detached afterwards; the base's
            weights must not change.
        tokenizer: of the adapter's prompts and labels; or of questions, whose options come with
            them.
        posterior: how the adapter is stochastic.
        bank: how its M samples are drawn.
        scope: rows the adapter acts on.
        card: who answers.
        policy: thresholds and temperature; one that never accepts when the adapter has none.
        novelty: where the training data lie; None: answers carry no novelty.
        row_budget: most packed rows of one forward; a longer prompt takes several.
        arranged: the base as arranged for other adapters, too; None: for this one alone.
        registered: questions in words that its labels answer.

    Attributes:
        batching: which prompts share a forward.
        question_policies: `Question.digest` → policy of a single question, in place of `policy`.

    One caller at a time: the model thread of the service.
    """

    def __init__(
        self,
        model: StochasticPeftModel,
        tokenizer: AnyTokenizer,
        posterior: Posterior,
        bank: BankSpec,
        scope: Scope,
        *,
        card: Card,
        policy: Policy,
        novelty: Novelty | None = None,
        row_budget: int = DEFAULT_ROW_BUDGET,
        arranged: ArrangedBase | None = None,
        registered: tuple[RegisteredQuestion, ...] = (),
    ) -> None:
        self.registered = registered
        self.tokenizer = tokenizer
        self.scope = scope
        self.card = card
        self.policy = policy
        self.question_policies: Mapping[str, Policy] = {}
        self.novelty = novelty
        arranged = arranged or arrange(model.get_base_model())
        self.dtype, self._device_type = arranged.dtype, arranged.device.type
        self._bits = arranged.bits
        self._hidden_size = arranged.hidden_size
        self._error_ratio = bank.error_ratio
        modules = module_tensors(model)
        drawn = posterior.bank(modules, bank)
        self._network: Network | QuestionLlama
        if isinstance(tokenizer, QuestionTokenizer):
            self._network = question_network_on(arranged, model, drawn, scope)
        else:
            labels = tokenizer.labels_on(arranged.device)
            self._network = network_on(arranged, model, labels, drawn, scope)
        self._mean = self._network.under(posterior.mean(modules))
        self.batching = Batching.on(arranged.device, pads=self._network.pads, budget=row_budget)

    @classmethod
    def load(
        cls,
        adapter_dir: Path | str | None = None,
        base_model: str | None = None,
        *,
        device: str = "auto",
        dtype: str = "auto",
        quantize: Quantize | None = None,
        on_overflow: Overflow = "truncate",
        row_budget: int = DEFAULT_ROW_BUDGET,
        hand_made_policies: bool = False,
    ) -> "Predictor":
        """Loads an adapter and the base model it was trained on.

        The adapter is a folder, or `owner/name` or `owner/name@revision` on the hub; the bundled
        one by default. The base is quantised as it was in training, unless `quantize` says
        otherwise. Policies that are not as calibration wrote them accept nothing, unless
        `hand_made_policies` says otherwise.

        Raises:
            AdapterError: the directory is damaged or does not fit the base model.
            BaseModelError: the base model cannot be had.
        """
        adapter = read_adapter(
            adapter_dir or bundled_adapter(), hand_made_policies=hand_made_policies
        )
        adapter.posterior.check_servable()  # before minutes are spent on a base model
        trained_on = adapter.manifest.base_model
        base = load_base_model(
            base_model or trained_on.name or DEFAULT_BASE_MODEL,
            device=device,
            dtype=dtype,
            quantize=quantize or trained_on.quantized or "none",
        )
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
        tokenizer = tokenizer_for(manifest.prompt, base.tokenizer, limit, on_overflow)
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
            registered=adapter.registered,
        )
        policy = adapter.policy or predictor.policy
        predictor.policy = policy.served_in(predictor.precision)
        predictor.question_policies = {
            question: own.served_in(predictor.precision)
            for question, own in adapter.question_policies.items()
        }
        return predictor

    def policy_for(self, value: InputFields | Asked | Prompt) -> Policy:
        """Decides on the answer to an input: the question's own policy, or that of all others."""
        if isinstance(value, Asked):
            return self.question_policies.get(value.question.digest, self.policy)
        asked = value.question if isinstance(value, Prompt) else ""
        return self.question_policies.get(asked, self.policy)

    @property
    def precision(self) -> str:
        """What computes its answers, such as `bfloat16 on cpu` or `4bit bfloat16 on cuda`."""
        computed = f"{str(self.dtype).removeprefix('torch.')} on {self._device_type}"
        return f"{self._bits} {computed}" if self._bits else computed

    @property
    def bank(self) -> NoiseBank:
        """The M samples."""
        return self._network.bank

    @property
    def labels(self) -> tuple[str, ...]:
        """Label names, in the order of the adapter; none where they come with the questions."""
        own = self.tokenizer
        return () if isinstance(own, QuestionTokenizer) else tuple(own.format.labels)

    @property
    def label_ids(self) -> TokenIds:
        """The token of each label, or its class of a head.

        Raises:
            AdapterError: labels are read by a trie, or come with the questions.
        """
        if isinstance(self.tokenizer, QuestionTokenizer):
            raise AdapterError(f"{self.card.adapter} has no labels of its own, which this needs")
        return self.tokenizer.label_ids

    @property
    def fields(self) -> tuple[str, ...]:
        """Fields of the adapter's template; none where its inputs are questions."""
        own = self.tokenizer
        return () if isinstance(own, QuestionTokenizer) else own.format.fields

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

    def encode(self, value: InputFields | Asked) -> Prompt:
        """Tokenises one input; may run beside `predict` on another thread.

        Raises:
            InputError: see `PromptTokenizer.encode` and `QuestionTokenizer.encode`; or it is a
                question, and this adapter has labels of its own, or the other way round.
        """
        tokenizer = self.tokenizer
        if isinstance(tokenizer, QuestionTokenizer):
            if not isinstance(value, Asked):
                raise InputError("this adapter answers questions: send one, and its state")
            return tokenizer.encode(value)
        if isinstance(value, Asked):
            raise InputError(
                "this adapter has labels of its own: send "
                + (f"an object with {', '.join(self.fields)}" if len(self.fields) > 1 else "a text")
            )
        return tokenizer.encode(value)

    def probe(self, text: str) -> Prompt:
        """An input that says nothing but this text."""
        if isinstance(self.tokenizer, QuestionTokenizer):
            return self.tokenizer.encode(Asked(text, Question.noul(text)))
        return self.tokenizer.encode(dict.fromkeys(self.fields, text))

    def labels_of(self, prompt: Prompt, device: torch.device) -> Labels:
        """Where the labels of a prompt are read off; token ids are on `device`."""
        if isinstance(self.tokenizer, QuestionTokenizer):
            if prompt.trie is None:
                raise AdapterError("a question without options has no labels")
            return prompt.trie
        return self.tokenizer.labels_on(device)

    def packed_rows(self, prompt: Prompt) -> int:
        """Rows that this prompt adds to a forward."""
        return packed_row_count(prompt, self.samples, self.scope)

    def state_of(self, prompt: Prompt) -> State:
        """What a question is about, and which of its rows others about the same share."""
        rows = shared_row_count(prompt, self.samples, self.scope)
        return State(hash(prompt.state_ids), rows)

    def cached_tokens(self, prompt: Prompt) -> int:
        """Tokens of a question's state that the prefix cache has now; 0 of any other input."""
        network = self._network
        return network.cached_tokens(prompt) if isinstance(network, QuestionLlama) else 0

    def predict(self, prompts: Sequence[Prompt]) -> list[Prediction]:
        """Predictive moments of each prompt, and how novel it is; order kept.

        Args:
            prompts: any number of them; they share forwards as `batching` says.
        """
        predictions, features = self._predicted(self._network, prompts)
        novelty = self.novelty.p_values(features) if self.novelty else None
        return about_inputs(predictions, prompts, novelty)

    def predict_mean(self, prompts: Sequence[Prompt]) -> list[Prediction]:
        """The same with the posterior's mean: one deterministic sample, variance 0."""
        return self._predicted(self._mean, prompts)[0]

    def label_logits(self, prompts: Sequence[Prompt]) -> Tensor:
        """Of the labels, see `Network`, every module under one sample, `[B, M, K]` float32.

        Of questions with the same number of options.
        """
        found = self._network.label_logits(prompts, range(self.samples))
        return found if isinstance(found, Tensor) else torch.stack(found)

    def novelty_features(self, prompts: Sequence[Prompt]) -> Tensor:
        """What `Novelty` is fitted on and asked about, `[B, D, d]` float32 on the CPU.

        The hidden states at the end of the cue after each third of the layers, the last one after
        the final norm, or an encoder's last one at the start of the text; averaged over the
        samples.
        """
        if isinstance(self._network, QuestionLlama):
            return self._asked(self._network, prompts)[1]
        return self._run(self._network, prompts)[1]

    def posterior_samples(
        self, prompts: Sequence[Prompt], bank: NoiseBank | None = None
    ) -> PosteriorSamples:
        """Distributions over the labels under each sample, on the CPU.

        Args:
            prompts: B prompts; questions with the same number of options.
            bank: in place of the adapter's own.
        """
        network = self._network.under(bank) if bank else self._network
        if isinstance(network, QuestionLlama):
            each = zip(prompts, self._asked(network, prompts)[0], strict=True)
            return PosteriorSamples.joined([self.policy_for(p).tempered(own) for p, own in each])
        return self.policy.tempered(self._run(network, prompts)[0])

    def _predicted(
        self, network: Network | QuestionLlama, prompts: Sequence[Prompt]
    ) -> tuple[list[Prediction], Tensor]:
        """Predictions, and the features of `novelty_features`."""
        if not isinstance(network, QuestionLlama):
            samples, features = self._run(network, prompts)
            return self.policy.summarise(samples, self.labels), features
        asked, features = self._asked(network, prompts)
        return [
            self.policy_for(prompt).summarise(own, prompt.options or ())[0]
            for own, prompt in zip(asked, prompts, strict=True)
        ], features

    def _run(self, network: Network, prompts: Sequence[Prompt]) -> tuple[PosteriorSamples, Tensor]:
        """Samples of the posterior, and the features of `novelty_features`."""
        if not prompts:
            nothing = torch.empty(0, network.bank.samples, 1, len(self.labels))
            return PosteriorSamples(nothing, torch.ones(1)), self._no_features
        samples, features = posterior_samples(network, prompts, self.batching, self.scope)
        return replace(samples, error_ratio=self._error_of(network)), features

    def _asked(
        self, network: QuestionLlama, prompts: Sequence[Prompt]
    ) -> tuple[list[PosteriorSamples], Tensor]:
        """The same for questions, one by one."""
        if not prompts:
            return [], self._no_features
        asked, features = question_samples(network, prompts, self.batching, self.scope)
        return [replace(own, error_ratio=self._error_of(network)) for own in asked], features

    def _error_of(self, network: Network | QuestionLlama) -> float:
        return self._error_ratio if network is self._network else 1.0

    @property
    def _no_features(self) -> Tensor:
        return torch.empty(0, 1, self._hidden_size)

    def examples(self) -> list[Prompt]:
        """Three short prompts that mean nothing, of which no two begin alike; to measure with."""
        like = self.probe("warm up")
        ids = like.prompt_ids
        return [replace(like, prompt_ids=ids[turn:] + ids[:turn]) for turn in (1, 2, 3)]

    def warm_up(self) -> Iterator[Callable[[], object]]:
        """Steps before the first answer: the smallest and the largest input, and each recording.

        On a CPU, which reserves nothing for it, a large input is not the largest.
        """
        like, network = self.probe("warm up"), self._network
        most = self.max_tokens - len(like.cue_ids)
        large = min(most, _LARGE_ON_CPU) if self._device_type == "cpu" else most

        def of(tokens: int) -> Prompt:
            question = like.prompt_ids[like.shared :] if like.shared else ()
            ids = (like.prompt_ids * tokens)[: tokens - len(question)]
            return replace(like, prompt_ids=(*ids, *question), shared=len(ids) if question else 0)

        for tokens in (len(like.prompt_ids), large):
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
