"""`transformers.Trainer` on our objective: resume, accumulation and multi-GPU come from there."""

import json
import math
import signal
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from types import FrameType
from typing import Any, Final, cast

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Sampler
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_pt_utils import LengthGroupedSampler

from dalorra.adapter.layer import StochasticPeftModel, stochastic_layers
from dalorra.free_cores import on_free_cores
from dalorra.prompts import Prompt
from training.config import TrainingConfig
from training.objective import Objective
from training.processes import Process

Evaluate = Callable[[], dict[str, float]]
LabelledPrompt = tuple[Prompt, int | tuple[float, ...]]
"""A prompt and the index of its true label; or the probabilities of the labels that it brings."""
SAVE_SECONDS: Final = 120.0
"""A checkpoint is no older than this when a step ends: what a kill costs at most."""


class TrainablePeftModel(StochasticPeftModel):
    """Its forward is the objective, so that distributed wrappers see every parameter used."""

    objective: Objective

    def forward(self, prompts: Sequence[Prompt], labels: Tensor, draw: int) -> dict[str, Tensor]:
        """The loss of one mini-batch; `draw` seeds its masks."""
        generator = torch.Generator().manual_seed(draw)
        loss = self.objective(self, prompts, labels, generator)
        return {"loss": loss.total, "nll": loss.nll, "penalty": loss.penalty}

    def train(self, mode: bool = True) -> "TrainablePeftModel":
        """Stays in evaluation mode: an encoder's own dropout is not part of the method's noise."""
        return super().train(False)


