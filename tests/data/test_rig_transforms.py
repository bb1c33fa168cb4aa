from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from bevdet_core import boxes3d
from bevdet_core.config import NuScenesConfig, RigAugmentConfig
from bevdet_core.data.nuscenes import NuScenesDataset
from bevdet_core.data.rig_transforms import (
    KeepInRange,
    MirrorScene,
    RandomResizeCropFlip,
    ResizeTo,
    TurnAndScaleScene,
    rig_transform,
)
from bevdet_core.geometry import project_points
from bevdet_core.structures import Camera, Sample, Targets

SIZES = [(90, 160), (80, 200)]  # the two cameras of the rig below


def rig_sample() -> Sample:
    rng = np.random.default_rng(1)
    images = [rng.integers(0, 256, (*size, 3), np.uint8) for size in SIZES]
    intrinsic = np.array([[120.0, 0, 78], [0, 118, 47], [0, 0, 1]])
    forward = np.array([[1.0, 0, 0, 0.1], [0, 0, 1, 0.4], [0, -1, 0, -0.3], [0, 0, 0, 1]])
    right = np.array([[0, 0, 1.0, 0.5], [-1, 0, 0, 0.2], [0, -1, 0, -0.3], [0, 0, 0, 1]])
    boxes = torch.from_numpy(rng.uniform(-1, 1, (12, 9))).float()
    boxes[:, :2] = boxes[:, :2] * 25
    boxes[:, 3:6] = boxes[:, 3:6].abs() + 0.5
    pose = np.eye(4)
    pose[:3, 3] = 300, 900, 1
    return Sample(
        images,
        [Camera("front", intrinsic, forward), Camera("right", intrinsic, right)],
        Targets(torch.arange(12), boxes),
        "token",
        pose,
    )


def projections(sample: Sample) -> tuple[torch.Tensor, torch.Tensor]:
    """(u, v) [N, n, 2] and depth [N, n] of the box centres."""
    assert sample.cameras is not None
    assert sample.targets is not None
    lidar2img = torch.from_numpy(np.stack([camera.lidar2img for camera in sample.cameras]))[None]
    pixels, depth = project_points(sample.targets.boxes[None, :, :3].double(), lidar2img)
    return pixels[0], depth[0]


def blob(height: int, width: int, centre: tuple[float, float], spread: float = 4.0) -> np.ndarray:
    """An image with one soft bright spot; (u, v) in continuous pixel coordinates."""
    v, u = np.mgrid[:height, :width] + 0.5
    spot = np.exp(-((u - centre[0]) ** 2 + (v - centre[1]) ** 2) / (2 * spread**2))
    return np.repeat((255 * spot).astype(np.uint8)[..., None], 3, -1)


def centroid(image: np.ndarray) -> np.ndarray:
    weight = image[..., 0].astype(np.float64)
    weight[weight < 20] = 0
    v, u = np.mgrid[: image.shape[0], : image.shape[1]] + 0.5
    return np.array([(u * weight).sum(), (v * weight).sum()]) / weight.sum()


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.booleans(), st.floats(0.7, 1.5))
def test_a_spot_stays_where_its_point_projects(seed: int, crop: bool, factor: float) -> None:
    """Pixels and intrinsics move together, to a small part of a pixel."""
    point = np.array([0.35, -0.2, 8.0])  # camera frame
    intrinsic = np.array([[240.0, 0, 155], [0, 236, 92], [0, 0, 1]])
    u, v, d = intrinsic @ point
    sample = Sample([blob(180, 320, (u / d, v / d))], [Camera("c", intrinsic, np.eye(4))])
    transform = RandomResizeCropFlip((120, 240), (factor, factor), crop, flip=0.5)
    out = transform(sample, np.random.default_rng(seed))
    assert out.cameras is not None
    assert out.images[0].shape == (120, 240, 3)
    u, v, d = out.cameras[0].intrinsic @ point
    moved = np.array([u, v]) / d
    border = 14
    if (moved > border).all() and (moved < np.array([240, 120]) - border).all():
        shown = out.images[0].copy()
        shown[(shown == (124, 116, 104)).all(-1)] = 0  # beyond the image
        np.testing.assert_allclose(centroid(shown), moved, atol=0.12)


