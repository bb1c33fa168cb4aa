"""The two attentions of BEVFormer (Li et al., ECCV 2022): cells of a bird's-eye view read cameras and the past."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bevdet_ops import MSDeformAttn, multi_camera_deformable_attention
from bevdet_ops.dense import TokenLinear
from bevdet_ops.modules import initial_offsets


class SpatialCrossAttention(nn.Module):
    """Each cell reads the cameras that see its pillar, around the places where they see it.

    A camera counts when it sees any of the pillar's anchor points, and then is sampled around all of them. The mean is
    taken over the cameras that count. Offsets and weights belong to the cell and are the same for all cameras.

    Args:
        dim: width of cells and features.
        num_heads: of the attention.
        num_levels: levels of the feature pyramid.
        num_points: samples per head and level; point p lies around anchor p modulo the number of anchors.
        dropout: rate on the output, while training.
    """

    def __init__(self, dim: int, num_heads: int, num_levels: int, num_points: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.attention = MSDeformAttn(dim, num_levels, num_heads, num_points)
        self.dropout = nn.Dropout(dropout)

    def init_weights(self) -> None:
        """The start values of deformable attention."""
        self.attention.reset_parameters()

    def forward(
        self,
        query: Tensor,  # [B, Q, D]
        tokens: Tensor,  # [B, N, S, D] of all cameras
        spatial_shapes: tuple[tuple[int, int], ...],
        locations: Tensor,  # [B, N, Q, Z, 2] of the anchors in [0, 1] of the padded images
        visible: Tensor,  # [B, N, Q] bool
    ) -> Tensor:
        """Returns [B, Q, D], to be added to the query."""
        own = self.attention
        B, N = tokens.shape[:2]
        samples = (own.n_heads, own.n_levels, own.n_points)
        value = own.value_proj(tokens.flatten(0, 1)).unflatten(0, (B, N)).unflatten(-1, (own.n_heads, -1))
        attended = multi_camera_deformable_attention(
            value,
            spatial_shapes,
            locations[:, :, :, None],  # [B, N, Q, 1, Z, 2]
            own.sampling_offsets(query).unflatten(-1, (*samples, 2))[:, None],
            own.attention_weights(query).unflatten(-1, samples)[:, None],
            visible,
            weight_activation="softmax",
            reduction="mean_visible",
        )
        return self.dropout(own.output_proj(attended))


class TemporalSelfAttention(nn.Module):
    """Each cell reads the previous and the current view around its own place in them, and takes the mean.

    Args:
        dim: width of the cells.
        num_heads: of the attention.
        num_points: samples per head and view.
        dropout: rate on the output, while training.
    """

    def __init__(self, dim: int, num_heads: int, num_points: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.num_heads, self.num_points = num_heads, num_points
        # Outputs in the order [head, view, point], as in the release.
        self.sampling_offsets = TokenLinear(2 * dim, num_heads * 2 * num_points * 2)
        self.attention_weights = TokenLinear(2 * dim, num_heads * 2 * num_points)
        self.value_proj = TokenLinear(dim, dim)
        self.output_proj = TokenLinear(dim, dim)
        self.dropout = nn.Dropout(dropout)
        self.init_weights()

    def init_weights(self) -> None:
        """The start values of deformable attention, the same for both views."""
        for layer in (self.sampling_offsets, self.attention_weights):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        for layer in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
        bias = initial_offsets(self.num_heads, self.num_points)[:, None].expand(-1, 2, -1, -1)
        with torch.no_grad():
            self.sampling_offsets.bias.copy_(bias.reshape(-1))

    def forward(
        self,
        query: Tensor,  # [B, H W, D]
        query_pos: Tensor,  # [H W, D]
        shape: tuple[int, int],  # (H, W) of the views
        reference_points: Tensor,  # [B, 2, H W, 2] of each cell in the (previous, current) view, in [0, 1]
        views: Tensor | None = None,  # [B, 2, H W, D] previous and current; None: the query is both
    ) -> Tensor:
        """Returns [B, H W, D], to be added to the query."""
        B, Q, _ = query.shape
        samples = (self.num_heads, 2, self.num_points)
        if views is None:
            previous, value = query, self.value_proj(query)[:, None].expand(-1, 2, -1, -1)
        else:
            previous, value = views[:, 0], self.value_proj(views.flatten(0, 1)).unflatten(0, (B, 2))
        both = torch.cat([previous, query + query_pos], -1)
        offsets = self.sampling_offsets(both).view(B, Q, *samples, 2).movedim(3, 1)  # [B, 2, Q, M, P, 2]
        weights = self.attention_weights(both).view(B, Q, *samples).movedim(3, 1)  # [B, 2, Q, M, P]
        attended = multi_camera_deformable_attention(
            value.unflatten(-1, (self.num_heads, -1)),
            (shape,),
            reference_points[:, :, :, None, None],  # [B, 2, Q, 1, 1, 2]
            offsets.unsqueeze(4),
            weights.unsqueeze(4),
            weight_activation="softmax",
            reduction="mean",
        )
        return self.dropout(self.output_proj(attended))
