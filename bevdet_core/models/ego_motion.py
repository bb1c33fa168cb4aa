"""How the rig has moved since its last frame: what BEVFormer turns and shifts its previous bird's-eye view by.

The release reads 18 numbers from the CAN bus, a download of its own beside nuScenes, and replaces most of them by the
ego pose. All of them follow from ego poses and time stamps, or nearly so; where files are given (`data.can_bus`), those
numbers that the release leaves to them come from there:

    numbers   meaning                                                  without CAN-bus files
    0 to 2    position in the global frame, metres                     ego pose
    3 to 6    orientation, quaternion (w, x, y, z)                     ego pose, of the two with w >= 0
    7 to 9    acceleration, gravity included, ego frame, m/s2          a car at constant speed: (0, 0, 9.81)
    10 to 12  rate of turn about the ego axes, rad/s                   turn since the last frame over the time between
    13 to 15  velocity, ego frame, m/s                                 way since the last frame over the time between
    16        heading: of the ego's x axis from the global x, rad      ego pose, in [0, 2 pi)
    17        heading, degrees                                         ego pose, in [0, 360)

In the first frame of a scene the rates and velocities are 0. The network gets position and degrees as differences to
its last frame, 0 where it has none.

The ego frame (x forward, y left, z up) hangs on the lidar's frame by `lidar2ego`; where that is unknown, the lidar
stands at the ego's origin with y forward, as at nuScenes. A scene that augmentation mirrors lies in a mirrored world,
and one that it turns or scales has an ego that turns with it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..geometry import matrix_to_quaternion, yaw_of
from ..structures import ImageBatch
from .cameras import calibration

SIGNALS = 18
POSITION, ORIENTATION, ACCELERATION = slice(0, 3), slice(3, 7), slice(7, 10)
RATE, VELOCITY, HEADING, DEGREES = slice(10, 13), slice(13, 16), 16, 17
MEASURED = slice(7, 16)  # acceleration, rate of turn and velocity: what the release takes from the CAN bus alone
GRAVITY = (0.0, 0.0, 9.81)

# A lidar with x to the right and y forward, on an ego with x forward and y to the left.
LIDAR2EGO = np.array([[0.0, 1, 0, 0], [-1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])


@dataclass(frozen=True)
class FramePose:
    """Where a rig was at the moment of a frame.

    Args:
        name: of the frame, for messages.
        lidar2global: [4, 4] float64.
        lidar2ego: [4, 4] float64.
        can_bus: [18] float64, see above; where the pose is known, only numbers 7 to 15 count. None: all follow from it.
        timestamp: seconds.
    """

    name: str
    lidar2global: np.ndarray | None = None
    lidar2ego: np.ndarray | None = None
    can_bus: np.ndarray | None = None
    timestamp: float | None = None

    @property
    def known(self) -> bool:
        """Whether the motion to another frame can be told."""
        return self.lidar2global is not None or self.can_bus is not None

    def ego2global(self) -> np.ndarray:
        """[4, 4] float64, a rigid pose; in a mirrored scene, of the mirrored world."""
        if self.lidar2global is None:
            return np.eye(4)
        mounting = LIDAR2EGO if self.lidar2ego is None else self.lidar2ego
        pose = self.lidar2global @ np.linalg.inv(mounting)
        scale = float(np.linalg.det(pose[:3, :3]))
        rigid = pose @ np.diag([*[abs(scale) ** (-1 / 3)] * 3, 1.0])
        # Augmentation mirrors left and right of the ego, which makes this a pose in a mirrored world.
        return rigid if scale > 0 else np.diag([1.0, -1, 1, 1]) @ rigid

    def signals(self) -> np.ndarray:
        """The 18 numbers [18] float64 as far as one frame tells them: rates and velocity are 0 without CAN bus."""
        if self.can_bus is not None and self.lidar2global is None:
            return self.can_bus.copy()
        pose = self.ego2global()
        heading = float(yaw_of(pose[:3, :3])) % (2 * math.pi)
        out = np.zeros(SIGNALS)
        if self.can_bus is not None:
            out[MEASURED] = self.can_bus[MEASURED]
        else:
            out[ACCELERATION] = GRAVITY
        out[POSITION], out[ORIENTATION] = pose[:3, 3], matrix_to_quaternion(pose[:3, :3])
        out[HEADING], out[DEGREES] = heading, math.degrees(heading)
        return out


@dataclass(frozen=True)
class EgoMotion:
    """The motion of a rig since its last frame, for every frame of a batch."""

    signals: Tensor  # [B, 18] float32, with position and degrees as differences
    shift: Tensor  # [B, 2] float32, metres along x and y of the lidar frame, as it is turned now
    turn: Tensor  # [B] float32, radians about z


def frame_poses(batch: ImageBatch) -> list[FramePose]:
    """The pose of each rig frame of a batch."""
    rig, B = calibration(batch, "history"), len(batch.images)
    rows = lambda t: [None] * B if t is None else list(t.double().cpu().numpy())  # noqa: E731
    names = batch.tokens or [""] * B
    can_bus = [None if row is None or np.isnan(row).any() else row for row in rows(rig.can_bus)]
    columns = rows(rig.lidar2global), rows(rig.lidar2ego), can_bus, rows(rig.timestamps)
    return [FramePose(*row) for row in zip(names, *columns, strict=True)]


def motion_between(now: FramePose, before: FramePose | None, from_signals: bool = False) -> EgoMotion:
    """The motion of one frame [1, ...] since another.

    Args:
        now: the frame.
        before: an earlier one of the same scene; None: there is none.
        from_signals: shift and turn are those of the ego, as the 18 numbers tell them, as in the release; otherwise
            those of the lidar frame, in which the bird's-eye view lies, wherever its poses are known.

    Raises:
        ValueError: a frame without pose and without CAN-bus numbers.
    """
    signals = now.signals()
    if before is None:
        signals[POSITION] = signals[DEGREES] = 0.0
        return motion_of_signals(torch.from_numpy(signals)[None])
    for frame in (now, before):
        if not frame.known:
            raise ValueError(
                f"frame {frame.name!r} has no pose (lidar2global), without which its history cannot be used; "
                "a detector with model.queue_length 1 needs none"
            )
    last = before.signals()
    if now.can_bus is None:
        signals[RATE], signals[VELOCITY] = _rates(now, before)
    signals[POSITION] -= last[POSITION]
    signals[DEGREES] -= last[DEGREES]
    if not from_signals:
        signals[DEGREES] = (signals[DEGREES] + 180) % 360 - 180  # the short way round
    if from_signals or now.lidar2global is None or before.lidar2global is None:
        return motion_of_signals(torch.from_numpy(signals)[None])
    moved = np.linalg.inv(before.lidar2global) @ now.lidar2global
    turn = float(yaw_of(moved[:3, :3]))
    # What is at p now was at R p + t then; with the old view turned by R, that is at p + R^-1 t.
    cos, sin = math.cos(turn), math.sin(turn)
    x, y = moved[:2, 3]
    shift = torch.tensor([[cos * x + sin * y, cos * y - sin * x]])
    return EgoMotion(torch.from_numpy(signals)[None].float(), shift.float(), torch.tensor([turn]).float())


def motion_of_signals(signals: Tensor) -> EgoMotion:
    """The motion that 18 numbers [B, 18] tell, position and degrees as differences; float32 or float64."""
    x, y, heading = signals[:, 0], signals[:, 1], signals[:, HEADING]
    forward, right = x * heading.cos() + y * heading.sin(), x * heading.sin() - y * heading.cos()
    return EgoMotion(signals.float(), torch.stack([right, forward], 1).float(), signals[:, DEGREES].deg2rad().float())


def stack_motions(motions: list[EgoMotion], device: torch.device) -> EgoMotion:
    """The motions of single frames as that of a batch."""
    join = lambda name: torch.cat([getattr(m, name) for m in motions]).to(device)  # noqa: E731
    return EgoMotion(join("signals"), join("shift"), join("turn"))


def _rates(now: FramePose, before: FramePose) -> tuple[np.ndarray, np.ndarray]:
    """Mean rate of turn [3] and velocity [3] between two frames, in the ego frame of the later one."""
    if now.timestamp is None or before.timestamp is None or now.timestamp <= before.timestamp:
        return np.zeros(3), np.zeros(3)
    seconds = now.timestamp - before.timestamp
    pose, last = now.ego2global(), before.ego2global()
    way = pose[:3, :3].T @ (pose[:3, 3] - last[:3, 3])
    w, *axis = matrix_to_quaternion(last[:3, :3].T @ pose[:3, :3])
    sine = float(np.linalg.norm(axis))
    angle = 2 * math.atan2(sine, float(w))
    turn = np.array(axis) * (angle / sine if sine > 1e-12 else 2.0)
    return turn / seconds, way / seconds
