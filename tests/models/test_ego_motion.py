"""Ego motion from poses: it says what the CAN bus says, and moves points as the rig did."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from bevdet_core.data.rig_transforms import MirrorScene, TurnAndScaleScene
from bevdet_core.geometry import matrix_to_quaternion, pose, quaternion_to_matrix, rotation_about_z
from bevdet_core.models.ego_motion import LIDAR2EGO, FramePose, motion_between, motion_of_signals
from bevdet_core.structures import Sample

# As at nuScenes: the lidar nearly a metre before the ego's origin, and not quite upright.
MOUNTING = pose([0.7077955119163518, -0.006492242056004365, 0.010646214713995808, -0.7063073142877817], [0.94, 0, 1.84])


def ego_pose(heading: float, x: float, y: float) -> np.ndarray:
    return pose([math.cos(heading / 2), 0, 0, math.sin(heading / 2)], [x, y, 0.3])


def can_bus(ego: np.ndarray, rate=(0.0, 0.0, 0.0), velocity=(0.0, 0.0, 0.0)) -> np.ndarray:
    """As the release makes it from an ego pose and CAN-bus messages."""
    heading = math.atan2(ego[1, 0], ego[0, 0]) % (2 * math.pi)
    angles = [heading, math.degrees(heading)]
    return np.array([*ego[:3, 3], *matrix_to_quaternion(ego[:3, :3]), 0, 0, 9.81, *rate, *velocity, *angles])


@pytest.mark.parametrize("rotation", [[1, 0, 0, 0], [0, 0, 0, 1], [0.5, -0.5, 0.5, 0.5], [0.1, 0.7, -0.3, 0.2]])
def test_quaternions_of_matrices(rotation):
    matrix = quaternion_to_matrix(rotation)
    quaternion = matrix_to_quaternion(matrix)
    assert quaternion[0] >= 0
    np.testing.assert_allclose(quaternion_to_matrix(quaternion), matrix, atol=1e-12)


@pytest.mark.parametrize("quirks", [False, True])
@pytest.mark.parametrize(("first", "second"), [(0.3, 0.42), (2.0, 1.9), (-0.05, 0.04), (3.1, -3.1)])
def test_poses_tell_what_the_can_bus_tells(first, second, quirks):
    before, now = ego_pose(first, 600.0, 1650.0), ego_pose(second, 604.0, 1648.5)
    rate, velocity = ((second - first + math.pi) % (2 * math.pi) - math.pi) / 0.5, now[:3, :3].T @ [8.0, -3.0, 0.0]
    from_bus = motion_between(
        FramePose("b", can_bus=can_bus(now, (0, 0, rate), velocity), timestamp=10.5),
        FramePose("a", can_bus=can_bus(before), timestamp=10.0),
        quirks,
    )
    from_poses = motion_between(
        FramePose("b", now @ MOUNTING, MOUNTING, timestamp=10.5),
        FramePose("a", before @ MOUNTING, MOUNTING, timestamp=10.0),
        from_signals=quirks,
    )
    torch.testing.assert_close(from_poses.signals, from_bus.signals, atol=1e-3, rtol=0)
    if quirks:  # otherwise the lidar's own way and turn count, which poses alone tell
        torch.testing.assert_close(from_poses.shift, from_bus.shift, atol=1e-3, rtol=0)
    torch.testing.assert_close(from_poses.turn.sin(), from_bus.turn.sin(), atol=1e-3, rtol=0)
    assert abs(from_poses.signals[0, 17]) < 20 or quirks


def test_a_lidar_at_the_ego_moves_as_the_ego():
    before, now = ego_pose(0.5, 10.0, 20.0), ego_pose(0.7, 12.0, 21.0)
    exact = motion_between(FramePose("b", now @ LIDAR2EGO), FramePose("a", before @ LIDAR2EGO))
    told = motion_of_signals(exact.signals.double())
    torch.testing.assert_close(exact.shift, told.shift, atol=1e-5, rtol=0)
    torch.testing.assert_close(exact.turn, told.turn)


@pytest.mark.parametrize("change", [None, MirrorScene(1.0), TurnAndScaleScene(0.4, (0.9, 1.1))])
def test_a_point_at_rest_is_found_again(change):
    """Where a point lies now, turned and shifted, is where the previous view has it once that is turned."""
    poses = [ego_pose(0.5, 10.0, 20.0) @ MOUNTING, ego_pose(0.8, 13.0, 21.0) @ MOUNTING]
    old, new = (Sample([], token=str(i), lidar2global=p) for i, p in enumerate(poses))
    if change is not None:
        changed = change(new.replace(history=[old]), np.random.default_rng(3))
        old, new = changed.history[0], changed
    motion = motion_between(FramePose("b", new.lidar2global), FramePose("a", old.lidar2global))
    point = np.array([16.0, 25.0, 0.3, 1.0])
    was, now = np.linalg.inv(old.lidar2global) @ point, np.linalg.inv(new.lidar2global) @ point
    turn, shift = rotation_about_z(float(motion.turn)), motion.shift[0].numpy()
    np.testing.assert_allclose(turn[:2, :2] @ (now[:2] + shift), was[:2], atol=0.05)  # the lidar is a little tilted


def test_a_mirrored_scene_turns_the_other_way():
    poses = [ego_pose(0.5, 10.0, 20.0) @ LIDAR2EGO, ego_pose(0.8, 13.0, 21.0) @ LIDAR2EGO]
    old, new = (Sample([], token=str(i), lidar2global=p) for i, p in enumerate(poses))
    mirrored = MirrorScene(1.0)(new.replace(history=[old]), np.random.default_rng(0))
    plain = motion_between(FramePose("b", new.lidar2global), FramePose("a", old.lidar2global))
    other = motion_between(FramePose("b", mirrored.lidar2global), FramePose("a", mirrored.history[0].lidar2global))
    torch.testing.assert_close(other.turn, -plain.turn)
    torch.testing.assert_close(other.shift, plain.shift * torch.tensor([-1.0, 1.0]), atol=1e-5, rtol=1e-5)
    told = motion_of_signals(other.signals.double())
    torch.testing.assert_close(told.shift, other.shift, atol=1e-4, rtol=1e-4)


def test_first_frames_and_frames_without_time():
    alone = motion_between(FramePose("a", ego_pose(1.0, 5.0, 6.0) @ LIDAR2EGO, timestamp=3.0), None)
    assert not alone.signals[0, [0, 1, 2, 10, 11, 12, 13, 14, 15, 17]].any()
    assert not alone.shift.any()
    assert float(alone.signals[0, 16]) == pytest.approx(1.0)
    timeless = motion_between(FramePose("b", ego_pose(1.0, 5, 6)), FramePose("a", ego_pose(1.0, 4, 6)))
    assert timeless.signals.isfinite().all()
    assert not timeless.signals[0, 10:16].any()
    with pytest.raises(ValueError, match=r"frame 'b' has no pose.*model\.queue_length"):
        motion_between(FramePose("b"), FramePose("a", ego_pose(1.0, 4, 6)))
