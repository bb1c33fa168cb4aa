import json
import pickle
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from bevdet_core.config import NUSCENES_CLASSES, NuScenesConfig
from bevdet_core.data import build_dataset
from bevdet_core.data.images import SampleError
from bevdet_core.data.nuscenes import NuScenesDataset
from bevdet_core.geometry import project_points


@pytest.fixture
def config(synthetic_root: Path) -> NuScenesConfig:
    return NuScenesConfig(root=str(synthetic_root), version="v1.0-mini", train_split="mini_train", val_split="mini_val")


def test_a_sample_is_complete(config: NuScenesConfig) -> None:
    dataset = build_dataset(config, training=False)
    assert len(dataset) == len(dataset.tokens) == 4
    sample = dataset[2]
    assert sample.token == dataset.tokens[2]
    assert sample.cameras is not None
    assert [camera.name for camera in sample.cameras] == list(config.cameras)
    assert {image.shape for image in sample.images} == {(90, 160, 3)}
    assert sample.timestamp == pytest.approx(dataset.index.timestamp[dataset.rows[2]] / 1e6)
    assert sample.targets is not None
    assert sample.targets.boxes.dtype == torch.float32
    assert sample.targets.boxes.shape == (len(sample.targets), 9)


def test_cameras_and_classes_come_in_the_order_asked_for(config: NuScenesConfig) -> None:
    dataset = NuScenesDataset(
        replace(config, cameras=("CAM_BACK", "CAM_FRONT"), classes=("pedestrian", "car")), "mini_train"
    )
    sample, full = dataset[0], NuScenesDataset(config, "mini_train")[0]
    assert sample.cameras is not None
    assert full.targets is not None
    assert sample.targets is not None
    assert [camera.name for camera in sample.cameras] == ["CAM_BACK", "CAM_FRONT"]
    np.testing.assert_array_equal(sample.images[0], full.images[config.cameras.index("CAM_BACK")])
    names = Counter(NUSCENES_CLASSES[label] for label in full.targets.labels)
    assert names["car"]
    assert Counter(dataset.class_names[label] for label in sample.targets.labels) == {
        name: count for name, count in names.items() if name in ("car", "pedestrian")
    }


def test_objects_that_no_point_hits_are_left_out(synthetic_copy: Path, config: NuScenesConfig, edit_table) -> None:
    config = replace(config, root=str(synthetic_copy))
    before = NuScenesDataset(config, "mini_train").targets(0)

    def hide(records: list[dict]) -> None:
        for record in records:
            if record["size"][1] > 3:
                record.update(num_lidar_pts=0, num_radar_pts=0)

    edit_table(synthetic_copy, "sample_annotation", hide)
    after = NuScenesDataset(config, "mini_train").targets(0)
    assert (before.boxes[:, 4] > 3).any()
    torch.testing.assert_close(after.boxes, before.boxes[before.boxes[:, 4] <= 3], equal_nan=True)


def test_frames_without_objects_stay(synthetic_copy: Path, config: NuScenesConfig, edit_table: Callable) -> None:
    edit_table(synthetic_copy, "sample_annotation", lambda records: records.clear())
    dataset = NuScenesDataset(replace(config, root=str(synthetic_copy)), "mini_train", training=True)
    assert len(dataset) == 4
    targets = dataset[0].targets
    assert targets is not None
    assert targets.boxes.shape == (0, 9)
    assert dataset.transform(dataset[0], np.random.default_rng(0)).targets is not None
    with pytest.raises(ValueError, match="needs objects"):
        NuScenesDataset(replace(config, root=str(synthetic_copy), cbgs=True), "mini_train", training=True)


