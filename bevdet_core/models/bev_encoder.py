"""The encoder of BEVFormer: from feature maps of all cameras, and the view before, to a bird's-eye view."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..geometry import locate_in_images
from .bev_attention import SpatialCrossAttention, TemporalSelfAttention
from .transformer import FeedForward, xavier_init


class BevGrid(nn.Module):
    """Where the cells of a bird's-eye view lie: row by row, rows along y and columns along x of the lidar frame.

    Args:
        shape: (rows, columns).
        pc_range: (x0, y0, z0, x1, y1, z1) in metres that the grid covers.
        anchors: points at which the pillar over a cell is looked at, spread over its height with half a metre left out
            at either end.
    """

    centres: Tensor
    pillars: Tensor

    def __init__(self, shape: tuple[int, int], pc_range: Sequence[float], anchors: int) -> None:
        super().__init__()
        self.shape, self.anchors = shape, anchors
        (rows, columns), (x0, y0, z0, x1, y1, z1) = shape, pc_range
        self.extent = (x1 - x0, y1 - y0)
        self.origin = (-x0 / (x1 - x0), -y0 / (y1 - y0))  # of the lidar frame, as fractions of the grid
        y, x = (torch.arange(rows) + 0.5) / rows, (torch.arange(columns) + 0.5) / columns
        centres = torch.stack([x.expand(rows, -1), y[:, None].expand(-1, columns)], -1).view(-1, 2)
        z = torch.linspace(z0 + 0.5, z1 - 0.5, anchors)
        places = centres * torch.tensor(self.extent) + torch.tensor([x0, y0])
        pillars = torch.cat([places[:, None].expand(-1, anchors, -1), z[None, :, None].expand(len(places), -1, 1)], -1)
        self.register_buffer("centres", centres, persistent=False)  # [H W, 2] (x, y) in [0, 1] of the grid
        self.register_buffer("pillars", pillars.reshape(-1, 3), persistent=False)  # [H W Z, 3] metres

    def metres(self) -> Tensor:
        """The centres of the cells [H W, 2], (x, y) in the lidar frame."""
        return (self.centres - self.centres.new_tensor(self.origin)) * self.centres.new_tensor(self.extent)

    def fractions(self, points: Tensor) -> Tensor:
        """Points [..., 2], (x, y) in the lidar frame, as fractions of the grid."""
        return points / points.new_tensor(self.extent) + points.new_tensor(self.origin)

    def seen(
        self,
        lidar2img: Tensor,  # [B, N, 4, 4]
        image_size: tuple[int, int],  # (height, width) of the padded images
        hidden: Tensor | None = None,  # [B, N] bool, cameras that see nothing; None: no such one
    ) -> tuple[Tensor, Tensor]:
        """Where cameras see the anchors: locations [B, N, H W, Z, 2], visible [B, N, H W, Z]."""
        points = self.pillars.expand(lidar2img.shape[0], -1, -1)
        locations, visible = locate_in_images(points, lidar2img, image_size, hidden)
        return locations.unflatten(2, (-1, self.anchors)), visible.unflatten(2, (-1, self.anchors))

    def turned(
        self, bev: Tensor, turn: Tensor, centre: tuple[float, float], extent: tuple[float, float] | None = None
    ) -> Tensor:
        """A view as it looks after the rig has turned: the nearest cell for each, 0 from beyond the grid.

        Args:
            bev: [B, H W, D].
            turn: [B] radians about z.
            centre: of the turn, (x, y) as fractions of the grid.
            extent: (x, y) size of the grid in the unit in which a turn keeps lengths; default: metres.
        """
        size = self.centres.new_tensor(extent or self.extent, dtype=torch.float64)
        middle = self.centres.new_tensor(centre, dtype=torch.float64)
        x, y = ((self.centres.double() - middle) * size).unbind(-1)  # [H W] each
        cos, sin = turn.double().cos()[:, None], turn.double().sin()[:, None]
        source = torch.stack([cos * x - sin * y, sin * x + cos * y], -1) / size + middle  # [B, H W, 2]
        rows, columns = self.shape
        column, row = (source * source.new_tensor([columns, rows])).floor().long().unbind(-1)
        inside = (column >= 0) & (column < columns) & (row >= 0) & (row < rows)
        index = (row * columns + column).where(inside, 0)[..., None]  # [B, H W, 1]
        # Not take_along_dim, which would fix an exported graph's batch size.
        return bev.gather(1, index.expand(-1, -1, bev.shape[-1])) * inside[..., None]

    def places_before(self, shift: Tensor, turn: Tensor) -> Tensor:
        """Where the cells lie in the view of an earlier frame: [B, H W, 2] (x, y) in [0, 1] of it.

        Args:
            shift: [B, 2] metres, see `EgoMotion`.
            turn: [B] radians, likewise.
        """
        x, y = (self.metres() + shift[:, None]).unbind(-1)  # [B, H W] each
        cos, sin = turn.cos()[:, None], turn.sin()[:, None]
        return self.fractions(torch.stack([cos * x - sin * y, sin * x + cos * y], -1))


@dataclass
class PreviousView:
    """The view of the frame before, for temporal self-attention."""

    bev: Tensor  # [B, H W, D], turned to the present heading
    shift: Tensor  # [B, 2] (x, y) from a cell of this view to its place in that one, as fractions of the grid
    known: Tensor | None  # [B] bool: which frames have one; None: all


class BevEncoderLayer(nn.Module):
    """Temporal self-attention, spatial cross-attention and feed-forward layer, each followed by a LayerNorm.

    With no `temporal_points`, without the first.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        num_levels: int,
        spatial_points: int,
        temporal_points: int,
        ffn_dim: int,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.temporal_attention = None
        if temporal_points:
            self.temporal_attention = TemporalSelfAttention(dim, num_heads, temporal_points, dropout)
            self.norm1 = nn.LayerNorm(dim)
        self.spatial_attention = SpatialCrossAttention(dim, num_heads, num_levels, spatial_points, dropout)
        self.ffn = FeedForward(dim, ffn_dim, dropout)
        self.norm2, self.norm3 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.dropout = nn.Dropout(dropout)
        xavier_init(self.ffn)
        if self.temporal_attention is not None:
            self.temporal_attention.init_weights()
        self.spatial_attention.init_weights()

    def forward(self, query: Tensor, temporal: tuple, spatial: tuple) -> Tensor:
        """Cells [B, H W, D] -> cells; the rest are the arguments of the attentions after the query."""
        if self.temporal_attention is not None:
            query = self.norm1(query + self.temporal_attention(query, *temporal))
        query = self.norm2(query + self.spatial_attention(query, *spatial))
        return self.norm3(query + self.dropout(self.ffn(query)))


