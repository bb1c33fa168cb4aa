"""Where a cell of a camera's feature map lies: along its ray in space, and within the rig (PETR, Liu et al., 2022)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..geometry import inverse_projection
from .heads import inverse_sigmoid
from .position import SinePositionEmbedding, sine_embedding


def two_layers(inputs: int, dim: int) -> nn.Sequential:
    """1x1 convolutions from [B, inputs, H, W] over 4 * dim channels and a ReLU to [B, dim, H, W]."""
    return nn.Sequential(nn.Conv2d(inputs, 4 * dim, 1), nn.ReLU(), nn.Conv2d(4 * dim, dim, 1))


def growing_depths(count: int, start: float, end: float) -> Tensor:
    """Depths [count] in metres whose distances grow linearly (LID): from `start`, short of `end`."""
    index = torch.arange(count, dtype=torch.float32)
    return start + (end - start) / (count * (count + 1)) * index * (index + 1)


class RayEmbedding(nn.Module):
    """3D position embedding: points along the ray through every cell, in the lidar frame, as a vector.

    As in the release, the ray of a cell goes through its upper left corner, not its centre, and points beyond the range
    are moved to its border.

    Args:
        dim: width of the embedding.
        num_depths: points on each ray.
        depth_start: depth of the first in metres.
        position_range: (x0, y0, z0, x1, y1, z1) in metres, lidar frame, that positions are told apart in; depths end
            at x1.
    """

    depths: Tensor
    position_range: Tensor

    def __init__(self, dim: int, num_depths: int, depth_start: float, position_range: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("depths", growing_depths(num_depths, depth_start, position_range[3]), persistent=False)
        self.register_buffer("position_range", torch.tensor(position_range, dtype=torch.float32), persistent=False)
        self.encoder = two_layers(3 * num_depths, dim)

    def points(
        self,
        shape: tuple[int, int],  # (H, W) of the feature map
        lidar2img: Tensor,  # [B, N, 4, 4]
        image_size: tuple[int, int],  # (height, width) of the padded images
    ) -> Tensor:
        """The points in metres, lidar frame: [B, N, H, W, P, 3]."""
        rows, columns = (
            torch.arange(cells, device=lidar2img.device) * (size / cells)
            for cells, size in zip(shape, image_size, strict=True)
        )
        pixels = torch.stack(
            [columns.expand(shape), rows[:, None].expand(shape), torch.ones_like(columns).expand(shape)], -1
        )
        img2lidar, centre = (x.to(self.depths.dtype)[:, :, None, None] for x in inverse_projection(lidar2img))
        # No matmul, for the sake of TF32.
        rays = (img2lidar * pixels[..., None, :]).sum(-1)  # [B, N, H, W, 3], one metre of depth long
        return centre[..., None, :] + self.depths[:, None] * rays[..., None, :]

    def forward(self, shape: tuple[int, int], lidar2img: Tensor, image_size: tuple[int, int]) -> Tensor:
        """Arguments as for `points`; returns [B, N, dim, H, W]."""
        with torch.autocast(lidar2img.device.type, enabled=False):
            low, high = self.position_range[:3], self.position_range[3:]
            places = inverse_sigmoid((self.points(shape, lidar2img, image_size) - low) / (high - low))
        channels = places.flatten(-2).flatten(0, 1).permute(0, 3, 1, 2)  # [B * N, 3 * P, H, W]
        return self.encoder(channels).unflatten(0, lidar2img.shape[:2])


class RigSineEmbedding(nn.Module):
    """Camera, row and column of every cell, as fractions of the rig and of the image without padding, in sine waves.

    Cameras are counted by their place in the rig, whether they gave an image or not; a camera of size 0, which only
    fills up a batch, does not count.

    Args:
        dim: width of the embedding.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim
        self.cell = SinePositionEmbedding(dim, centred=False)
        self.encoder = two_layers(dim // 2 * 3, dim)

    def forward(self, padding: Tensor) -> Tensor:
        """Padding [B, N, H, W] of the feature maps, True under it -> [B, N, dim, H, W]."""
        count = (~padding).any(-1).any(-1).float().cumsum(1)  # [B, N]
        angles = count / (count[:, -1:] + 1e-6) * (2 * math.pi)
        camera = sine_embedding(angles, self.dim // 2)[:, :, None, None].expand(*padding.shape, -1)
        cell = self.cell(padding.flatten(0, 1)).unflatten(0, padding.shape[:2])
        waves = torch.cat([camera, cell], -1)  # [B, N, H, W, 3 / 2 dim]
        # In the release, all sines of an axis come before its cosines, and the weights have learned that.
        waves = waves.unflatten(-1, (3, self.dim // 4, 2)).transpose(-1, -2).flatten(-3)
        return self.encoder(waves.flatten(0, 1).permute(0, 3, 1, 2)).unflatten(0, padding.shape[:2])


def point_embedding(points: Tensor, dim: int) -> Tensor:
    """Points (x, y, z) [..., 3] in [0, 1] -> [..., 3 * dim] in sine waves, in the order y, x, z."""
    return sine_embedding(points[..., [1, 0, 2]] * (2 * math.pi), dim).flatten(-2)
