"""Several processes train what one would; the slow test starts them as a user does."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from dalorra.errors import ConfigError
from training.processes import Process

ROOT = Path(__file__).parents[3]
SHIPPED = ROOT / "training/configs/accelerate.yaml"
TRAIN = ("-m", "dalorra", "train")
MINUTES = 60


def test_one_process_takes_what_it_is_told():
    assert Process.this() == Process(0, 0, 1)
    assert Process(0, 0, 1).device("cuda:1") == "cuda:1"


def test_several_processes_take_a_device_each(monkeypatch):
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "4")
    process = Process.this()
    assert not process.is_main
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert [process.device(wanted) for wanted in ("auto", "cuda", "cpu")] == [
        "cuda:1",
        "cuda:1",
        "cpu",
    ]
    with pytest.raises(ConfigError, match="4 processes cannot share cuda:0; write auto"):
        process.device("cuda:0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert process.device("auto") == "cpu"


def command(*arguments: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, *arguments],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def launch(*arguments: str) -> subprocess.Popen[str]:
    """Two processes under the shipped configuration; without a GPU they meet over gloo."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    options = ("--config_file", str(SHIPPED), "--num_processes", "2", "--main_process_port", port)
    return command("-m", "accelerate.commands.launch", *options, *TRAIN, *arguments)


def finish(process: subprocess.Popen[str]) -> tuple[str, str]:
    try:
        return process.communicate(timeout=5 * MINUTES)
    finally:
        process.terminate()  # a launcher takes the processes that it started along
        process.wait(MINUTES)


def wait_for(file: Path, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 3 * MINUTES
    while not file.exists():
        assert process.poll() is None, finish(process)
        assert time.monotonic() < deadline
        time.sleep(0.1)


def log_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "adapter" / "adapter_model.safetensors")


@pytest.fixture
def runs(configure, tmp_path):
    """Configurations of the same eight mini-batches: `one` accumulates two, `two` shares them."""
    shared = {"adapter": {"weight_dtype": "float32"}, "evaluation": {"every": 2}}
    steps = {"steps": 4, "batch_size": 2}
    one = configure("one", **shared, optimizer={**steps, "accumulation": 2})
    two = configure("two", **shared, optimizer=steps)
    return str(one), str(two)


@pytest.mark.slow
@pytest.mark.timeout(15 * MINUTES)
def test_two_processes_train_what_one_accumulates(runs, tmp_path):
    one, two = runs
    finish(command(*TRAIN, one))
    out, errors = finish(launch(two))
    adapter = str(tmp_path / "two" / "adapter")
    assert [line for line in out.splitlines() if "adapter" in line] == [adapter], errors
    alone, together = log_of(tmp_path / "one"), log_of(tmp_path / "two")
    assert len(alone) == len(together)
    for expected, found in zip(alone, together, strict=True):
        for name in {"loss", "nll", "penalty", "eval_nll"} & expected.keys():
            assert found[name] == pytest.approx(expected[name], abs=2e-4), (name, expected["step"])
    expected_weights, weights = weights_of(tmp_path / "one"), weights_of(tmp_path / "two")
    for name, expected in expected_weights.items():
        torch.testing.assert_close(weights[name], expected, atol=1e-4, rtol=1e-3)
    assert launch_refused(two)


def launch_refused(path: str) -> bool:
    """Whether the second run in the same folder is refused by one process for all."""
    process = launch(path)
    _, errors = finish(process)
    return process.returncode != 0 and errors.count("holds a run already") == 1


def test_sigterm_saves_says_how_to_resume_and_ends_as_shells_expect(configure, tmp_path):
    config = str(configure("long", optimizer={"steps": 100_000}, evaluation={"every": 1000}))
    process = command(*TRAIN, config)
    wait_for(tmp_path / "long" / "log.jsonl", process)  # the first entry comes at step 100
    process.send_signal(signal.SIGTERM)
    _, errors = finish(process)
    (checkpoint,) = (tmp_path / "long" / "checkpoints").iterdir()
    step = int(checkpoint.name.removeprefix("checkpoint-"))
    assert errors.endswith(
        f"error: training stopped after step {step}; {tmp_path / 'long'} keeps it: go on with "
        "--resume\n"
    )
    assert process.returncode == 128 + signal.SIGTERM == 143


@pytest.mark.slow
@pytest.mark.timeout(15 * MINUTES)
def test_ctrl_c_stops_both_processes_with_a_checkpoint(configure, tmp_path):
    every = 3000
    config = configure("long", optimizer={"steps": 100_000}, evaluation={"every": every})
    process = launch(str(config))
    log = tmp_path / "long" / "log.jsonl"
    wait_for(log, process)  # the first entry comes at step 300
    process.send_signal(signal.SIGINT)
    _, errors = finish(process)
    assert "SIGKILL" not in errors
    checkpoints = (tmp_path / "long" / "checkpoints").iterdir()
    *regular, last = sorted(int(path.name.rpartition("-")[2]) for path in checkpoints)
    # However long the signal took to arrive: what it left is no checkpoint that was due anyway.
    assert all(step % every == 0 for step in regular)
    assert 300 <= last < 100_000
    assert last % every != 0
    assert not (tmp_path / "long" / "adapter").exists()