class AdapterTrainer(Trainer):
    """Adds learning rates of the posterior's tensors, noise seeded by step, and our evaluation.

    Args:
        config: of the run.
        model: its adapter is trained, the base stays frozen.
        examples: tokenised training examples.
        evaluate: metrics of the model as it would be served, by name.
        checkpoints: folder for checkpoints.
    """

    def __init__(
        self,
        config: TrainingConfig,
        model: TrainablePeftModel,
        examples: Sequence[LabelledPrompt],
        evaluate: Evaluate,
        checkpoints: Path,
    ) -> None:
        self._run_config = config
        self._score_holdout = evaluate
        self._parts: dict[str, list[float]] = {"nll": [], "penalty": []}
        self._step = self._micro_step = -1
        self._saves = TimelyCheckpoints()
        super().__init__(
            model=model,
            args=training_arguments(config, checkpoints),
            train_dataset=cast(Any, list(examples)),
            eval_dataset=cast(Any, [None]),  # `evaluate` below knows its own examples
            data_collator=_collate,
            callbacks=[self._saves],
        )
        self.model_accepts_loss_kwargs = False  # our loss is a mean: divide it by accumulation

    @property
    def stopped_by(self) -> int:
        """The signal that ended the training, or 0."""
        return self._saves.stopped_by

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """As the base class, stopping at Ctrl-C and SIGTERM."""
        with self._saves.listening():
            return super().train(*args, **kwargs)

    @on_free_cores()
    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """Forward and backward."""
        return super().training_step(*args, **kwargs)

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> Tensor:
        """The objective, with noise that depends on seed, step and process alone."""
        step = self.state.global_step
        # Counted within the step: the last one of an epoch may have fewer micro-steps.
        self._micro_step = 0 if step != self._step else self._micro_step + 1
        self._step = step
        micro_step = step * self._run_config.optimizer.accumulation + self._micro_step
        draw = (self._run_config.seed << 32) + micro_step * self.args.world_size
        outputs = model(**inputs, draw=draw + self.args.process_index)
        for name, values in self._parts.items():
            values.append(outputs[name].item())
        return cast(Tensor, outputs["loss"])

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int] | None:
        examples = cast(Sequence[LabelledPrompt], self.train_dataset)
        tails = [prompt.tail_rows for prompt, _ in examples]
        if len(set(tails)) == 1:
            return cast(Sampler[int] | None, super()._get_train_sampler(train_dataset))
        return LikeTails(self.args.train_batch_size * self.args.gradient_accumulation_steps, tails)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """AdamW; see `parameter_groups`."""
        if self.optimizer is None:
            groups = parameter_groups(cast(nn.Module, self.model), self._run_config)
            self.optimizer = torch.optim.AdamW(groups)
        return self.optimizer

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Metrics on the hold-out, under the names that `metric_for_best_model` reads."""
        metrics = {f"eval_{name}": value for name, value in self._score_holdout().items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(
            self.args, self.state, self.control, metrics
        )
        return metrics

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Splits the logged loss into its two parts, and appends to `log.jsonl`."""
        if "loss" in logs:  # every process logs it at the same step, and it is their mean
            for name, values in self._parts.items():
                mean = math.fsum(values) / max(len(values), 1)
                logs[name] = self._mean_over_processes(mean)
                values.clear()
        super().log(logs, start_time)
        if self.is_world_process_zero():
            with (self._run_config.output_dir / "log.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps({"step": self.state.global_step, **logs}) + "\n")

    def leave_group(self) -> None:
        """Ends what the processes do together.

        The wrapped model is destroyed before the process group: as the group's last owner it would
        wait for the group's thread, and that thread may itself wait for Python's lock.
        """
        self.model_wrapped = cast(nn.Module, self.model)
        self.accelerator.free_memory()
        self.accelerator.end_training()

    def _mean_over_processes(self, value: float) -> float:
        if self.args.world_size == 1:
            return value
        mean = self.accelerator.reduce(torch.tensor(value, device=self.args.device), "mean")
        return float(cast(Tensor, mean))


class LikeTails(LengthGroupedSampler):
    """Puts prompts into a batch whose tails are about as long: it is padded to the longest.

    Batches come in any order, and one that is not full is the last.

    Args:
        batch_size: B.
        tails: rows of each example's tail.
    """

    def __init__(self, batch_size: int, tails: Sequence[int]) -> None:
        super().__init__(batch_size, lengths=list(tails))

    def __iter__(self) -> Iterator[int]:
        found: list[int] = list(super().__iter__())  # type: ignore[no-untyped-call]
        batches = [found[at : at + self.batch_size] for at in range(0, len(found), self.batch_size)]
        full = len(self) // self.batch_size
        order = [*torch.randperm(full).tolist(), *range(full, len(batches))]
        return chain.from_iterable(batches[at] for at in order)


def parameter_groups(model: nn.Module, config: TrainingConfig) -> list[dict[str, Any]]:
    """A, B and a head of classes at the run's rate and decay; the posterior's tensors at no decay.

    Decay would pull those towards 0, which says something of its own: φ = 0 is p = ½.
    """
    layers = stochastic_layers(model).values()
    optimizer, rates = config.optimizer, config.method.learning_rates
    groups: dict[str, list[nn.Parameter]] = defaultdict(list)
    for layer in layers:
        for name, tensor in layer.tensors.items():
            groups[name].append(cast(nn.Parameter, tensor))
    head = [p for n, p in model.named_parameters() if p.requires_grad and ".lora_" not in n]
    weights = groups.pop("down") + groups.pop("up") + head
    return [
        {
            "params": weights,
            "lr": optimizer.learning_rate,
            "weight_decay": optimizer.weight_decay,
        },
        *(
            {"params": tensors, "lr": rates.get(name, optimizer.learning_rate), "weight_decay": 0.0}
            for name, tensors in groups.items()
        ),
    ]


def training_arguments(config: TrainingConfig, checkpoints: Path) -> TrainingArguments:
    """Our configuration in the Trainer's words."""
    optimizer, every = config.optimizer, min(config.evaluation.every, config.optimizer.steps)
    arguments = TrainingArguments(
        output_dir=str(checkpoints),
        max_steps=optimizer.steps,
        per_device_train_batch_size=optimizer.batch_size,
        gradient_accumulation_steps=optimizer.accumulation,
        learning_rate=optimizer.learning_rate,
        lr_scheduler_type="linear",
        warmup_steps=math.ceil(optimizer.warmup * optimizer.steps),
        max_grad_norm=optimizer.max_grad_norm,
        eval_strategy="steps",
        eval_steps=every,
        save_strategy="steps",
        save_steps=every,
        save_total_limit=2,
        load_best_model_at_end=config.evaluation.keep_best,
        metric_for_best_model="nll",
        greater_is_better=False,
        logging_steps=max(every // 10, 1),
        seed=config.seed,
        data_seed=config.seed,
        use_cpu=Process.this().device(config.device) == "cpu",
        remove_unused_columns=False,
        dataloader_drop_last=False,
        dataloader_pin_memory=False,
        report_to=list(config.report_to) or "none",
    )
    # One GPU for each process, also where it sees several: prompts cannot be split among them.
    arguments._n_gpu = min(arguments.n_gpu, 1)  # noqa: SLF001 - there is no other way to say so
    return arguments


class TimelyCheckpoints(TrainerCallback):
    """A checkpoint every `SAVE_SECONDS`, and at the first Ctrl-C or SIGTERM, which ends training.

    Both come after the current step.

    Attributes:
        stopped_by: that signal, or 0.
    """

    def __init__(self) -> None:
        self.stopped_by = 0
        self._saved = time.monotonic()

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Takes the signals over inside the block; a second one does what it did before."""
        before = {signum: signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM)}

        def restore() -> None:
            for signum, handler in before.items():
                signal.signal(signum, handler)

        def stop(signum: int, _frame: FrameType | None) -> None:
            self.stopped_by = signum
            restore()

        for signum in before:
            signal.signal(signum, stop)
        try:
            yield
        finally:
            restore()

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._saved = time.monotonic()

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._saved = time.monotonic()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        due = time.monotonic() - self._saved >= SAVE_SECONDS
        if args.world_size > 1:  # neither clocks nor signals reach the processes at the same step
            heard = torch.tensor([float(self.stopped_by), float(due)], device=args.device)
            torch.distributed.all_reduce(heard, torch.distributed.ReduceOp.MAX)
            self.stopped_by, due = int(heard[0]), bool(heard[1])
        if self.stopped_by:
            control.should_training_stop = True
        if self.stopped_by or due:
            control.should_save = True
        return control


def _collate(examples: Sequence[LabelledPrompt]) -> dict[str, Any]:
    return {
        "prompts": [prompt for prompt, _ in examples],
        "labels": _stacked([target for _, target in examples]),
    }


def _stacked(targets: Sequence[int | tuple[float, ...]]) -> Tensor:
    """`[B]` indices, or `[B, K]` probabilities, padded with 0."""
    rows = [target for target in targets if isinstance(target, tuple)]
    if not rows:
        return torch.tensor(targets)
    return pad_sequence([torch.tensor(row) for row in rows], batch_first=True)
