"""Rigid poses and pinhole projection.

A pose `a2b` is a 4x4 matrix that takes homogeneous points of frame a to frame b; poses chain from right to left:
`a2c = b2c @ a2b`. Frames: camera (x right, y down, z forward), lidar (x right, y forward, z up), ego, global. Metres.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

MIN_DEPTH = 1e-5  # metres; a point nearer than this, or behind the camera, has no image (DETR3D release)


def pose(rotation: ArrayLike, translation: ArrayLike) -> np.ndarray:
    """Poses [..., 4, 4] float64 of rotations [..., 4], quaternions (w, x, y, z), and translations [..., 3] in metres.

    Raises:
        ValueError: a quaternion is zero or not finite.
    """
    linear = quaternion_to_matrix(rotation)
    out = np.zeros((*linear.shape[:-2], 4, 4))
    out[..., :3, :3] = linear
    out[..., :3, 3] = translation
    out[..., 3, 3] = 1
    return out


def quaternion_to_matrix(quaternion: ArrayLike) -> np.ndarray:
    """Rotation matrices [..., 3, 3] float64 of quaternions [..., 4] (w, x, y, z) of any length but zero."""
    q = np.asarray(quaternion, np.float64)
    norm = np.linalg.norm(q, axis=-1, keepdims=True)
    if q.shape[-1:] != (4,) or not np.all(np.isfinite(norm) & (norm > 1e-9)):
        raise ValueError(f"a rotation must be a finite, non-zero quaternion (w, x, y, z), got {q.tolist()}")
    w, x, y, z = np.moveaxis(q / norm, -1, 0)
    return np.stack(
        [
            np.stack([1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)], -1),
            np.stack([2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)], -1),
            np.stack([2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)], -1),
        ],
        -2,
    )


def matrix_to_quaternion(rotation: np.ndarray) -> np.ndarray:
    """The quaternion [4] (w, x, y, z), w >= 0, of a rotation matrix [3, 3]."""
    # The eigenvector to the largest eigenvalue of this symmetric matrix: no case distinctions, and the nearest rotation
    # where the matrix is none by a rounding error.
    (xx, xy, xz), (yx, yy, yz), (zx, zy, zz) = np.asarray(rotation, np.float64)
    symmetric = [
        [xx + yy + zz, 0, 0, 0],
        [zy - yz, xx - yy - zz, 0, 0],
        [xz - zx, yx + xy, yy - xx - zz, 0],
        [yx - xy, zx + xz, zy + yz, zz - xx - yy],
    ]
    quaternion = np.linalg.eigh(symmetric)[1][:, -1]  # of the lower triangle
    return -quaternion if quaternion[0] < 0 else quaternion


def yaw_of(rotation: np.ndarray) -> np.ndarray:
    """Heading about z in radians, from the x axis, of rotation matrices [..., 3, 3]."""
    return np.arctan2(rotation[..., 1, 0], rotation[..., 0, 0])


def yaw_to_quaternion(yaw: ArrayLike) -> np.ndarray:
    """Quaternions [..., 4] (w, x, y, z) of turns by `yaw` [...] radians about z."""
    half = np.asarray(yaw, np.float64) / 2
    return np.stack([np.cos(half), np.zeros_like(half), np.zeros_like(half), np.sin(half)], -1)


def rotation_about_z(angle: float) -> np.ndarray:
    """Rotation matrix [3, 3] float64 of a turn by `angle` radians about z."""
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[c, -s, 0.0], [s, c, 0.0], [0.0, 0.0, 1.0]])


def inverse_projection(
    lidar2img: Tensor,  # [..., 4, 4], the last row (0, 0, 0, 1)
) -> tuple[Tensor, Tensor]:
    """From pixels back into space, in float64: float32 and TF32 would move far points by centimetres and metres.

    Returns:
        (rays [..., 3, 3], centre [..., 3]): pixel (u, v) at depth d shows the point rays @ (u d, v d, d) + centre in
        metres, lidar frame.
    """
    # By cofactors: a call to a linear algebra library would wait for the GPU, and exported graphs have none.
    linear, offset = lidar2img[..., :3, :3].double(), lidar2img[..., :3, 3].double()
    first, second, third = linear.unbind(-2)
    cofactors = torch.stack(
        [torch.linalg.cross(second, third), torch.linalg.cross(third, first), torch.linalg.cross(first, second)], -1
    )
    rays = cofactors / (first * cofactors[..., 0]).sum(-1)[..., None, None]
    return rays, -(rays * offset[..., None, :]).sum(-1)


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


def locate_in_images(
    points: Tensor,  # [B, Q, 3] metres, lidar frame
    lidar2img: Tensor,  # [B, N, 4, 4]
    image_size: tuple[int, int],  # (height, width) of the padded images
    hidden: Tensor | None = None,  # [B, N] bool, cameras that see nothing; None: no such one
) -> tuple[Tensor, Tensor]:
    """Where cameras see points.

    Returns:
        locations [B, N, Q, 2] as (x, y) in [0, 1] of the padded images, and visible [B, N, Q]: in front of the camera
        and strictly inside its image. Where a point is not visible, its location means nothing.
    """
    pixels, depth = project_points(points, lidar2img)
    height, width = image_size
    locations = pixels / pixels.new_tensor([width, height])
    inside = ((locations > 0) & (locations < 1)).all(-1)
    visible = inside & (depth > MIN_DEPTH)
    return locations, visible if hidden is None else visible & ~hidden[:, :, None]
