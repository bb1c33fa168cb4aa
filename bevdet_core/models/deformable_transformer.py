"""Encoder and decoder of Deformable DETR (Zhu et al., 2021): every query reads a few points of all feature levels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bevdet_ops import MSDeformAttn

from .heads import inverse_sigmoid
from .transformer import FeedForward, MultiHeadAttention, xavier_init


@dataclass
class FeatureTokens:
    """The feature maps of a batch as one sequence: levels fine to coarse, each row by row."""

    tokens: Tensor  # [B, S, D]
    spatial_shapes: tuple[tuple[int, int], ...]  # L x (H, W)
    mask: Tensor | None  # [B, S] bool, True under padding; None: there is none
    valid_ratios: Tensor  # [B, L, 2], the part of (width, height) of every level that is no padding


class DeformableEncoderLayer(nn.Module):
    """Deformable self-attention and feed-forward layer, each followed by a LayerNorm."""

    def __init__(
        self, dim: int, num_heads: int, num_levels: int, num_points: int, ffn_dim: int, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.self_attention = MSDeformAttn(dim, num_levels, num_heads, num_points)
        self.norm1 = nn.LayerNorm(dim)
        self.ffn = FeedForward(dim, ffn_dim, dropout)
        self.norm2 = nn.LayerNorm(dim)
        self.dropout = nn.Dropout(dropout)
        xavier_init(self)
        self.self_attention.reset_parameters()

    def forward(self, features: FeatureTokens, tokens: Tensor, positions: Tensor, reference: Tensor) -> Tensor:
        """Tokens [B, S, D] -> tokens."""
        attended = self.self_attention(
            tokens + positions, reference, tokens, features.spatial_shapes, input_padding_mask=features.mask
        )
        tokens = self.norm1(tokens + self.dropout(attended))
        return self.norm2(tokens + self.dropout(self.ffn(tokens)))


class DeformableEncoder(nn.Module):
    """Lets the cells of all feature levels exchange what they see.

    Args:
        dim: width of the tokens.
        num_layers: one after the other.
        num_heads: of the attention.
        num_levels: feature levels.
        num_points: samples per head and level.
        ffn_dim: hidden width of the feed-forward layers.
        dropout: rate, while training.
    """

    def __init__(
        self,
        dim: int,
        num_layers: int,
        num_heads: int,
        num_levels: int,
        num_points: int,
        ffn_dim: int,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            DeformableEncoderLayer(dim, num_heads, num_levels, num_points, ffn_dim, dropout) for _ in range(num_layers)
        )

    def forward(
        self,
        features: FeatureTokens,
        positions: Tensor,  # [B, S, D]
    ) -> Tensor:
        """The memory [B, S, D]; under padding it holds anything."""
        # Every cell looks around its own centre, which padding puts at another fraction of every level.
        reference = cell_centres(features)[:, :, None] * features.valid_ratios[:, None]  # [B, S, L, 2]
        tokens = features.tokens
        for layer in self.layers:
            tokens = layer(features, tokens, positions, reference)
        return tokens


def cell_centres(features: FeatureTokens) -> Tensor:
    """[B, S, 2]: centre (x, y) of every cell as fractions of the image without padding; beyond 1 under padding."""
    centres = []
    ratios = features.valid_ratios
    for level, (height, width) in enumerate(features.spatial_shapes):
        y = (torch.arange(height, device=ratios.device) + 0.5) / height
        x = (torch.arange(width, device=ratios.device) + 0.5) / width
        grid = torch.stack([x.expand(height, -1), y[:, None].expand(-1, width)], -1).flatten(0, 1)  # [H * W, 2]
        centres.append(grid / ratios[:, None, level])
    return torch.cat(centres, 1)


class DeformableDecoderLayer(nn.Module):
    """Self-attention, deformable cross-attention and feed-forward layer, each followed by a LayerNorm."""

    def __init__(
        self, dim: int, num_heads: int, num_levels: int, num_points: int, ffn_dim: int, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.self_attention = MultiHeadAttention(dim, num_heads, dropout)
        self.norm1 = nn.LayerNorm(dim)
        self.cross_attention = MSDeformAttn(dim, num_levels, num_heads, num_points)
        self.norm2 = nn.LayerNorm(dim)
        self.ffn = FeedForward(dim, ffn_dim, dropout)
        self.norm3 = nn.LayerNorm(dim)
        self.dropout = nn.Dropout(dropout)
        xavier_init(self)
        self.cross_attention.reset_parameters()

    def forward(
        self,
        features: FeatureTokens,  # after the encoder
        query: Tensor,  # [B, Q, D]
        query_pos: Tensor,  # [B, Q, D]
        reference: Tensor,  # [B, Q, L, 2 or 4]
        attention_mask: Tensor | None = None,  # broadcasts to [B, M, Q, Q], True: may attend
    ) -> Tensor:
        """Queries -> queries."""
        where = query + query_pos
        query = self.norm1(query + self.dropout(self.self_attention(where, where, query, attention_mask)))
        attended = self.cross_attention(
            query + query_pos, reference, features.tokens, features.spatial_shapes, input_padding_mask=features.mask
        )
        query = self.norm2(query + self.dropout(attended))
        return self.norm3(query + self.dropout(self.ffn(query)))


@dataclass
class DecodedQueries:
    """What L decoder layers say about Q queries."""

    hidden: list[Tensor]  # L x [B, Q, D]
    logits: list[Tensor]  # L x [B, Q, C]
    boxes: list[Tensor]  # L x [B, Q, 4], (cx, cy, w, h) as fractions of the image without padding
    references: list[Tensor]  # L + 1 x [B, Q, 2 or 4], before the first and after each layer


class DeformableDecoder(nn.Module):
    """Turns queries into objects, layer by layer.

    Args:
        layers: one after the other.
        class_heads: from queries to logits, one for each layer; may all be the same module.
        box_heads: from queries to corrections of the reference in logit space, likewise.
        refine: each layer starts from the boxes of the one before, instead of the first reference points.
    """

    def __init__(
        self,
        layers: Sequence[DeformableDecoderLayer],
        class_heads: Sequence[nn.Module],
        box_heads: Sequence[nn.Module],
        refine: bool,
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.class_heads = nn.ModuleList(class_heads)
        self.box_heads = nn.ModuleList(box_heads)
        self.refine = refine

    def forward(
        self,
        features: FeatureTokens,  # after the encoder
        query: Tensor,  # [B, Q, D]
        query_pos: Tensor,  # [B, Q, D]
        reference: Tensor,  # [B, Q, 2 or 4] points or boxes, fractions of the image without padding
        attention_mask: Tensor | None = None,  # broadcasts to [B, M, Q, Q], True: may attend
    ) -> DecodedQueries:
        out = DecodedQueries([], [], [], [reference])
        for layer, class_head, box_head in zip(self.layers, self.class_heads, self.box_heads, strict=True):
            # From fractions of the image to fractions of every padded level.
            ratios = features.valid_ratios.repeat(1, 1, reference.shape[-1] // 2)  # [B, L, 2 or 4]
            query = layer(features, query, query_pos, reference[:, :, None] * ratios[:, None], attention_mask)
            # Coordinates stay in float32: bfloat16 would round an image of 1000 pixels to steps of 4.
            with torch.autocast(query.device.type, enabled=False):
                boxes = move_box(reference, box_head(query.to(reference.dtype)))
            out.hidden.append(query)
            out.logits.append(class_head(query))
            out.boxes.append(boxes)
            if self.refine:
                reference = boxes.detach()
            out.references.append(reference)
        return out


def move_box(reference: Tensor, delta: Tensor) -> Tensor:
    """Correct a reference point or box [..., 2 or 4] by delta [..., 4] in logit space; a box in [0, 1]."""
    start = inverse_sigmoid(reference)
    if reference.shape[-1] == 2:
        return torch.cat([delta[..., :2] + start, delta[..., 2:]], -1).sigmoid()
    return (delta + start).sigmoid()
