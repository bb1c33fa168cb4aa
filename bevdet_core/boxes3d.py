"""3D boxes: the network's code, corners, frames, and the conventions of other releases.

Inside the library a box is (x, y, z, w, l, h, yaw, vx, vy): centre of gravity in metres, size as nuScenes orders it
(w across, l along the heading, h up), yaw in radians about z from the x axis, velocity in m/s, all in the lidar frame.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from torch import Tensor

Convention = Literal["mmdet3d-0", "mmdet3d-1"]

CODE_SIZE = 10

# Corner i of `corners` is the centre plus CORNER_SIGNS[i] * (l, w, h) / 2 in the box's own axes.
CORNER_SIGNS = ((1, 1, -1), (1, -1, -1), (-1, -1, -1), (-1, 1, -1), (1, 1, 1), (1, -1, 1), (-1, -1, 1), (-1, 1, 1))
# Pairs of corners that an edge joins: bottom face, top face, uprights. Corners 0, 1, 4, 5 are the front face.
EDGES = ((0, 1), (1, 2), (2, 3), (3, 0), (4, 5), (5, 6), (6, 7), (7, 4), (0, 4), (1, 5), (2, 6), (3, 7))


def encode(boxes: Tensor) -> Tensor:
    """Boxes [..., 9] -> codes [..., 10]: (cx, cy, log w, log l, cz, log h, sin yaw, cos yaw, vx, vy), as in DETR3D."""
    x, y, z, w, l, h, yaw, vx, vy = boxes.unbind(-1)  # noqa: E741
    return torch.stack([x, y, w.log(), l.log(), z, h.log(), yaw.sin(), yaw.cos(), vx, vy], -1)


def decode(codes: Tensor) -> Tensor:
    """Codes [..., 10] -> boxes [..., 9]; (sin, cos) need not be of unit length."""
    x, y, log_w, log_l, z, log_h, sin, cos, vx, vy = codes.unbind(-1)
    return torch.stack([x, y, z, log_w.exp(), log_l.exp(), log_h.exp(), torch.atan2(sin, cos), vx, vy], -1)


def with_centres(codes: Tensor, centres: Tensor) -> Tensor:
    """Codes [..., 10] with their centres replaced by (x, y, z) [..., 3]."""
    (x, y, z), (_, _, log_w, log_l, _, *rest) = centres.unbind(-1), codes.unbind(-1)
    return torch.stack([x, y, log_w, log_l, z, *rest], -1)


def corners(boxes: Tensor) -> Tensor:
    """The eight corners [..., 8, 3] of boxes [..., 7 or 9], in metres; order: see CORNER_SIGNS and EDGES."""
    signs = boxes.new_tensor(CORNER_SIGNS)  # [8, 3]
    local = signs * (boxes[..., None, [4, 3, 5]] / 2)  # [..., 8, 3]
    sin, cos = boxes[..., 6, None].sin(), boxes[..., 6, None].cos()
    x = local[..., 0] * cos - local[..., 1] * sin
    y = local[..., 0] * sin + local[..., 1] * cos
    return torch.stack([x, y, local[..., 2]], -1) + boxes[..., None, :3]


def transform(boxes: Tensor, a2b: np.ndarray) -> Tensor:
    """Boxes [n, 9] of frame a in frame b, by a rigid pose, or one with a uniform scale, [4, 4].

    A box stays upright: only the pose's turn about z reaches the yaw. Computed in float64.
    """
    matrix = torch.from_numpy(np.asarray(a2b, np.float64)).to(boxes.device)
    linear = matrix[:3, :3]
    scale = torch.linalg.det(linear).abs() ** (1 / 3)
    wide = boxes.double()
    heading = torch.stack([wide[:, 6].cos(), wide[:, 6].sin(), torch.zeros_like(wide[:, 6])], -1) @ linear.T
    velocity = torch.cat([wide[:, 7:9], torch.zeros_like(wide[:, :1])], -1) @ linear.T
    out = torch.cat(
        [
            wide[:, :3] @ linear.T + matrix[:3, 3],
            wide[:, 3:6] * scale,
            torch.atan2(heading[:, 1], heading[:, 0])[:, None],
            velocity[:, :2],
        ],
        1,
    )
    return out.to(boxes.dtype)


def from_convention(boxes: Tensor, convention: Convention, origin: Literal["bottom", "gravity"]) -> Tensor:
    """Boxes [n, 9] of another release in the library's convention.

    Args:
        boxes: (x, y, z, size, yaw, vx, vy) as the release stores them.
        convention: "mmdet3d-0" (before 1.0): size (w, l, h) and yaw_0 = -yaw - pi / 2;
            "mmdet3d-1": size (l, w, h) and our yaw.
        origin: where z is measured: the centre of the bottom face, or the centre of gravity.
    """
    out = boxes.clone()
    if convention == "mmdet3d-0":
        out[:, 6] = -boxes[:, 6] - torch.pi / 2
    else:
        out[:, 3:5] = boxes[:, [4, 3]]
    if origin == "bottom":
        out[:, 2] = boxes[:, 2] + boxes[:, 5] / 2
    return out


def to_convention(boxes: Tensor, convention: Convention, origin: Literal["bottom", "gravity"]) -> Tensor:
    """The inverse of `from_convention`."""
    # Both maps are their own inverses but for the sign of the shift along z.
    out = from_convention(boxes, convention, "gravity")
    if origin == "bottom":
        out[:, 2] = boxes[:, 2] - boxes[:, 5] / 2
    return out
