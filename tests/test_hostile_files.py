"""Files that are meant to do harm: bombs, and names that lead out of the folder they belong to."""

import json
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from test_engine import SMALL

from bevdet_core.cli import main
from bevdet_core.config import CocoConfig, ConfigError, NuScenesConfig, load_config
from bevdet_core.data import coco_index
from bevdet_core.data.can_bus import CanBus
from bevdet_core.data.coco import CocoDataset
from bevdet_core.data.file_names import file_name, leaves_folder
from bevdet_core.data.images import SampleError, read_image
from bevdet_core.data.nuscenes import NuScenesDataset
from bevdet_core.data.rig import read_frame, write_frame
from bevdet_core.documents import DocumentError, parse_json, parse_yaml
from bevdet_core.structures import Camera, Sample


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[" * 100_000, "nested too deeply"),
        ("[" * 40 + "]" * 40, "nested more than 32"),
        ('{"a": 1, "b": {"c": 1, "c": 2}}', "'c' stands twice"),
        ("9" * 10_000, "limit"),
        ('{"a": ', "Expecting value"),
    ],
)
def test_json_that_is_refused(text, problem):
    with pytest.raises(DocumentError, match=problem):
        parse_json(text)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (
            "a0: &a0 [1, 1, 1, 1, 1, 1]\n" + "".join(f"a{i}: &a{i} [{f'*a{i - 1}, ' * 9}]\n" for i in range(1, 12)),
            "aliases",
        ),
        ("a: &a [*a]", "contains itself"),
        ("a: 1\nb: 2\na: 3", "'a' stands twice"),
        ("[" * 5000, "nested too deeply"),
        ("a: !!python/object/apply:os.system [ls]", "could not determine a constructor"),
        ("a: !!bool perhaps", "perhaps"),
    ],
)
def test_yaml_that_is_refused(text, problem):
    with pytest.raises(DocumentError, match=problem):
        parse_yaml(text)
    assert parse_yaml("a: &a {b: 1}\nc: *a") == {"a": {"b": 1}, "c": {"b": 1}}


def test_files_that_are_too_large_are_not_read(tmp_path, monkeypatch):
    with (tmp_path / "large.yaml").open("wb") as file:
        file.truncate(2**33)  # a hole: it takes no room on the disk
    with pytest.raises(ConfigError, match=r"large\.yaml.*8,589,934,592 bytes"):
        load_config(tmp_path / "large.yaml")
    (tmp_path / "large.yaml").rename(tmp_path / "large.json")
    with pytest.raises(ValueError, match=r"large\.json.*bytes"):
        read_frame(tmp_path / "large.json")
    monkeypatch.setattr(coco_index, "LARGE", 100)
    (tmp_path / "coco.json").write_text(" " * 101)
    with pytest.raises(SampleError, match=r"coco\.json.*101 bytes"):
        CocoDataset(CocoConfig(root=str(tmp_path), val_annotations="coco.json"))


@pytest.mark.parametrize("value", [".nan", ".inf", "[1, 2"])
def test_numbers_and_overrides_that_make_no_sense(value, tmp_path, capsys):
    (tmp_path / "a.yaml").write_text("{}")
    assert main(["train", str(tmp_path / "a.yaml"), "--train.lr", value]) == 1
    assert "train.lr" in capsys.readouterr().err


def test_a_bomb_of_an_image_is_not_unfolded(tmp_path):
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    for side in (10_000, 60_000):
        header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
        body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
        (tmp_path / "bomb.png").write_bytes(b"\x89PNG\r\n\x1a\n" + body)
        with pytest.raises(SampleError, match=r"bomb\.png.*pixels"):
            read_image(tmp_path / "bomb.png")


LEADING_OUT = ["../a.png", "/etc/a.png", "x/../../a.png", "..\\a.png", "C:\\a.png", "C:a.png", "a\0.png"]


