"""Products and what is done with them in one pass, against the same written out in float32."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dalorra.forward.llama.projection import BaseProjection, Product, can_prepack

ROWS, IN, OUT = 7, 32, 48


@pytest.fixture
def linear(bias) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(IN, OUT, bias=bias).to(torch.bfloat16).requires_grad_(requires_grad=False)


@pytest.fixture
def product(linear, prepack) -> Product:
    if prepack and not can_prepack(linear.weight):
        pytest.skip("oneDNN is not in this PyTorch")
    return BaseProjection.fuse({"gate": linear}, prepack=prepack, dtype=linear.weight.dtype).product


def check(found: Tensor, expected: Tensor) -> None:
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), expected, rtol=0.02, atol=0.02)


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("prepack", [True, False], ids=["prepacked", "plain"])
def test_what_follows_a_product(linear, product):
    x = torch.randn((2, ROWS, IN)).bfloat16()
    other = torch.randn((2, ROWS, OUT)).bfloat16()
    given = x.clone(), other.clone()
    bias = None if linear.bias is None else linear.bias.float()
    expected = F.linear(x.float(), linear.weight.float(), bias)
    check(product(x), expected)
    check(product.silu(x), F.silu(expected))
    check(product.times(x, other), expected * other.float())
    check(product.plus(x, other), expected + other.float())
    assert torch.equal(x, given[0])
    assert torch.equal(other, given[1])
