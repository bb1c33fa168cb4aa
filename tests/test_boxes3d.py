import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from bevdet_core import boxes3d
from bevdet_core.geometry import pose, yaw_to_quaternion


@pytest.fixture
def boxes() -> Tensor:
    """(x, y, z, w, l, h, yaw, vx, vy) of twenty boxes, float64."""
    out = torch.rand(20, 9, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 2 - 1
    out[:, :3] *= 40
    out[:, 3:6] = out[:, 3:6].abs() * 5 + 0.2
    out[:, 6] *= math.pi
    out[:, 7:] *= 10
    return out


def test_codes_hold_the_ten_numbers_of_detr3d() -> None:
    box = torch.tensor([1.0, 2.0, 3.0, 1.9, 4.6, 1.7, 0.5, -3.0, 4.0])
    expected = [1, 2, math.log(1.9), math.log(4.6), 3, math.log(1.7), math.sin(0.5), math.cos(0.5), -3, 4]
    torch.testing.assert_close(boxes3d.encode(box), torch.tensor(expected))
    assert boxes3d.encode(box).shape == (boxes3d.CODE_SIZE,)


def test_codes_survive_the_round_trip_whatever_the_length_of_the_heading(boxes: Tensor) -> None:
    codes = boxes3d.encode(boxes)
    codes[:, 6:8] *= 3
    torch.testing.assert_close(boxes3d.decode(codes), boxes)


def test_corners_are_those_of_the_devkit(boxes: Tensor) -> None:
    from nuscenes.utils.data_classes import Box
    from pyquaternion import Quaternion

    ours = boxes3d.corners(boxes)
    assert ours.shape == (20, 8, 3)
    for box, corners in zip(boxes.numpy(), ours.numpy(), strict=True):
        expected = Box(box[:3], box[3:6], Quaternion(yaw_to_quaternion(box[6]))).corners().T
        distance = np.linalg.norm(corners[:, None] - expected[None], axis=-1)
        assert sorted(distance.argmin(1)) == list(range(8))
        assert distance.min(1).max() < 1e-9


def test_edges_join_corners_along_the_axes_of_the_box(boxes: Tensor) -> None:
    corners = boxes3d.corners(boxes)
    lengths = torch.stack([(corners[:, i] - corners[:, j]).norm(dim=-1) for i, j in boxes3d.EDGES], 1)
    expected = boxes[:, [3, 4, 5]].repeat_interleave(4, 1)
    torch.testing.assert_close(lengths.sort(1).values, expected.sort(1).values)
    front = corners[:, [0, 1, 4, 5]].mean(1) - boxes[:, :3]
    heading = torch.stack([boxes[:, 6].cos(), boxes[:, 6].sin(), torch.zeros(20)], 1)
    torch.testing.assert_close(front, heading * boxes[:, 4:5] / 2)


@given(st.floats(-3, 3), st.floats(0.5, 2))
def test_corners_and_velocities_move_with_their_box(angle: float, scale: float) -> None:
    box = torch.tensor([[4.0, -2, 1, 1.9, 4.6, 1.7, 0.5, 3, -1]], dtype=torch.float64)
    a2b = pose(yaw_to_quaternion(angle), [10, 20, 3])
    a2b[:3, :3] *= scale
    moved = boxes3d.transform(box, a2b)
    matrix = torch.from_numpy(a2b)
    torch.testing.assert_close(
        boxes3d.corners(moved), boxes3d.corners(box) @ matrix[:3, :3].T + matrix[:3, 3], rtol=1e-9, atol=1e-9
    )
    torch.testing.assert_close(moved[:, 7:], box[:, 7:] @ matrix[:2, :2].T)
    torch.testing.assert_close(boxes3d.transform(moved, np.linalg.inv(a2b)), box, rtol=1e-9, atol=1e-9)


def test_unknown_velocities_stay_unknown_and_alone() -> None:
    box = torch.tensor([[1.0, 2, 3, 1, 1, 1, 0.3, math.nan, math.nan]])
    moved = boxes3d.transform(box, pose(yaw_to_quaternion(1.0), [1, 2, 3]))
    assert moved[:, 7:].isnan().all()
    assert moved[:, :7].isfinite().all()


def test_no_boxes_are_moved_to_no_boxes() -> None:
    assert boxes3d.transform(torch.zeros(0, 9), np.eye(4)).shape == (0, 9)
    assert boxes3d.corners(torch.zeros(0, 9)).shape == (0, 8, 3)


def test_old_style_boxes_are_turned_and_new_style_boxes_swap_width_and_length() -> None:
    old = torch.tensor([[1.0, 2, 3, 1.9, 4.6, 1.7, 0.4, 5, 6]])
    ours = boxes3d.from_convention(old, "mmdet3d-0", "bottom")
    expected = [1, 2, 3 + 1.7 / 2, 1.9, 4.6, 1.7, -0.4 - math.pi / 2, 5, 6]
    torch.testing.assert_close(ours, torch.tensor([expected]))
    new = torch.tensor([[1.0, 2, 3, 4.6, 1.9, 1.7, 0.4, 5, 6]])
    ours = boxes3d.from_convention(new, "mmdet3d-1", "gravity")
    torch.testing.assert_close(ours, torch.tensor([[1.0, 2, 3, 1.9, 4.6, 1.7, 0.4, 5, 6]]))


@pytest.mark.parametrize("convention", ["mmdet3d-0", "mmdet3d-1"])
@pytest.mark.parametrize("origin", ["bottom", "gravity"])
def test_conventions_survive_the_round_trip(boxes: Tensor, convention, origin) -> None:
    there = boxes3d.to_convention(boxes, convention, origin)
    assert not torch.allclose(there, boxes)
    torch.testing.assert_close(boxes3d.from_convention(there, convention, origin), boxes)


def test_headings_convert_as_the_facts_say(boxes: Tensor) -> None:
    """sin_new = -cos_old, cos_new = -sin_old."""
    new = boxes3d.from_convention(boxes, "mmdet3d-0", "gravity")
    torch.testing.assert_close(new[:, 6].sin(), -boxes[:, 6].cos())
    torch.testing.assert_close(new[:, 6].cos(), -boxes[:, 6].sin())
