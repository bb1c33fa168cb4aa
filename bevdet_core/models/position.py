"""Where a feature or a box lies, as a vector that a transformer can add to its content."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

TEMPERATURE = 10000.0


def sine_embedding(angles: Tensor, dim: int) -> Tensor:
    """Angles [...] in radians -> [..., dim]: (sin, cos) pairs at frequencies falling from 1 to 1 / 10000."""
    pair = torch.arange(dim, device=angles.device) // 2
    waves = angles[..., None] / TEMPERATURE ** (2 * pair / dim)
    return torch.stack((waves[..., 0::2].sin(), waves[..., 1::2].cos()), -1).flatten(-2)


def box_embedding(boxes: Tensor, dim: int) -> Tensor:
    """Boxes (cx, cy, w, h) [..., 4] as fractions of the image -> [..., 4 * dim], one number after the other."""
    return sine_embedding(boxes * (2 * math.pi), dim).flatten(-2)


class SinePositionEmbedding(nn.Module):
    """Row and column of every cell, as fractions of the image without padding, in sine waves (DETR).

    Args:
        dim: width of the embedding; the first half tells the row, the second the column.
        centred: count from the centres of the cells (Deformable DETR) instead of their ends (DETR).
    """

    def __init__(self, dim: int, centred: bool) -> None:
        super().__init__()
        if dim % 4:
            raise ValueError(f"a sine position embedding needs a width that is a multiple of 4, got {dim}")
        self.dim = dim
        self.centred = centred

    def forward(self, mask: Tensor) -> Tensor:
        """Padding mask [B, H, W] of a feature map -> [B, H, W, dim] float32."""
        valid = (~mask).float()
        axes = []
        for axis in (1, 2):
            count = valid.cumsum(axis)
            total = count.narrow(axis, count.shape[axis] - 1, 1)
            angles = (count - 0.5 if self.centred else count) / (total + 1e-6) * (2 * math.pi)
            axes.append(sine_embedding(angles, self.dim // 2))
        return torch.cat(axes, -1)


class LearnedPositionEmbedding(nn.Module):
    """A learned vector for each column and row (an option of DETR; the grid of BEVFormer).

    Args:
        dim: width of the embedding; the first half tells the column, the second the row.
        rows: how many there are; a map may have fewer.
        columns: likewise.
    """

    def __init__(self, dim: int, rows: int = 50, columns: int = 50) -> None:
        super().__init__()
        self.rows = nn.Embedding(rows, dim // 2)
        self.columns = nn.Embedding(columns, dim // 2)
        nn.init.uniform_(self.rows.weight)
        nn.init.uniform_(self.columns.weight)

    def forward(self, mask: Tensor) -> Tensor:
        """Padding mask [B, H, W] of a feature map -> [B, H, W, dim].

        Raises:
            ValueError: a map with more rows or columns than there are vectors.
        """
        B, H, W = mask.shape
        return self.grid(H, W).expand(B, -1, -1, -1)

    def grid(self, height: int, width: int) -> Tensor:
        """The embedding [height, width, dim] of a map without padding; errors: see `forward`."""
        most = self.rows.num_embeddings, self.columns.num_embeddings
        if height > most[0] or width > most[1]:
            raise ValueError(
                f"learned positions reach {most[0]} rows and {most[1]} columns, the map has {height} x {width}"
            )
        columns = self.columns.weight[:width].expand(height, -1, -1)
        rows = self.rows.weight[:height, None].expand(-1, width, -1)
        return torch.cat([columns, rows], -1)
