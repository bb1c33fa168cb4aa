"""CAN-bus files tell what poses tell, and more; those that are broken are named."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from bevdet_core.config import NuScenesConfig, PixelConfig
from bevdet_core.data.can_bus import WITHOUT, CanBus
from bevdet_core.data.images import SampleError
from bevdet_core.data.nuscenes import NuScenesDataset
from bevdet_core.data.rig_transforms import MirrorScene
from bevdet_core.models.ego_motion import DEGREES, MEASURED, FramePose, frame_poses, motion_between
from bevdet_core.structures import Sample, collate


@pytest.fixture
def config(synthetic_root: Path) -> NuScenesConfig:
    return NuScenesConfig(
        root=str(synthetic_root), version="v1.0-mini", train_split="mini_train", val_split="mini_val", can_bus="can_bus"
    )


def from_files(sample: Sample) -> FramePose:
    return FramePose(sample.token, can_bus=sample.can_bus, timestamp=sample.timestamp)


def from_poses(sample: Sample) -> FramePose:
    return FramePose(sample.token, sample.lidar2global, sample.lidar2ego, timestamp=sample.timestamp)


@pytest.mark.parametrize("mirror", [False, True])
@pytest.mark.parametrize("split", ["mini_train", "mini_val"])
def test_files_and_poses_tell_the_same_motion(config: NuScenesConfig, split: str, mirror: bool) -> None:
    samples = list(NuScenesDataset(config, split))
    if mirror:
        samples = [MirrorScene(1.0)(sample, np.random.default_rng(0)) for sample in samples]
    for before, now in zip([None, *samples[:-1]], samples, strict=True):
        told, shown = (
            motion_between(pose(now), None if before is None else pose(before)) for pose in (from_files, from_poses)
        )
        exact = [0, 1, 2, 3, 4, 5, 6, 16, DEGREES]
        torch.testing.assert_close(told.signals[0, exact], shown.signals[0, exact], atol=1e-3, rtol=0)
        torch.testing.assert_close(told.turn, shown.turn, atol=1e-3, rtol=0)
        if before is not None:  # poses tell means since the frame before, half a second ago
            torch.testing.assert_close(told.signals[0, MEASURED], shown.signals[0, MEASURED], atol=1.0, rtol=0)
            assert shown.signals[0, :3].norm() > 1.0


def test_where_both_exist_poses_tell_where_and_files_how_fast(config: NuScenesConfig) -> None:
    batch, _ = collate([NuScenesDataset(config, "mini_train")[1]], PixelConfig())
    (pose,) = frame_poses(batch)
    assert pose.can_bus is not None
    alone = replace(pose, can_bus=None)
    np.testing.assert_array_equal(pose.signals()[MEASURED], pose.can_bus[MEASURED])
    others = [*range(7), 16, 17]
    np.testing.assert_array_equal(pose.signals()[others], alone.signals()[others])
    assert alone.signals()[15] == 0 != pose.signals()[15]


def test_scenes_that_nuscenes_has_no_files_of_do_without(config: NuScenesConfig, synthetic_copy: Path) -> None:
    bus = CanBus(Path(config.root) / "can_bus")
    assert len(WITHOUT) == 21
    assert not bus.has("scene-0161")
    assert bus.has("scene-0169")
    assert bus.has("drive-of-my-own")
    dataset = NuScenesDataset(config, "mini_train")
    with_bus, without = dataset[0], dataset[1].replace(can_bus=None)
    batch, _ = collate([with_bus, without], PixelConfig())
    first, second = frame_poses(batch)
    np.testing.assert_array_equal(first.can_bus, with_bus.can_bus)
    assert second.can_bus is None
    batch, _ = collate([without], PixelConfig())
    assert batch.rig is not None
    assert batch.rig.can_bus is None


def test_the_rest_is_of_the_first_message_after_the_frame(tmp_path: Path) -> None:
    messages = [message(utime=1_000_000 + 20_000 * i, pos=[float(i), 0, 0], vel=[float(i), 0, 0]) for i in range(5)]
    (tmp_path / "s_pose.json").write_text(json.dumps(messages[::-1]))
    bus = CanBus(tmp_path)
    for time, x, speed in (
        (1_030_000, 1.5, 2.0),
        (1_020_000, 1.0, 2.0),
        (700_000, 0.0, 0.0),
        (1_080_000, 4.0, 4.0),
        (1_500_000, 4.0, 4.0),
    ):
        signals = bus.signals("s", time)
        assert signals[0] == pytest.approx(x)
        assert signals[13] == speed
        assert signals[16] == pytest.approx(np.pi / 2)
        assert signals[17] == pytest.approx(90)
        np.testing.assert_array_equal(signals[7:13], [0.1, 0.2, 9.8, 0.01, 0.02, 0.03])


def message(**changes) -> dict:
    return {
        "utime": 1_000_000,
        "pos": [1.0, 2.0, 0.0],
        "orientation": [-1.0, 0.0, 0.0, -1.0],
        "accel": [0.1, 0.2, 9.8],
        "rotation_rate": [0.01, 0.02, 0.03],
        "vel": [5.0, 0.0, 0.0],
        **changes,
    }


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[", "is damaged: "),
        ("{}", "must be a JSON list of messages"),
        ("[]", "must be a JSON list of messages"),
        ("[1]", "message 0: it must be a JSON object"),
        (json.dumps([message(), {"utime": 1}]), "message 1: it has no accel, orientation, pos, rotation_rate, vel"),
        (json.dumps([message(utime=0.5)]), "message 0: utime must be an integer, got 0.5"),
        (json.dumps([message(pos=[1, 2])]), "message 0: pos must be 3 finite numbers, got [1, 2]"),
        (json.dumps([message(vel=[1, float("nan"), 2])]), "message 0: vel must be 3 finite numbers"),
        (json.dumps([message(accel=[1, "x", 2])]), "message 0: accel must be 3 finite numbers"),
        (json.dumps([message(orientation=[0, 0, 0, 0])]), "message 0: its orientation is the zero quaternion"),
        (json.dumps([message(utime=9_000_000)]), "the nearest message to time 1000000 comes 8.00 s apart"),
    ],
)
def test_a_broken_file_is_named(tmp_path: Path, text: str, problem: str) -> None:
    (tmp_path / "scene-0001_pose.json").write_text(text)
    with pytest.raises(SampleError) as error:
        CanBus(tmp_path).signals("scene-0001", 1_000_000)
    assert str(tmp_path / "scene-0001_pose.json") in str(error.value)
    assert problem in str(error.value)


def test_missing_files_and_folders_are_named(config: NuScenesConfig, synthetic_copy: Path) -> None:
    config = replace(config, root=str(synthetic_copy))
    dataset = NuScenesDataset(config, "mini_train")
    path = synthetic_copy / "can_bus" / f"{dataset.scene(0)}_pose.json"
    path.unlink()
    with pytest.raises(SampleError, match=rf"{path.name} does not exist.*data\.can_bus"):
        dataset[0]
    with pytest.raises(FileNotFoundError, match=r"bus is no folder: data\.can_bus"):
        NuScenesDataset(replace(config, can_bus="bus"), "mini_train")
