"""Rig frames from files: any number of cameras, any sizes, cameras that failed, and the documented example."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from bevdet_core import Detector
from bevdet_core.config import BackboneConfig, Config, Detr3dConfig, NuScenesConfig, PetrConfig
from bevdet_core.data import inference_transform
from bevdet_core.data.images import SampleError
from bevdet_core.data.nuscenes import NuScenesDataset
from bevdet_core.data.rig import read_frame, write_frame
from bevdet_core.models import build_model
from bevdet_core.structures import Camera, Sample

INTRINSIC = [[80.0, 0, 40], [0, 80, 24], [0, 0, 1]]
AHEAD = [[1.0, 0, 0, 0], [0, 0, 1, 1.5], [0, -1, 0, 1.6], [0, 0, 0, 1]]
LEFT = [[0.0, 0, -1, -0.5], [1, 0, 0, 1.2], [0, -1, 0, 1.6], [0, 0, 0, 1]]
SMALL = {"embed_dim": 16, "num_queries": 6, "num_layers": 1, "num_heads": 2, "ffn_dim": 16}
BACKBONE = BackboneConfig(depth=18, width=8, out_stages=(3, 4))
MODELS = {
    "detr3d": Detr3dConfig(backbone=BACKBONE, num_levels=2, **SMALL),
    "petr": PetrConfig(backbone=BACKBONE, num_depths=4, **SMALL),
}


@pytest.fixture(params=MODELS)
def detector(request) -> Detector:
    torch.manual_seed(0)
    config = Config(MODELS[request.param], NuScenesConfig(input_size=(64, 96)))
    return Detector(build_model(config.model, 10).eval(), config, config.data.classes)


def sample(*names: str, seed: int = 0) -> Sample:
    """A rig of cameras with pictures of different sizes; every second one looks to the left."""
    rng = np.random.default_rng(seed)
    images = [rng.integers(0, 256, (48 + 8 * n, 80, 3), dtype=np.uint8) for n in range(len(names))]
    poses = [np.array(LEFT if n % 2 else AHEAD) for n in range(len(names))]
    cameras = [Camera(name, np.array(INTRINSIC), pose) for name, pose in zip(names, poses, strict=True)]
    return Sample(images, cameras, token="-".join(names))


def broken_camera(**changes) -> dict:
    """The working camera of `frame_file` with other entries."""
    return {"image": "ahead.png", "intrinsic": INTRINSIC, "camera2lidar": AHEAD} | changes


def frame_file(folder: Path, **changes) -> Path:
    """One working camera and one that failed; `changes` replace entries, None drops them."""
    Image.fromarray(np.full((48, 80, 3), 99, np.uint8)).save(folder / "ahead.png")
    working = {"name": "ahead", "image": "ahead.png", "intrinsic": INTRINSIC, "camera2lidar": AHEAD}
    frame = {"cameras": [working, {"name": "left", "image": None}], "timestamp": 3.5, "scene": "drive"} | changes
    path = folder / "frame.json"
    path.write_text(json.dumps({name: value for name, value in frame.items() if value is not None}))
    return path


def test_a_camera_that_failed_needs_no_calibration(tmp_path: Path):
    found = read_frame(frame_file(tmp_path))
    assert [camera.hidden for camera in found.cameras] == [False, True]
    assert [image.shape for image in found.images] == [(48, 80, 3)] * 2
    assert not found.images[1].any()
    assert (found.scene, found.timestamp) == ("drive", 3.5)


def test_frames_survive_writing_and_reading(tmp_path: Path):
    before = read_frame(frame_file(tmp_path))
    write_frame(before, tmp_path / "again" / "frame.json")
    after = read_frame(tmp_path / "again" / "frame.json")
    assert after.scene == before.scene
    for ours, theirs in zip(before.cameras, after.cameras, strict=True):
        assert (ours.name, ours.hidden) == (theirs.name, theirs.hidden)
        np.testing.assert_array_equal(ours.lidar2img, theirs.lidar2img)
    assert all((a == b).all() for a, b in zip(before.images, after.images, strict=True))
    assert not list((tmp_path / "again").glob("*left*"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cameras": [{"name": "a"}]}, r"cameras\[0\]: 'image' must be a file name .*, or null"),
        (
            {"cameras": [{"image": None, "intrinsic": INTRINSIC}]},
            r"cameras\[0\]: 'camera2lidar' is missing",
        ),
        ({"cameras": [{"image": None, "pose": 1}]}, r"cameras\[0\]: unknown entries \['pose'\]"),
        ({"cameras": []}, "at least one camera"),
        ({"scene": 7}, "'scene' must be a name, got 7"),
        ({"time": 7}, r"unknown entries \['time'\]"),
        ({"cameras": [{"image": None}] * 101}, "101 cameras, more than 100"),
        ({"timestamp": "noon"}, "'timestamp' must be a number of seconds, got 'noon'"),
        ({"timestamp": float("inf")}, "'timestamp' must be a number of seconds, got inf"),
        ({"cameras": [{"image": None, "name": 7}]}, r"cameras\[0\]: 'name' must be a text, got 7"),
        (
            {"cameras": [broken_camera(intrinsic=AHEAD)]},
            r"cameras\[0\]: 'intrinsic' must be 3x3 finite numbers",
        ),
        (
            {"cameras": [broken_camera(intrinsic="wide")]},
            r"cameras\[0\]: 'intrinsic' must be 3x3 finite numbers",
        ),
        (
            {"cameras": [broken_camera(camera2lidar=INTRINSIC)]},
            r"\[0\]: 'camera2lidar' must be 4x4 finite numbers",
        ),
        ({"lidar2global": [[math.nan] * 4] * 4}, r"frame\.json: 'lidar2global' must be 4x4 finite numbers"),
        (
            {"cameras": [broken_camera(name="left", intrinsic=[[80, 0, 40], [0, 80, 24], [0, 0, 2]])]},
            r"cameras\[0\] \(left\): the last row of 'intrinsic' must be 0, 0, 1, got \[0\.0, 0\.0, 2\.0\]",
        ),
        (
            {"cameras": [broken_camera(intrinsic=[[80, 0, 40], [0, -80, 24], [0, 0, 1]])]},
            r"cameras\[0\]: the focal lengths of 'intrinsic', .* must be positive, got \[80\.0, -80\.0\]",
        ),
        (
            {"cameras": [broken_camera(camera2lidar=(2 * np.array(AHEAD) - np.diag([0, 0, 0, 1])).tolist())]},
            r"the first three .* 'camera2lidar' must be a rotation, .* are \[2\.0, 2\.0, 2\.0\] long",
        ),
        (
            {"cameras": [broken_camera(camera2lidar=np.transpose(AHEAD).tolist())]},
            r"the last row of 'camera2lidar' must be 0, 0, 0, 1, got \[0\.0, 1\.5, 1\.6, 1\.0\]",
        ),
        (
            {"cameras": [broken_camera(camera2lidar=np.diag([1, 1, -1, 1]).tolist())]},
            r"'camera2lidar' mirrors: it takes a right-handed frame to a left-handed one",
        ),
        ({"lidar2global": [[1] * 4] * 4}, r"frame\.json: the last row of 'lidar2global' must be 0, 0, 0, 1"),
        ({"lidar2global": np.diag([1, 1, 0, 1]).tolist()}, r"frame\.json: the first three .* 'lidar2global' must be a"),
    ],
)
def test_mistakes_in_a_frame_are_named(tmp_path: Path, changes: dict, message: str):
    with pytest.raises(ValueError, match=message):
        read_frame(frame_file(tmp_path, **changes))


def test_a_calibration_of_a_few_digits_is_taken(tmp_path: Path):
    """0.6 and 0.8 as a quaternion of three digits gives them."""
    w, z = 0.894, 0.447
    turn = [[1 - 2 * z * z, -2 * w * z, 0, 1.5], [2 * w * z, 1 - 2 * z * z, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]
    found = read_frame(frame_file(tmp_path, lidar2global=turn))
    np.testing.assert_array_equal(found.lidar2global, turn)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"cameras: []", "Expecting value"),
        (b'{"scene": "M\xfcnchen"}', "no UTF-8 text"),
        (b'{"scene": "a", "scene": "b"}', "the key 'scene' stands twice"),
    ],
)
def test_a_file_that_is_no_json_is_named(tmp_path: Path, content: bytes, message: str):
    (tmp_path / "frame.json").write_bytes(content)
    with pytest.raises(ValueError, match=rf"frame\.json: not a JSON file that can be used: {message}"):
        read_frame(tmp_path / "frame.json")


def test_a_plain_image_is_no_frame_to_write(tmp_path: Path):
    image = Sample([np.zeros((4, 4, 3), np.uint8)], token="cat.png")
    with pytest.raises(ValueError, match=r"sample 'cat\.png' has no calibrated cameras"):
        write_frame(image, tmp_path / "frame.json")
    assert not list(tmp_path.iterdir())


def test_a_missing_picture_that_the_file_names_is_an_error(tmp_path: Path):
    path = frame_file(tmp_path)
    (tmp_path / "ahead.png").unlink()
    with pytest.raises(SampleError, match=r"ahead\.png does not exist"):
        read_frame(path)


def test_cameras_take_their_places_by_name():
    prepare = inference_transform(NuScenesConfig(cameras=("A", "B", "C")))
    rig = sample("C", "A")
    placed = prepare(rig)
    assert [camera.name for camera in placed.cameras] == ["A", "B", "C"]
    assert [camera.hidden for camera in placed.cameras] == [False, True, False]
    assert (placed.images[0] == rig.images[1]).all()
    assert (placed.images[2] == rig.images[0]).all()
    np.testing.assert_array_equal(placed.cameras[2].camera2lidar, rig.cameras[0].camera2lidar)
    assert placed.original_sizes == [(56, 80), (0, 0), (48, 80)]
    assert [camera.name for camera in prepare(sample("x", "y")).cameras] == ["x", "y"]
    with pytest.raises(ValueError, match="camera 'x' comes twice or is none of the detector's"):
        prepare(sample("A", "x"))
    with pytest.raises(ValueError, match="camera 'A' comes twice"):
        prepare(sample("A", "A"))


@pytest.mark.parametrize("count", [1, 2, 5])
def test_any_number_of_cameras_of_any_sizes(detector: Detector, count: int):
    found = detector.predict(sample(*(f"camera {n}" for n in range(count))))
    assert len(found) == 60
    assert found.boxes.isfinite().all()


def test_frames_of_different_rigs_share_a_batch(detector: Detector):
    detector.config = Config(detector.config.model, NuScenesConfig(input_size=(64, 96), cameras=("A", "B", "C")))
    frames = [sample("x"), sample("u", "v", "w", seed=1), sample("C", "A", seed=2)]
    together = detector.predict(frames, batch_size=3)
    for frame, found in zip(frames, together, strict=True):
        alone = detector.predict(frame)
        torch.testing.assert_close(found.scores, alone.scores, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found.boxes, alone.boxes, rtol=1e-3, atol=1e-3)


def test_a_frame_in_which_all_cameras_failed_gives_finite_detections(detector: Detector, tmp_path: Path):
    path = frame_file(tmp_path, cameras=[{"image": None}, {"image": None}])
    found = detector.predict([path, sample("x", "y")], batch_size=2)
    assert found[0].boxes.isfinite().all()
    assert found[0].scores.isfinite().all()
    assert detector.predict(path).scores.isfinite().all()
    found[0].draw(tmp_path / "frame.png")
    assert (tmp_path / "frame.png").stat().st_size > 1000


def test_missing_images_of_a_data_set_can_be_hidden(synthetic_copy: Path):
    config = NuScenesConfig(root=str(synthetic_copy), version="v1.0-mini", missing_images="hide")
    dataset = NuScenesDataset(config, "mini_train")
    whole = dataset[0]
    first, second = (dataset.index.camera_file(int(dataset.rows[0]), name) for name in config.cameras[:2])
    (synthetic_copy / first).unlink()
    (synthetic_copy / second).write_bytes((synthetic_copy / second).read_bytes()[:500])
    found = dataset[0]
    assert [camera.hidden for camera in found.cameras] == [True, True, False, False, False, False]
    assert found.images[0].shape == whole.images[0].shape
    assert not found.images[0].any()
    np.testing.assert_array_equal(found.images[3], whole.images[3])
    with pytest.raises(SampleError, match="does not exist"):
        NuScenesDataset(NuScenesConfig(root=str(synthetic_copy), version="v1.0-mini"), "mini_train")[0]


def test_the_documented_example_runs(detector: Detector, tmp_path: Path, monkeypatch, capsys):
    from bevdet_core import checkpoint

    monkeypatch.chdir(tmp_path)
    checkpoint.save(tmp_path / "model.safetensors", detector.checkpoint())
    text = (Path(__file__).parents[2] / "docs" / "your_own_rig.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    exec(code.replace("threshold=0.3", "threshold=0.0"), {})  # an untrained detector is not sure of anything
    assert "m right, " in capsys.readouterr().out
    assert (tmp_path / "moment.png").stat().st_size > 1000
