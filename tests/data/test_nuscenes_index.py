import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from bevdet_core.config import NuScenesConfig
from bevdet_core.data.images import SampleError
from bevdet_core.data.index_file import read_index, write_index
from bevdet_core.data.nuscenes_index import NuScenesIndex, open_index
from bevdet_core.geometry import yaw_of


@pytest.fixture(scope="module", params=["synthetic", "real"])
def root(request: pytest.FixtureRequest) -> Path:
    if request.param == "synthetic":
        return request.getfixturevalue("synthetic_root")
    return Path(request.getfixturevalue("real_config").root)


@pytest.fixture(scope="module")
def index(root: Path, tmp_path_factory: pytest.TempPathFactory) -> NuScenesIndex:
    return open_index(root, "v1.0-mini", tmp_path_factory.mktemp("index"))


@pytest.fixture(scope="module")
def devkit(root: Path):
    from nuscenes import NuScenes

    return NuScenes("v1.0-mini", str(root), verbose=False)


def test_boxes_are_those_of_the_devkit(index: NuScenesIndex, devkit) -> None:
    seen = 0
    for row in range(len(index)):
        sample = devkit.get("sample", index.token(row))
        _, expected, _ = devkit.get_sample_data(sample["data"]["LIDAR_TOP"])
        assert [box.token for box in expected] == index.box_tokens(row)
        boxes = index.boxes(row).double().numpy()
        for box, ours in zip(expected, boxes, strict=True):
            np.testing.assert_allclose(ours[:3], box.center, atol=1e-5)
            np.testing.assert_allclose(ours[3:6], box.wlh, rtol=1e-6)
            assert np.cos(ours[6] - yaw_of(box.orientation.rotation_matrix)) == pytest.approx(1, abs=1e-12)
        seen += len(boxes)
    assert seen == len(devkit.sample_annotation)


def test_velocities_are_those_of_the_devkit(index: NuScenesIndex, devkit) -> None:
    for row in range(len(index)):
        velocity = index.boxes(row)[:, 7:].double().numpy()
        for token, ours, own in zip(
            index.box_tokens(row), velocity, index.box_velocity[index.box_rows(row)], strict=True
        ):
            expected = devkit.box_velocity(token)
            np.testing.assert_allclose(own, expected[:2], rtol=1e-9, atol=1e-12)
            turned = index.lidar2global[row, :3, :3].T @ [expected[0], expected[1], 0]
            np.testing.assert_allclose(ours, turned[:2], rtol=1e-5, atol=1e-6)


def test_calibration_carries_the_ego_motion_between_the_exposures(index: NuScenesIndex, devkit) -> None:
    from nuscenes.utils.geometry_utils import transform_matrix
    from pyquaternion import Quaternion

    def chain(token: str) -> tuple[np.ndarray, np.ndarray]:
        record = devkit.get("sample_data", token)
        parts = (("calibrated_sensor", "calibrated_sensor_token"), ("ego_pose", "ego_pose_token"))
        poses = [devkit.get(table, record[key]) for table, key in parts]
        ego, world = (transform_matrix(p["translation"], Quaternion(p["rotation"])) for p in poses)
        return world @ ego, world

    moved = 0.0
    for row in range(len(index)):
        data = devkit.get("sample", index.token(row))["data"]
        lidar2global, ego2global = chain(data["LIDAR_TOP"])
        np.testing.assert_allclose(index.lidar2global[row], lidar2global, atol=1e-9)
        np.testing.assert_allclose(index.ego2global[row], ego2global, atol=1e-9)
        for channel in index.cameras:
            camera2global, camera_ego = chain(data[channel])
            camera = index.camera(row, channel)
            np.testing.assert_allclose(camera.camera2lidar, np.linalg.inv(lidar2global) @ camera2global, atol=1e-9)
            assert (Path(devkit.dataroot) / index.camera_file(row, channel)).is_file()
            moved = max(moved, float(np.linalg.norm(camera_ego[:3, 3] - ego2global[:3, 3])))
    assert moved > 0.05  # a rig that stands still would prove nothing


def test_samples_stand_in_the_order_of_scenes_and_time(index: NuScenesIndex) -> None:
    keys = list(zip(index.sample_scene.tolist(), index.timestamp.tolist(), strict=True))
    assert keys == sorted(keys)
    assert [index.rows[index.token(row)] for row in range(len(index))] == list(range(len(index)))


