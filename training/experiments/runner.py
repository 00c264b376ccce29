"""Trains and scores the runs of an experiment, one JSON and one table of predictions each."""

import hashlib
import json
import resource
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from dalorra.adapter.directory import adapter_tensors
from dalorra.adapter.layer import detach, stochastic_layers
from dalorra.adapter.manifest import library_versions
from dalorra.decision.atomic_file import write_atomically
from dalorra.errors import ConfigError
from dalorra.forward.llama.prefix_cache import PrefixCache
from training.config import TrainingConfig
from training.environment import hardware
from training.evaluate import without_nan
from training.experiments.earlier import RESULT_FILE, adopted
from training.experiments.scores import scores_of
from training.experiments.spec import Experiment, RunSpec, save_experiment
from training.frozen import FrozenBase
from training.output import CHECKPOINT_FOLDER, portable
from training.run import Run


class Runner:
    """Runs of one experiment.

    Args:
        folder: where results go: `<folder>/<experiment>/<task>/<variant>/seed-<n>/`.
        overrides: values over every run's configuration, such as where the data are.
        keep_adapters: whether to keep each trained adapter beside its result.
    """

    def __init__(
        self,
        experiment: Experiment,
        folder: Path,
        overrides: Mapping[str, Any],
        *,
        keep_adapters: bool = False,
    ) -> None:
        self.experiment = experiment
        self.folder = folder / experiment.name
        self.overrides = overrides
        self.keep_adapters = keep_adapters
        self._frozen: tuple[tuple[object, ...], FrozenBase] | None = None

    def run(self, only: Sequence[str] = (), tasks: Sequence[str] = ()) -> list[Path]:
        """Every run that has no result yet; an interrupted experiment goes on where it was.

        Args:
            only: names of variants; none: all.
            tasks: names of task settings; none: all.

        Returns:
            The results of all runs.

        Raises:
            ConfigError: a run cannot be carried out, or has a result of another configuration.
        """
        _require_known("variant", only, [v.name for v in self.experiment.variants])
        _require_known("task setting", tasks, [t.name for t in self.experiment.tasks])
        specs = [
            spec
            for spec in self.experiment.runs()
            if (not only or spec.variant.name in only) and (not tasks or spec.task.name in tasks)
        ]
        # All before the first run starts, so that a mistake in the last one is found at once.
        configs = [spec.config(self.folder, self.overrides) for spec in specs]
        save_experiment(self.experiment, self.folder)
        console = Console(stderr=True)
        paths = []
        for number, (spec, config) in enumerate(zip(specs, configs, strict=True), start=1):
            path = config.output_dir / RESULT_FILE
            if not self._is_done(path, config):
                began = time.perf_counter()
                self._one(spec, config)
                seconds = time.perf_counter() - began
                console.print(f"{number} of {len(specs)}: {spec.key}, {seconds:.0f} s", style="dim")
            paths.append(path)
        return paths

    @staticmethod
    def _is_done(path: Path, config: TrainingConfig) -> bool:
        if not path.exists():
            return False
        found = json.loads(path.read_text(encoding="utf-8"))["config_digest"]
        if found != config_digest(config):
            raise ConfigError(f"{path} is of another configuration: remove its folder")
        return True

    def _one(self, spec: RunSpec, config: TrainingConfig) -> None:
        shutil.rmtree(config.output_dir, ignore_errors=True)
        config.output_dir.mkdir(parents=True)
        content = portable(config)
        made_elsewhere = None
        if not self.keep_adapters:
            made_elsewhere = adopted(spec, content, self.folder.parent, config.output_dir)
        result = made_elsewhere or {**self._made(spec, config), "config": content}
        result["config_digest"] = config_digest(config)
        text = json.dumps(without_nan(result), indent=1, allow_nan=False, ensure_ascii=False)
        write_atomically(config.output_dir / RESULT_FILE, (text + "\n").encode())

    def _made(self, spec: RunSpec, config: TrainingConfig) -> dict[str, Any]:
        """Trains and scores."""
        run = Run(config, self._frozen_base(config))
        try:
            with _peak_memory(run.model.device) as peak:
                began = time.perf_counter()
                trainer = run.fit()
                seconds = time.perf_counter() - began
            if self.keep_adapters:
                run.save()
            return {
                "experiment": self.experiment.name,
                "task": spec.task.name,
                "variant": spec.variant.name,
                "seed": spec.seed,
                "data_digest": run.data.digest,
                "examples": {"train": len(run.data.train), "holdout": len(run.data.holdout)},
                "parameters": _parameters(run),
                "posterior": run.inference.posterior.model_dump(),
                "training": {"seconds": seconds, "steps": trainer.state.global_step, **peak},
                **scores_of(spec, run),
                "versions": library_versions(),
                "hardware": hardware(),
                "date": datetime.now(UTC).isoformat(timespec="seconds"),
            }
        finally:
            detach(run.model)
            shutil.rmtree(config.output_dir / CHECKPOINT_FOLDER, ignore_errors=True)

    def _frozen_base(self, config: TrainingConfig) -> FrozenBase:
        """The base model, loaded once for all runs that follow each other on it.

        So its prompts' keys and values, which belong to no adapter, are computed once, too.
        """
        key = (config.base_model, config.device, config.dtype, config.prompt_cache_gib)
        if self._frozen is None or self._frozen[0] != key:
            self._frozen = None  # two would need the memory of both
            prefixes = PrefixCache(round(config.prompt_cache_gib * 2**30))
            self._frozen = (key, FrozenBase.load(config, prefixes))
        return self._frozen[1]


def _require_known(kind: str, asked: Sequence[str], known: Sequence[str]) -> None:
    for name in asked:
        if name not in known:
            raise ConfigError(f"no {kind} is called {name!r}: there are {'; '.join(known)}")


def config_digest(config: TrainingConfig) -> str:
    """sha256 over a configuration without the folders of this machine."""
    return hashlib.sha256(json.dumps(portable(config), sort_keys=True).encode()).hexdigest()


def _parameters(run: Run) -> dict[str, Any]:
    """Sizes of what is trained, and the mask posterior where there is one, `[modules][r]`."""
    layers = stochastic_layers(run.model)
    tensors = adapter_tensors(run.model)
    weights = sum(t.numel() for n, t in tensors.items() if n.endswith(("A.weight", "B.weight")))
    head = sum(t.numel() for n, t in tensors.items() if ".lora_" not in n)  # an encoder's
    result: dict[str, Any] = {
        "lora": weights,
        "extra": sum(t.numel() for t in tensors.values()) - weights - head,
    }
    if all("mask_logits" in layer.tensors for layer in layers.values()):
        result["mask_probabilities"] = {
            name: [round(p, 4) for p in torch.sigmoid(layer.mask_logits.detach()).tolist()]
            for name, layer in layers.items()
        }
    return result


@contextmanager
def _peak_memory(device: torch.device) -> Iterator[dict[str, float]]:
    """Peak memory in MiB: of the GPU inside the block, or else of the process since its start."""
    peak: dict[str, float] = {}
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    yield peak
    if device.type == "cuda":
        peak["peak_gpu_mib"] = torch.cuda.max_memory_allocated(device) / 2**20
    else:
        unit = 2**20 if sys.platform == "darwin" else 2**10
        peak["peak_process_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
