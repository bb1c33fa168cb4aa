"""The past through convolutions: a view and earlier ones, side by side.

BEVFormer v2 (Yang et al., CVPR 2023) takes up the past so, in place of temporal self-attention: earlier views are moved
to where things are now, and convolutions over all of them see what has moved in between.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass
class PlacedView:
    """An earlier view, and where the cells of the present one lie in it."""

    bev: Tensor  # [B, H W, D]
    places: Tensor  # [B, H W, 2] (x, y) in [0, 1] of the grid
    known: Tensor | None = None  # [B] bool: which frames have one; None: all


class BevFusion(nn.Module):
    """Adds to the cells of a view what convolutions see in it and in earlier ones.

    A view that is missing is taken to have been the same as the present one.

    Args:
        dim: width of the cells.
        shape: (rows, columns) of a view.
        views: earlier ones.
    """

    def __init__(self, dim: int, shape: tuple[int, int], views: int = 1) -> None:
        super().__init__()
        self.shape, self.views = shape, views
        self.reduce = nn.Linear(dim, dim // 2)  # of all views
        self.layers = nn.Sequential(
            nn.Conv2d(dim + views * (dim // 2), dim, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(dim, dim, 3, padding=2, dilation=2),  # what is fast crosses several cells
            nn.ReLU(),
            nn.Conv2d(dim, dim, 3, padding=1),
        )
        self.norm = nn.LayerNorm(dim)
        for layer in self.layers:
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")

    def forward(
        self,
        bev: Tensor,  # [B, H W, D]
        past: Sequence[PlacedView] = (),  # as many as `views`, or none
    ) -> Tensor:
        """Returns [B, H W, D]."""
        now = self._map(self.reduce(bev))
        maps = [now] * self.views
        for i, view in enumerate(past):
            grid = (2 * view.places - 1).unflatten(1, self.shape).to(now.dtype)
            moved = F.grid_sample(self._map(self.reduce(view.bev.to(bev.dtype))), grid, align_corners=False)
            maps[i] = moved if view.known is None else torch.where(view.known[:, None, None, None], moved, now)
        seen = self.layers(torch.cat([self._map(bev).to(now.dtype), *maps], 1))
        return self.norm(bev + seen.flatten(2).transpose(1, 2))

    def _map(self, cells: Tensor) -> Tensor:
        """[B, H W, D] -> [B, D, H, W]."""
        return cells.transpose(1, 2).unflatten(-1, self.shape)