def test_splits_by_name_scene_and_token(synthetic_root: Path, tmp_path: Path) -> None:
    index = open_index(synthetic_root, "v1.0-mini", tmp_path)
    train, val = index.select("mini_train"), index.select("mini_val")
    assert len(train) == len(val) == 4
    assert index.select(index.scene(val[0])).tolist() == val.tolist()
    assert index.select(f"{index.token(val[1])}, {index.scene(train[0])}").tolist() == [*train, val[1]]
    with pytest.raises(ValueError, match=r"no split, scene or sample token 'mini_vall'; nearest: mini_val"):
        index.select("mini_vall")
    with pytest.raises(ValueError, match=r"split 'test' has no sample .* splits with samples: .*mini_train, mini_val"):
        index.select("test")
    with pytest.raises(ValueError, match="names nothing"):
        index.select(" , ")


def test_splits_of_the_data_set_itself(synthetic_copy: Path) -> None:
    first = open_index(synthetic_copy, "v1.0-mini")
    scene = first.scenes[1]
    (synthetic_copy / "v1.0-mini" / "splits.json").write_text(json.dumps({"night": [scene]}))
    index = open_index(synthetic_copy, "v1.0-mini")
    assert {index.scene(row) for row in index.select("night")} == {scene}


def test_later_starts_read_the_index_alone(synthetic_copy: Path) -> None:
    built = open_index(synthetic_copy, "v1.0-mini")
    assert built.path == synthetic_copy / "bevdet-index-v1.0-mini.safetensors"
    code = (
        "import sys\n"
        "from bevdet_core.data.nuscenes_index import open_index\n"
        f"index = open_index({str(synthetic_copy)!r}, 'v1.0-mini')\n"
        "index.boxes(0)\n"
        "print(len(index), 'nuscenes' in sys.modules, 'cv2' in sys.modules)\n"
    )
    changed = built.path.stat().st_mtime_ns
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.split() == ["8", "False", "False"]
    assert built.path.stat().st_mtime_ns == changed


def test_a_changed_table_makes_the_index_stale(synthetic_copy: Path, edit_table: Callable) -> None:
    before = open_index(synthetic_copy, "v1.0-mini").boxes(0)
    edit_table(synthetic_copy, "sample_annotation", lambda records: [r.update(size=[1.0, 2.0, 3.0]) for r in records])
    after = open_index(synthetic_copy, "v1.0-mini").boxes(0)
    assert not torch.equal(before, after)
    assert after[:, 3:6].unique(dim=0).tolist() == [[1, 2, 3]]


def test_a_damaged_index_is_built_again(synthetic_copy: Path) -> None:
    path = open_index(synthetic_copy, "v1.0-mini").path
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    assert len(open_index(synthetic_copy, "v1.0-mini")) == 8
    assert path.read_bytes() == whole


def test_processes_that_start_at_once_share_one_index(synthetic_copy: Path) -> None:
    code = (
        "from bevdet_core.data.nuscenes_index import open_index\n"
        f"print(len(open_index({str(synthetic_copy)!r}, 'v1.0-mini')))\n"
    )

    def start(_: int) -> str:
        return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout

    with ThreadPoolExecutor(3) as pool:
        assert [out.strip() for out in pool.map(start, range(3))] == ["8"] * 3
    assert not list(synthetic_copy.glob(".*.part"))