def test_cbgs_draws_every_class_equally_often(config: NuScenesConfig) -> None:
    config = replace(config, cbgs=True, classes=("car", "bus", "bicycle", "traffic_cone"))
    plain = NuScenesDataset(replace(config, cbgs=False), "mini_train", training=True)
    dataset = NuScenesDataset(config, "mini_train", training=True)
    frames = [set(plain.targets(i).labels.tolist()) for i in range(len(plain))]
    pairs = sum(map(len, frames))
    present = set.union(*frames)
    assert len(dataset) == len(present) * int(pairs / 4)
    assert dataset.tokens == plain.tokens
    assert set(dataset.rows) <= set(plain.rows)
    np.testing.assert_array_equal(dataset.rows, NuScenesDataset(config, "mini_train", training=True).rows)
    assert len(NuScenesDataset(config, "mini_train", training=False)) == 4


def test_a_version_without_annotations_has_no_targets(synthetic_copy: Path, config: NuScenesConfig) -> None:
    (synthetic_copy / "v1.0-mini").rename(synthetic_copy / "v1.0-test")
    dataset = NuScenesDataset(replace(config, root=str(synthetic_copy), version="v1.0-test"), "mini_val")
    assert dataset[0].targets is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"classes": ("car", "pedestrain")}, "'pedestrain' is no nuScenes detection class; nearest: pedestrian"),
        ({"cameras": ("CAM_FRONT", "CAM_TOP")}, "no camera 'CAM_TOP' in table sensor; it has CAM_BACK"),
    ],
)
def test_unknown_names_are_told(config: NuScenesConfig, change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        NuScenesDataset(replace(config, **change), "mini_train")


def test_broken_records_raise_or_are_left_out(synthetic_copy: Path, config: NuScenesConfig, edit_table) -> None:
    config = replace(config, root=str(synthetic_copy))
    whole = NuScenesDataset(config, "mini_train")
    row = int(whole.rows[0])
    token = whole.index.box_tokens(row)[0]

    def damage(records: list[dict]) -> None:
        next(r for r in records if r["token"] == token)["translation"] = [float("nan"), 0.0, 0.0]

    edit_table(synthetic_copy, "sample_annotation", damage)
    with pytest.raises(
        SampleError, match=rf"(?s)has 1 broken record:.*sample_annotation, token '{token}': its tr.*data.on_error: skip"
    ):
        NuScenesDataset(config, "mini_train")
    dataset = NuScenesDataset(replace(config, on_error="skip"), "mini_train")
    assert dataset.index.box_tokens(row) == whole.index.box_tokens(row)[1:]
    assert len(dataset[0].images) == 6


def test_a_sample_with_a_broken_camera_record_is_named(synthetic_copy: Path, config, edit_table: Callable) -> None:
    token = NuScenesDataset(replace(config, root=str(synthetic_copy)), "mini_train").tokens[1]

    def damage(records: list[dict]) -> None:
        for record in records:
            if record["sample_token"] == token and "CAM_BACK/" in record["filename"]:
                record["ego_pose_token"] = "gone"

    edit_table(synthetic_copy, "sample_data", damage)
    dataset = NuScenesDataset(replace(config, root=str(synthetic_copy), on_error="skip"), "mini_train")
    with pytest.raises(SampleError, match=f"sample '{token}' has no complete CAM_BACK key frame"):
        dataset[1]
    front = replace(config, root=str(synthetic_copy), on_error="skip", cameras=("CAM_FRONT",))
    assert NuScenesDataset(front, "mini_train")[1].token == token


def test_a_frame_without_a_lidar_record_is_named(synthetic_copy: Path, config, edit_table: Callable) -> None:
    config = replace(config, root=str(synthetic_copy))
    token = NuScenesDataset(config, "mini_train").tokens[1]

    def damage(records: list[dict]) -> None:
        for record in records:
            if record["sample_token"] == token and "LIDAR_TOP/" in record["filename"]:
                record["is_key_frame"] = False

    edit_table(synthetic_copy, "sample_data", damage)
    with pytest.raises(SampleError, match=f"table sample, token '{token}': it has no complete LIDAR_TOP key frame"):
        NuScenesDataset(config, "mini_train")
    dataset = NuScenesDataset(replace(config, on_error="skip"), "mini_train")
    with pytest.raises(SampleError, match=f"sample '{token}' has no complete lidar key frame in table sample_data"):
        dataset[1]


def test_missing_and_truncated_images_are_named_with_their_sample(synthetic_copy: Path, config) -> None:
    dataset = NuScenesDataset(replace(config, root=str(synthetic_copy)), "mini_train")
    row = int(dataset.rows[1])
    file = synthetic_copy / dataset.index.camera_file(row, "CAM_FRONT")
    file.write_bytes(file.read_bytes()[:1500])
    with pytest.raises(SampleError, match=rf"sample '{dataset.tokens[1]}': image .*{file.name} cannot be decoded"):
        dataset[1]
    file.unlink()
    with pytest.raises(SampleError, match=rf"sample '{dataset.tokens[1]}': image .*{file.name} does not exist"):
        dataset[1]
    assert dataset[0].token == dataset.tokens[0]


def test_projected_centres_of_the_key_frame_agree_with_the_record(shared: Path, real_config: NuScenesConfig) -> None:
    """The record says how far the devkit is from the recorded 2D centres, and how many boxes it sees per camera."""
    from nuscenes import NuScenes
    from nuscenes.utils.geometry_utils import view_points

    record = json.loads((shared / "data/nuscenes-sample/extra/expected.json").read_text())["projection"]
    devkit = NuScenes(real_config.version, real_config.root, verbose=False)
    dataset = NuScenesDataset(real_config, "mini_train")
    sample = dataset[0]
    assert sample.cameras is not None
    tokens = dataset.index.box_tokens(0)
    compared = 0
    for camera in sample.cameras:
        data = devkit.get("sample", sample.token)["data"][camera.name]
        _, seen, intrinsic = devkit.get_sample_data(data)
        assert len(seen) == record["boxes_visible_any"][camera.name]
        lidar2img = torch.from_numpy(camera.lidar2img)[None, None]
        ours, _ = project_points(dataset.index.boxes(0)[None, :, :3], lidar2img)
        for box in seen:
            expected = view_points(box.center[:, None], intrinsic, normalize=True)[:2, 0]
            error = np.abs(ours[0, 0, tokens.index(box.token)].numpy() - expected).max()
            assert error + record["center_2d_max_px_error"] < 0.5
            assert error < 1e-3
            compared += 1
    assert compared == sum(record["boxes_visible_any"].values())


def test_lidar_points_fall_into_the_images_as_recorded(shared: Path, real_config: NuScenesConfig) -> None:
    folder = shared / "data/nuscenes-sample"
    record = json.loads((folder / "extra/expected.json").read_text())["lidar_points_in_image"]
    cloud = np.fromfile(next((folder / "samples/LIDAR_TOP").iterdir()), np.float32).reshape(-1, 5)[:, :3]
    cameras = NuScenesDataset(real_config, "mini_train")[0].cameras
    assert cameras is not None
    lidar2img = torch.from_numpy(np.stack([camera.lidar2img for camera in cameras]))[None]
    pixels, depth = project_points(torch.from_numpy(cloud)[None], lidar2img)
    inside = (pixels > 1) & (pixels < torch.tensor([1599, 899]))
    counts = (inside.all(-1) & (depth > 1)).sum(-1)[0].tolist()
    assert dict(zip((camera.name for camera in cameras), counts, strict=True)) == record


def test_a_data_set_travels_to_other_processes_without_its_tables(config: NuScenesConfig) -> None:
    dataset = NuScenesDataset(config, "mini_val", training=True)
    packed = pickle.dumps(dataset)
    assert len(packed) < 20_000
    copy = pickle.loads(packed)
    assert copy.tokens == dataset.tokens
    torch.testing.assert_close(copy.targets(1).boxes, dataset.targets(1).boxes, equal_nan=True)