def test_resizing_puts_a_spot_where_its_point_projects() -> None:
    intrinsic = np.array([[240.0, 0, 155], [0, 236, 92], [0, 0, 1]])
    point = np.array([0.5, 0.4, 8.0])
    u, v, d = intrinsic @ point
    sample = Sample([blob(180, 320, (u / d, v / d))], [Camera("c", intrinsic, np.eye(4))])
    out = ResizeTo((80, 200))(sample)
    assert out.cameras is not None
    assert out.images[0].shape == (80, 200, 3)
    u, v, d = out.cameras[0].intrinsic @ point
    np.testing.assert_allclose(centroid(out.images[0]), [u / d, v / d], atol=0.1)


def test_resizing_keeps_the_aspect_ratio_and_cuts_the_top() -> None:
    sample = rig_sample()
    before, depth = projections(sample)
    out = ResizeTo((40, 80))(sample)
    after, depth_after = projections(out)
    assert [image.shape for image in out.images] == [(40, 80, 3), (32, 80, 3)]
    ahead = depth[0] > 0.5
    torch.testing.assert_close(after[0, ahead], before[0, ahead] / 2 - torch.tensor([0.0, 5.0]))
    torch.testing.assert_close(after[1, depth[1] > 0.5], before[1, depth[1] > 0.5] * 0.4)
    torch.testing.assert_close(depth_after, depth)
    whole = Image.fromarray(sample.images[0]).resize((80, 45), Image.Resampling.BILINEAR)
    np.testing.assert_allclose(out.images[0], np.asarray(whole)[5:].astype(float), atol=1)
    assert out.original_sizes == SIZES


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_a_turned_and_scaled_scene_projects_to_the_same_pixels(seed: int) -> None:
    sample = rig_sample()
    assert sample.targets is not None
    out = TurnAndScaleScene(0.4, (0.9, 1.1))(sample, np.random.default_rng(seed))
    assert out.targets is not None
    before, depth = projections(sample)
    after, depth_after = projections(out)
    ahead = depth > 0.5
    torch.testing.assert_close(after[ahead], before[ahead], rtol=0, atol=1e-2)
    torch.testing.assert_close(depth_after, depth, rtol=0, atol=1e-4)
    assert sample.lidar2global is not None
    assert out.lidar2global is not None
    torch.testing.assert_close(
        boxes3d.transform(out.targets.boxes.double(), out.lidar2global),
        boxes3d.transform(sample.targets.boxes.double(), sample.lidar2global),
        rtol=0,
        atol=1e-4,
    )
    assert not torch.allclose(out.targets.boxes, sample.targets.boxes)
    np.testing.assert_array_equal(out.images[0], sample.images[0])


def test_corners_follow_a_turned_scene() -> None:
    sample = rig_sample()
    out = TurnAndScaleScene(0.4, (0.9, 1.1))(sample, np.random.default_rng(3))
    assert sample.targets is not None
    assert out.targets is not None
    assert sample.cameras is not None
    assert out.cameras is not None
    old2new = out.cameras[0].camera2lidar @ np.linalg.inv(sample.cameras[0].camera2lidar)
    moved = boxes3d.corners(sample.targets.boxes.double()) @ torch.from_numpy(old2new[:3, :3].T)
    torch.testing.assert_close(boxes3d.corners(out.targets.boxes).double(), moved, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    "transform",
    [ResizeTo((40, 80)), RandomResizeCropFlip(None, (0.8, 1.2), True, 0.5), TurnAndScaleScene(0.3, (0.9, 1.1))],
)
def test_transforms_leave_the_sample_they_got_untouched(transform: Callable) -> None:
    sample, untouched = rig_sample(), rig_sample()
    transform(sample, np.random.default_rng(0))
    assert sample.cameras is not None
    assert untouched.cameras is not None
    assert sample.targets is not None
    assert untouched.targets is not None
    for a, b in zip(sample.images, untouched.images, strict=True):
        np.testing.assert_array_equal(a, b)
    for camera, other in zip(sample.cameras, untouched.cameras, strict=True):
        np.testing.assert_array_equal(camera.lidar2img, other.lidar2img)
    torch.testing.assert_close(sample.targets.boxes, untouched.targets.boxes)


