"""The past through convolutions: a view and the one before it, side by side.

BEVFormer v2 (Yang et al., CVPR 2023) takes up the past so, in place of temporal self-attention: the view before is
moved to where things are now, and convolutions over both see what has moved in between.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class BevFusion(nn.Module):
    """Adds to the cells of a view what two convolutions see in it and in the one before.

    Args:
        dim: width of the cells.
        shape: (rows, columns) of a view.
    """

    def __init__(self, dim: int, shape: tuple[int, int]) -> None:
        super().__init__()
        self.shape = shape
        self.first = nn.Conv2d(2 * dim, dim, 3, padding=1)
        self.second = nn.Conv2d(dim, dim, 3, padding=1)
        self.norm = nn.LayerNorm(dim)

    def forward(
        self,
        bev: Tensor,  # [B, H W, D]
        previous: Tensor | None = None,  # [B, H W, D] the view before; None: the same once more
        places: Tensor | None = None,  # [B, H W, 2] of each cell in the view before, (x, y) in [0, 1]
        known: Tensor | None = None,  # [B] bool: which frames have a view before; None: all
    ) -> Tensor:
        """Returns [B, H W, D]."""
        now = before = bev.transpose(1, 2).unflatten(-1, self.shape)
        if previous is not None and places is not None:
            maps = previous.to(bev.dtype).transpose(1, 2).unflatten(-1, self.shape)
            grid = (2 * places - 1).unflatten(1, self.shape).to(bev.dtype)
            moved = F.grid_sample(maps, grid, align_corners=False)
            before = moved if known is None else torch.where(known[:, None, None, None], moved, now)
        seen = self.second(self.first(torch.cat([now, before], 1)).relu())
        return self.norm(bev + seen.flatten(2).transpose(1, 2))