def test_a_read_only_root_is_left_alone(synthetic_copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    os.chmod(synthetic_copy, 0o555)
    try:
        index = open_index(synthetic_copy, "v1.0-mini")
    finally:
        os.chmod(synthetic_copy, 0o755)
    assert index.path.parent == tmp_path / "cache" / "bevdet"
    assert not list(synthetic_copy.glob("bevdet-index*"))


def _first(field: str, value: object) -> Callable[[list[dict]], None]:
    return lambda records: records[0].update({field: value})


@pytest.mark.parametrize(
    ("table", "field", "value", "problem"),
    [
        ("sample_annotation", "instance_token", "gone", "its instance 'gone' is not in table instance"),
        ("sample_annotation", "sample_token", "gone", "its sample 'gone' is not in table sample"),
        ("sample_annotation", "attribute_tokens", ["gone"], "its attribute 'gone' is not in table attribute"),
        ("sample_annotation", "next", "gone", "its next annotation 'gone' is not in table sample_annotation"),
        ("sample_annotation", "translation", [1.0, float("nan"), 0.0], "its translation .* is not finite"),
        ("sample_annotation", "size", [1.0, -2.0, 1.0], "its size .* must be positive"),
        ("sample_annotation", "rotation", [0.0, 0.0, 0.0, 0.0], "its rotation is the zero quaternion"),
        ("sample_annotation", "translation", [1.0, 2.0], "this one has 9"),
        ("sample", "scene_token", "gone", "its scene 'gone' is not in table scene"),
        ("sample_data", "ego_pose_token", "gone", "its pose 'gone' is not in table ego_pose"),
        ("sample_data", "calibrated_sensor_token", "gone", "its calibration 'gone' is not in table calibrated_sensor"),
        ("sample_data", "sample_token", "gone", "its sample 'gone' is not in table sample"),
    ],
)
def test_a_broken_record_is_named_and_left_out(
    synthetic_copy: Path, edit_table: Callable, table: str, field: str, value: object, problem: str
) -> None:
    edit_table(synthetic_copy, table, _first(field, value))
    token = json.loads((synthetic_copy / "v1.0-mini" / f"{table}.json").read_text())[0]["token"]
    index = open_index(synthetic_copy, "v1.0-mini")
    named = [str(fault) for fault in index.faults if fault.table == table and fault.token == token]
    assert len(named) == 1
    assert named[0].startswith(f"table {table}, token '{token}': ")
    assert re.search(problem, named[0])


@pytest.mark.parametrize(
    ("table", "change", "left_out"),
    [
        (
            "calibrated_sensor",
            {"sensor_token": "gone"},
            r"sample_data, token '\w+': the sensor 'gone' of its calibration is not in table sensor",
        ),
        (
            "calibrated_sensor",
            {"camera_intrinsic": []},
            r"sample_data, token '\w+': its calibration '\w+' has no 3 x 3 camera_intrinsic",
        ),
        (
            "calibrated_sensor",
            {"camera_intrinsic": [[float("nan")] * 3] * 3},
            r"sample_data, token '\w+': the camera_intrinsic of its calibration '\w+' is not finite",
        ),
        (
            "calibrated_sensor",
            {"translation": [1.0, 2.0]},
            r"sample_data, token '\w+': calibrated_sensor '\w+': its translation \[1.0, 2.0\] is not finite, or not 3",
        ),
        (
            "ego_pose",
            {"rotation": [0.0] * 4},
            r"sample_data, token '\w+': ego_pose '\w+': a rotation must be a finite, non-zero quaternion .*, got \[0.0",
        ),
        (
            "instance",
            {"category_token": "gone"},
            r"sample_annotation, token '\w+': the category 'gone' of its instance is not in table category",
        ),
    ],
)
def test_what_points_to_a_broken_record_is_named_and_left_out(
    synthetic_copy: Path, edit_table: Callable, table: str, change: dict, left_out: str
) -> None:
    edit_table(synthetic_copy, table, lambda records: records[0].update(change))
    faults = [str(fault) for fault in open_index(synthetic_copy, "v1.0-mini").faults]
    assert faults
    assert all(re.match(f"table {left_out}", fault) for fault in faults), faults


def test_a_second_attribute_is_named(synthetic_copy: Path, edit_table: Callable) -> None:
    def double(records: list[dict]) -> None:
        next(record for record in records if record["attribute_tokens"])["attribute_tokens"] *= 2

    edit_table(synthetic_copy, "sample_annotation", double)
    (fault,) = open_index(synthetic_copy, "v1.0-mini").faults
    assert fault.problem == "it has 2 attributes, a detection class has at most one"


def test_an_unknown_category_is_named(synthetic_copy: Path, edit_table: Callable) -> None:
    def rename(records: list[dict]) -> None:
        next(record for record in records if record["name"] == "vehicle.car")["name"] = "vehicle.spaceship"

    total = len(json.loads((synthetic_copy / "v1.0-mini" / "sample_annotation.json").read_text()))
    edit_table(synthetic_copy, "category", rename)
    index = open_index(synthetic_copy, "v1.0-mini")
    odd = [
        fault for fault in index.faults if fault.problem == "its category 'vehicle.spaceship' is no nuScenes category"
    ]
    assert odd
    assert len(odd) + int(index.box_start[-1]) == total


def test_tables_that_are_missing_or_damaged(synthetic_copy: Path) -> None:
    tables = synthetic_copy / "v1.0-mini"
    text = (tables / "sample.json").read_text()
    (tables / "sample.json").write_text(text[: len(text) // 2])
    with pytest.raises(SampleError, match=r"sample\.json is damaged or cut off at character \d+"):
        open_index(synthetic_copy, "v1.0-mini")
    (tables / "sample.json").write_text('{"token": 1}')
    with pytest.raises(SampleError, match=r"sample\.json must be a JSON list of records"):
        open_index(synthetic_copy, "v1.0-mini")
    (tables / "sample.json").write_text('[{"token": "t", "timestamp": 1}]')
    with pytest.raises(SampleError, match=r"sample\.json, token 't': the record has no scene_token"):
        open_index(synthetic_copy, "v1.0-mini")
    (tables / "sample.json").unlink()
    with pytest.raises(SampleError, match=r"table .*sample\.json does not exist"):
        open_index(synthetic_copy, "v1.0-mini")
    assert not list(synthetic_copy.glob("bevdet-index*.safetensors"))


@pytest.mark.parametrize(
    ("table", "content", "message"),
    [
        ("sample", b'[{"token": "\xff"}]', "sample.json is damaged: no UTF-8 text"),
        ("sample", b'[{"token": "a", "token": "b"}]', "sample.json is damaged at character 1: the key 'token' stands"),
        ("sample", b"[7]", "sample.json, a record must be a JSON object, got 7"),
        ("sample", b'[{"token": "a", "timestamp": 0.5, "scene_token": "b"}]', "token 'a': timestamp cannot be 0.5"),
        ("splits", b'{"night": [', "splits.json is damaged: Expecting value"),
        ("splits", b'{"night": "scene-0061"}', "splits.json must map names of splits to lists of scene names"),
    ],
)
def test_damage_in_a_table_is_described(synthetic_copy: Path, table: str, content: bytes, message: str) -> None:
    (synthetic_copy / "v1.0-mini" / f"{table}.json").write_bytes(content)
    with pytest.raises(SampleError, match=re.escape(message)):
        open_index(synthetic_copy, "v1.0-mini")


def test_more_sensors_than_a_vehicle_has(synthetic_copy: Path, edit_table: Callable) -> None:
    more = [{"token": f"s{k}", "channel": f"CAM_{k}", "modality": "camera"} for k in range(100)]
    edit_table(synthetic_copy, "sensor", lambda records: records.extend(more))
    with pytest.raises(SampleError, match=r"table .*sensor\.json has 107 sensors, more than 100"):
        open_index(synthetic_copy, "v1.0-mini")


def test_an_index_cannot_name_files_outside_of_the_root(synthetic_copy: Path) -> None:
    path = open_index(synthetic_copy, "v1.0-mini").path
    columns, info = read_index(path)
    columns["camera_file"] = columns["camera_file"].copy()
    columns["camera_file"][..., :3] = list(b"../")
    write_index(path, columns, info)
    index = open_index(synthetic_copy, "v1.0-mini")
    with pytest.raises(SampleError, match=rf"{path.name}: the file name '\.\./.*' leads out of the root"):
        index.camera_file(0, "CAM_FRONT")


def test_a_version_that_does_not_exist(synthetic_root: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no nuScenes version 'v1.0-trainval' in .*: it has v1.0-mini"):
        open_index(synthetic_root, "v1.0-trainval")
    with pytest.raises(FileNotFoundError, match=r"/nowhere: no such folder, where data.root should be"):
        open_index(synthetic_root / "nowhere", "v1.0-trainval")
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "instances_train2017.json").write_text("{}")
    with pytest.raises(FileNotFoundError, match=r"it holds a COCO data set, which configurations with data\.name coco"):
        open_index(tmp_path, "v1.0-trainval")


def test_the_key_frame_has_what_its_records_say(real_config: NuScenesConfig) -> None:
    index = open_index(real_config.root, real_config.version, real_config.index_dir)
    assert index.token(0) == "ca9a282c9e77460f8360f564131a8af5"
    assert len(index.box_tokens(0)) == 69
    assert not index.faults
    assert np.isnan(index.box_velocity).all()
