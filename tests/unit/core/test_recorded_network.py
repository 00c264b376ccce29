"""A recorded forward answers as the plain one does; recordings are by shape, and all are warm."""

import pytest
import torch

from dalorra.adapter import read_adapter
from dalorra.arranged import arrange
from dalorra.errors import ConfigError
from dalorra.network import Answers
from dalorra.packed_llama import PackedLlama
from dalorra.packing import Scope
from dalorra.predictor import Predictor
from dalorra.recorded_network import (
    MAX_ROWS,
    CudaGraphs,
    Forward,
    RecordedNetwork,
    Recorder,
    recorded_shapes,
)
from dalorra.shared_base import SharedBase
from dalorra.staging import StagedPrompts
from tests.tiny import save_tiny_adapter, tiny_base
from tests.unit.core.test_packed_llama import LABELS, SAMPLES, adapted, prompts

MODULES = ["q_proj", "v_proj", "lm_head"]
SCOPES: list[Scope] = ["answer_tokens", "all_tokens"]


class Rerun:
    """A recorder for the CPU: fixed inputs, which are overwritten, and outputs that are reused."""

    def __init__(self) -> None:
        self.shapes: list[tuple[int, ...]] = []
        self.replays = 0

    def __call__(self, forward: Forward, prompts: StagedPrompts) -> Forward:
        self.shapes.append(tuple(prompts.ids.shape))
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
    return RecordedNetwork(plain, record, torch.device(device)), plain, bank


def check_same(recorded, plain, bank, scope: Scope, atol: float) -> None:
    kept = []
    for lengths in [(5,), (9,), (0,), (3, 70, 12), (64, 65, 1), (11, 13, 2, 7, 5)]:
        batch = prompts(lengths, 3)
        found = recorded.answers(batch, range(SAMPLES), bank, scope)
        kept.append((found, plain.answers(batch, range(SAMPLES), bank, scope)))
    for found, expected in kept:  # after all of them: no replay overwrites an earlier answer
        torch.testing.assert_close(found.probabilities, expected.probabilities, rtol=0, atol=atol)
        torch.testing.assert_close(found.features, expected.features, rtol=0, atol=100 * atol)


@pytest.mark.parametrize(
    ("scope", "replays", "shapes"),
    [("answer_tokens", 6, [(1, 64), (4, 128), (8, 64)]), ("all_tokens", 3, [(1, 64)])],
)
def test_answers_are_those_of_the_plain_forward(scope: Scope, replays: int, shapes: list):
    record = Rerun()
    recorded, plain, bank = networks(record)
    check_same(recorded, plain, bank, scope, atol=1e-5)
    assert record.replays == replays, "the other batches are too long under all_tokens"
    assert record.shapes == shapes, "one recording for each shape"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("scope", SCOPES)
def test_cuda_graphs_answer_as_the_plain_forward(scope: Scope):
    check_same(*networks(CudaGraphs(), "cuda"), scope, atol=1e-4)


def test_banks_and_splits_of_one_have_recordings_of_their_own():
    record = Rerun()
    recorded, plain, bank = networks(record)
    batch, other = prompts((6,), 2), type(bank)(1.0 - bank.masks)
    for one, members in ((bank, range(SAMPLES)), (other, range(SAMPLES)), (bank, range(2))):
        found = recorded.answers(batch, members, one, "answer_tokens").probabilities
        expected = plain.answers(batch, members, one, "answer_tokens").probabilities
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert len(record.shapes) == 3


def test_a_long_forward_is_not_recorded():
    record = Rerun()
    recorded, plain, bank = networks(record)
    batch = prompts((200,) * 6, 3)  # padded, 8 · (256 + 15) rows
    found = recorded.answers(batch, range(SAMPLES), bank, "answer_tokens")
    assert torch.equal(
        found.probabilities,
        plain.answers(batch, range(SAMPLES), bank, "answer_tokens").probabilities,
    )
    assert not record.shapes


@pytest.mark.parametrize("scope", SCOPES)
def test_after_warming_up_nothing_is_recorded_any_more(scope: Scope, tmp_path):
    save_tiny_adapter(tmp_path, tiny_base(), scope=scope)
    base, record = tiny_base(), Rerun()
    packed = arrange(base.model, record=record)
    predictor = Predictor.from_adapter(read_adapter(tmp_path), base, packed=packed)
    predictor.warm_up()
    warm = len(record.shapes)
    assert warm >= 2
    for words, batch in ((1, 1), (3, 2), (9, 5), (500, 1), (500, 4), (2, 40)):
        predictor.predict([predictor.encode("a " * words)] * batch)
    assert len(record.shapes) == warm


@pytest.mark.parametrize("scope", SCOPES)
def test_shapes_are_within_bounds_and_the_longest_prompt_has_one(scope: Scope):
    shapes = list(recorded_shapes(300, 4, 10, scope))
    assert len(shapes) == len(set(shapes))
    assert all(tokens <= 300 for _, tokens in shapes)
    rows = [
        batch * (10 * (tokens + 4) if scope == "all_tokens" else tokens + 40)
        for batch, tokens in shapes
    ]
    assert max(rows) <= MAX_ROWS
    if scope == "answer_tokens":
        assert (1, 300) in shapes


def test_graphs_are_refused_without_a_gpu():
    with pytest.raises(ConfigError, match="cuda_graphs needs a GPU, but the device is cpu"):
        SharedBase(tiny_base(), cuda_graphs=True)
