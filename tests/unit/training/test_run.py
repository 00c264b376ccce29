"""Whole runs on a tiny base: artefacts, resuming, interruption."""

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from dalorra.adapter.directory import adapter_digest, read_adapter
from dalorra.base.model import load_base_model
from dalorra.decision.policy import Policy
from dalorra.errors import ConfigError, Interrupted
from dalorra.predictor import Predictor
from training.config import read_config
from training.objective import Loss, Objective
from training.run import Run, train


def run(path: Path, *, resume: bool = False, **overrides: str) -> Path:
    return train(path, resume=resume, overrides=overrides)


def log_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def evaluations(folder: Path) -> list[dict[str, Any]]:
    return [entry for entry in log_of(folder) if "eval_nll" in entry]


@pytest.fixture
def at_loss(monkeypatch) -> Callable[[int, Callable[[], object]], None]:
    """`at_loss(n, action)` runs `action` when the loss is computed for the n-th time."""

    def arrange(number: int, action: Callable[[], object]) -> None:
        call = Objective.__call__
        count = 0

        def spy(self: Objective, *args: Any) -> Loss:
            nonlocal count
            count += 1
            if count == number:
                action()
            return call(self, *args)

        monkeypatch.setattr(Objective, "__call__", spy)

    return arrange


def interrupt() -> None:
    signal.raise_signal(signal.SIGINT)


def terminate() -> None:
    signal.raise_signal(signal.SIGTERM)


def crash() -> None:
    raise RuntimeError("power cut")


# --- artefacts ---


def test_a_run_leaves_everything_that_tells_what_it_was(configure, tmp_path, files):
    adapter = run(configure())
    folder = tmp_path / "run"
    assert adapter == folder / "adapter"

    record = json.loads((folder / "run.json").read_text())
    assert record["config"]["optimizer"]["steps"] == 6
    assert record["config"]["seed"] == 1
    assert record["examples"] == {"train": 18, "holdout": 6, "calibration": 0, "test": 12}
    assert {"python", "torch", "transformers", "peft"} <= record["versions"].keys()
    assert record["base_model"]["digest"] == load_base_model(str(files / "base")).digest
    assert record["hardware"]["cores"] >= 1
    assert len(record["data_digest"]) == 64

    log = log_of(folder)
    assert [entry["step"] for entry in evaluations(folder)] == [2, 4, 6]
    assert {"eval_nll", "eval_accuracy", "eval_ece", "eval_brier"} <= evaluations(folder)[0].keys()
    parts = [entry for entry in log if "nll" in entry]
    assert [entry["step"] for entry in parts] == [1, 2, 3, 4, 5, 6]
    for entry in parts:
        assert entry["loss"] == pytest.approx(entry["nll"] + entry["penalty"] / 18, abs=2e-4)
    assert parts[0]["penalty"] == pytest.approx(0.0, abs=1e-5)
    assert parts[-1]["penalty"] > 0

    for figure in ("training.png", "evaluation/reliability.png", "adapter/reliability.png"):
        assert (folder / figure).read_bytes().startswith(b"\x89PNG"), figure
    metrics = json.loads((folder / "evaluation" / "metrics.json").read_text())
    assert (metrics["n"], metrics["samples"], metrics["task"]) == (12, 3, "reviews validation")
    assert metrics["seeds"] == {"training": 1, "bank": 0}
    assert metrics["used"] == 0
    assert len((folder / "evaluation" / "predictions.jsonl").read_text().splitlines()) == 12

    loaded = read_adapter(adapter)
    assert loaded.manifest.training["examples"] == 18
    assert loaded.manifest.training["data_digest"] == record["data_digest"]
    assert loaded.manifest.method_parameters["prior"] == 0.5
    assert loaded.policy is not None
    assert loaded.policy.adapter_digest == loaded.digest == metrics["adapter_digest"]
    assert loaded.policy.never_accepts
    assert "for an error of 0.05 at least 60 that are answered rightly" in loaded.policy.source
    assert "tiny" in (adapter / "README.md").read_text()


