"""Every cell of a bird's-eye view says what stands there: as `perspective` does for images, with all that a view knows.

A view that has taken up the past shows how things move; queries that start from its boxes start with that.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..structures import Targets
from .bev_encoder import BevGrid
from .cells import Cells, nearest_cells
from .heads import set_class_prior


@dataclass
class BevCells(Cells):
    """What every cell of a view says about the object whose centre lies next to it; there is one map, N = 1."""

    grid: BevGrid

    def owners(self, frame: int, targets: Targets) -> tuple[Tensor, Tensor]:
        """The four cells nearest to the centre of a target; the target nearest to the rig has a shared one."""
        centres = targets.boxes[:, :2]
        rows, columns = self.grid.shape
        places = self.grid.fractions(centres) * centres.new_tensor([columns, rows])
        shown = torch.ones_like(places[:, 0], dtype=torch.bool)
        return nearest_cells(places[None], shown[None], centres.norm(dim=-1)[None], self.grid.shape)


class BevBoxHead(nn.Module):
    """One box and its class from every cell of a view.

    Args:
        dim: width of the cells.
        num_classes: of the detector.
        grid: where the cells lie.
        num_proposals: queries that start where the best boxes stand.
    """

    def __init__(self, dim: int, num_classes: int, grid: BevGrid, num_proposals: int) -> None:
        super().__init__()
        self.grid, self.num_proposals = grid, num_proposals
        self.tower = nn.Conv2d(dim, dim, 3, padding=1)
        self.class_head = nn.Linear(dim, num_classes)
        self.box_head = nn.Linear(dim, 10)  # a box code, with x and y of the centre from that of the cell, in cells
        set_class_prior(self.class_head)

    def forward(self, bev: Tensor) -> BevCells:
        """What every cell of views [B, H W, D] says."""
        maps = bev.transpose(1, 2).unflatten(-1, self.grid.shape)
        seen = self.tower(maps).relu().permute(0, 2, 3, 1)[:, None]  # [B, 1, H, W, D]
        logits, answers = self.class_head(seen), self.box_head(seen)
        with torch.autocast(bev.device.type, enabled=False):
            cells = self.grid.metres().unflatten(0, self.grid.shape)
            size = cells.new_tensor(self.grid.extent) / cells.new_tensor(self.grid.shape).flip(0)
            codes = torch.cat([answers[..., :2].float() * size + cells, answers[..., 2:].float()], -1)
        return BevCells(logits, codes, seen, None, self.num_proposals, self.grid)
