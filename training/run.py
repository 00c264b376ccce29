"""One training run, from a configuration to an adapter with a model card."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from rich.console import Console

from dalorra.adapter.directory import round_adapter, save_adapter
from dalorra.adapter.layer import HEAD, attach, lora_config, module_tensors, stochastic_layers
from dalorra.adapter.manifest import (
    BaseReference,
    Card,
    Manifest,
    label_tokens,
    library_versions,
)
from dalorra.base.families import head_modules
from dalorra.decision.policy import Policy
from dalorra.decision.policy_digest import with_digest
from dalorra.errors import ConfigError, InputError, Interrupted
from dalorra.posteriors import Posterior
from dalorra.posteriors.bank import BankSpec
from dalorra.predictor import Predictor
from dalorra.prompts import PromptTokenizer
from dalorra.question_prompts import AnyTokenizer, QuestionTokenizer, tokenizer_for
from dalorra.questions import Asked
from training.answers import Answers, Evaluable, answer
from training.asking import prepare
from training.calibrate import calibrate
from training.config import TrainingConfig, read_config
from training.data import least_to_calibrate, load_data
from training.environment import hardware
from training.evaluate import evaluate, score
from training.figures import training_figure
from training.frozen import FrozenBase
from training.looks import look_at, take_look
from training.matched_bank import EXAMPLES, MEASURED, error_ratio, matched_spec
from training.methods.trained import Inference, TrainedAdapter
from training.novelty import fit_novelty, novelty_limit
from training.objective import Objective
from training.off_domain import accepted_by_kind, off_domain_in_words
from training.orthography import VARIANTS, one_spelling, spellings
from training.output import (
    ADAPTER_FOLDER,
    CHECKPOINT_FOLDER,
    LOG_FILE,
    RUN_FILE,
    claimed,
    portable,
    prepare_output,
    write_json,
)
from training.processes import Process
from training.promise import Promise, promise_in_words, uncalibrated
from training.question_data import load_questions
from training.question_scores import Kinds, calibrated_on_kinds, thresholds_in_words
from training.report import used_in_words, write_model_card
from training.tasks import TASKS, Example, QuestionTask, subsample
from training.trainer import AdapterTrainer, LabelledPrompt, TrainablePeftModel

EVALUATION_FOLDER = "evaluation"
HOLDOUT_METRICS = ("nll", "accuracy", "ece", "ece_by_chance", "brier")


def train(config_path: Path, *, resume: bool = False, overrides: dict[str, str]) -> Path:
    """Trains an adapter as a YAML file says, see `TrainingConfig`.

    Writes into the configuration's `output_dir`: `run.json`, `log.jsonl`, `training.png`,
    `checkpoints/`, `adapter/` and, scored on the task's published evaluation split,
    `evaluation/`.

    Args:
        config_path: YAML file.
        resume: continue from the last checkpoint; the result is that of an unbroken run.
        overrides: dotted names to YAML values.

    Returns:
        The adapter's directory.

    Raises:
        ConfigError: impossible configuration, or an `output_dir` that holds another run, or one
            that is under way.
        Interrupted: after Ctrl-C or SIGTERM, once a checkpoint is written.
    """
    config = read_config(config_path, overrides)
    with claimed(config.output_dir):
        checkpoint = prepare_output(config, resume)
        try:
            return Run(config).execute(checkpoint)
        except Interrupted as stopped:
            sentence = f"{stopped}; {config.output_dir} keeps it: go on with --resume"
            raise Interrupted(sentence, stopped.signum) from None


class Run:
    """Base model, data and adapter of one run.

    Args:
        config: what to do.
        frozen: a base model that is loaded already.

    Attributes:
        inference: how the adapter answers; changes when the training is over.
        bank: its samples; likewise.
    """

    def __init__(self, config: TrainingConfig, frozen: FrozenBase | None = None) -> None:
        self.config = config
        self.task = config.resolved_task()
        self.data = (
            load_questions(config.data, self.task, config.seed)
            if isinstance(self.task, QuestionTask)
            else load_data(config, self.task)
        )
        self.frozen = frozen or FrozenBase.load(config)
        self.base = self.frozen.model
        torch.manual_seed(config.seed)  # A and the head of classes come from the global generator
        self.prompt_format = prepare(config, self.task, self.base)
        self.tokenizer = tokenizer_for(
            self.prompt_format, self.base.tokenizer, config.adapter.max_tokens
        )
        _check_labels(config, self.tokenizer)
        self.inference = Inference(config.method.posterior())
        self.bank = config.bank
        self.model = self._attached()
        self.model.objective = Objective(
            config.method,
            None
            if isinstance(self.tokenizer, QuestionTokenizer)
            else self.tokenizer.labels_on(self.model.device),
            config.adapter.scope,
            len(self.data.train),
            self.frozen.prompt_cache,
        )

    def _attached(self) -> TrainablePeftModel:
        """The base with a new adapter."""
        adapter, side_by_side = self.config.adapter, self.config.method.adapters
        layers = self.base.model.config.num_hidden_layers
        if adapter.last_layers is not None and adapter.last_layers > layers:
            raise ConfigError(f"adapter.last_layers: the base model has only {layers} layers")
        by_head = self.prompt_format.by_head
        lora = lora_config(
            adapter.rank * side_by_side,
            adapter.alpha * side_by_side,  # so that the scale α / r stays
            [name for name in adapter.modules if not (by_head and name == HEAD)],
            self.base.name,
            range(layers - adapter.last_layers, layers) if adapter.last_layers else None,
            head_modules(self.base.model) if by_head else (),
        )
        posterior = self.inference.posterior
        try:
            model = attach(self.base.model, lora, posterior, TrainablePeftModel)
        except ValueError as error:
            raise ConfigError(f"adapter.modules: {error}") from error
        return cast(TrainablePeftModel, model.eval())

    def execute(self, checkpoint: str | None) -> Path:
        """Trains, saves, calibrates where there are examples for it, and scores."""
        output, is_main = self.config.output_dir, Process.this().is_main
        if is_main:
            write_json(output / RUN_FILE, self._description())
        self.fit(checkpoint)
        if not is_main:
            return output / ADAPTER_FOLDER
        training_figure(output / LOG_FILE, output / "training.png")
        return self._finish(output)

    def fit(self, checkpoint: str | None = None) -> AdapterTrainer:
        """Trains, rounds A and B as they will be stored, and fits what the method adds to them.

        Raises:
            Interrupted: after Ctrl-C or SIGTERM, once a checkpoint is written.
        """
        config, method = self.config, self.config.method
        examples = self.labelled_prompts(self._in_all_spellings(self.data.train))
        optimizer = config.optimizer
        if config.adapter.scope == "answer_tokens":
            self.frozen.prompt_cache.plan(
                self.model,
                [prompt for prompt, _ in examples],
                draws=optimizer.steps * optimizer.batch_size * optimizer.accumulation,
            )
        checkpoints = config.output_dir / CHECKPOINT_FOLDER
        trainer = AdapterTrainer(config, self.model, examples, self.holdout_metrics, checkpoints)
        trainer.train(resume_from_checkpoint=checkpoint)
        trainer.leave_group()  # what follows, the main process does alone
        if trainer.stopped_by:
            step = trainer.state.global_step
            raise Interrupted(f"training stopped after step {step}", trainer.stopped_by)
        method.finish(module_tensors(self.model))
        round_adapter(self.model, config.adapter.weight_dtype)
        if config.bank.sampler == "matched":
            self.bank = self._matched_bank()
        self.inference = method.after_training(
            TrainedAdapter(
                self.model,
                self._predictor,
                examples=self._spelt(self.data.train),
                holdout=self._spelt(self.data.holdout),
                bank=config.bank,
                seed=config.seed,
                prompt_cache=self.frozen.prompt_cache,
            )
        )
        return trainer

    def _matched_bank(self) -> BankSpec:
        """The bank, arranged on training examples."""
        train = self._spelt(self.data.train)
        examples = subsample(train, min(EXAMPLES, len(train)), self.config.seed)
        prompts = [prompt for prompt, _ in self.labelled_prompts(examples)]
        return matched_spec(self.model, self.model.objective, prompts, self.bank)

    def _bank_with_its_error(self) -> BankSpec:
        """The bank, and how far its means are off, as the hold-out tells."""
        predictor = self.evaluable()
        if not isinstance(predictor, Predictor):
            return self.bank
        holdout = self._spelt(self.data.holdout)
        examples = subsample(holdout, min(MEASURED, len(holdout)), self.config.seed)
        prompts = [prompt for prompt, _ in self.labelled_prompts(examples)]
        ratio = error_ratio(predictor, self.inference.posterior, self.model, self.bank, prompts)
        return self.bank.model_copy(update={"error_ratio": ratio})

    @property
    def _augmented(self) -> bool:
        return self.config.data.augment == "orthography"

    def _in_all_spellings(self, examples: list[Example]) -> list[Example]:
        """Every example in all its spellings, where the run trains on these.

        The penalty is still divided by the number of examples: spellings are no further evidence.
        """
        if not self._augmented:
            return examples
        return [spelt for example in examples for spelt in spellings(example)]

    def _spelt(self, examples: list[Example]) -> list[Example]:
        """One spelling of each, where the run trains on all."""
        return [one_spelling(example) for example in examples] if self._augmented else examples

    def labelled_prompts(self, examples: Sequence[Example]) -> list[LabelledPrompt]:
        """Examples as the trainer takes them: tokenised, with what their answer should be."""
        return [self._labelled(example) for example in examples]

    def _labelled(self, example: Example) -> LabelledPrompt:
        if isinstance(self.tokenizer, PromptTokenizer):
            names = list(self.tokenizer.format.labels)
            return self.tokenizer.encode(example.texts), names.index(example.label)
        asked = cast(Asked, example.input)
        names = [option.name for option in asked.question.options]
        try:
            prompt = self.tokenizer.encode(asked)
        except InputError as error:
            raise ConfigError(
                f"a question about {example.kind}: {error}, with a smaller task.longest_state, or "
                "raise adapter.max_tokens"
            ) from error
        return prompt, example.target or tuple(float(name == example.label) for name in names)

    def holdout_metrics(self) -> dict[str, float]:
        """Scores of the model as it would be served, M samples of its posterior."""
        holdout = self._spelt(self.data.holdout)
        answers = answer(self.evaluable(), holdout, mean_mask=False)
        scores = score(answers.sampled, [example.label for example in holdout])
        return {name: scores[name] for name in HOLDOUT_METRICS}

    def evaluable(self, digest: str = "") -> Evaluable:
        """The adapter as it is now and as it answers, with thresholds that accept nothing."""
        return self.inference.predictor(lambda posterior: self._predictor(posterior, digest))

    def save(self) -> tuple[Path, Manifest, str]:
        """Writes the adapter's directory: its path, manifest and digest."""
        self.bank = self._bank_with_its_error()
        folder = self.config.output_dir / ADAPTER_FOLDER
        manifest = self._manifest(self.holdout_metrics())
        digest = save_adapter(self.model, manifest, folder, self.config.adapter.weight_dtype)
        self.inference.save(folder)
        return folder, manifest, digest

    def _finish(self, output: Path) -> Path:
        folder, manifest, digest = self.save()
        data = self.data
        predictor = self.evaluable(digest)
        if self.config.evaluation.novelty:
            predictor.novelty = fit_novelty(
                predictor,
                data.train,
                data.holdout,
                augment=self.config.evaluation.novelty_augment,
                seed=self.config.seed,
            )
            predictor.novelty.save(folder)
        predictor.policy = with_digest(self._calibrated(predictor))
        predictor.policy.save(folder)
        metrics = evaluate(
            predictor,
            data.test,
            output / EVALUATION_FOLDER,
            task=f"{self.task.name} {self._evaluation_split}",
            seeds={"training": self.config.seed, "bank": self.bank.seed},
            used=self._in_all_spellings(data.train + data.holdout + data.mixture),
            outside=data.outside,
            more=self._by_kind(predictor),
        )
        write_model_card(folder, manifest.model_dump(), metrics)
        console = Console(stderr=True, soft_wrap=True, markup=False, highlight=False)
        console.print(self._in_words(predictor))
        if metrics["used"]:
            console.print(
                f"of {metrics['n']:,} evaluation examples {used_in_words(metrics)}: its scores on "
                "these are no fair test"
            )
        return folder

    def _by_kind(self, predictor: Evaluable) -> Callable[[Answers], Mapping[str, Any]] | None:
        """What is to be known of an adapter for questions beside the scores of all of them."""
        if not isinstance(self.task, QuestionTask):
            return None
        promise = Promise(self.config.evaluation.target_error)
        return Kinds(predictor, self.data.test, self.task.held_out, promise)

    def _calibrated(self, predictor: Evaluable) -> Policy:
        """The thresholds that the calibration examples show to keep the run's promise."""
        promise = Promise(self.config.evaluation.target_error)
        if not self.data.calibration:
            return Policy.never(predictor.card.digest, uncalibrated(promise))
        if isinstance(self.task, QuestionTask):
            return calibrated_on_kinds(predictor, self.data.mixture, promise, self.bank.identity)
        folder, novelty = self.config.output_dir / ADAPTER_FOLDER, predictor.novelty
        examples = self._spelt(self.data.mixture)
        spelt = f", each in one of {VARIANTS} spellings" if self._augmented else ""
        if share := self.config.data.out_of_scope:
            spelt += f", {share:.0%} of them out of scope"
        source = f"{self.task.name} train, examples that chose nothing else{spelt}"
        level, _ = novelty_limit(novelty, None, promise.confidence)

        outside = self.task.out_of_scope

        def tested() -> Policy:
            return calibrate(
                predictor,
                examples,
                promise,
                source=source,
                bank=self.bank.identity,
                min_novelty_p=level,
                novelty_digest=novelty.digest if novelty else None,
                others=self._in_another_precision(predictor),
                out_of_scope=outside,
            )

        settings = {"novelty_level": level, "in": "training"}
        look = look_at(examples, predictor.card.digest, promise, settings, source)
        return take_look(folder, look, tested, again=False)

    def _in_another_precision(self, predictor: Evaluable) -> Iterator[Predictor]:
        """The adapter as the other kind of processor serves it, where processors serve it."""
        if not isinstance(predictor, Predictor):
            return
        if self.base.device.type != "cpu" or self.base.bits is not None:
            return
        other = "float32" if predictor.dtype == torch.bfloat16 else "bfloat16"
        yield Predictor.load(
            self.config.output_dir / ADAPTER_FOLDER,
            self.config.base_model,
            device="cpu",
            dtype=other,
        )

    def _in_words(self, predictor: Evaluable) -> str:
        """What the policy promises, or why it promises nothing and what would change that."""
        policy = predictor.policy
        if isinstance(self.task, QuestionTask):
            return thresholds_in_words(policy)
        if self.data.calibration:
            level = novelty_limit(predictor.novelty, None, policy.confidence or 0.95)
            foreign = off_domain_in_words(accepted_by_kind(predictor))
            return "\n".join(filter(None, [promise_in_words(policy), level[1], foreign]))
        why = f"nothing is accepted yet, because {policy.source}"
        if self.config.data.calibration == "auto":
            least = least_to_calibrate(self.config.evaluation.target_error)
            why += f"; a training set of {least:,} or more spares a part of itself for that"
        return why

    def _predictor(self, posterior: Posterior, digest: str = "") -> Predictor:
        return Predictor(
            self.model,
            self.tokenizer,
            posterior,
            self.bank,
            self.config.adapter.scope,
            card=Card(self.base.name, self.config.name, digest, self.config.method.name),
            policy=Policy.never(),
            arranged=self.frozen.arranged,
        )

    @property
    def _evaluation_split(self) -> str:
        data = self.config.data
        if isinstance(self.task, QuestionTask):
            return "that were not trained on"
        if data.evaluation_holdout:
            return "examples held out of the training set"
        return data.evaluation_split or self.task.evaluation_split

    def _manifest(self, holdout: dict[str, float]) -> Manifest:
        return Manifest(
            name=self.config.name,
            method=self.config.method.name,
            posterior=self.inference.posterior.model_dump(),
            method_parameters=self.config.method.model_dump(exclude={"name"}),
            scope=self.config.adapter.scope,
            last_layers=self.config.adapter.last_layers,
            base_model=BaseReference.to(self.base),
            prompt=self.prompt_format,
            cue_tokens=list(self.tokenizer.cue_ids),
            label_tokens=label_tokens(self.tokenizer),
            modules=list(stochastic_layers(self.model)),
            max_tokens=self.config.adapter.max_tokens,
            bank=self.bank,
            training={
                "task": (
                    self.task.name
                    if TASKS.get(self.task.name) == self.task
                    else self.task.model_dump()
                ),
                "examples": len(self.data.train),
                "held_out": len(self.data.holdout),
                "calibration": len(self.data.calibration),
                "data_digest": self.data.digest,
                "config": portable(self.config, "base_model", "task"),
                "holdout": holdout,
            },
            versions=library_versions(),
        )

    def _description(self) -> dict[str, Any]:
        """The content of `run.json`."""
        return {
            "config": portable(self.config),
            "examples": {
                "train": len(self.data.train),
                "holdout": len(self.data.holdout),
                "calibration": len(self.data.calibration),
                "test": len(self.data.test),
            },
            "data_digest": self.data.digest,
            "base_model": {"name": self.base.name, "digest": self.base.digest},
            "versions": library_versions(),
            "hardware": hardware(),
        }


def _check_labels(config: TrainingConfig, tokenizer: AnyTokenizer) -> None:
    """Refuses what labels of several tokens do not go with."""
    if isinstance(tokenizer, PromptTokenizer) and tokenizer.trie is None:
        return
    if config.method.name == "laplace":
        raise ConfigError(
            "method.name: laplace is not for labels of several tokens, because its curvature is "
            "that of label tokens"
        )
    if config.bank.head == "integrated":
        raise ConfigError(
            "bank.head: the head cannot be integrated over labels of several tokens: say sampled"
        )
