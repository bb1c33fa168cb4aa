"""The sensors of the ego vehicle: six cameras and a lidar, mounted and timed like those of nuScenes.

Ego frame: x forward, y left, z up, origin on the ground below the rear axle. Camera frame: x right, y down, z forward.
Lidar frame: x right, y forward, z up.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

# channel: yaw of the optical axis (degrees, left is positive), position (m), focal length for a width of 1600 px,
# microseconds by which the shutter opens before the lidar's sweep is complete
_CAMERAS: dict[str, tuple[float, tuple[float, float, float], float, int]] = {
    "CAM_FRONT": (0.0, (1.70, 0.01, 1.51), 1264.0, 35_500),
    "CAM_FRONT_RIGHT": (-56.0, (1.55, -0.49, 1.50), 1260.0, 27_600),
    "CAM_BACK_RIGHT": (-110.0, (1.02, -0.48, 1.56), 1259.0, 20_000),
    "CAM_BACK": (180.0, (0.03, 0.0, 1.58), 809.0, 10_400),
    "CAM_BACK_LEFT": (109.0, (1.04, 0.48, 1.59), 1257.0, 400),
    "CAM_FRONT_LEFT": (55.0, (1.52, 0.49, 1.51), 1262.0, 43_100),
}

CAMERA_CHANNELS = tuple(_CAMERAS)

CAMERA_AXES = np.array([[0.0, 0.0, 1.0], [-1.0, 0.0, 0.0], [0.0, -1.0, 0.0]])
"""Camera -> ego for a camera that looks straight ahead."""


@dataclass(frozen=True)
class Sensor:
    """One mounted sensor."""

    channel: str
    rotation: np.ndarray  # [3, 3] sensor -> ego
    translation: np.ndarray  # [3] metres
    intrinsic: np.ndarray | None  # [3, 3] pixels; None for the lidar
    lead: int  # microseconds before the key frame's timestamp at which it samples


def rotation_from_angles(roll: float, pitch: float, yaw: float) -> np.ndarray:
    """Rz(yaw) Ry(pitch) Rx(roll) -> [3, 3], angles in radians."""
    cr, sr, cp, sp, cy, sy = np.cos(roll), np.sin(roll), np.cos(pitch), np.sin(pitch), np.cos(yaw), np.sin(yaw)
    rx = np.array([[1, 0, 0], [0, cr, -sr], [0, sr, cr]])
    ry = np.array([[cp, 0, sp], [0, 1, 0], [-sp, 0, cp]])
    rz = np.array([[cy, -sy, 0], [sy, cy, 0], [0, 0, 1]])
    return rz @ ry @ rx


def quaternion(rotation: np.ndarray) -> list[float]:
    """Unit quaternion (w, x, y, z) of a rotation matrix [3, 3], w >= 0."""
    m = rotation
    choices = np.array([m.trace(), m[0, 0], m[1, 1], m[2, 2]])
    i = int(choices.argmax())
    if i == 0:
        q = np.array([1 + m.trace(), m[2, 1] - m[1, 2], m[0, 2] - m[2, 0], m[1, 0] - m[0, 1]])
    elif i == 1:
        q = np.array([m[2, 1] - m[1, 2], 1 + m[0, 0] - m[1, 1] - m[2, 2], m[0, 1] + m[1, 0], m[0, 2] + m[2, 0]])
    elif i == 2:
        q = np.array([m[0, 2] - m[2, 0], m[0, 1] + m[1, 0], 1 - m[0, 0] + m[1, 1] - m[2, 2], m[1, 2] + m[2, 1]])
    else:
        q = np.array([m[1, 0] - m[0, 1], m[0, 2] + m[2, 0], m[1, 2] + m[2, 1], 1 - m[0, 0] - m[1, 1] + m[2, 2]])
    q /= np.linalg.norm(q) * (-1.0 if q[0] < 0 else 1.0)
    return [float(value) for value in q]


def sample_rig(rng: np.random.Generator, image_size: tuple[int, int]) -> list[Sensor]:
    """Six cameras and LIDAR_TOP with the small differences from vehicle to vehicle that a calibration finds.

    Args:
        rng: source of the differences (about half a degree, a centimetre and half a percent of the focal length).
        image_size: width and height in pixels; focal lengths scale with the width.
    """
    width, height = image_size
    sensors = []
    for channel, (yaw, position, focal, lead) in _CAMERAS.items():
        roll, pitch, turn = np.radians(rng.normal(0, 0.4, 3))
        rotation = rotation_from_angles(roll, pitch, np.radians(yaw) + turn) @ CAMERA_AXES
        f = focal * rng.uniform(0.995, 1.005) * width / 1600
        centre = np.array([0.505 * width, 0.5 * height + 0.025 * width]) + rng.normal(0, 0.005, 2) * width
        intrinsic = np.array([[f, 0, centre[0]], [0, f, centre[1]], [0, 0, 1]])
        sensors.append(Sensor(channel, rotation, np.array(position) + rng.normal(0, 0.01, 3), intrinsic, lead))
    roll, pitch, turn = np.radians(rng.normal(0, 0.4, 3))
    rotation = rotation_from_angles(roll, pitch, -np.pi / 2 + turn)
    sensors.append(Sensor("LIDAR_TOP", rotation, np.array([0.94, 0.0, 1.84]) + rng.normal(0, 0.01, 3), None, 0))
    return sensors
