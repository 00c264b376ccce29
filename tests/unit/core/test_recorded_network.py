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
from dalorra.predictor import Predictor
from dalorra.prompts import Scope
from dalorra.shared_base import SharedBase
from tests.tiny import save_tiny_adapter, tiny_base
from tests.unit.core.test_packed_llama import LABELS, SAMPLES, adapted, prompts

MODULES = ["q_proj", "v_proj", "lm_head"]
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
    record: Recorder, device: str = "cpu"
) -> tuple[RecordedNetwork, PackedLlama, torch.nn.Module]:
    model, bank = adapted(MODULES)
    model.to(device)
    bank = type(bank)(bank.masks.to(device))
    plain = PackedLlama.of(model, LABELS.to(device))
    return RecordedNetwork(plain, record, torch.device(device), STEP), plain, bank


BATCHES = [(5,), (9,), (0,), (0, 0), (3, 70, 12), (64, 65, 1), (11, 13, 2, 7, 5)]


def check_same(recorded, plain, bank, scope: Scope, atol: float) -> None:
    kept = []
    for lengths in BATCHES:
        batch = prompts(lengths, 3)
        recorded.record(batch, range(SAMPLES), bank, scope)
        found = recorded.answers(batch, range(SAMPLES), bank, scope)
        kept.append((found, plain.answers(batch, range(SAMPLES), bank, scope)))
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
    recorded, plain, bank = networks(record)
    check_same(recorded, plain, bank, scope, atol=1e-5)
    assert record.replays == replays, "one batch is too long under all_tokens"
    assert record.shapes == shapes, "one recording for each shape"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("scope", SCOPES)
def test_cuda_graphs_answer_as_the_plain_forward(scope: Scope):
    check_same(*networks(CudaGraphs(), "cuda"), scope, atol=1e-4)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("lengths", [(5,), (3, 70, 12)])
def test_on_a_gpu_the_host_never_waits_within_a_batch(scope: Scope, lengths: tuple[int, ...]):
    recorded, plain, bank = networks(CudaGraphs(), "cuda")
    batch = prompts(lengths, 3)
    recorded.record(batch, range(SAMPLES), bank, scope)
    for network in (recorded, plain):
        network.answers(batch, range(SAMPLES), bank, scope)  # the noise is arranged once
        torch.cuda.set_sync_debug_mode("error")
        try:
            network.answers(batch, range(SAMPLES), bank, scope)
        finally:
            torch.cuda.set_sync_debug_mode("default")


def test_banks_have_recordings_of_their_own():
    record = Rerun()
    recorded, plain, bank = networks(record)
    batch, other = prompts((6,), 2), type(bank)(1.0 - bank.masks)
    for one in (bank, other):
        recorded.record(batch, range(SAMPLES), one, "answer_tokens")
    for one in (bank, other, bank):
        found = recorded.answers(batch, range(SAMPLES), one, "answer_tokens").probabilities
        expected = plain.answers(batch, range(SAMPLES), one, "answer_tokens").probabilities
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert record.replays == 3


@pytest.mark.parametrize(
    ("lengths", "members"),
    [((200,) * 3, range(SAMPLES)), ((6,), range(2)), ((40,), range(SAMPLES))],
    ids=["a long one", "a part of the bank", "another shape"],
)
def test_what_was_not_recorded_runs_as_it_is(lengths: tuple[int, ...], members: range):
    record = Rerun()
    recorded, plain, bank = networks(record)
    recorded.record(prompts((6,), 3), range(SAMPLES), bank, "answer_tokens")
    recorded.record(prompts((200,) * 3, 3), range(SAMPLES), bank, "answer_tokens")
    batch = prompts(lengths, 3)
    found = recorded.answers(batch, members, bank, "answer_tokens")
    expected = plain.answers(batch, members, bank, "answer_tokens")
    assert torch.equal(found.probabilities, expected.probabilities)
    assert (len(record.shapes), record.replays) == (1, 0)


def test_without_memory_for_more_recordings_forwards_run_as_they_are():
    record = Rerun()

    def until_full(forward: Forward, prompts: StagedPrompts) -> Forward:
        if record.shapes:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return record(forward, prompts)

    recorded, plain, bank = networks(until_full)
    batches = [prompts((length,), 3) for length in (6, 40, 70)]
    recorded.record(batches[0], range(SAMPLES), bank, "answer_tokens")
    with pytest.warns(UserWarning, match="not recorded from here on: CUDA out of memory"):
        recorded.record(batches[1], range(SAMPLES), bank, "answer_tokens")
    recorded.record(batches[2], range(SAMPLES), bank, "answer_tokens")  # not even tried
    for batch in batches:
        found = recorded.answers(batch, range(SAMPLES), bank, "answer_tokens").probabilities
        expected = plain.answers(batch, range(SAMPLES), bank, "answer_tokens").probabilities
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert record.replays == 1


@pytest.mark.parametrize("scope", SCOPES)
def test_after_warming_up_every_short_batch_is_a_replay(scope: Scope, tmp_path):
    save_tiny_adapter(tmp_path, tiny_base(), scope=scope)
    base, record = tiny_base(), Rerun()
    packed = arrange(base.model, record=record)
    predictor = Predictor.from_adapter(read_adapter(tmp_path), base, packed=packed)
    for step in predictor.warm_up():
        step()
    warm = len(record.shapes)
    assert warm >= 2
    chooser = random.Random(0)
    batches = [[1], [500], [500] * 4, [2] * 40, [3] * 2]
    batches += [[chooser.randint(1, 60) for _ in range(chooser.randint(1, 9))] for _ in range(40)]
    inputs = [[predictor.encode("a " * number) for number in words] for words in batches]
    for batch in inputs:  # what would be recorded now, if anything
        predictor._network.record(batch, range(predictor.samples), predictor.bank, scope)
        predictor.predict(batch)
    assert len(record.shapes) == warm
    assert record.replays > 2


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("longest", [20, 300])
@pytest.mark.parametrize("step", [32, 128])
def test_every_shape_within_bounds_has_prompts(scope: Scope, longest: int, step: int):
    recorded = RecordedNetwork(networks(Rerun())[1], Rerun(), torch.device("cpu"), step)
    batches = list(recorded.recordable(longest, 4, 10, scope))
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
    with pytest.raises(ConfigError, match="cuda_graphs needs a GPU, but the device is cpu"):
        SharedBase(tiny_base(), cuda_graphs=True)
    SharedBase(tiny_base())  # on where there is a GPU, if nothing is said