def test_no_file_of_the_adapter_names_a_folder_of_this_machine(
    configure, tmp_path, files, no_figures
):
    adapter = run(configure(), **{"optimizer.steps": "1"})
    for file in adapter.iterdir():
        content = file.read_bytes()
        for folder in (tmp_path, files, Path.home()):
            assert str(folder).encode() not in content, f"{file.name} names {folder}"


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_the_adapter_answers_as_its_evaluation_says(
    configure, files, no_figures, answers_as_evaluated, dtype
):
    adapter = run(configure(adapter={"weight_dtype": dtype}))
    predictor = Predictor.load(adapter, str(files / "base"), device="cpu", dtype="float32")
    answers_as_evaluated(predictor)
    assert predictor.policy == Policy.load(adapter).served_in("float32 on cpu")


def test_training_learns(configure, tmp_path, no_figures):
    run(
        configure(
            optimizer={"steps": 40, "batch_size": 9},
            evaluation={"every": 20},
            method={"samples": 2},
        )
    )
    losses = [entry["nll"] for entry in log_of(tmp_path / "run") if "nll" in entry]
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize(
    "changes",
    [
        {"adapter": {"scope": "all_tokens"}},
        {"method": {"samples": 3, "noise_per": "batch"}},
        {"adapter": {"last_layers": 1}},
        {"prompt_cache_gib": 0},
        {"optimizer": {"accumulation": 3, "batch_size": 2}},
    ],
    ids=str,
)
def test_every_kind_of_run_ends_with_an_adapter(configure, tmp_path, files, no_figures, changes):
    adapter = run(configure(**changes), **{"optimizer.steps": "3"})
    manifest = read_adapter(adapter).manifest
    assert manifest.scope == changes.get("adapter", {}).get("scope", "answer_tokens")
    assert manifest.last_layers == changes.get("adapter", {}).get("last_layers")
    predictor = Predictor.load(adapter, str(files / "base"), device="cpu", dtype="float32")
    assert predictor.predict([predictor.encode("good")])[0].samples == 3


def test_keep_best_ends_with_the_checkpoint_of_lowest_holdout_nll(
    configure, tmp_path, no_figures, monkeypatch
):
    scores = iter([0.5, 0.3, 0.9])
    honest = Run.holdout_metrics

    def scripted(self: Run) -> dict[str, float]:
        return honest(self) | {"nll": next(scores, 0.0)}

    monkeypatch.setattr(Run, "holdout_metrics", scripted)
    best = run(configure("best", adapter={"rank": 2, "weight_dtype": "float32"}))
    monkeypatch.undo()
    # Step 4 of the same run, without what came after.
    checkpoint = tmp_path / "best" / "checkpoints" / "checkpoint-4"
    expected = load_file(checkpoint / "adapter_model.safetensors")
    found = read_adapter(best).tensors
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in found)


def test_without_keep_best_the_last_step_stays(configure, no_figures):
    last = run(configure("last", evaluation={"every": 2, "keep_best": False}))
    only = run(configure("only", evaluation={"every": 6, "keep_best": True}))
    one, other = (read_adapter(path).tensors for path in (last, only))
    assert all(torch.equal(one[name], other[name]) for name in one)


# --- reproducible, resumable ---


def test_the_same_configuration_gives_the_same_adapter_and_another_seed_another(
    configure, no_figures
):
    # The hold-out is drawn by the seed too; the manifest says so.
    first, again, other = (
        run(configure(name, seed=seed)) for name, seed in (("a", 1), ("b", 1), ("c", 2))
    )
    assert adapter_digest(first) == adapter_digest(again) != adapter_digest(other)


BROKEN_RUNS = {
    "answer_tokens": (interrupt, 5, {}),
    "all_tokens, S = 2": (
        crash,
        5,
        {"adapter": {"scope": "all_tokens"}, "method": {"samples": 2}},
    ),
    "masks per batch, last checkpoint": (
        crash,
        6,
        {"method": {"noise_per": "batch"}, "evaluation": {"keep_best": False}},
    ),
    # 18 examples: five micro-steps per epoch, so every third step has one micro-step only.
    "uneven accumulation": (interrupt, 6, {"optimizer": {"accumulation": 2}}),
}


