"""A recorded forward answers as the plain one does; recordings are by shape, and all are warm."""

import random

import pytest
import torch

from dalorra.adapter.directory import read_adapter
from dalorra.errors import ConfigError
from dalorra.forward.arranged import arrange
from dalorra.forward.llama.network import PackedLlama
from dalorra.forward.llama.recorded import STEPS, CudaGraphs, PaddedShape, RecordedNetwork, row_step
from dalorra.forward.llama.staging import Forward, Recorder, StagedPrompts
from dalorra.forward.network import Answers
from dalorra.posteriors.bank import MaskBank
from dalorra.prompts import Scope
from dalorra.shared_base import SharedBase
from tests.tiny import (
    packed,
    predictor_on,
    random_prompts,
    save_tiny_adapter,
    tiny_adapter,
    tiny_bank,
    tiny_base,
)

LABELS = torch.tensor([1, 2, 7])
SAMPLES = 5
STEP = 32
SCOPES: list[Scope] = ["answer_tokens", "all_tokens"]


class Rerun:
    """A recorder for the CPU: fixed inputs, which are overwritten, and outputs that are reused."""

    def __init__(self) -> None:
        self.shapes: list[tuple[int, ...]] = []
        self.replays = 0

    def __call__(self, forward: Forward, prompts: StagedPrompts) -> Forward:
        self.shapes.append((len(prompts.lengths), prompts.ids.numel(), prompts.longest))
        static = forward(prompts)

        def replay(others: StagedPrompts) -> Answers:
            self.replays += 1
            prompts.copy_(others)
            found = forward(prompts)
            static.probabilities.copy_(found.probabilities)
            static.features.copy_(found.features)
            return Answers(static.probabilities.clone(), static.weights, static.features.clone())

        return replay


def networks(
    record: Recorder, scope: Scope = "answer_tokens", device: str = "cpu", samples: int = SAMPLES
) -> tuple[RecordedNetwork, PackedLlama]:
    model = tiny_adapter(tiny_base(layers=3))
    bank = MaskBank(tiny_bank(model, samples).masks.to(device))
    plain = packed(model.to(device), LABELS.to(device), bank, scope)
    return RecordedNetwork(plain, record, torch.device(device), STEP), plain


BATCHES = [(5,), (9,), (0,), (0, 0), (3, 70, 12), (64, 65, 1), (11, 13, 2, 7, 5)]


def check_same(recorded: RecordedNetwork, plain: PackedLlama, atol: float) -> None:
    kept = []
    for lengths in BATCHES:
        batch = random_prompts(lengths, 3)
        recorded.record(batch, range(SAMPLES))
        kept.append((recorded.answers(batch, range(SAMPLES)), plain.answers(batch, range(SAMPLES))))
    for found, expected in kept:  # after all of them: no replay overwrites an earlier answer
        torch.testing.assert_close(found.probabilities, expected.probabilities, rtol=0, atol=atol)
        torch.testing.assert_close(found.features, expected.features, rtol=0, atol=100 * atol)


@pytest.mark.parametrize(
    ("scope", "replays", "shapes"),
    [
        (
            "answer_tokens",
            7,
            [(1, 32, 32), (2, 32, 32), (3, 96, 96), (3, 160, 128), (6, 64, 32)],
        ),
        ("all_tokens", 6, [(1, 32, 32), (2, 32, 32), (3, 96, 96), (6, 64, 32)]),
    ],
)
def test_answers_are_those_of_the_plain_forward(scope: Scope, replays: int, shapes: list):
    record = Rerun()
    check_same(*networks(record, scope), atol=1e-5)
    assert record.replays == replays, "one batch is too long under all_tokens"
    assert record.shapes == shapes, "one recording for each shape"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("scope", SCOPES)
def test_cuda_graphs_answer_as_the_plain_forward(scope: Scope):
    check_same(*networks(CudaGraphs(), scope, "cuda"), atol=1e-4)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("lengths", [(5,), (3, 70, 12)])
def test_on_a_gpu_the_host_never_waits_within_a_batch(scope: Scope, lengths: tuple[int, ...]):
    recorded, plain = networks(CudaGraphs(), scope, "cuda")
    batch = random_prompts(lengths, 3)
    recorded.record(batch, range(SAMPLES))
    for network in (recorded, plain):
        network.answers(batch, range(SAMPLES))  # the noise is arranged once
        torch.cuda.set_sync_debug_mode("error")
        try:
            network.answers(batch, range(SAMPLES))
        finally:
            torch.cuda.set_sync_debug_mode("default")


def test_another_bank_runs_without_recordings():
    record = Rerun()
    recorded, plain = networks(record)
    batch, other = random_prompts((6,), 2), MaskBank(1.0 - plain.bank.masks)
    recorded.record(batch, range(SAMPLES))
    found = recorded.under(other).answers(batch, range(SAMPLES)).probabilities
    assert torch.equal(found, plain.under(other).answers(batch, range(SAMPLES)).probabilities)
    assert record.replays == 0
    assert (found - recorded.answers(batch, range(SAMPLES)).probabilities).abs().max() > 1e-3
    assert record.replays == 1


