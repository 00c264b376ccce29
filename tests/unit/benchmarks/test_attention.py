"""The attention benchmark: what it compares computes the same."""

import pytest
import torch

from benchmarks.attention import CUES, HEADS, WIDTH, contenders


@pytest.mark.parametrize("backward", [False, True])
def test_the_plans_agree(backward):
    torch.manual_seed(0)
    plans = contenders(2, 70, torch.float32, backward)
    assert plans.keys() == {"causal", "cues"}
    for rows, both in plans.items():
        products, fused = both["products"](), both["fused"]()
        assert products.shape == (2, HEADS, 70 if rows == "causal" else CUES, WIDTH)
        torch.testing.assert_close(products, fused, rtol=1e-4, atol=1e-5)