def test_plain_images_resize_too() -> None:
    out = ResizeTo((30, 40))(Sample([np.zeros((60, 80, 3), np.uint8)]))
    assert out.cameras is None
    assert out.images[0].shape == (30, 40, 3)


def test_a_window_beyond_the_image_shows_the_mean_colour() -> None:
    sample = Sample([np.full((50, 100, 3), 200, np.uint8)])
    out = RandomResizeCropFlip((40, 80), (0.5, 0.5), crop=False, flip=0)(sample, np.random.default_rng(0))
    assert out.images[0].shape == (40, 80, 3)
    assert (out.images[0][20:, 20:60] == 200).all()
    assert (out.images[0][:20] == (124, 116, 104)).all()


def test_the_window_lies_at_the_bottom_and_anywhere_along_x() -> None:
    image = np.zeros((100, 200, 3), np.uint8)
    image[..., 0], image[..., 1] = np.arange(200), np.arange(100)[:, None]
    transform = RandomResizeCropFlip((40, 100), (2.0, 2.0), crop=True, flip=0)
    corners = {tuple(transform(Sample([image]), np.random.default_rng(i)).images[0][0, 0, :2]) for i in range(20)}
    assert {row for _, row in corners} == {60}
    assert len({column for column, _ in corners}) > 10


def test_one_draw_can_serve_all_cameras() -> None:
    images = [np.random.default_rng(0).integers(0, 256, (50, 100, 3), dtype=np.uint8)] * 3
    for same in (True, False):
        transform = RandomResizeCropFlip((40, 80), (0.9, 1.5), crop=True, flip=0.5, same=same)
        outs = [transform(Sample(images), np.random.default_rng(i)).images for i in range(3)]
        assert all((out[0] == out[1]).all() and (out[0] == out[2]).all() for out in outs) == same
        assert (outs[0][0] != outs[1][0]).any()


def test_objects_outside_an_area_are_left_out() -> None:
    sample = rig_sample()
    assert sample.targets is not None
    out = KeepInRange((-10, -20, 10, 20))(sample)
    assert out.targets is not None
    x, y = sample.targets.boxes[:, 0], sample.targets.boxes[:, 1]
    assert out.targets.labels.tolist() == ((x.abs() < 10) & (y.abs() < 20)).nonzero()[:, 0].tolist()
    assert 0 < len(out.targets) < 12


def test_projections_stay_true_through_the_whole_training_pipeline(synthetic_root: Path) -> None:
    """Undoing what the calibration says has happened gives the pixel before."""
    config = NuScenesConfig(
        root=str(synthetic_root),
        version="v1.0-mini",
        input_size=(64, 128),
        augment=RigAugmentConfig(resize=(0.9, 1.3), crop=True, flip=0.5, rotation=0.4, scale=(0.95, 1.05)),
        object_range=None,
    )
    dataset = NuScenesDataset(config, "mini_train", training=True)
    for i in range(len(dataset)):
        sample = dataset[i]
        out = dataset.transform(sample, np.random.default_rng(i))
        assert {image.shape for image in out.images} == {(64, 128, 3)}
        before, depth = projections(sample)
        after, depth_after = projections(out)
        torch.testing.assert_close(depth_after, depth, rtol=0, atol=1e-4)
        assert sample.cameras is not None
        assert out.cameras is not None
        for n, (camera, moved) in enumerate(zip(sample.cameras, out.cameras, strict=True)):
            change = torch.from_numpy(moved.intrinsic @ np.linalg.inv(camera.intrinsic))
            ahead = depth[n] > 1
            homogeneous = torch.cat([before[n, ahead], torch.ones(int(ahead.sum()), 1)], 1)
            torch.testing.assert_close(after[n, ahead], (homogeneous @ change.T)[:, :2], rtol=0, atol=1e-2)


