import pytest
import torch

from dalorra.adapter.layer import stochastic_layers
from dalorra.forward.reference import answer_logits
from dalorra.forward.reference_rows import pack
from dalorra.posteriors.bank import MaskBank
from tests.tiny import tiny_adapter, tiny_base, tiny_prompts
from tests.tiny_families import FAMILIES, base_of
from training import attention
from training.attention import NAME, differentiable_attention


@pytest.mark.parametrize("again", [False, True], ids=["kept", "computed again"])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("scope", ["answer_tokens", "all_tokens"])
def test_logits_and_gradients_are_those_of_the_fused_kernel(scope, family, again, monkeypatch):
    if again:
        monkeypatch.setattr(attention, "_KEPT", 0)
        monkeypatch.setattr(attention, "_BLOCK", 7)
    base = base_of(family, layers=2)
    model = tiny_adapter(base)
    rows = pack(tiny_prompts(base), range(2), scope)
    bank = MaskBank(torch.rand((2, 5, 4), generator=torch.Generator().manual_seed(0)))
    label_ids = torch.tensor([270, 271])
    layers = stochastic_layers(model).values()

    def run() -> tuple[torch.Tensor, list[torch.Tensor]]:
        model.zero_grad()
        logits = answer_logits(model, rows, bank, label_ids)
        logits.square().sum().backward()
        parts = [part.grad.clone() for layer in layers for part in (layer.down, layer.up)]
        return logits.detach(), parts

    fused = run()
    with differentiable_attention(base.model):
        plain = run()
    torch.testing.assert_close(plain[0], fused[0], rtol=1e-5, atol=1e-5)
    for found, expected in zip(plain[1], fused[1], strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_the_models_own_attention_is_back_after_the_block_and_after_a_failure(monkeypatch):
    model = tiny_base().model
    chosen = []
    choose = model.set_attn_implementation
    monkeypatch.setattr(
        model, "set_attn_implementation", lambda name: chosen.append(name) or choose(name)
    )
    with differentiable_attention(model):
        assert chosen == [NAME]
    with pytest.raises(KeyError), differentiable_attention(model):
        {}["inside"]
    assert chosen == [NAME, "sdpa"] * 2
