"""What dense heads say: a box and its class from every cell of a map, for queries to start from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..structures import PairedQueries, Targets
from .query_head import Proposals


@dataclass
class Cells:
    """What every cell of N maps says about the object whose centre lies next to it."""

    logits: Tensor  # [B, N, H, W, C]
    codes: Tensor  # [B, N, H, W, 10] box codes in the lidar frame
    features: Tensor  # [B, N, H, W, D] what they say it from
    hidden: Tensor | None  # [B, N] bool, maps that show nothing; None: no such one
    num_proposals: int  # queries that start here

    def owners(self, frame: int, targets: Targets) -> tuple[Tensor, Tensor]:
        """The cells [P] of a frame that a target belongs to, in (map, row, column) order, and the target of each."""
        raise NotImplementedError

    @property
    def proposals(self) -> Proposals | None:
        """What queries start from; None where none does."""
        return self.best(self.num_proposals) if self.num_proposals else None

    def paired(self, targets: Sequence[Targets]) -> PairedQueries:
        """The cells as queries, with the targets of each frame that they belong to."""
        per_frame = self.logits.shape[1:4].numel()
        owners = [self.owners(frame, objects) for frame, objects in enumerate(targets)]
        return PairedQueries(
            self.logits.flatten(0, 3)[None],
            self.codes.flatten(0, 3)[None],
            Targets(
                torch.cat([t.labels[owner] for t, (_, owner) in zip(targets, owners, strict=True)]),
                torch.cat([t.boxes[owner] for t, (_, owner) in zip(targets, owners, strict=True)]),
            ),
            torch.cat([cell + frame * per_frame for frame, (cell, _) in enumerate(owners)]),
        )

    def best(self, count: int) -> Proposals:
        """The likeliest objects of each frame, of neighbouring cells the likeliest.

        Fewer cells than `count` are repeated.
        """
        logits = self.logits.detach().float()
        scores = logits.amax(-1)  # [B, N, H, W]
        peak = scores == F.max_pool2d(scores, 3, 1, 1)
        shown = peak if self.hidden is None else peak & ~self.hidden[:, :, None, None]
        ranked = scores.masked_fill(~shown, -torch.inf).flatten(1).sort(descending=True, stable=True).indices
        chosen = ranked[:, torch.arange(count, device=ranked.device) % ranked.shape[1]]

        def picked(cells: Tensor) -> Tensor:
            # Not take_along_dim, which would fix an exported graph's batch size.
            return cells.flatten(1, 3).gather(1, chosen[..., None].expand(-1, -1, cells.shape[-1]))

        return Proposals(picked(self.codes.detach()), picked(logits), picked(self.features).float())


def nearest_cells(
    places: Tensor,  # [N, n, 2] of the targets in each map, (x, y) in cells
    shown: Tensor,  # [N, n] bool: which targets a map may show
    distance: Tensor,  # [N, n] of the targets: where several share a cell, it belongs to the nearest
    shape: tuple[int, int],  # (H, W)
) -> tuple[Tensor, Tensor]:
    """The four cells nearest to each target; see `Cells.owners`."""
    H, W = shape
    corner = (places - 0.5).floor()  # the upper left of the four
    x = corner[..., :1] + corner.new_tensor([0, 1, 0, 1])
    y = corner[..., 1:] + corner.new_tensor([0, 0, 1, 1])
    inside = (x >= 0) & (x < W) & (y >= 0) & (y < H) & shown[..., None]
    number, owner, _ = inside.nonzero(as_tuple=True)
    cell = (number * H + y[inside].long()) * W + x[inside].long()
    own = distance[..., None].expand_as(inside)[inside]
    least = own.new_full((len(places) * H * W,), torch.inf).scatter_reduce(0, cell, own, "amin")
    first = own == least[cell]
    return cell[first], owner[first]
