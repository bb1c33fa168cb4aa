"""Rigid poses and pinhole projection.

A pose `a2b` is a 4x4 matrix that takes homogeneous points of frame a to frame b; poses chain from right to left:
`a2c = b2c @ a2b`. Frames: camera (x right, y down, z forward), lidar (x right, y forward, z up), ego, global. Metres.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

MIN_DEPTH = 1e-5  # metres; a point nearer than this, or behind the camera, has no image (DETR3D release)


def pose(rotation: Sequence[float], translation: Sequence[float]) -> np.ndarray:
    """The pose [4, 4] float64 with a rotation given as a quaternion (w, x, y, z) and a translation in metres.

    Raises:
        ValueError: the quaternion is zero or not finite.
    """
    out = np.eye(4)
    out[:3, :3] = quaternion_to_matrix(rotation)
    out[:3, 3] = translation
    return out


def quaternion_to_matrix(quaternion: Sequence[float]) -> np.ndarray:
    """Rotation matrix [3, 3] float64 of a quaternion (w, x, y, z) of any length but zero."""
    q = np.asarray(quaternion, np.float64)
    norm = np.linalg.norm(q)
    if q.shape != (4,) or not np.isfinite(norm) or norm < 1e-9:
        raise ValueError(f"a rotation must be a finite, non-zero quaternion (w, x, y, z), got {list(quaternion)}")
    w, x, y, z = q / norm
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
    )


def yaw_of(rotation: np.ndarray) -> np.ndarray:
    """Heading about z in radians, from the x axis, of rotation matrices [..., 3, 3]."""
    return np.arctan2(rotation[..., 1, 0], rotation[..., 0, 0])


def yaw_to_quaternion(yaw: float) -> np.ndarray:
    """Quaternion (w, x, y, z) of a turn by `yaw` radians about z."""
    return np.array([np.cos(yaw / 2), 0.0, 0.0, np.sin(yaw / 2)])


def rotation_about_z(angle: float) -> np.ndarray:
    """Rotation matrix [3, 3] float64 of a turn by `angle` radians about z."""
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[c, -s, 0.0], [s, c, 0.0], [0.0, 0.0, 1.0]])


def project_points(
    points: Tensor,  # [B, Q, 3] metres, lidar frame
    lidar2img: Tensor,  # [B, N, 4, 4]
) -> tuple[Tensor, Tensor]:
    """Project points into every camera, in float32 or better and outside autocast.

    Returns:
        pixels [B, N, Q, 2] as (u, v), depth [B, N, Q] in metres. Where the depth is below `MIN_DEPTH` the pixel is
        computed with `MIN_DEPTH` in its place and means nothing.
    """
    with torch.autocast(points.device.type, enabled=False):
        dtype = torch.promote_types(torch.promote_types(points.dtype, lidar2img.dtype), torch.float32)
        points, lidar2img = points.to(dtype), lidar2img.to(dtype)
        homogeneous = torch.cat([points, torch.ones_like(points[..., :1])], -1)  # [B, Q, 4]
        # A broadcast sum of products, not a matmul: TF32 would move points by whole pixels.
        camera = (lidar2img[:, :, None, :3] * homogeneous[:, None, :, None]).sum(-1)  # [B, N, Q, 3]
        depth = camera[..., 2]
        return camera[..., :2] / depth.clamp(min=MIN_DEPTH)[..., None], depth
