"""Positions of PETR, cell by cell: points on rays through the inverse projection, and the place within the rig."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from bevdet_core.geometry import project_points
from bevdet_core.models.position3d import RayEmbedding, RigSineEmbedding, growing_depths, point_embedding
from bevdet_core.structures import Camera

RANGE = (-61.2, -61.2, -10.0, 61.2, 61.2, 10.0)
SIZE, SHAPE = (64, 96), (4, 6)


@pytest.fixture
def lidar2img() -> torch.Tensor:
    """[1, 2, 4, 4]: two cameras that look different ways from different places."""
    cameras = []
    for angle, focal in ((0.3, 70.0), (2.0, 90.0)):
        c, s = math.cos(angle), math.sin(angle)
        camera2lidar = np.array([[c, 0, s, 0.5 + angle], [-s, 0, c, -0.2], [0, -1, 0, 1.6], [0, 0, 0, 1]])
        cameras.append(Camera("", np.array([[focal, 0, 47], [0, focal, 30], [0, 0, 1]]), camera2lidar))
    return torch.tensor(np.array([[camera.lidar2img for camera in cameras]]), dtype=torch.float32)


def test_depths_are_those_of_the_paper():
    depths = growing_depths(64, 1.0, 61.2)
    assert depths[0] == 1
    for i in (1, 17, 63):
        assert depths[i].item() == pytest.approx(1 + 60.2 * i * (i + 1) / (64 * 65), rel=1e-6)


def test_points_project_back_to_the_corners_of_their_cells(lidar2img):
    layer = RayEmbedding(8, 5, 1.0, RANGE)
    points = layer.points(SHAPE, lidar2img, SIZE)
    assert points.shape == (1, 2, *SHAPE, 5, 3)
    for camera in range(2):
        pixels, depth = project_points(points[:, camera].reshape(1, -1, 3), lidar2img[:, camera : camera + 1])
        pixels, depth = pixels.view(*SHAPE, 5, 2), depth.view(*SHAPE, 5)
        torch.testing.assert_close(depth, layer.depths.expand(*SHAPE, 5), rtol=1e-4, atol=1e-3)
        for row, column in ((0, 0), (3, 5), (2, 1)):
            corner = torch.tensor([column * 16.0, row * 16.0]).expand(5, 2)
            torch.testing.assert_close(pixels[row, column], corner, rtol=1e-4, atol=1e-2)


def test_ray_embedding_is_the_encoded_logit_of_the_points_in_the_range(lidar2img):
    """Plain restatement of one cell: homogeneous coordinates through the inverse matrix."""
    torch.manual_seed(0)
    layer = RayEmbedding(8, 5, 1.0, RANGE)
    out = layer(SHAPE, lidar2img, SIZE)
    assert out.shape == (1, 2, 8, *SHAPE)
    low, high = torch.tensor(RANGE).chunk(2)
    for camera, row, column in ((0, 1, 4), (1, 3, 0)):
        numbers = []
        for i in range(5):
            d = 1 + 60.2 * i * (i + 1) / 30
            seen = torch.tensor([column * 16.0 * d, row * 16.0 * d, d, 1.0])
            point = (torch.linalg.inv(lidar2img[0, camera].double()) @ seen.double())[:3].float()
            place = ((point - low) / (high - low)).clamp(1e-5, 1 - 1e-5)
            numbers += (place / (1 - place)).log().tolist()
        expected = layer.encoder(torch.tensor(numbers).view(1, 15, 1, 1)).view(8)
        torch.testing.assert_close(out[0, camera, :, row, column], expected, rtol=1e-3, atol=1e-4)


def test_sine_embedding_counts_cameras_rows_and_columns():
    torch.manual_seed(0)
    layer = RigSineEmbedding(8)
    padding = torch.zeros(1, 3, 4, 6, dtype=torch.bool)
    padding[0, 1, 3:], padding[0, 1, :, 5:] = True, True  # a smaller image
    out = layer(padding)
    for camera, row, column, rows, columns in ((0, 0, 0, 4, 6), (1, 2, 3, 3, 5), (2, 3, 5, 4, 6)):
        numbers = []
        for place, total in ((camera, 3), (row, rows), (column, columns)):
            angles = [2 * math.pi * (place + 1) / total / 10000 ** (2 * i / 4) for i in range(2)]
            numbers += [*map(math.sin, angles), *map(math.cos, angles)]
        expected = layer.encoder(torch.tensor(numbers).view(1, 12, 1, 1)).view(8)
        torch.testing.assert_close(out[0, camera, :, row, column], expected, rtol=1e-4, atol=1e-5)


def test_a_camera_that_only_fills_up_the_batch_does_not_count():
    layer = RigSineEmbedding(8)
    two = torch.zeros(1, 2, 4, 6, dtype=torch.bool)
    three = torch.cat([two, torch.ones(1, 1, 4, 6, dtype=torch.bool)], 1)
    torch.testing.assert_close(layer(three)[:, :2], layer(two))


def test_points_become_waves_in_the_order_y_x_z():
    waves = point_embedding(torch.tensor([[0.1, 0.2, 0.3]]), 4)[0]
    angles = [2 * math.pi * place / 10000 ** (2 * i / 4) for place in (0.2, 0.1, 0.3) for i in range(2)]
    expected = [wave(angle) for angle in angles for wave in (math.sin, math.cos)]
    torch.testing.assert_close(waves, torch.tensor(expected))
