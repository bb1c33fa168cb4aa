"""The linear layer for long sequences against PyTorch's."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from bevdet_ops.dense import MANY_TOKENS, TokenLinear


@pytest.fixture(params=[1, 2])
def threads(request):
    """The two paths on a CPU: PyTorch's linear layer with one thread, a convolution with more."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("shape", [(2, MANY_TOKENS, 12), (2, 7, 12), (MANY_TOKENS, 12), (0, MANY_TOKENS, 12)])
@pytest.mark.parametrize("bias", [True, False])
def test_same_numbers_and_gradients_as_a_linear_layer(shape: tuple[int, ...], bias: bool):
    torch.manual_seed(0)
    ours, theirs = TokenLinear(12, 5, bias).double(), nn.Linear(12, 5, bias).double()
    theirs.load_state_dict(ours.state_dict())
    results = []
    for layer in (ours, theirs):
        x = torch.randn(*shape, dtype=torch.float64, generator=torch.manual_seed(1)).requires_grad_()
        out = layer(x)
        out.square().sum().backward()
        results.append((out, x.grad, layer.weight.grad))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b)


def test_nothing_is_copied_on_the_way_out():
    out = TokenLinear(8, 16)(torch.randn(2, 2 * MANY_TOKENS, 8))
    assert out.is_contiguous()


def test_transposed_input():
    layer = TokenLinear(8, 4)
    x = torch.randn(2, 8, MANY_TOKENS).transpose(1, 2)
    torch.testing.assert_close(layer(x), nn.functional.linear(x, layer.weight, layer.bias))
