"""Perspective supervision: cells answer in the lidar frame; each belongs to the target that stands nearest in it."""

import numpy as np
import pytest
import torch

from bevdet_core.geometry import project_points
from bevdet_core.models.perspective import START_DEPTH, PerspectiveHead
from bevdet_core.structures import Camera, Targets

SIZE = (64, 96)  # pixels
STRIDE = 8
H, W = SIZE[0] // STRIDE, SIZE[1] // STRIDE


def rig() -> torch.Tensor:
    """[1, 2, 4, 4]: one camera looks along y of the lidar frame, the other along -y; both 0.5 m ahead of its origin."""
    intrinsic = np.array([[80.0, 0, 48], [0, 80, 32], [0, 0, 1]])
    ahead = np.array([[1.0, 0, 0, 0], [0, 0, 1, 0.5], [0, -1, 0, 0], [0, 0, 0, 1]])
    behind = np.diag([-1.0, -1, 1, 1]) @ ahead
    cameras = [Camera("ahead", intrinsic, ahead), Camera("behind", intrinsic, behind)]
    return torch.tensor(np.array([[camera.lidar2img for camera in cameras]]), dtype=torch.float32)


def box(x: float, y: float, z: float = 0.0, yaw: float = 0.0) -> list[float]:
    return [x, y, z, 2.0, 4.0, 1.5, yaw, 1.0, 0.0]


def targets(*boxes: list[float]) -> Targets:
    return Targets(torch.arange(len(boxes)) % 3, torch.tensor(boxes, dtype=torch.float32).reshape(-1, 9))


def head() -> PerspectiveHead:
    torch.manual_seed(0)
    return PerspectiveHead(dim=8, num_classes=3)


def place(query: int) -> tuple[int, int, int]:
    """(camera, row, column) of a cell."""
    return query // (H * W), query // W % H, query % W


def test_a_target_belongs_to_the_four_cells_around_its_centre_in_each_camera_that_sees_it():
    features = torch.randn(1, 2, 8, H, W)
    found = head()(features, rig(), SIZE).paired([targets(box(0, 10), box(0, -10))])
    pixels, _ = project_points(torch.tensor([[[0.0, 10, 0], [0, -10, 0]]]), rig())
    for target, camera in ((0, 0), (1, 1)):
        rows = found.targets.boxes[:, 1] == (10 if target == 0 else -10)
        cells = [place(int(query)) for query in found.queries[rows]]
        u, v = (pixels[0, camera, target] / STRIDE).tolist()
        columns, lines = {round(u) - 1, round(u)}, {round(v) - 1, round(v)}
        assert sorted(cells) == sorted((camera, line, column) for line in lines for column in columns)
    assert len(found.queries) == 8


def test_the_nearer_target_takes_a_cell_that_two_share():
    found = head()(torch.randn(1, 2, 8, H, W), rig(), SIZE).paired([targets(box(0, 20), box(0, 10))])
    assert (found.targets.boxes[:, 1] == 10).all()
    assert len(found.queries) == 4


def test_an_untrained_cell_answers_on_its_ray_at_the_start_depth():
    network = head()
    torch.nn.init.zeros_(network.box_head.weight)
    torch.nn.init.zeros_(network.box_head.bias)
    codes = network(torch.randn(1, 2, 8, H, W), rig(), SIZE).codes[0]
    centres = codes[..., [0, 1, 4]].reshape(2, H * W, 3)
    for camera in range(2):
        pixels, depth = project_points(centres[camera][None], rig())
        torch.testing.assert_close(depth[0, camera], torch.full((H * W,), START_DEPTH))
        expected = torch.cartesian_prod(torch.arange(H) + 0.5, torch.arange(W) + 0.5).flip(1) * STRIDE
        torch.testing.assert_close(pixels[0, camera], expected, rtol=1e-4, atol=1e-2)


def test_the_same_answer_means_the_same_box_as_seen_from_either_camera():
    """Turning rig and objects by half a turn leaves the images as they are, and turns the boxes."""
    network = head()
    features = torch.randn(1, 1, 8, H, W).expand(1, 2, 8, H, W)
    codes = network(features, rig(), SIZE).codes[0]
    turned = codes[1].clone()
    turned[..., [0, 1, 6, 7, 8, 9]] *= -1
    torch.testing.assert_close(codes[0], turned, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("objects", "cells"),
    [(targets(), 0), (targets(box(30, 0)), 0), (targets(box(0, 1000)), 4)],
    ids=["no object", "out of sight", "far ahead"],
)
def test_frames_with_little_in_sight(objects, cells):
    found = head()(torch.randn(1, 2, 8, H, W), rig(), SIZE).paired([objects])
    assert len(found.queries) == cells
    assert found.logits.shape == (1, 2 * H * W, 3)
    assert found.boxes.isfinite().all()


def test_the_best_boxes_are_peaks_of_cameras_that_are_not_hidden():
    network = head()
    cells = network(torch.randn(1, 2, 8, H, W), rig(), SIZE, torch.tensor([[False, True]]))
    cells.logits = torch.full_like(cells.logits, -9.0)
    cells.logits[0, 0, 2, 3, 1] = 3.0  # the likeliest, and beside it a cell that means the same object
    cells.logits[0, 0, 2, 4, 0] = 2.5
    cells.logits[0, 0, 6, 9, 2] = 1.0
    cells.logits[0, 1, 4, 4, 0] = 5.0  # nobody is behind that camera
    found = cells.best(2)
    chosen = [(0, 0, 2, 3), (0, 0, 6, 9)]
    for picked, of_all in ((found.codes, cells.codes), (found.logits, cells.logits), (found.features, cells.features)):
        torch.testing.assert_close(picked[0], torch.stack([of_all[cell] for cell in chosen]))
    assert not found.codes.requires_grad
    assert not found.logits.requires_grad
    assert found.features.requires_grad


def test_there_are_as_many_boxes_as_asked_for():
    cells = head()(torch.randn(1, 2, 8, 2, 3), rig(), (16, 24))
    found = cells.best(30)
    assert found.codes.shape == (1, 30, 10)
    torch.testing.assert_close(found.codes[:, :12], found.codes[:, 12:24])
