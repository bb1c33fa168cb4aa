"""What the transformers of all detectors share: multi-head attention and the feed-forward layer."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bevdet_ops.dense import TokenLinear

from ..structures import ImageBatch


class MultiHeadAttention(nn.Module):
    """Scaled dot-product attention with `num_heads` heads (Vaswani et al., 2017).

    Args:
        dim: width of queries, keys and values.
        num_heads: must divide `dim`.
        dropout: rate on the attention weights, while training.
    """

    def __init__(self, dim: int, num_heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"the width {dim} of an attention layer must be a multiple of its {num_heads} heads")
        self.num_heads = num_heads
        self.dropout = dropout
        self.in_proj = nn.Linear(dim, 3 * dim)  # rows of query, key, value
        self.out_proj = nn.Linear(dim, dim)
        nn.init.xavier_uniform_(self.in_proj.weight)
        nn.init.zeros_(self.in_proj.bias)
        nn.init.zeros_(self.out_proj.bias)

    def forward(
        self,
        query: Tensor,  # [B, Q, D]
        key: Tensor,  # [B, K, D]
        value: Tensor,  # [B, K, D]
        mask: Tensor | None = None,  # broadcasts to [B, M, Q, K], True: may attend
    ) -> Tensor:
        """Returns [B, Q, D]."""
        weight, bias = self.in_proj.weight, self.in_proj.bias
        dim = query.shape[-1]
        if query is key:
            q, k = F.linear(query, weight[: 2 * dim], bias[: 2 * dim]).chunk(2, -1)
        else:
            q = F.linear(query, weight[:dim], bias[:dim])
            k = F.linear(key, weight[dim : 2 * dim], bias[dim : 2 * dim])
        v = F.linear(value, weight[2 * dim :], bias[2 * dim :])
        dropout = self.dropout if self.training else 0.0
        q, k, v = self._split_heads(q), self._split_heads(k), self._split_heads(v)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)
        return self.out_proj(out.transpose(1, 2).flatten(2))

    def _split_heads(self, x: Tensor) -> Tensor:
        """[B, Q, D] -> [B, M, Q, D / M]."""
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)


class FeedForward(nn.Module):
    """Linear, ReLU, dropout, linear, without the residual.

    Args:
        dim: width outside.
        hidden: width inside.
        dropout: rate after the ReLU, while training.
    """

    def __init__(self, dim: int, hidden: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.linear1 = TokenLinear(dim, hidden)
        self.dropout = nn.Dropout(dropout)
        self.linear2 = TokenLinear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear2(self.dropout(self.linear1(x).relu_()))


def xavier_init(module: nn.Module) -> None:
    """Xavier-uniform for every parameter with two or more axes: the published start of all these transformers."""
    for parameter in module.parameters():
        if parameter.dim() > 1:
            nn.init.xavier_uniform_(parameter)


def flatten_levels(features: list[Tensor]) -> tuple[Tensor, tuple[tuple[int, int], ...]]:
    """Feature maps [B, D, H, W] -> (tokens [B, S, D], levels one after the other, each row by row; their (H, W))."""
    shapes = tuple((int(f.shape[-2]), int(f.shape[-1])) for f in features)
    return torch.cat([f.flatten(2).transpose(1, 2) for f in features], 1), shapes


def plain_images(batch: ImageBatch) -> tuple[Tensor, Tensor]:
    """Images [B, 3, H, W] and padding mask [B, H, W], True under padding, of a batch with one camera.

    Raises:
        ValueError: the batch has several cameras.
    """
    if batch.images.shape[1] != 1:
        raise ValueError(f"a 2D detector takes one image per sample, got frames of {batch.images.shape[1]} cameras")
    # Channels last is what CPU and tensor-core convolutions want.
    return batch.images[:, 0].contiguous(memory_format=torch.channels_last), batch.mask[:, 0]


def resize_mask(mask: Tensor, size: Sequence[int]) -> Tensor:
    """Padding mask [B, H, W] at the size of a feature map, by nearest neighbour."""
    return F.interpolate(mask[:, None].float(), size=tuple(size))[:, 0].bool()
