"""Several adapters on one base: each answers as if it were alone, and costs little."""

import itertools
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from dalorra.adapter.layer import stochastic_layers
from dalorra.blocks import BLOCK
from dalorra.decision.predictive import Prediction
from dalorra.errors import AdapterError, InputError
from dalorra.forward.llama.base import ArrangedLlama
from dalorra.posteriors.bank import BankSpec
from dalorra.predictor import Predictor
from dalorra.prompts import Prompt, PromptFormat
from dalorra.shared_base import SharedBase
from tests.tiny import EVERY_LINEAR, SENTENCES, predictor_on, save_tiny_adapter, tiny_base

READS_BESIDE_THE_MODEL = """
import os, threading, time, torch
from unittest.mock import Mock
from dalorra.shared_base import SharedBase

torch.set_num_threads(2)

def threads():
    return set(os.listdir("/proc/self/task"))

def started(what):
    leave, found, before = threading.Event(), [], threads()

    def run():
        what()
        found.append(len(threads() - before))  # those that end meanwhile count for nothing
        leave.wait()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    while thread.is_alive() and not found:
        time.sleep(0.01)
    leave.set()
    thread.join()
    return found[0]

read = started(lambda: SharedBase.read(Mock()))
print(read, started(lambda: torch.ones(10**6).isfinite().all()), torch.get_num_threads())
"""


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="counts threads in /proc")
def test_a_reading_thread_takes_no_cores_from_the_model():
    command = [sys.executable, "-c", READS_BESIDE_THE_MODEL]
    two = {**os.environ, "OMP_NUM_THREADS": "2"}
    found = subprocess.run(command, capture_output=True, text=True, check=True, env=two).stdout
    reads, computes, kept = map(int, found.split())
    assert (reads, kept) == (1, 2)
    assert computes == 2, "what is avoided: the thread, and a team of one more"