@pytest.mark.parametrize(
    ("lengths", "samples"),
    [((200,) * 3, range(SAMPLES)), ((6,), range(2)), ((40,), range(SAMPLES))],
    ids=["a long one", "a part of the bank", "another shape"],
)
def test_what_was_not_recorded_runs_as_it_is(lengths: tuple[int, ...], samples: range):
    record = Rerun()
    recorded, plain = networks(record)
    recorded.record(random_prompts((6,), 3), range(SAMPLES))
    recorded.record(random_prompts((200,) * 3, 3), range(SAMPLES))
    batch = random_prompts(lengths, 3)
    found, expected = recorded.answers(batch, samples), plain.answers(batch, samples)
    assert torch.equal(found.probabilities, expected.probabilities)
    assert (len(record.shapes), record.replays) == (1, 0)


def test_without_memory_for_more_recordings_forwards_run_as_they_are():
    record = Rerun()

    def until_full(forward: Forward, prompts: StagedPrompts) -> Forward:
        if record.shapes:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return record(forward, prompts)

    recorded, plain = networks(until_full)
    batches = [random_prompts((length,), 3) for length in (6, 40, 70)]
    recorded.record(batches[0], range(SAMPLES))
    with pytest.warns(UserWarning, match="not recorded from here on: CUDA out of memory"):
        recorded.record(batches[1], range(SAMPLES))
    recorded.record(batches[2], range(SAMPLES))  # not even tried
    for batch in batches:
        found, expected = (n.answers(batch, range(SAMPLES)) for n in (recorded, plain))
        torch.testing.assert_close(found.probabilities, expected.probabilities, rtol=0, atol=1e-5)
    assert record.replays == 1


@pytest.mark.parametrize("scope", SCOPES)
def test_after_warming_up_every_short_batch_is_a_replay(scope: Scope, tmp_path, monkeypatch):
    base, record = tiny_base(), Rerun()
    arranged = arrange(base.model, record=record)
    adapter = read_adapter(save_tiny_adapter(tmp_path, base, scope))
    predictor = predictor_on(adapter, base, arranged=arranged)
    for step in predictor.warm_up():
        step()
    warm = len(record.shapes)
    assert warm >= 2
    step, plain, as_they_are = row_step(arranged.layer_weights), PackedLlama.answers, []
    monkeypatch.setattr(
        PackedLlama,
        "answers",
        lambda self, batch, samples: as_they_are.append(batch) or plain(self, batch, samples),
    )
    chooser = random.Random(0)
    batches = [[1], [500], [500] * 4, [2] * 40, [3] * 2]
    batches += [[chooser.randint(1, 60) for _ in range(chooser.randint(1, 9))] for _ in range(40)]
    for words in batches:
        predictor.predict([predictor.encode("a " * number) for number in words])
    cue = len(predictor.tokenizer.cue_ids)
    beside = cue if scope == "all_tokens" else 0
    for batch in as_they_are:
        shape = PaddedShape.of([len(prompt.prompt_ids) + beside for prompt in batch], step)
        assert shape.packed_rows(cue, predictor.samples, scope) > STEPS * step
    assert len(record.shapes) == warm
    assert record.replays > 2


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("longest", [20, 300])
@pytest.mark.parametrize("step", [32, 128])
def test_every_shape_within_bounds_has_prompts(scope: Scope, longest: int, step: int):
    plain = networks(Rerun(), scope, samples=10)[1]
    batches = list(
        RecordedNetwork(plain, Rerun(), torch.device("cpu"), step).recordable(longest, 4)
    )
    assert all(0 <= length <= longest for lengths in batches for length in lengths)
    beside = 4 if scope == "all_tokens" else 0

    def around(lengths: list[int]) -> PaddedShape:
        return PaddedShape.of([length + beside for length in lengths], step)

    shapes = {around(lengths) for lengths in batches}
    assert len(shapes) == len(batches), "none is there twice"
    assert all(shape.packed_rows(4, 10, scope) <= STEPS * step for shape in shapes)
    chooser = random.Random(0)
    for _ in range(2000):
        lengths = [chooser.randint(0, longest) for _ in range(chooser.randint(1, 12))]
        shape = around(lengths)
        assert shape in shapes or shape.packed_rows(4, 10, scope) > STEPS * step


@pytest.mark.parametrize(
    ("layer_weights", "step"),
    [(3_540_000, 128), (60_800_000, 64), (100_000_000, 64), (218_000_000, 32), (10**9, 32)],
    ids=["SmolLM2-135M", "Llama-3.2-1B", "Llama-3.2-3B", "Llama-3.1-8B", "Llama-3.1-70B"],
)
def test_smaller_layers_have_longer_recordings(layer_weights: int, step: int):
    assert row_step(layer_weights) == step


def test_graphs_are_refused_without_a_gpu():
    with pytest.raises(ConfigError, match="for unquantised weights on a GPU, not for"):
        SharedBase(tiny_base(), cuda_graphs=True)
    SharedBase(tiny_base())  # on where there is a GPU, if nothing is said
