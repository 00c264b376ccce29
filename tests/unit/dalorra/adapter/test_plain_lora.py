"""Plain LoRAs in the one form that adapters have: nothing is lost, and what would be is refused."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from dalorra.adapter.directory import CONFIG_FILE, WEIGHTS_FILE, read_adapter
from dalorra.adapter.layer import LowRankUpdate
from dalorra.adapter.plain_lora import read_plain_loras, side_by_side
from dalorra.errors import AdapterError
from tests.plain_loras import plain_lora
from tests.tiny import tiny_llama


@st.composite
def members(draw):
    """LoRAs of several ranks and scales, each on some of the modules."""
    widths = {"a": (3, 4), "b": (5, 2), "c": (2, 2)}
    generator = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    found = []
    for _ in range(draw(st.integers(1, 3))):
        names = draw(st.sets(st.sampled_from(sorted(widths)), min_size=1))
        updates = {}
        for name in sorted(names):
            rank = draw(st.integers(1, 3))
            out, into = widths[name]
            updates[name] = LowRankUpdate(
                torch.randn(rank, into, generator=generator),
                torch.randn(out, rank, generator=generator),
                draw(st.sampled_from([0.0, 0.5, 2.0, 1 / 3])),
            )
        found.append(updates)
    return found


@given(members())
@settings(max_examples=100, deadline=None)
def test_each_lora_is_a_block_of_the_joined_one(found):
    joined = side_by_side(found)
    assert joined.keys() == {name for member in found for name in member}
    assert len({(len(update.down), update.scale) for update in joined.values()}) == 1
    for name, update in joined.items():
        rank = len(update.down) // len(found)
        for e, member in enumerate(found):
            block = slice(e * rank, (e + 1) * rank)
            product = update.up[:, block] @ update.down[block] * update.scale
            own = member.get(name)
            expected = torch.zeros_like(product) if own is None else own.up @ own.down * own.scale
            torch.testing.assert_close(product, expected, rtol=1e-6, atol=1e-6)


def test_one_rank_and_scale_leave_a_and_b_as_they_are(tmp_path):
    (lora,) = read_plain_loras(plain_lora(tmp_path / "lora", tiny_llama(), r=3))
    joined = side_by_side([lora.updates])
    for name, update in lora.updates.items():
        assert torch.equal(joined[name].down, update.down)
        assert torch.equal(joined[name].up, update.up)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"use_dora": True}, r"use_dora \(true\) cannot be imported"),
        ({"modules_to_save": ["lm_head"]}, r"modules_to_save \(\[\"lm_head\"\]\) cannot"),
        ({"lora_bias": True}, "lora_bias"),
        ({"bias": "all"}, r"bias \(\"all\"\)"),
        ({"trainable_token_indices": [1]}, "trainable_token_indices"),
        ({"layer_replication": [[0, 1], [0, 2]]}, "layer_replication"),
        ({"target_parameters": ["experts.up"]}, "target_parameters"),
        ({"use_qalora": True}, "use_qalora"),
        ({"a_setting_of_tomorrow": 3}, r"a_setting_of_tomorrow \(3\) cannot be imported"),
        ({"peft_type": "ADALORA"}, "peft_type ADALORA cannot be imported: LORA can"),
        ({"task_type": "SEQ_CLS"}, "task_type SEQ_CLS cannot be imported: CAUSAL_LM can"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights 'pissa' changes the base model's own"),
        ({"init_lora_weights": "olora"}, "init_lora_weights 'olora'"),
        ({"r": 5}, r"are not of rank 5, which adapter_config\.json says"),
        ({"r": "many"}, r"adapter_config\.json: r: Input should be a valid integer"),
        ({"rank_pattern": {"(": 2}}, "a pattern cannot be read"),
    ],
)
def test_what_cannot_be_carried_over_is_refused_by_name(tmp_path, changes, sentence):
    path = plain_lora(tmp_path / "lora", tiny_llama())
    content = json.loads((path / CONFIG_FILE).read_text())
    (path / CONFIG_FILE).write_text(json.dumps(content | changes))
    with pytest.raises(AdapterError, match=sentence):
        read_plain_loras(path)


@pytest.mark.parametrize(
    "changes", [{"lora_dropout": 0.1}, {"init_lora_weights": "gaussian"}, {"task_type": None}]
)
def test_what_only_says_how_it_was_trained_does_not_matter(tmp_path, changes):
    path = plain_lora(tmp_path / "lora", tiny_llama())
    content = json.loads((path / CONFIG_FILE).read_text())
    (path / CONFIG_FILE).write_text(json.dumps(content | changes))
    (lora,) = read_plain_loras(path)
    assert len(lora.updates) == 4


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("base_model.model.model.embed_tokens.lora_embedding_A", "is no A or B of a plain LoRA"),
        ("base_model.model.model.layers.0.self_attn.q_proj.lora_B.bias", "is no A or B"),
        ("base_model.model.model.layers.0.self_attn.k_proj.lora_A.weight", "k_proj lacks its A or"),
    ],
)
def test_a_tensor_that_has_no_place_is_refused(tmp_path, name, sentence):
    path = plain_lora(tmp_path / "lora", tiny_llama())
    tensors = load_file(path / WEIGHTS_FILE)
    save_file(tensors | {name: torch.zeros(2, 2)}, path / WEIGHTS_FILE)
    with pytest.raises(AdapterError, match=sentence):
        read_plain_loras(path)


def test_a_pickle_is_never_read(tmp_path):
    path = plain_lora(tmp_path / "lora", tiny_llama())
    torch.save(load_file(path / WEIGHTS_FILE), path / "adapter_model.bin")
    (path / WEIGHTS_FILE).unlink()
    with pytest.raises(AdapterError, match=r"adapter_model\.bin can run code and is not read"):
        read_plain_loras(path)


@pytest.mark.parametrize(
    ("name", "data", "sentence"),
    [
        (CONFIG_FILE, b"{", "is not JSON"),
        (CONFIG_FILE, b"[]", "content: Input should be a valid dictionary"),
        (CONFIG_FILE, b"\xff", "is not JSON"),
        (WEIGHTS_FILE, b"", "is damaged or truncated"),
    ],
)
def test_a_damaged_file_is_named(tmp_path, name, data, sentence):
    path = plain_lora(tmp_path / "lora", tiny_llama())
    (path / name).write_bytes(data)
    with pytest.raises(AdapterError, match=sentence):
        read_plain_loras(path)


def test_a_value_that_is_not_finite_is_named(tmp_path):
    path = plain_lora(tmp_path / "lora", tiny_llama())
    tensors = load_file(path / WEIGHTS_FILE)
    name = next(iter(tensors))
    tensors[name][0, 0] = float("nan")
    save_file(tensors, path / WEIGHTS_FILE)
    with pytest.raises(AdapterError, match=f"{name} holds a non-finite value"):
        read_plain_loras(path)


def test_a_folder_without_a_lora_says_what_it_lacks(tmp_path):
    with pytest.raises(AdapterError, match=r"has no adapter_config\.json: name the folder"):
        read_plain_loras(tmp_path)


def test_a_plain_lora_that_is_to_be_served_says_how(tmp_path):
    path = plain_lora(tmp_path / "lora", tiny_llama())
    with pytest.raises(AdapterError, match=r"has no dalorra\.json.*`dalorra import .*lora OUT"):
        read_adapter(path)
