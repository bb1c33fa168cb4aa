"""Between backbone and transformer: feature maps are brought to one width, and coarser ones are added."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn


class FPN(nn.Module):
    """Feature pyramid network (Lin et al., 2017), with extra levels as DETR3D and BEVFormer use them.

    Brings feature maps to one width and hands coarse context down to the fine ones.

    Args:
        in_channels: of the backbone's feature maps, fine to coarse.
        out_channels: of every level.
        num_levels: levels returned, from the finest on. Those beyond the backbone's maps are made from the coarsest
            output by 3x3 convolutions of stride 2, with a ReLU before each but the first.
    """

    def __init__(self, in_channels: Sequence[int], out_channels: int, num_levels: int) -> None:
        super().__init__()
        self.lateral_convs = nn.ModuleList(nn.Conv2d(channels, out_channels, 1) for channels in in_channels)
        self.output_convs = nn.ModuleList(
            nn.Conv2d(out_channels, out_channels, 3, stride=1 if level < len(in_channels) else 2, padding=1)
            for level in range(num_levels)
        )
        for conv in (*self.lateral_convs, *self.output_convs):
            nn.init.xavier_uniform_(conv.weight)
            nn.init.zeros_(conv.bias)

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Feature maps [B, C_i, H_i, W_i] -> `num_levels` maps [B, out_channels, H_l, W_l], fine to coarse."""
        merged = [conv(f) for conv, f in zip(self.lateral_convs, features, strict=True)]
        for fine in range(len(merged) - 2, -1, -1):
            merged[fine] = merged[fine] + F.interpolate(merged[fine + 1], size=merged[fine].shape[-2:])
        outputs = [conv(f) for conv, f in zip(self.output_convs, merged, strict=False)]  # as many as both have
        for extra, conv in enumerate(self.output_convs[len(merged) :]):
            outputs.append(conv(outputs[-1].relu() if extra else outputs[-1]))
        return outputs


class LevelProjection(nn.Module):
    """Brings each feature map to one width on its own (Deformable DETR): 1x1 convolution and GroupNorm.

    Args:
        in_channels: of the backbone's feature maps, fine to coarse.
        out_channels: of every level.
        num_levels: levels returned. Those beyond the backbone's maps are made by 3x3 convolutions of stride 2, the
            first from the coarsest map, others from the level before.
    """

    def __init__(self, in_channels: Sequence[int], out_channels: int, num_levels: int) -> None:
        super().__init__()
        if num_levels < len(in_channels):
            raise ValueError(f"{len(in_channels)} feature maps do not fit in num_levels = {num_levels} levels")
        convs = [nn.Conv2d(channels, out_channels, 1) for channels in in_channels]
        channels = in_channels[-1]
        for _ in range(len(in_channels), num_levels):
            convs.append(nn.Conv2d(channels, out_channels, 3, stride=2, padding=1))
            channels = out_channels
        for conv in convs:
            nn.init.xavier_uniform_(conv.weight)
            nn.init.zeros_(conv.get_parameter("bias"))
        self.levels = nn.ModuleList(nn.Sequential(conv, nn.GroupNorm(32, out_channels)) for conv in convs)

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Feature maps [B, C_i, H_i, W_i] -> `num_levels` maps [B, out_channels, H_l, W_l], fine to coarse."""
        outputs = [level(f) for level, f in zip(self.levels, features, strict=False)]
        coarsest = features[-1]
        for level in self.levels[len(features) :]:
            coarsest = level(coarsest)
            outputs.append(coarsest)
        return outputs
