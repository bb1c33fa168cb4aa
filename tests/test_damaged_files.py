"""Files with random damage end in an error that names them, or do no harm; never in a traceback of our own."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from damage import (
    SNIPPETS,
    YAML_SNIPPETS,
    damaged_bytes,
    damaged_json,
    damaged_safetensors,
    damaged_tree,
    every_seed,
    outcome,
)
from PIL import Image

from bevdet_core import Detector, checkpoint
from bevdet_core.config import CocoConfig, NuScenesConfig, load_config
from bevdet_core.data import build_dataset
from bevdet_core.data.can_bus import CanBus
from bevdet_core.data.coco import CocoDataset
from bevdet_core.data.images import read_image
from bevdet_core.data.nuscenes import NuScenesDataset
from bevdet_core.data.nuscenes_tables import FIELDS
from bevdet_core.data.rig import read_frame
from bevdet_core.models import build_model
from bevdet_core.weights import read_weights

CONFIG = {
    "model": {
        **{"name": "detr3d", "embed_dim": 16, "num_queries": 5, "num_layers": 1, "num_heads": 2, "ffn_dim": 8},
        **{"num_levels": 1, "backbone": {"depth": 18, "width": 8, "out_stages": [4], "norm": "frozen"}},
        **{"pixels": {"mean": [1.0, 2.0, 3.0]}, "pc_range": [-9.0, -9, -2, 9, 9, 2], "perspective": True},
    },
    "data": {"name": "nuscenes", "root": "x", "input_size": [32, 64], "augment": {"flip": 0.5}, "classes": ["car"]},
    "train": {"lr_factors": {"backbone": 0.1}, "milestones": [3], "precision": "fp32", "epochs": 3},
}


@every_seed
def test_configurations(seeds, check, tmp_path):
    path = tmp_path / "settings.yaml"

    def use():
        config = load_config(path)
        with torch.device("meta"):  # a model of any size, without its memory
            build_model(config.model, 3)

    for seed in seeds:
        rng = np.random.default_rng([1, seed])
        if seed % 3:
            path.write_text(yaml.safe_dump(damaged_tree(CONFIG, rng)))
        else:
            path.write_bytes(damaged_bytes(yaml.safe_dump(CONFIG).encode(), rng, SNIPPETS + YAML_SNIPPETS))
        check(seed, outcome(use), "settings.yaml", "model.", "data.", "train.", " must ", "num_levels")


@every_seed
def test_coco_annotations(seeds, check, tmp_path):
    content = coco_content(tmp_path)
    path = tmp_path / "annotations.json"
    for seed in seeds:
        path.write_bytes(damaged_json(content, np.random.default_rng([2, seed])))
        on_error = "skip" if seed % 2 else "raise"
        config = CocoConfig(root=str(tmp_path), train_annotations=path.name, train_images=".", on_error=on_error)

        def use(config=config):
            dataset = CocoDataset(config, training=True)
            for i in range(len(dataset)):
                dataset.transform(dataset[i], np.random.default_rng(0))

        check(seed, outcome(use), "annotations.json", str(tmp_path))


def coco_content(folder: Path) -> dict:
    """Annotations of an image, which is written into the folder, under two ids."""
    Image.new("RGB", (40, 30)).save(folder / "a.png")
    return {
        "images": [{"id": i, "file_name": "a.png", "width": 40, "height": 30} for i in (1, 2)],
        "categories": [{"id": 1, "name": "car"}, {"id": 7, "name": "bus"}],
        "annotations": [
            {"id": i, "image_id": 1 + i % 2, "category_id": 7, "bbox": [1, 2, 10, 12.5], "area": 9.0, "iscrowd": 0}
            for i in range(3)
        ],
    }


@every_seed
def test_nuscenes_tables(seeds, check, synthetic_copy, tmp_path):
    tables = synthetic_copy / "v1.0-mini"
    whole = {path.name: path.read_bytes() for path in tables.iterdir()}
    for seed in seeds:
        rng = np.random.default_rng([3, seed])
        name = sorted([*FIELDS, "splits"])[seed % (len(FIELDS) + 1)] + ".json"
        content = json.loads(whole.get(name, b'{"mine": ["scene-0061"]}'))
        if isinstance(content, list):  # a small table: damage shall hit what matters
            content = content[: 3 if rng.random() < 0.3 else None]
        (tables / name).write_bytes(damaged_json(content, rng))
        on_error = "skip" if rng.random() < 0.5 else "raise"
        config = NuScenesConfig(root=str(synthetic_copy), version="v1.0-mini", input_size=(32, 64), on_error=on_error)

        def use(config=config):
            dataset = NuScenesDataset(config, "mini_train", training=True)
            for i in range(min(len(dataset), 2)):
                dataset.targets(i)
                dataset.transform(dataset[i], np.random.default_rng(0))

        check(seed, outcome(use), "table ", name, "sample ", "split ", "camera ", str(synthetic_copy))
        if name in whole:
            (tables / name).write_bytes(whole[name])
        else:
            (tables / name).unlink()


@every_seed
def test_rig_frames(seeds, check, tmp_path):
    Image.new("RGB", (16, 8)).save(tmp_path / "a.png")
    camera = {"name": "front", "image": "a.png", "intrinsic": np.eye(3).tolist(), "camera2lidar": np.eye(4).tolist()}
    content = {"cameras": [camera, camera], "lidar2global": np.eye(4).tolist(), "timestamp": 1.5}
    path = tmp_path / "frame.json"
    detector = Detector.load(write_small_checkpoint(tmp_path / "small.safetensors"), "cpu")
    for seed in seeds:
        path.write_bytes(damaged_json(content, np.random.default_rng([4, seed])))
        check(seed, outcome(lambda: detector.predict(read_frame(path))), "frame.json", "cameras", str(tmp_path))


def write_small_checkpoint(path: Path) -> Path:
    config = load_config(CONFIG, {"model.num_cameras": 2})
    torch.manual_seed(0)
    checkpoint.save(path, Detector(build_model(config.model, 1), config, ["car"]).checkpoint())
    return path


@every_seed
def test_checkpoints(seeds, check, tmp_path):
    path = write_small_checkpoint(tmp_path / "small.safetensors")
    whole = path.read_bytes()
    (length,) = struct.unpack("<Q", whole[:8])
    header, body = json.loads(whole[8 : 8 + length]), whole[8 + length :]
    for seed in seeds:
        rng = np.random.default_rng([5, seed])
        kind = rng.integers(4)
        if kind == 0:
            path.write_bytes(damaged_bytes(whole, rng))
        else:
            changed = dict(header)
            if kind == 1:
                changed = damaged_tree(header, rng)
            else:
                document = json.loads(header["__metadata__"][checkpoint.KEY])
                changed["__metadata__"] = {checkpoint.KEY: damaged_json(document, rng).decode(errors="replace")}
            text = json.dumps(changed).encode()
            path.write_bytes(struct.pack("<Q", len(text)) + text + body)
        check(
            seed,
            outcome(lambda: Detector.load(path, "cpu")),
            "small.safetensors",
            " must ",
            "model.",
            "data.",
            "train.",
            "settings",
        )


@every_seed
def test_weights_of_others(seeds, check, tmp_path):
    path = tmp_path / "weights.pth"
    for old in (False, True):
        torch.save(
            {"model": {"a": torch.ones(3, 4), "b": torch.zeros(2)}}, path, _use_new_zipfile_serialization=not old
        )
        whole = path.read_bytes()
        for seed in seeds:
            path.write_bytes(damaged_bytes(whole, np.random.default_rng([6, seed])))
            check(seed, outcome(lambda: read_weights(path)), "weights.pth")


@every_seed
def test_images(seeds, check, tmp_path):
    rng = np.random.default_rng(0)
    picture = Image.fromarray(rng.integers(0, 256, (20, 30, 3), dtype=np.uint8))
    for suffix in ("png", "jpg", "webp", "bmp", "gif", "tiff"):
        path = tmp_path / f"picture.{suffix}"
        picture.save(path)
        whole = path.read_bytes()
        for seed in seeds:
            path.write_bytes(damaged_bytes(whole, np.random.default_rng([7, seed])))
            check(seed, outcome(lambda path=path: read_image(path, upright=True)), path.name)


@every_seed
def test_can_bus_files(seeds, check, tmp_path):
    rest = {"pos": [1.0, 2, 3], "accel": [0, 0, 9.8], "rotation_rate": [0.0, 0, 0.1], "vel": [4.0, 0, 0]}
    content = [{"utime": 1_000_000 + 20_000 * i, "orientation": [1.0, 0, 0, 0.1], **rest} for i in range(3)]
    signals = CanBus(tmp_path).signals
    for seed in seeds:  # a name of its own for each, as what was read is remembered
        (tmp_path / f"{seed}_pose.json").write_bytes(damaged_json(content, np.random.default_rng([8, seed])))

        def use(seed=seed):
            assert np.isfinite(signals(str(seed), 1_010_000)).all()

        check(seed, outcome(use), f"{seed}_pose.json")


@every_seed
@pytest.mark.parametrize("kind", ["coco", "nuscenes"])
def test_index_files(kind, seeds, check, synthetic_copy, tmp_path):
    """Damage is noticed whatever it hits, and the index is built anew."""
    (tmp_path / "annotations.json").write_text(json.dumps(coco_content(tmp_path)))
    config = {
        "coco": CocoConfig(root=str(tmp_path), train_annotations="annotations.json", train_images="."),
        "nuscenes": NuScenesConfig(root=str(synthetic_copy), version="v1.0-mini", train_split="mini_train"),
    }[kind]
    dataset = build_dataset(config, training=True)
    path = dataset.index.path

    def content(index):
        return [[name, getattr(index, name).tolist()] for name in type(index).__annotations__]

    truth = content(dataset.index)
    whole = path.read_bytes()
    for seed in seeds:
        path.write_bytes(damaged_safetensors(whole, np.random.default_rng([9, seed])))

        def use():
            assert content(build_dataset(config, training=True).index) == truth

        check(seed, outcome(use), path.name)
