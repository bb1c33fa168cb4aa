"""The synthetic nuScenes set, read back with nuscenes-devkit."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from nuscenes import NuScenes
from nuscenes.eval.common.config import config_factory
from nuscenes.eval.detection.evaluate import DetectionEval
from nuscenes.eval.detection.utils import category_to_detection_name
from nuscenes.utils.geometry_utils import BoxVisibility, points_in_box, view_points
from nuscenes.utils.splits import create_splits_scenes
from PIL import Image

from bevdet_core.data.synthetic import nuscenes_scene, synthesize_nuscenes

CHANNELS = {
    "CAM_FRONT",
    "CAM_FRONT_RIGHT",
    "CAM_BACK_RIGHT",
    "CAM_BACK",
    "CAM_BACK_LEFT",
    "CAM_FRONT_LEFT",
    "LIDAR_TOP",
}
SMALL: dict[str, Any] = {"frames_per_scene": 1, "image_size": (64, 36), "supersample": 1, "progress": False}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return synthesize_nuscenes(
        tmp_path_factory.mktemp("set") / "nuscenes",
        scenes=3,
        seed=5,
        frames_per_scene=3,
        image_size=(320, 180),
        workers=1,
        progress=False,
    )


@pytest.fixture(scope="module")
def nusc(root: Path) -> NuScenes:
    return NuScenes("v1.0-mini", str(root), verbose=False)


def digest(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_scenes_belong_to_the_official_splits(nusc: NuScenes) -> None:
    splits = create_splits_scenes()
    names = [scene["name"] for scene in nusc.scene]
    assert sum(name in splits["mini_train"] for name in names) == 2
    assert sum(name in splits["mini_val"] for name in names) == 1


def test_every_record_and_file_is_there(nusc: NuScenes, root: Path) -> None:
    assert len(nusc.sample) == 9
    assert len(nusc.sample_data) == len(nusc.ego_pose) == 9 * 7
    for sample in nusc.sample:
        assert set(sample["data"]) == CHANNELS
    for data in nusc.sample_data:
        path = root / data["filename"]
        pose = nusc.get("ego_pose", data["ego_pose_token"])
        assert pose["timestamp"] == data["timestamp"]
        assert str(data["timestamp"]) in data["filename"]
        if data["channel"] == "LIDAR_TOP":
            assert path.stat().st_size % 20 == 0
            assert path.stat().st_size > 20 * 1000
        else:
            with Image.open(path) as image:
                assert image.size == (data["width"], data["height"]) == (320, 180)
    for annotation in nusc.sample_annotation:
        nusc.get("visibility", annotation["visibility_token"])
        assert min(annotation["size"]) > 0
        assert annotation["translation"][2] == pytest.approx(annotation["size"][2] / 2, abs=1e-3)


@pytest.mark.parametrize("table", ["sample", "sample_data", "sample_annotation"])
def test_chains_run_both_ways_in_time(nusc: NuScenes, table: str) -> None:
    def time(row: dict[str, Any]) -> int:
        return row["timestamp"] if "timestamp" in row else nusc.get("sample", row["sample_token"])["timestamp"]

    links = 0
    for row in getattr(nusc, table):
        if row["next"]:
            after = nusc.get(table, row["next"])
            assert after["prev"] == row["token"]
            assert 0.45e6 < time(after) - time(row) < 0.55e6
            links += 1
    assert links > 0


def test_instances_count_their_annotations(nusc: NuScenes) -> None:
    for instance in nusc.instance:
        token, count = instance["first_annotation_token"], 0
        while token:
            row = nusc.get("sample_annotation", token)
            assert row["instance_token"] == instance["token"]
            last, token, count = token, row["next"], count + 1
        assert last == instance["last_annotation_token"]
        assert count == instance["nbr_annotations"]


def test_cameras_sample_before_the_lidar_while_the_vehicle_moves(nusc: NuScenes) -> None:
    drift = 0.0
    for sample in nusc.sample:
        lidar = nusc.get("sample_data", sample["data"]["LIDAR_TOP"])
        assert lidar["timestamp"] == sample["timestamp"]
        for channel in CHANNELS - {"LIDAR_TOP"}:
            camera = nusc.get("sample_data", sample["data"][channel])
            assert 0 < lidar["timestamp"] - camera["timestamp"] < 50_000
            a, b = (nusc.get("ego_pose", row["ego_pose_token"])["translation"] for row in (lidar, camera))
            drift = max(drift, float(np.linalg.norm(np.subtract(a, b))))
    assert 0.03 < drift < 0.5


def test_point_counts_are_those_of_the_sweep(nusc: NuScenes) -> None:
    counts = []
    for sample in nusc.sample:
        path, boxes, _ = nusc.get_sample_data(sample["data"]["LIDAR_TOP"])
        points = np.fromfile(path, np.float32).reshape(-1, 5)[:, :3].T
        for box in boxes:
            counts.append(nusc.get("sample_annotation", box.token)["num_lidar_pts"])
            assert points_in_box(box, points).sum() == counts[-1]
    assert np.median(counts) > 10


def test_velocity_follows_the_heading_and_agrees_with_the_attribute(nusc: NuScenes) -> None:
    moving = 0
    for annotation in nusc.sample_annotation:
        velocity = nusc.box_velocity(annotation["token"])
        heading = nusc.get_box(annotation["token"]).orientation.rotation_matrix[:, 0]
        speed = float(velocity @ heading)
        assert np.linalg.norm(velocity - speed * heading) < 0.01  # positions are rounded to a millimetre
        names = [nusc.get("attribute", token)["name"] for token in annotation["attribute_tokens"]]
        category = category_to_detection_name(annotation["category_name"])
        if category in ("barrier", "traffic_cone"):
            assert names == []
            assert abs(speed) < 0.01
        elif category in ("motorcycle", "bicycle"):
            assert names in (["cycle.with_rider"], ["cycle.without_rider"])
            assert speed < 0.01 or names == ["cycle.with_rider"]
        else:
            assert len(names) == 1
            assert names[0].endswith(".moving") == (speed > 0.2)
        moving += speed > 0.2
    assert moving > 10


def test_pictures_show_what_the_tables_say(nusc: NuScenes) -> None:
    """A cone's orange pixels lie where the devkit's chain of poses projects its box, and not beside it."""
    inside, beside, offsets = [], [], []
    for sample in nusc.sample:
        for channel in CHANNELS - {"LIDAR_TOP"}:
            path, boxes, intrinsic = nusc.get_sample_data(sample["data"][channel], box_vis_level=BoxVisibility.ALL)
            with Image.open(path) as image:
                red, green, blue = np.asarray(image).astype(float).transpose(2, 0, 1)
            orange = (red > 1.5 * green) & (red > 2.0 * blue)
            for box in boxes:
                visibility = nusc.get("sample_annotation", box.token)["visibility_token"]
                corners = view_points(box.corners(), intrinsic, normalize=True)[:2]
                (left, top), (right, bottom) = corners.min(1).astype(int), corners.max(1).astype(int) + 1
                if "trafficcone" not in box.name or visibility != "4" or bottom - top < 20 or left < 12:
                    continue  # hidden, too small for the JPEG's halved colour resolution, or without a neighbourhood
                patch = orange[top:bottom, left:right]
                inside.append(patch.mean())
                beside.append(orange[top:bottom, left - 12 : left - 2].mean())
                if patch.any():
                    u = view_points(box.center[:, None], intrinsic, normalize=True)[0, 0]
                    offsets.append(abs(np.flatnonzero(patch.any(0)).mean() + left + 0.5 - u))
    assert len(inside) >= 10
    assert np.mean(np.array(inside) > 0.1) >= 0.9
    assert np.median(beside) == 0.0
    assert np.median(offsets) < 1.0


def test_its_truth_as_prediction_scores_full_marks(nusc: NuScenes, tmp_path: Path) -> None:
    results: dict[str, list[dict[str, Any]]] = {}
    val = create_splits_scenes()["mini_val"]
    for sample in nusc.sample:
        if nusc.get("scene", sample["scene_token"])["name"] not in val:
            continue
        results[sample["token"]] = []
        for token in sample["anns"]:
            row = nusc.get("sample_annotation", token)
            if row["num_lidar_pts"] == 0:
                continue  # the devkit drops them from the truth
            names = [nusc.get("attribute", key)["name"] for key in row["attribute_tokens"]]
            results[sample["token"]].append(
                {
                    "sample_token": sample["token"],
                    "translation": row["translation"],
                    "size": row["size"],
                    "rotation": row["rotation"],
                    "velocity": nusc.box_velocity(token)[:2].tolist(),
                    "detection_name": category_to_detection_name(row["category_name"]),
                    "detection_score": 0.9,
                    "attribute_name": names[0] if names else "",
                }
            )
    uses = ("camera", "lidar", "radar", "map", "external")
    submission = tmp_path / "results.json"
    submission.write_text(json.dumps({"meta": {f"use_{use}": False for use in uses}, "results": results}))
    config = config_factory("detection_cvpr_2019")
    evaluation = DetectionEval(nusc, config, str(submission), "mini_val", str(tmp_path), verbose=False)
    metrics, _ = evaluation.evaluate()
    assert metrics.mean_ap == pytest.approx(1.0, abs=1e-6)
    assert metrics.nd_score == pytest.approx(1.0, abs=1e-6)


def test_same_arguments_give_the_same_bytes_for_any_number_of_processes(tmp_path: Path) -> None:
    one = digest(synthesize_nuscenes(tmp_path / "one", 3, 11, workers=1, **SMALL))
    two = digest(synthesize_nuscenes(tmp_path / "two", 3, 11, workers=2, **SMALL))
    other = digest(synthesize_nuscenes(tmp_path / "other", 3, 12, workers=1, **SMALL))
    assert one == two
    assert len(one) == 13 + 3 * 7 + 2  # tables, sensor files, map and manifest
    assert set(one.values()) & set(other.values()) == {
        one[f"v1.0-mini/{name}.json"] for name in ("category", "attribute", "visibility", "sensor")
    } | {one[name] for name in one if name.startswith("maps/")}


def test_a_complete_set_is_left_alone_and_another_is_refused(tmp_path: Path) -> None:
    out = synthesize_nuscenes(tmp_path / "set", 2, 1, workers=1, **SMALL)
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    synthesize_nuscenes(out, 2, 1, workers=1, **SMALL)
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before
    with pytest.raises(FileExistsError, match=r"seed: 1 there, 2 asked for"):
        synthesize_nuscenes(out, 2, 2, workers=1, **SMALL)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("keep me")
    with pytest.raises(FileExistsError, match="mine is not empty"):
        synthesize_nuscenes(tmp_path / "mine", 2, 1, workers=1, **SMALL)
    assert (tmp_path / "mine" / "letter.txt").read_text() == "keep me"


def test_a_file_is_no_folder_to_write_to(tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("keep me")
    with pytest.raises(FileExistsError, match=r"letter\.txt is a file; give a folder that does not exist yet"):
        synthesize_nuscenes(tmp_path / "letter.txt", 2, 1, workers=1, **SMALL)
    assert (tmp_path / "letter.txt").read_text() == "keep me"


def test_an_interrupted_run_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    render, calls = nuscenes_scene.write_scene, []

    def interrupted(job: Any) -> Any:
        calls.append(job)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return render(job)

    monkeypatch.setattr(nuscenes_scene, "write_scene", interrupted)
    with pytest.raises(KeyboardInterrupt):
        synthesize_nuscenes(tmp_path / "set", 2, 1, workers=1, **SMALL)
    assert len(calls) == 2
    assert list(tmp_path.iterdir()) == []


def test_larger_sets_take_the_names_of_trainval(tmp_path: Path) -> None:
    root = synthesize_nuscenes(tmp_path / "set", 2, version="v1.0-trainval", val_scenes=1, workers=1, **SMALL)
    nusc = NuScenes("v1.0-trainval", str(root), verbose=False)
    splits = create_splits_scenes()
    assert nusc.scene[0]["name"] in splits["train"]
    assert nusc.scene[1]["name"] in splits["val"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"scenes": 0}, "scenes must be at least 1, got 0"),
        ({"scenes": 2, "val_scenes": 3}, "val_scenes must lie between 0 and scenes = 2, got 3"),
        ({"scenes": 2, "frames_per_scene": 0}, "frames_per_scene must be at least 1, got 0"),
        ({"scenes": 2, "image_size": (8, 8)}, r"image_size must be .* got \(8, 8\)"),
        ({"scenes": 2, "supersample": 0}, "supersample must lie between 1 and 8, got 0"),
        ({"scenes": 2, "jpeg_quality": 120}, "jpeg_quality must lie between 1 and 95, got 120"),
        ({"scenes": 2, "workers": 0}, "workers must be at least 1, got 0"),
        ({"scenes": 2, "version": "v1.0-test"}, "version must be one of v1.0-mini, v1.0-trainval, got 'v1.0-test'"),
        ({"scenes": 20, "version": "v1.0-mini"}, "v1.0-mini has 8 scene names in its split mini_train, 16 are needed"),
    ],
)
def test_wrong_arguments_are_named(tmp_path: Path, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        synthesize_nuscenes(tmp_path / "set", **{"progress": False, **arguments})
    assert list(tmp_path.iterdir()) == []
