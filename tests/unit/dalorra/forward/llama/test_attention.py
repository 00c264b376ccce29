"""Both kernels, on every machine, against attention written out."""

import pytest
import torch
from torch import Tensor

from dalorra.forward.llama import attention

HEADS, KV_HEADS, WIDTH = 6, 2, 8


@pytest.fixture(params=[True, False], ids=["amx", "no amx"])
def amx(request, monkeypatch) -> bool:
    monkeypatch.setattr(attention, "has_amx", lambda: request.param)
    return request.param


@pytest.fixture
def fused_calls(monkeypatch) -> list[int]:
    """Gets an entry for every call of the fused kernel."""
    calls: list[int] = []
    fused = attention.F.scaled_dot_product_attention

    def counted(*args, **options):
        calls.append(1)
        return fused(*args, **options)

    monkeypatch.setattr(attention.F, "scaled_dot_product_attention", counted)
    return calls


def random_heads(rows: int, keys: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(rows + keys)
    query = torch.randn((2, HEADS, rows, WIDTH), generator=generator)
    key, value = torch.randn((2, 2, KV_HEADS, keys, WIDTH), generator=generator).unbind()
    return query, key, value


def written_out(query: Tensor, key: Tensor, value: Tensor, visible: Tensor) -> Tensor:
    group = HEADS // KV_HEADS
    out = torch.empty_like(query, dtype=torch.float64)
    for head in range(HEADS):
        q, k, v = query[:, head].double(), key[:, head // group], value[:, head // group]
        scores = q @ k.double().mT / WIDTH**0.5
        weights = scores.masked_fill(~visible[:, 0], -torch.inf).softmax(dim=-1)
        out[:, head] = weights @ v.double()
    return out


@pytest.mark.parametrize("rows", [1, 64, 65, 150])
def test_causal(amx, fused_calls, rows):
    query, key, value = random_heads(rows, rows)
    visible = torch.ones((1, 1, rows, rows), dtype=torch.bool).tril()
    found = attention.causal_attention(query, key, value)
    expected = written_out(query, key, value, visible)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)
    assert bool(fused_calls) is amx


@pytest.mark.parametrize("rows", [1, 64, 65, 150])
def test_rows_of_the_last_keys_are_causal_behind_the_others(amx, fused_calls, rows):
    query, key, value = random_heads(rows, rows + 70)
    visible = torch.ones((1, 1, rows, rows + 70), dtype=torch.bool).tril(70)
    found = attention.causal_attention(query, key, value)
    expected = written_out(query, key, value, visible)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)
    assert bool(fused_calls) is amx


@pytest.mark.parametrize("batch", [1, 2], ids=["one mask for all", "a mask each"])
def test_many_keys_take_little_memory(batch, monkeypatch):
    query, key, value = random_heads(150, 5_000)
    visible = torch.rand((batch, 1, 150, 5_000), generator=torch.Generator().manual_seed(0)) > 0.5
    rows, grouped = [], attention.grouped_attention

    def seen(query, *rest):
        rows.append(query.shape[2])
        return grouped(query, *rest)

    monkeypatch.setattr(attention, "grouped_attention", seen)
    found = attention.masked_by_products(query, key, value, visible)
    expected = written_out(query, key, value, visible)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)
    assert rows == [64, 64, 22]


@pytest.mark.parametrize("batch", [1, 2], ids=["one mask for all", "a mask each"])
def test_masked(amx, fused_calls, batch):
    query, key, value = random_heads(5, 90)
    visible = torch.rand((batch, 1, 5, 90), generator=torch.Generator().manual_seed(0)) > 0.5
    visible[..., 0] = True
    found = attention.masked_attention(query, key, value, visible)
    expected = written_out(query, key, value, visible)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)
    assert bool(fused_calls) is amx


@pytest.mark.usefixtures("amx")
def test_what_is_differentiated_on_a_cpu_goes_through_plain_products(fused_calls):
    query, key, value = random_heads(5, 5)
    attention.causal_attention(query.requires_grad_(), key, value).sum().backward()
    assert query.grad is not None
    assert not fused_calls