def test_training_leaves_out_objects_beyond_reach() -> None:
    sample = rig_sample()
    assert sample.targets is not None
    transform = rig_transform(NuScenesConfig(object_range=(-20, -20, 20, 20)), training=True)
    out = transform(sample, np.random.default_rng(0))
    assert out.targets is not None
    assert 0 < len(out.targets) < len(sample.targets)
    assert out.targets.boxes[:, :2].abs().max() < 20


def test_inference_resizes_alone() -> None:
    augment = RigAugmentConfig(resize=(0.5, 2.0), crop=True, flip=1.0, rotation=1.0)
    sample = rig_sample()
    for size in (None, (40, 80)):
        transform = rig_transform(NuScenesConfig(input_size=size, augment=augment), training=False)
        expected = sample if size is None else ResizeTo(size)(sample)
        out = transform(sample, np.random.default_rng(0))
        np.testing.assert_array_equal(out.images[0], expected.images[0])


def test_mirroring_keeps_objects_where_the_images_show_them():
    sample = rig_sample()
    mirrored = MirrorScene(1.0)(sample, np.random.default_rng(0))
    (pixels, depth), (after, after_depth) = projections(sample), projections(mirrored)
    width = torch.tensor([160.0, 200.0], dtype=torch.float64)[:, None]
    torch.testing.assert_close(after_depth, depth)
    ahead = depth > 0.1
    assert ahead.any(1).all()
    torch.testing.assert_close(after[..., 1][ahead], pixels[..., 1][ahead])
    torch.testing.assert_close(after[..., 0][ahead], (width - pixels[..., 0])[ahead])
    np.testing.assert_array_equal(mirrored.images[0], sample.images[0][:, ::-1])
    for camera in mirrored.cameras:
        assert camera.intrinsic[0, 0] > 0
        assert np.linalg.det(camera.camera2lidar[:3, :3]) == pytest.approx(1)
    # Corners, headings and velocities are mirrored with the centres.
    corners = boxes3d.corners(sample.targets.boxes) * torch.tensor([-1.0, 1, 1])
    distance = torch.cdist(boxes3d.corners(mirrored.targets.boxes), corners).amin(2)
    assert distance.max() < 1e-4
    here = boxes3d.transform(sample.targets.boxes, sample.lidar2global)
    there = boxes3d.transform(mirrored.targets.boxes, mirrored.lidar2global)
    torch.testing.assert_close(there[:, 7:], here[:, 7:])
    torch.testing.assert_close(there[:, 6].sin(), here[:, 6].sin(), rtol=1e-4, atol=1e-4)


def test_mirroring_gives_each_slot_the_camera_of_the_other_side():
    sample = rig_sample()
    left, right = (replace(c, name=n) for c, n in zip(sample.cameras, ("CAM_LEFT", "CAM_RIGHT"), strict=True))
    mirrored = MirrorScene(1.0)(sample.replace(cameras=[left, right]), np.random.default_rng(0))
    assert [camera.name for camera in mirrored.cameras] == ["CAM_LEFT", "CAM_RIGHT"]
    np.testing.assert_array_equal(mirrored.images[0], sample.images[1][:, ::-1])
    assert MirrorScene(0.0)(sample, np.random.default_rng(0)) is sample
