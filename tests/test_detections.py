import math

import numpy as np
import pytest
import torch
from PIL import Image

from bevdet_core.detections import Detections, attribute_of
from bevdet_core.geometry import pose, quaternion_to_matrix, yaw_of, yaw_to_quaternion
from bevdet_core.structures import Camera, Sample

NAMES = ("car", "pedestrian", "barrier")


@pytest.fixture
def found() -> Detections:
    """A moving car, a standing pedestrian and a barrier whose speed nobody knows."""
    boxes = torch.tensor(
        [
            [10.0, 5, 1, 1.9, 4.6, 1.7, 0.5, 3, -1],
            [-4, 20, 0.5, 0.6, 0.7, 1.8, -2.0, 0.1, 0.1],
            [1, 2, 0, 2.5, 0.5, 1.0, 0.1, math.nan, math.nan],
        ]
    )
    return Detections(torch.tensor([0.9, 0.4, 0.6]), torch.tensor([0, 1, 2]), boxes, NAMES)


@pytest.fixture
def flat() -> Detections:
    boxes = torch.tensor([[10.0, 20, 30, 60], [0, 0, 5, 5]])
    return Detections(torch.tensor([0.75, 0.25]), torch.tensor([1, 0]), boxes, ("cat", "dog"))


def test_detections_are_picked_by_score_mask_slice_and_number(found: Detections) -> None:
    assert len(found) == 3
    assert found.above(0.5).labels.tolist() == [0, 2]
    assert found.above(0.9).labels.tolist() == [0]
    assert found[torch.tensor([False, True, False])].labels.tolist() == [1]
    assert found[1:].labels.tolist() == [1, 2]
    assert found[-1].boxes.shape == (1, 9)
    assert found.above(1.0).to_nuscenes("t", np.eye(4)) == []


def test_shapes_that_do_not_fit_are_told() -> None:
    with pytest.raises(ValueError, match=r"got \[2\], \[2\] and \[2, 7\]"):
        Detections(torch.ones(2), torch.ones(2), torch.ones(2, 7), NAMES)


def test_coco_results_have_corner_and_size(flat: Detections) -> None:
    first, second = flat.to_coco(42, category_ids=[17, 18])
    assert first == {"image_id": 42, "category_id": 18, "bbox": [10, 20, 20, 40], "score": 0.75}
    assert second["category_id"] == 17
    assert flat.to_coco(42)[0]["category_id"] == 1


def test_nuscenes_results_are_global(found: Detections) -> None:
    lidar2global = pose(yaw_to_quaternion(0.7), [100, 200, 1.8])
    car, pedestrian, barrier = found.to_nuscenes("tok", lidar2global)
    assert car["sample_token"] == "tok"
    np.testing.assert_allclose(car["translation"], (lidar2global @ [10, 5, 1, 1])[:3], rtol=1e-6)
    np.testing.assert_allclose(car["size"], [1.9, 4.6, 1.7], rtol=1e-6)
    assert yaw_of(quaternion_to_matrix(car["rotation"])) == pytest.approx(1.2, abs=1e-6)
    np.testing.assert_allclose(car["velocity"], (lidar2global[:3, :3] @ [3, -1, 0])[:2], rtol=1e-6)
    assert type(car["detection_score"]) is float
    assert [box["detection_name"] for box in (car, pedestrian, barrier)] == list(NAMES)
    assert [box["attribute_name"] for box in (car, pedestrian, barrier)] == [
        "vehicle.moving",
        "pedestrian.standing",
        "",
    ]
    assert barrier["velocity"] == [0, 0]


@pytest.mark.parametrize(
    ("name", "at_rest", "moving"),
    [
        ("car", "vehicle.parked", "vehicle.moving"),
        ("truck", "vehicle.parked", "vehicle.moving"),
        ("trailer", "vehicle.parked", "vehicle.moving"),
        ("construction_vehicle", "vehicle.parked", "vehicle.moving"),
        ("bus", "vehicle.stopped", "vehicle.moving"),
        ("pedestrian", "pedestrian.standing", "pedestrian.moving"),
        ("bicycle", "cycle.without_rider", "cycle.with_rider"),
        ("motorcycle", "cycle.without_rider", "cycle.with_rider"),
        ("barrier", "", ""),
        ("traffic_cone", "", ""),
    ],
)
def test_attributes_follow_from_the_speed(name: str, at_rest: str, moving: str) -> None:
    assert attribute_of(name, 0.19) == at_rest
    assert attribute_of(name, 0.21) == moving


def test_the_sample_tells_token_and_pose(found: Detections) -> None:
    lidar2global = pose(yaw_to_quaternion(-0.2), [5, 6, 7])
    found.sample = Sample([], token="tok", lidar2global=lidar2global)
    assert found.to_nuscenes() == found.to_nuscenes("tok", lidar2global)
    assert found.above(0.5).to_nuscenes()[0]["sample_token"] == "tok"


def test_the_best_500_go_into_a_submission() -> None:
    scores = torch.linspace(0, 1, 600)[torch.randperm(600, generator=torch.Generator().manual_seed(0))]
    boxes = torch.ones(600, 9)
    out = Detections(scores, torch.zeros(600, dtype=torch.int64), boxes, NAMES).to_nuscenes("t", np.eye(4))
    assert len(out) == 500
    assert min(box["detection_score"] for box in out) == pytest.approx(100 / 599)


def test_the_wrong_form_is_refused(found: Detections, flat: Detections) -> None:
    with pytest.raises(ValueError, match="3D: use to_nuscenes"):
        found.to_coco(1)
    with pytest.raises(ValueError, match="2D: use to_coco"):
        flat.to_nuscenes("t", np.eye(4))
    with pytest.raises(ValueError, match="token and lidar2global"):
        found.to_nuscenes("t")


def test_drawing_gives_a_picture(found: Detections, flat: Detections, tmp_path) -> None:
    image = np.full((60, 80, 3), 128, np.uint8)
    flat.sample = Sample([image])
    picture = flat.draw(tmp_path / "flat.png")
    assert isinstance(picture, Image.Image)
    assert (np.asarray(picture.convert("RGB")) != 128).any()
    forward = np.array([[1.0, 0, 0, 0], [0, 0, 1, 0], [0, -1, 0, 0], [0, 0, 0, 1]])
    found.sample = Sample([image], [Camera("front", np.array([[60.0, 0, 40], [0, 60, 30], [0, 0, 1]]), forward)])
    assert found.draw(tmp_path / "rig.png").width > 80
    assert (tmp_path / "rig.png").stat().st_size > 0