class BevEncoder(nn.Module):
    """Fills the cells of a bird's-eye view.

    Args:
        grid: where they lie.
        layers: one after the other.
    """

    def __init__(self, grid: BevGrid, layers: Sequence[BevEncoderLayer]) -> None:
        super().__init__()
        self.grid = grid
        self.layers = nn.ModuleList(layers)

    def forward(
        self,
        query: Tensor,  # [B, H W, D] what the cells start from
        query_pos: Tensor,  # [H W, D]
        tokens: Tensor,  # [B, N, S, D] of all cameras, levels one after the other
        spatial_shapes: tuple[tuple[int, int], ...],
        locations: Tensor,  # [B, N, H W, Z, 2] of the anchors, see `BevGrid.seen`
        visible: Tensor,  # [B, N, H W, Z]
        previous: PreviousView | None = None,
    ) -> Tensor:
        """The view [B, H W, D]."""
        spatial = (tokens, spatial_shapes, locations, visible.any(-1))
        here = self.grid.centres.expand(query.shape[0], -1, -1)
        there = here
        if previous is not None:
            shift = previous.shift if previous.known is None else previous.shift * previous.known[:, None]
            there = here + shift[:, None]
            # Both views stay what they are in all layers.
            views = torch.stack([previous.bev.to(query.dtype), query], 1)
        reference = torch.stack([there, here], 1)  # [B, 2, H W, 2]
        for layer in self.layers:
            pair = None
            if previous is not None:
                pair = views
                if previous.known is not None:
                    pair = torch.where(previous.known[:, None, None, None], views, query[:, None])
            query = layer(query, (query_pos, self.grid.shape, reference, pair), spatial)
        return query
