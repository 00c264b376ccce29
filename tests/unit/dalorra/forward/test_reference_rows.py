import pytest
import torch

from dalorra.forward.batches import packed_row_count
from dalorra.forward.reference_rows import pack
from dalorra.prompts import Prompt

CUE = (91, 92)
LONG, SHORT = Prompt((11, 12, 13), CUE), Prompt((21,), CUE)


def visible(rows, b: int) -> list[str]:
    """One text per row of prompt `b`, `x` where it sees a key."""
    return ["".join("x" if see else "." for see in row) for row in rows.attention_mask[b, 0]]


def test_the_cues_of_all_samples_share_one_prompt():
    rows = pack([LONG, SHORT], range(2), "answer_tokens")
    assert rows.input_ids.tolist() == [
        [11, 12, 13, 91, 92, 91, 92],
        [0, 0, 21, 91, 92, 91, 92],
    ]
    assert rows.position_ids.tolist() == [[0, 1, 2, 3, 4, 3, 4], [0, 0, 0, 1, 2, 1, 2]]
    assert rows.sample_index.tolist() == [[-1, -1, -1, 0, 0, 1, 1]]
    assert rows.answer_rows.tolist() == [4, 6]
    assert rows.samples.tolist() == [[0, 1]]
    assert visible(rows, 0) == [
        "x......",
        "xx.....",
        "xxx....",
        "xxxx...",
        "xxxxx..",
        "xxx..x.",
        "xxx..xx",
    ]
    assert visible(rows, 1) == [
        "x......",  # padding sees itself, or its softmax would divide by zero
        ".x.....",
        "..x....",
        "..xx...",
        "..xxx..",
        "..x..x.",
        "..x..xx",
    ]


def test_the_adapter_acts_on_cue_rows_or_on_every_row_that_is_no_padding():
    rows = pack([LONG, SHORT], range(2), "answer_tokens")
    assert rows.adapted.tolist() == [[False] * 3 + [True] * 4] * 2
    assert rows.after(3).adapted.tolist() == [[True] * 4] * 2
    rows = pack([LONG, SHORT], range(2), "all_tokens")
    assert rows.adapted.tolist() == [[True] * 5] * 2 + [[False] * 2 + [True] * 3] * 2


def test_all_tokens_is_one_sequence_per_prompt_and_sample():
    rows = pack([LONG, SHORT], range(2), "all_tokens")
    assert rows.input_ids.tolist() == [[11, 12, 13, 91, 92]] * 2 + [[0, 0, 21, 91, 92]] * 2
    assert rows.position_ids.tolist() == [[0, 1, 2, 3, 4]] * 2 + [[0, 0, 0, 1, 2]] * 2
    assert rows.sample_index.tolist() == [[0], [1], [0], [1]]
    assert rows.answer_rows.tolist() == [4]
    assert visible(rows, 1) == ["x....", "xx...", "xxx..", "xxxx.", "xxxxx"]
    assert visible(rows, 2) == ["x....", ".x...", "..x..", "..xx.", "..xxx"]


def test_each_prompt_may_run_under_samples_of_its_own():
    table = torch.tensor([[0, 1], [2, 3]])
    cues = pack([LONG, SHORT], table, "answer_tokens")
    assert cues.sample_index.tolist() == [[-1, -1, -1, 0, 0, 1, 1], [-1, -1, -1, 2, 2, 3, 3]]
    assert cues.samples is table
    assert pack([LONG, SHORT], table, "all_tokens").sample_index.tolist() == [[0], [1], [2], [3]]


def test_samples_need_not_start_at_zero():
    rows = pack([SHORT], range(7, 9), "answer_tokens")
    assert rows.sample_index.tolist() == [[-1, 7, 7, 8, 8]]
    assert rows.samples.tolist() == [[7, 8]]


def test_an_empty_prompt_leaves_the_cues_alone():
    rows = pack([Prompt((), CUE)], range(2), "answer_tokens")
    assert rows.input_ids.tolist() == [[91, 92, 91, 92]]
    assert rows.position_ids.tolist() == [[0, 1, 0, 1]]
    assert visible(rows, 0) == ["x...", "xx..", "..x.", "..xx"]


def test_rows_behind_a_cache_keep_their_view_of_it():
    rows = pack([LONG, SHORT], range(2), "answer_tokens")
    rest = rows.after(3)
    assert rest.input_ids.tolist() == [[91, 92, 91, 92]] * 2
    assert rest.position_ids.tolist() == [[3, 4, 3, 4], [1, 2, 1, 2]]
    assert rest.sample_index.tolist() == [[0, 0, 1, 1]]
    assert rest.answer_rows.tolist() == [1, 3]
    assert visible(rest, 1) == visible(rows, 1)[3:]


@pytest.mark.parametrize("scope", ["answer_tokens", "all_tokens"])
def test_the_row_count_is_that_of_the_packed_forward(scope):
    for prompt in (LONG, SHORT, Prompt((), CUE)):
        for samples in (1, 2, 10):
            rows = pack([prompt], range(samples), scope)
            assert packed_row_count(prompt, samples, scope) == rows.input_ids.numel()
    assert packed_row_count(LONG, 10, "answer_tokens") == 3 + 10 * 2
    assert packed_row_count(LONG, 10, "all_tokens") == 10 * 5