@pytest.mark.parametrize(("action", "at", "changes"), BROKEN_RUNS.values(), ids=BROKEN_RUNS)
def test_a_resumed_run_ends_bit_for_bit_as_the_unbroken_one(
    configure, tmp_path, no_figures, at_loss, monkeypatch, action, at, changes
):
    before = signal.getsignal(signal.SIGINT)
    unbroken = run(configure("unbroken", **changes))
    at_loss(at, action)
    path = configure("broken", **changes)
    with pytest.raises(KeyboardInterrupt if action is interrupt else RuntimeError):
        run(path)
    assert not (tmp_path / "broken" / "adapter").exists()
    assert signal.getsignal(signal.SIGINT) is before
    resumed = run(path, resume=True)
    assert adapter_digest(resumed) == adapter_digest(unbroken)
    scores = [
        [
            {key: value for key, value in entry.items() if "eval_" in key or key == "step"}
            for entry in evaluations(tmp_path / name)
        ]
        for name in ("unbroken", "broken")
    ]
    assert scores[0] == scores[1]


SIGNALS = {signal.SIGINT: interrupt, signal.SIGTERM: terminate}


def checkpoints_of(folder: Path) -> set[int]:
    return {
        int(path.name.removeprefix("checkpoint-")) for path in (folder / "checkpoints").iterdir()
    }


@pytest.mark.parametrize("at", [1, 3])
@pytest.mark.parametrize("signum", SIGNALS)
def test_a_signal_leaves_a_checkpoint_of_the_step_that_ran(
    configure, tmp_path, at_loss, at, signum
):
    before = {each: signal.getsignal(each) for each in SIGNALS}
    at_loss(at, SIGNALS[signum])
    # No line has been logged when the first step ends: the figure must do without.
    with pytest.raises(Interrupted) as stopped:
        run(configure(optimizer={"steps": 60}, evaluation={"every": 30}))
    assert str(stopped.value) == (
        f"training stopped after step {at}; {tmp_path / 'run'} keeps it: go on with --resume"
    )
    assert stopped.value.signum == signum
    assert checkpoints_of(tmp_path / "run") == {at}
    assert {each: signal.getsignal(each) for each in SIGNALS} == before


def test_no_checkpoint_is_older_than_a_kill_may_cost(
    configure, tmp_path, no_figures, at_loss, monkeypatch
):
    unbroken = run(configure("unbroken", evaluation={"every": 6}))
    assert checkpoints_of(tmp_path / "unbroken") == {6}
    monkeypatch.setattr("training.trainer.SAVE_SECONDS", 0.0)
    at_loss(4, crash)
    path = configure("broken", evaluation={"every": 6})
    with pytest.raises(RuntimeError, match="power cut"):
        run(path)
    assert checkpoints_of(tmp_path / "broken") == {2, 3}
    assert adapter_digest(run(path, resume=True)) == adapter_digest(unbroken)


def test_a_second_ctrl_c_stops_at_once(configure, tmp_path, at_loss, no_figures):
    def twice() -> None:
        interrupt()
        interrupt()

    # A process that was started in the background ignores SIGINT.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    at_loss(3, twice)
    try:
        with pytest.raises(KeyboardInterrupt):
            run(configure())
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
    assert [p.name for p in (tmp_path / "run" / "checkpoints").iterdir()] == ["checkpoint-2"]


def test_a_crash_before_the_first_checkpoint_resumes_from_the_start(configure, no_figures, at_loss):
    unbroken = run(configure("unbroken"))
    at_loss(1, crash)
    path = configure("broken")
    with pytest.raises(RuntimeError, match="power cut"):
        run(path)
    assert adapter_digest(run(path, resume=True)) == adapter_digest(unbroken)


def test_a_folder_with_a_run_is_not_overwritten_and_not_mixed(configure, tmp_path, no_figures):
    path = configure()
    adapter = run(path, **{"optimizer.steps": "1"})
    digest = adapter_digest(adapter)
    with pytest.raises(ConfigError, match="holds a run already: pass --resume"):
        run(path, **{"optimizer.steps": "1"})
    with pytest.raises(ConfigError, match="holds a run with another configuration"):
        run(path, resume=True, **{"optimizer.steps": "2"})
    assert adapter_digest(adapter) == digest