@pytest.mark.parametrize("name", LEADING_OUT)
def test_names_that_lead_out_of_their_folder(name, tmp_path, synthetic_copy, edit_table):
    assert leaves_folder(name)
    (tmp_path / "data").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    Image.new("RGB", (8, 8)).save(tmp_path / "data" / "a.png")

    camera = {"image": name, "intrinsic": np.eye(3).tolist(), "camera2lidar": np.eye(4).tolist()}
    (tmp_path / "data" / "frame.json").write_text(json.dumps({"cameras": [camera]}))
    with pytest.raises(ValueError, match=r"frame\.json: cameras\[0\]: 'image' must be a file name in the folder"):
        read_frame(tmp_path / "data" / "frame.json")

    images = [{"id": 1, "file_name": name, "width": 8, "height": 8}]
    content = {"images": images, "categories": [{"id": 1, "name": "car"}], "annotations": []}
    (tmp_path / "data" / "coco.json").write_text(json.dumps(content))
    with pytest.raises(SampleError, match="file_name"):
        CocoDataset(CocoConfig(root=str(tmp_path / "data"), val_annotations="coco.json", val_images="."))

    edit_table(synthetic_copy, "sample_data", lambda records: [record.update(filename=name) for record in records])
    with pytest.raises(SampleError, match="filename"):
        NuScenesDataset(NuScenesConfig(root=str(synthetic_copy), version="v1.0-mini"), "mini_train")


def test_a_scene_whose_name_leads_out_of_the_can_bus_folder(tmp_path):
    (tmp_path / "can_bus").mkdir()
    (tmp_path / "x_pose.json").write_text("[]")
    with pytest.raises(SampleError, match=r"the name of scene '\.\./x' leads out of .*can_bus"):
        CanBus(tmp_path / "can_bus").signals("../x", 0)


@pytest.mark.parametrize(
    "settings",
    [
        {"id2label": {"7": "car"}},
        {"id2label": [1, 2]},
        {"num_labels": "many"},
        {"d_model": "wide"},
        {"d_model": -1},
        {"backbone_config": [1]},
        {"backbone_config": {"hidden_sizes": ["a", 1, 2, 3]}},
        {"backbone_config": {"depths": [1]}},
    ],
    ids=str,
)
def test_settings_of_transformers_that_make_no_sense(settings, tmp_path, capsys):
    (tmp_path / "config.json").write_text(json.dumps(settings))
    save_file({"a": torch.ones(1)}, tmp_path / "model.safetensors")
    command = ["convert", str(tmp_path), "--from", "hf-detr", "--out", str(tmp_path / "out.safetensors")]
    assert main(command) == 1
    told = capsys.readouterr().err
    assert told.startswith("bevdet convert: ")
    assert "Traceback" not in told
    assert not (tmp_path / "out.safetensors").exists()


def test_names_within_a_folder_stay_usable():
    assert not any(
        map(leaves_folder, ["a.png", "x/y/a.png", "x/../a.png", "./a.png", "..a.png", "a..png", "ü:x/a.png"])
    )


@pytest.mark.parametrize("token", ["../../outside", "/etc/x", "..", "a/b", "", "a\0b", "x" * 400])
def test_what_data_sets_call_things_does_not_decide_where_files_go(token, tmp_path):
    name = file_name(token)
    assert name
    assert not leaves_folder(name)
    assert len(name) <= 150
    assert not set(name) & set("/\\\0:")
    camera = Camera(token, np.eye(3), np.eye(4))
    write_frame(Sample([np.zeros((4, 4, 3), np.uint8)], [camera]), tmp_path / "frames" / "f.json")
    assert {path.parent.name for path in tmp_path.rglob("*") if path.is_file()} == {"frames"}


def test_settings_that_no_machine_can_take():
    for name, value in {
        "model.num_queries": 10**12,
        "model.num_layers": 10**6,
        "model.embed_dim": 0,
        "model.pixels.std": [1.0, 0.0, 1.0],
        "model.dropout": 1.5,
        "data.input_size": [0, 80],
        "train.workers": 10**6,
        "train.seed": -1,
    }.items():
        with pytest.raises(ConfigError, match=name):
            load_config(SMALL, {name: value})
