"""Modules with the parameter names, constructors and initialisation of the official releases."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from bevdet_ops.deform_conv import deform_conv2d
from bevdet_ops.dense import TokenLinear
from bevdet_ops.functional import multi_camera_deformable_attention


def initial_offsets(n_heads: int, n_points: int) -> Tensor:
    """The offsets [n_heads, n_points, 2] in pixels at which deformable attention starts to learn.

    Head m looks in direction 2 * pi * m / n_heads, its point p as far as the border of a square of side 2 * (p + 1).
    """
    angle = torch.arange(n_heads) * (2.0 * math.pi / n_heads)
    direction = torch.stack((angle.cos(), angle.sin()), dim=-1)
    direction = direction / direction.abs().amax(-1, keepdim=True)
    return direction[:, None] * torch.arange(1.0, n_points + 1)[:, None]


class MSDeformAttn(nn.Module):
    """Multi-scale deformable attention of Deformable DETR (https://arxiv.org/abs/2010.04159).

    Constructor, parameter names and initialisation are those of the official release, so its state dicts load. Before
    training, the offsets of head m point in direction 2 * pi * m / n_heads, point p at p + 1 pixels, and all samples
    weigh the same. That is the model's prior, so it must survive a global ``xavier_uniform_`` over all parameters of
    more than one axis: call ``reset_parameters()`` after one, as the official models do.

    Args:
        d_model: Width of queries, values and output.
        n_levels: Number of feature levels.
        n_heads: Number of heads; must divide `d_model`.
        n_points: Samples per head and level.

    Raises:
        ValueError: `n_heads` does not divide `d_model`.
    """

    def __init__(self, d_model: int = 256, n_levels: int = 4, n_heads: int = 8, n_points: int = 4) -> None:
        super().__init__()
        if d_model % n_heads != 0:
            raise ValueError(f"d_model must be a multiple of n_heads, but {d_model} is not one of {n_heads}")
        self.d_model = d_model
        self.n_levels = n_levels
        self.n_heads = n_heads
        self.n_points = n_points
        self.sampling_offsets = TokenLinear(d_model, n_heads * n_levels * n_points * 2)
        self.attention_weights = TokenLinear(d_model, n_heads * n_levels * n_points)
        self.value_proj = TokenLinear(d_model, d_model)
        self.output_proj = TokenLinear(d_model, d_model)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set all parameters to the official initial values."""
        bias = initial_offsets(self.n_heads, self.n_points)[:, None].expand(-1, self.n_levels, -1, -1)
        with torch.no_grad():
            nn.init.zeros_(self.sampling_offsets.weight)
            self.sampling_offsets.bias.copy_(bias.reshape(-1))
            nn.init.zeros_(self.attention_weights.weight)
            nn.init.zeros_(self.attention_weights.bias)
            for projection in (self.value_proj, self.output_proj):
                nn.init.xavier_uniform_(projection.weight)
                nn.init.zeros_(projection.bias)

    def forward(
        self,
        query: Tensor,  # [B, Q, d_model]
        reference_points: Tensor,  # [B, Q, n_levels, 2 or 4]
        input_flatten: Tensor,  # [B, S, d_model]
        input_spatial_shapes: Tensor | Sequence[Sequence[int]],  # [n_levels, 2] or ((H, W), ...)
        input_level_start_index: Tensor | Sequence[int] | None = None,  # [n_levels]
        input_padding_mask: Tensor | None = None,  # [B, S]
    ) -> Tensor:
        """Attend from every query to samples around its reference point.

        Args:
            query: Queries, positions added.
            reference_points: (x, y) or boxes (x, y, w, h) in [0, 1] of the padded image, per level.
            input_flatten: Feature maps before `value_proj`, levels one after the other, each row by row.
            input_spatial_shapes: (H, W) of every level; host integers or a CPU tensor never wait for the GPU.
            input_level_start_index: Follows from the shapes; accepted because the official signature has it.
            input_padding_mask: True where a position is padding; its projected value becomes zero.

        Returns:
            [B, Q, d_model], projected, without residual.
        """
        B, Q, _ = query.shape
        S = input_flatten.shape[1]
        heads, levels, points = self.n_heads, self.n_levels, self.n_points
        value = self.value_proj(input_flatten)
        if input_padding_mask is not None:
            value = value.masked_fill_(input_padding_mask[..., None], 0.0)
        shapes = input_spatial_shapes
        attended = multi_camera_deformable_attention(
            value.view(B, 1, S, heads, self.d_model // heads),
            shapes.tolist() if isinstance(shapes, Tensor) else shapes,
            reference_points[:, None, :, :, None],
            self.sampling_offsets(query).view(B, 1, Q, heads, levels, points, 2),
            self.attention_weights(query).view(B, 1, Q, heads, levels, points),
            weight_activation="softmax",
        )
        return self.output_proj(attended)

    def extra_repr(self) -> str:
        """The constructor's arguments, for printing."""
        return f"d_model={self.d_model}, n_levels={self.n_levels}, n_heads={self.n_heads}, n_points={self.n_points}"


class ModulatedDeformConv2d(nn.Module):
    """Deformable convolution that predicts its own offsets and mask (DCNv2, https://arxiv.org/abs/1811.11168).

    Parameter names and constructor are those of ``ModulatedDeformConv2dPack``, which the R101-DCN backbones use:
    `weight`, `bias`, and the plain convolution `conv_offset` with 3 * deform_groups * k * k outputs, of which the first
    two thirds are offsets and the rest, after a sigmoid, the mask. `conv_offset` starts at zero: a plain convolution
    at half strength.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        kernel_size: Side of the square kernel.
        stride: Of the output grid.
        padding: Zeros around the input.
        dilation: Distance of the taps.
        groups: Groups of channels that are convolved on their own.
        deform_groups: Groups of input channels with offsets and masks of their own.
        bias: Whether the convolution has a bias.

    Raises:
        ValueError: `groups` does not divide both numbers of channels, or `deform_groups` the input's.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        padding: int = 0,
        dilation: int = 1,
        groups: int = 1,
        deform_groups: int = 1,
        bias: bool = True,
    ) -> None:
        super().__init__()
        if in_channels % groups != 0 or out_channels % groups != 0:
            raise ValueError(f"groups={groups} must divide in_channels={in_channels} and out_channels={out_channels}")
        if in_channels % deform_groups != 0:
            raise ValueError(f"deform_groups={deform_groups} must divide in_channels={in_channels}")
        self.stride = stride
        self.padding = padding
        self.dilation = dilation
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels // groups, kernel_size, kernel_size))
        self.bias = nn.Parameter(torch.empty(out_channels)) if bias else None
        self.conv_offset = nn.Conv2d(
            in_channels, 3 * deform_groups * kernel_size**2, kernel_size, stride, padding, dilation
        )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Uniform weights in +-1 / sqrt(fan in), zero bias, zero offset convolution."""
        bound = 1.0 / math.sqrt(self.weight[0].numel())
        nn.init.uniform_(self.weight, -bound, bound)
        if self.bias is not None:
            nn.init.zeros_(self.bias)
        nn.init.zeros_(self.conv_offset.weight)
        assert self.conv_offset.bias is not None
        nn.init.zeros_(self.conv_offset.bias)

    def forward(self, x: Tensor) -> Tensor:  # [B, in_channels, H, W] -> [B, out_channels, Ho, Wo]
        """Convolve `x` with taps where it says itself."""
        predicted = self.conv_offset(x)
        split = predicted.shape[1] // 3 * 2
        offset, mask = predicted[:, :split], predicted[:, split:].sigmoid()
        return deform_conv2d(x, offset, self.weight, self.bias, self.stride, self.padding, self.dilation, mask)