@pytest.mark.parametrize("resume", [False, True])
def test_a_run_that_failed_before_its_first_checkpoint_leaves_its_folder_free(
    configure, tmp_path, no_figures, at_loss, resume
):
    unbroken = run(configure("unbroken", optimizer={"steps": 2}))
    at_loss(1, crash)
    with pytest.raises(RuntimeError, match="power cut"):
        run(configure())
    (tmp_path / "run" / "log.jsonl").write_text('{"step": 1, "nll": 9}\n')
    # What made it fail may have been its configuration.
    again = run(configure(optimizer={"steps": 2}), resume=resume)
    assert adapter_digest(again) == adapter_digest(unbroken)
    assert [entry["step"] for entry in log_of(tmp_path / "run") if "nll" in entry] == [1, 2]


def test_a_checkpoint_or_a_line_whose_writing_a_kill_cut_does_not_count(
    configure, tmp_path, no_figures, at_loss
):
    unbroken = run(configure("unbroken"))
    at_loss(5, crash)
    path = configure("broken")
    with pytest.raises(RuntimeError, match="power cut"):
        run(path)
    folder = tmp_path / "broken"
    (folder / "checkpoints" / "checkpoint-4" / "trainer_state.json").unlink()
    with (folder / "log.jsonl").open("a") as log:
        log.write('{"step": 5, "ls')
    assert adapter_digest(run(path, resume=True)) == adapter_digest(unbroken)
    assert evaluations(folder) == evaluations(tmp_path / "unbroken")


def test_a_folder_belongs_to_one_run_at_a_time(configure, tmp_path, no_figures, at_loss):
    path = configure(optimizer={"steps": 2})
    refusals = []

    def second() -> None:
        with pytest.raises(ConfigError) as refused:
            run(path)
        refusals.append(str(refused.value))

    at_loss(1, second)
    run(path)
    assert refusals == [f"{tmp_path / 'run'} holds a run that is under way"]


def test_resume_in_an_empty_folder_starts(configure, no_figures):
    assert run(configure(), resume=True, **{"optimizer.steps": "1"}).is_dir()


# --- what a run refuses, and what it makes of the data ---


def test_more_layers_than_the_base_has_are_refused(configure):
    with pytest.raises(ConfigError, match=r"adapter\.last_layers: the base model has only 2"):
        run(configure(adapter={"last_layers": 3}))


def test_modules_that_the_base_lacks_are_refused(configure):
    with pytest.raises(ConfigError, match=r"adapter\.modules: .*'no_such_proj'"):
        run(configure(adapter={"modules": ["q_proj", "no_such_proj"]}))


def test_data_that_are_not_there_are_refused_before_the_base_is_loaded(configure, files):
    with pytest.raises(ConfigError, match="nowhere"):
        run(configure(base_model="/no/such/base", data={"source": "/nowhere"}))


def test_training_examples_are_never_held_out_and_limits_are_kept(configure):
    config = read_config(configure(data={"train_limit": 5}))
    data = Run(config).data
    assert len(data.train) == 5
    texts = [{e.input["sentence"] for e in part} for part in (data.train, data.holdout, data.test)]
    assert not texts[0] & texts[1]
    assert len(texts[2]) == 12


def test_over_long_examples_are_cut_to_the_limit(configure):
    tight = Run(read_config(configure(adapter={"max_tokens": 16})))
    prompts = [prompt for prompt, _ in tight.labelled_prompts(tight.data.train)]
    assert any(prompt.truncated for prompt in prompts)
    assert max(prompt.tokens for prompt in prompts) <= 16


def test_labels_are_indices_in_the_order_of_the_task(configure, files):
    training = Run(read_config(configure()))
    names = list(yaml.safe_load((files / "task.yaml").read_text())["labels"])
    found = [names[index] for _, index in training.labelled_prompts(training.data.train)]
    assert found == [example.label for example in training.data.train]
