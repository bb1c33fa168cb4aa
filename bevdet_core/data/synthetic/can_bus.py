"""What the ego vehicle of a synthetic scene measures about its own motion, as messages of its CAN bus."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from .rig import quaternion

PERIOD = 20_000  # microseconds between messages
MARGIN = 100_000  # microseconds that they begin before and end after the key frames
STEP = 5_000  # microseconds, of the differences that stand for derivatives
GRAVITY = np.array([0.0, 0.0, 9.81])

PoseAt = Callable[[int], tuple[np.ndarray, np.ndarray]]  # microseconds -> ego's rotation [3, 3], position [3]; global


def messages(pose_at: PoseAt, begin: int, end: int) -> list[dict[str, Any]]:
    """Messages of a pose sensor from a little before `begin` to a little after `end`, both in microseconds."""
    return [_message(pose_at, time) for time in range(begin - MARGIN, end + MARGIN, PERIOD)]


def _message(pose_at: PoseAt, time: int) -> dict[str, Any]:
    """Position and orientation in the global frame; acceleration, rates and velocity in the ego's."""
    (before, first), (rotation, position), (after, last) = (pose_at(time + step) for step in (-STEP, 0, STEP))
    seconds = 1e-6 * STEP
    spin = rotation.T @ (after - before) / (2 * seconds)  # the matrix of a cross product
    return {
        "utime": time,
        "pos": position.tolist(),
        "orientation": quaternion(rotation),
        "accel": (rotation.T @ ((last - 2 * position + first) / seconds**2 + GRAVITY)).tolist(),
        "rotation_rate": [spin[2, 1], spin[0, 2], spin[1, 0]],
        "vel": (rotation.T @ (last - first) / (2 * seconds)).tolist(),
    }
