"""A small lidar sweep of a scene, from the same rasteriser as the pictures: four depth views side by side."""

from __future__ import annotations

import numpy as np

from .render import Camera, Renderer, pixel_rays
from .rig import CAMERA_AXES, rotation_from_angles

_COLUMNS, _FOCAL_Y, _ABOVE, _BELOW = 270, 62.0, 16, 52
_FARTHEST = 75.0
_SCENERY_SHARE = 0.08
_FULL_DENSITY = 20.0
"""Few of the rays that meet the ground or the scenery are kept; of those that meet a labelled object all beyond 20 m,
and ever fewer towards the vehicle, where they are dense."""


def sweep(
    renderer: Renderer,
    poses: np.ndarray,  # [O, 4]
    num_actors: int,
    rotation: np.ndarray,  # [3, 3] ego -> world
    position: np.ndarray,  # [3] of the lidar in the world
    rng: np.random.Generator,
) -> np.ndarray:
    """Points that a lidar would return.

    Args:
        renderer: of the scene.
        poses: of all solids at the time of the sweep.
        num_actors: the first so many solids are labelled objects.
        rotation: of the ego vehicle.
        position: of the lidar.
        rng: decides which points are kept.

    Returns:
        [N, 5]: x, y, z in the world (metres), intensity (0 to 255), ring (0 is the lowest).
    """
    intrinsic = np.array([[_COLUMNS / 2, 0, _COLUMNS / 2], [0, _FOCAL_Y, _ABOVE], [0, 0, 1]])
    size = (_COLUMNS, _ABOVE + _BELOW)
    rays = pixel_rays(intrinsic, size)
    ring = np.broadcast_to(np.arange(size[1])[::-1, None] // 2, (size[1], size[0]))
    views = []
    for quarter in range(4):
        facing = rotation @ rotation_from_angles(0, 0, quarter * np.pi / 2) @ CAMERA_AXES
        seen = renderer.depth(Camera(facing, position, intrinsic, size), poses)
        labelled = (seen.solids >= 0) & (seen.solids < num_actors)
        share = np.where(labelled, np.clip((seen.depth / _FULL_DENSITY) ** 2, 0.1, 1.0), _SCENERY_SHARE)
        kept = (seen.depth > 0.5) & (seen.depth < _FARTHEST) & (rng.random(share.shape) < share)
        points = (rays[kept] * seen.depth[kept][:, None]) @ facing.T + position
        views.append(np.column_stack([points, seen.brightness[kept] * 255, ring[kept]]))
    return np.concatenate(views)
