import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pyquaternion import Quaternion

from bevdet_core.geometry import (
    MIN_DEPTH,
    inverse_projection,
    pose,
    project_points,
    quaternion_to_matrix,
    rotation_about_z,
    yaw_of,
    yaw_to_quaternion,
)

numbers = st.floats(-5, 5)


@given(st.tuples(numbers, numbers, numbers, numbers).filter(lambda q: np.linalg.norm(q) > 1e-3))
def test_rotations_are_those_of_pyquaternion(quaternion: tuple[float, ...]) -> None:
    ours = quaternion_to_matrix(quaternion)
    np.testing.assert_allclose(ours, Quaternion(quaternion).rotation_matrix, atol=1e-12)


def test_poses_come_one_by_one_or_in_batches() -> None:
    rng = np.random.default_rng(0)
    rotations, translations = rng.normal(size=(2, 3, 4)), rng.normal(size=(2, 3, 3))
    batch = pose(rotations, translations)
    assert batch.shape == (2, 3, 4, 4)
    single = pose(rotations[1, 2].tolist(), translations[1, 2].tolist())
    np.testing.assert_allclose(batch[1, 2], single, atol=1e-15)
    np.testing.assert_array_equal(single[3], [0, 0, 0, 1])
    np.testing.assert_array_equal(single[:3, 3], translations[1, 2])


@pytest.mark.parametrize("bad", [[0, 0, 0, 0], [np.nan, 0, 0, 1], [np.inf, 0, 0, 1], [1, 0, 0]])
def test_a_quaternion_that_is_none_is_refused(bad: list[float]) -> None:
    with pytest.raises(ValueError, match=r"a rotation must be a finite, non-zero quaternion \(w, x, y, z\), got \["):
        quaternion_to_matrix(bad)


@given(st.floats(-3.1, 3.1))
def test_yaw_survives_the_round_trip(yaw: float) -> None:
    rotation = quaternion_to_matrix(yaw_to_quaternion(yaw))
    np.testing.assert_allclose(rotation, rotation_about_z(yaw), atol=1e-12)
    assert yaw_of(rotation) == pytest.approx(yaw, abs=1e-12)


def test_projection_divides_by_the_depth() -> None:
    intrinsic = torch.eye(4)
    intrinsic[0, 0], intrinsic[1, 1], intrinsic[0, 2], intrinsic[1, 2] = 100, 90, 32, 24
    points = torch.tensor([[[1.0, -2.0, 10.0], [0, 0, 5], [1, 1, -3]]])
    pixels, depth = project_points(points, intrinsic[None, None])
    torch.testing.assert_close(pixels[0, 0, :2], torch.tensor([[42.0, 6.0], [32, 24]]))
    torch.testing.assert_close(depth, points[None, ..., 2])
    assert (depth[0, 0, 2] < MIN_DEPTH).item()
    assert pixels.isfinite().all()


def test_projection_is_exact_under_autocast() -> None:
    generator = torch.Generator().manual_seed(0)
    points = torch.rand(2, 5, 3, generator=generator) * 50
    lidar2img = torch.rand(2, 3, 4, 4, generator=generator) * 500
    expected, _ = project_points(points.double(), lidar2img.double())
    with torch.autocast("cpu", torch.bfloat16):
        pixels, depth = project_points(points, lidar2img)
    assert pixels.dtype == depth.dtype == torch.float32
    torch.testing.assert_close(pixels.double(), expected, rtol=1e-5, atol=1e-4)
    half, _ = project_points(points.bfloat16(), lidar2img)
    assert half.dtype == torch.float32


def test_a_pixel_with_its_depth_leads_back_to_the_point() -> None:
    intrinsic = np.diag([1266.0, 1266, 1, 1])
    intrinsic[:2, 2] = 816, 491
    lidar2img = np.stack([intrinsic @ pose([0.5, -0.5, 0.5, -0.5 + shift], [0.3, -0.4, shift]) for shift in (0, 0.1)])
    rays, centre = inverse_projection(torch.from_numpy(lidar2img).float())
    assert rays.dtype == centre.dtype == torch.float64
    points = np.array([3.0, 40.0, -1.0, 1.0])
    for n in range(2):
        seen = lidar2img[n].astype(np.float32) @ points
        np.testing.assert_allclose(rays[n] @ seen[:3] + centre[n].numpy(), points[:3], atol=1e-9)