TOPIC = PromptFormat(
    template="Review: {sentence}",
    answer_cue=" Sentiment::",
    labels={"neutral": " neutral", "negative": " negative", "positive": " positive"},
)
ADAPTERS: dict[str, dict[str, Any]] = {
    "plain": {},
    "classes": {"prompt": TOPIC.model_copy(update={"labels_by": "head"}), "seed": 6},
    "wide": {"rank": 8, "modules": EVERY_LINEAR, "seed": 2, "bank": BankSpec(samples=3)},
    "topic": {"prompt": TOPIC, "seed": 3, "last_layers": 1},
    "head": {"modules": ("lm_head",), "seed": 4, "bank": BankSpec(samples=4, head="integrated")},
    "faithful": {"scope": "all_tokens", "seed": 5, "modules": ("q_proj", "o_proj")},
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapters")
    for name, options in ADAPTERS.items():
        save_tiny_adapter(folder / name, tiny_base(layers=3), **options)
    return folder


def test_each_answers_as_if_it_were_alone(folders: Path) -> None:
    shared = SharedBase(tiny_base(layers=3), prefix_cache_bytes=1 << 20)
    together = {name: shared.bind(shared.read(folders / name)) for name in ADAPTERS}
    alone = {name: predictor_on(folders / name, tiny_base(layers=3)) for name in ADAPTERS}
    for _ in range(2):  # the second time the prefix cache is warm
        for name, predictor in together.items():
            prompts = [predictor.encode(text) for text in SENTENCES]
            found, expected = predictor.predict(prompts), alone[name].predict(prompts)
            for one, other in zip(found, expected, strict=True):
                assert one.probabilities == pytest.approx(other.probabilities, abs=1e-5), name
                assert one.variance == pytest.approx(other.variance, abs=1e-5), name
    prompts = [together["plain"].encode(text) for text in SENTENCES]
    answers = {p.predict(prompts)[0].probability for p in together.values() if p.samples == 5}
    assert len(answers) > 1, "they are different adapters"


def test_the_keys_and_values_of_a_prompt_are_everyones(folders: Path) -> None:
    shared = SharedBase(tiny_base(layers=3), prefix_cache_bytes=1 << 20)
    first, second = (shared.bind(shared.read(folders / name)) for name in ("plain", "topic"))
    cache = shared.prefix_cache
    assert cache is not None
    prompt = first.encode(SENTENCES[1])
    first.predict([prompt])
    before = cache.tokens_found
    second.predict([second.encode(SENTENCES[1])])
    assert cache.tokens_found - before == (len(prompt.prompt_ids) - 1) // BLOCK * BLOCK > 0


def test_between_the_service_s_limit_and_the_adapter_s_an_input_is_refused(folders: Path) -> None:
    short, long, cut = "good", "x" * 45, "x" * 80  # the adapter takes 64 tokens
    shared = SharedBase(tiny_base(layers=3), max_tokens=40)
    limited = shared.bind(shared.read(folders / "plain"))
    assert limited.max_tokens == 40
    assert limited.encode(short).tokens < 40
    for text in (long, cut):
        with pytest.raises(InputError, match="the limit is 40"):
            limited.encode(text)
    above = SharedBase(tiny_base(layers=3), max_tokens=1_000)
    own = above.bind(above.read(folders / "plain"))
    assert own.max_tokens == 64
    assert own.encode(cut).truncated


def test_one_base_in_memory_and_little_for_each_adapter(folders: Path) -> None:
    base = tiny_base(layers=3)
    shared = SharedBase(base)
    weights = {name: (p.data_ptr(), p.clone()) for name, p in base.model.named_parameters()}
    names = ("plain", "wide", "classes")
    bound = {name: shared.bind(shared.read(folders / name)) for name in names}
    assert not stochastic_layers(base.model), "the base is as it was"
    for name, parameter in base.model.named_parameters():
        pointer, value = weights[name]
        assert parameter.data_ptr() == pointer
        assert torch.equal(parameter, value)
    # plain, rank 4: q and v (32 → 32, 16) in 3 layers, fused with k in 2; the head's A and labels.
    fused = 2 * (8 * 32 + 64 * 8) + (4 * 32 + 32 * 4) + (4 * 32 + 32 * 4)
    assert bound["plain"].nbytes == 4 * (fused + 4 * 32 + 2 * 4 + 2 * 32)

    prompts = [bound["plain"].encode(text) for text in SENTENCES]
    before = {name: predictor.predict(prompts) for name, predictor in bound.items()}
    for parameter in base.model.model.parameters():
        parameter.mul_(1.1)
    for name, predictor in bound.items():
        again = shared.bind(shared.read(folders / name))
        assert predictor.predict(prompts) == again.predict(prompts) != before[name], (
            "an adapter bound before a change of the layers sees it"
        )


def test_an_adapter_of_another_base_is_refused_and_changes_nothing(
    folders: Path, tmp_path: Path
) -> None:
    save_tiny_adapter(tmp_path / "foreign", tiny_base(layers=3, seed=9))
    base = tiny_base(layers=3)
    shared = SharedBase(base)
    kept = shared.bind(shared.read(folders / "plain"))
    prompts = [kept.encode(text) for text in SENTENCES]
    before = kept.predict(prompts)
    with pytest.raises(AdapterError, match="was trained on tiny-llama"):
        shared.bind(shared.read(tmp_path / "foreign"))
    assert not stochastic_layers(base.model)
    assert kept.predict(prompts) == before


def test_answers_carry_the_name_that_it_is_served_as(folders: Path) -> None:
    shared = SharedBase(tiny_base(layers=3))
    adapter = shared.read(folders / "plain")
    assert shared.bind(adapter).card.adapter == "tiny"
    assert shared.bind(adapter, "sentiment").card.adapter == "sentiment"


def test_the_golden_check_sees_a_forward_that_computes_something_else(
    folders: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = tiny_base(layers=3)
    shared = SharedBase(base)
    norm = ArrangedLlama.norm
    monkeypatch.setattr(ArrangedLlama, "norm", lambda self, x, w: norm(self, x, w) * 1.05)
    with pytest.raises(AdapterError, match=r"golden check failed: its probabilities are .* away"):
        shared.bind(shared.read(folders / "plain"))
    assert not stochastic_layers(base.model)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"variance": float("nan")}, "not finite"),
        ({"probabilities": {"negative": 0.5, "positive": 0.6}}, "do not sum to 1"),
    ],
)
def test_the_golden_check_sees_answers_that_are_none(
    folders: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any], sentence: str
) -> None:
    predict = Predictor.predict
    monkeypatch.setattr(
        Predictor,
        "predict",
        lambda self, prompts: [replace(p, **change) for p in predict(self, prompts)],
    )
    shared = SharedBase(tiny_base(layers=3))
    with pytest.raises(AdapterError, match=sentence):
        shared.bind(shared.read(folders / "plain"))


@pytest.mark.parametrize(("drift", "refused"), [(1e-6, False), (5e-3, True)])
def test_the_golden_check_sees_answers_that_change_by_more_than_rounding(
    folders: Path, monkeypatch: pytest.MonkeyPatch, drift: float, refused: bool
) -> None:
    predict, calls = Predictor.predict, itertools.count()

    def drifting(self: Predictor, prompts: Sequence[Prompt]) -> list[Prediction]:
        moved = drift * next(calls)
        return [replace(p, variance=p.variance + moved) for p in predict(self, prompts)]

    monkeypatch.setattr(Predictor, "predict", drifting)
    shared = SharedBase(tiny_base(layers=3))
    if not refused:
        assert shared.bind(shared.read(folders / "plain"))
        return
    with pytest.raises(AdapterError, match="one input in two ways"):
        shared.bind(shared.read(folders / "plain"))
