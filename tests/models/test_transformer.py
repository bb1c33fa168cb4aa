"""Attention against PyTorch's own."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from bevdet_core.models.transformer import FeedForward, MultiHeadAttention, flatten_levels, xavier_init


@pytest.mark.parametrize("self_attention", [True, False])
@pytest.mark.parametrize("masked", [True, False])
def test_attention_agrees_with_pytorch(self_attention: bool, masked: bool):
    torch.manual_seed(0)
    ours, theirs = MultiHeadAttention(16, 4), nn.MultiheadAttention(16, 4, batch_first=True)
    ours.load_state_dict(
        {
            "in_proj.weight": theirs.in_proj_weight,
            "in_proj.bias": torch.randn(48),
            "out_proj.weight": theirs.out_proj.weight,
            "out_proj.bias": torch.randn(16),
        }
    )
    theirs.load_state_dict({k.replace("in_proj.", "in_proj_"): v for k, v in ours.state_dict().items()})
    query, value = torch.randn(2, 5, 16), torch.randn(2, 5 if self_attention else 7, 16)
    key = query if self_attention else torch.randn(2, 7, 16)
    mask = torch.rand(5, key.shape[1]) > 0.3 if masked else None
    if mask is not None:
        mask[:, 0] = True
    expected, _ = theirs(query, key, value, attn_mask=None if mask is None else ~mask, need_weights=False)
    torch.testing.assert_close(ours(query, key, value, mask), expected)


def test_attention_needs_a_width_that_its_heads_divide():
    with pytest.raises(ValueError, match=r"the width 10 .* multiple of its 4 heads"):
        MultiHeadAttention(10, 4)


def test_dropout_acts_in_training_alone():
    torch.manual_seed(0)
    x = torch.randn(1, 6, 8)
    for layer, inputs in ((MultiHeadAttention(8, 2, dropout=0.5), (x, x, x)), (FeedForward(8, 16, dropout=0.5), (x,))):
        assert not torch.equal(layer(*inputs), layer(*inputs))
        layer.eval()
        assert torch.equal(layer(*inputs), layer(*inputs))


def test_xavier_init_leaves_vectors_alone():
    layer = FeedForward(8, 24)
    before = layer.linear1.bias.clone()
    xavier_init(layer)
    assert torch.equal(layer.linear1.bias, before)
    assert layer.linear1.weight.abs().max() <= (6 / 32) ** 0.5


def test_flatten_levels_keeps_rows_together():
    maps = [torch.arange(6.0).view(1, 1, 2, 3), torch.tensor([[[[6.0, 7.0]]]])]
    tokens, shapes = flatten_levels(maps)
    assert tokens[0, :, 0].tolist() == list(range(8))
    assert shapes == ((2, 3), (1, 2))
