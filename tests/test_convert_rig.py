"""Official weights of 3D detectors: names, box conventions, classes, offsets of deformable convolutions."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import tiny
import torch
from torch import Tensor

from bevdet_core import Detector, boxes3d, checkpoint
from bevdet_core.checkpoint import CheckpointError
from bevdet_core.cli import main
from bevdet_core.config import (
    BackboneConfig,
    ConfigError,
    Detr3dConfig,
    DetrConfig,
    PetrConfig,
)
from bevdet_core.convert.box_code import recoder
from bevdet_core.convert.detr3d import detr3d
from bevdet_core.convert.layout import load_official
from bevdet_core.convert.names import BOX_CONVENTIONS, RELEASES
from bevdet_core.convert.nuscenes_names import RELEASE_CLASSES
from bevdet_core.convert.petr import petr
from bevdet_core.convert.release import KINDS, layout_of, write_release
from bevdet_core.models import build_backbone, build_model
from bevdet_core.models.resnet import load_backbone_weights

BACKBONE = BackboneConfig(depth=50, width=4, style="caffe", deformable_stages=(3, 4))
PETR = PetrConfig(
    backbone=replace(BACKBONE, out_stages=(3, 4)),
    embed_dim=16,
    num_queries=5,
    num_layers=2,
    num_heads=2,
    ffn_dim=24,
    num_depths=4,
)
DETR3D = Detr3dConfig(backbone=BACKBONE, embed_dim=16, num_queries=5, num_layers=2, num_heads=2, ffn_dim=16)


def official_petr() -> dict[str, Tensor]:
    """The head and the neck of PETR as the release names and shapes them, layer by layer, with random numbers."""
    shapes: dict[str, tuple[int, ...]] = {"code_weights": (10,), "reference_points.weight": (5, 3)}

    def linear(name: str, outputs: int, inputs: int, *kernel: int) -> None:
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = (outputs, inputs, *kernel), (outputs,)

    def norm(name: str) -> None:
        shapes[f"{name}.weight"] = shapes[f"{name}.bias"] = (16,)

    linear("input_proj", 16, 16, 1, 1)
    linear("adapt_pos3d.0", 64, 24, 1, 1)
    linear("adapt_pos3d.2", 16, 64, 1, 1)
    linear("position_encoder.0", 64, 12, 1, 1)
    linear("position_encoder.2", 16, 64, 1, 1)
    linear("query_embedding.0", 16, 24)
    linear("query_embedding.2", 16, 16)
    norm("transformer.decoder.post_norm")
    for layer in range(2):
        place = f"transformer.decoder.layers.{layer}"
        for attention in range(2):
            shapes[f"{place}.attentions.{attention}.attn.in_proj_weight"] = (48, 16)
            shapes[f"{place}.attentions.{attention}.attn.in_proj_bias"] = (48,)
            linear(f"{place}.attentions.{attention}.attn.out_proj", 16, 16)
        linear(f"{place}.ffns.0.layers.0.0", 24, 16)
        linear(f"{place}.ffns.0.layers.1", 16, 24)
        for i in range(3):
            norm(f"{place}.norms.{i}")
    for i in (0, 3):
        linear(f"cls_branches.0.{i}", 16, 16)
        norm(f"cls_branches.0.{i + 1}")
    linear("cls_branches.0.6", 10, 16)
    for i in (0, 2):
        linear(f"reg_branches.0.{i}", 16, 16)
    linear("reg_branches.0.4", 10, 16)
    torch.manual_seed(1)
    head = {f"pts_bbox_head.{name}": torch.randn(shape) for name, shape in shapes.items()}
    head |= {key.replace("branches.0.", "branches.1."): t for key, t in head.items() if "branches.0." in key}
    shapes.clear()
    linear("lateral_convs.0.conv", 16, 64, 1, 1)
    linear("lateral_convs.1.conv", 16, 128, 1, 1)
    linear("fpn_convs.0.conv", 16, 16, 3, 3)
    neck = {f"img_neck.{name}": torch.randn(shape) for name, shape in shapes.items()}
    backbone = {f"img_backbone.{name}": t for name, t in build_backbone(PETR.backbone).state_dict().items()}
    return head | neck | backbone


def test_the_official_names_of_petr_are_all_ours():
    model = build_model(PETR, 10)
    official = official_petr()
    load_official(model, official, petr(2), "release")
    head = model.head
    for ours, theirs in (
        (head.ray_embed.encoder[0].weight, "position_encoder.0.weight"),
        (head.sine_embed.encoder[2].bias, "adapt_pos3d.2.bias"),
        (head.anchors.weight, "reference_points.weight"),
        (head.query_embed[2].weight, "query_embedding.2.weight"),
        (
            head.decoder.layers[1].cross_attention.in_proj.weight,
            "transformer.decoder.layers.1.attentions.1.attn.in_proj_weight",
        ),
        (head.decoder.norm.weight, "transformer.decoder.post_norm.weight"),
        (head.class_head[6].bias, "cls_branches.1.6.bias"),
    ):
        assert torch.equal(ours, official[f"pts_bbox_head.{theirs}"]), theirs
    back = petr(2).to_official(model.state_dict())
    del official["pts_bbox_head.code_weights"]
    assert set(back) == set(official)
    assert all(torch.equal(back[key], official[key]) for key in official)


def test_a_checkpoint_may_leave_repetitions_out_but_not_change_them():
    model, official = build_model(PETR, 10), official_petr()
    once = {key: t for key, t in official.items() if "branches.1." not in key}
    load_official(model, once, petr(2), "release")
    with pytest.raises(
        CheckpointError, match=r"cls_branches\.1\.6\.bias differs from pts_bbox_head\.cls_branches\.0\.6"
    ):
        load_official(model, official | {"pts_bbox_head.cls_branches.1.6.bias": torch.ones(10)}, petr(2), "release")


@pytest.mark.parametrize("convention", BOX_CONVENTIONS)
@pytest.mark.parametrize("config", [DETR3D, PETR])
def test_weights_survive_the_way_there_and_back(config, convention):
    torch.manual_seed(0)
    model, other = build_model(config, 10), build_model(config, 10)
    layout = petr(2, convention) if config is PETR else detr3d(convention)
    load_official(other, layout.to_official(model.state_dict()), layout, "there and back")
    for name, tensor in other.state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name]), name


@pytest.mark.parametrize(
    ("convention", "steps"), [("old", ["mmdet3d-0"]), ("new", ["mmdet3d-1"]), ("mixed", ["mmdet3d-0", "mmdet3d-1"])]
)
def test_codes_of_a_convention_mean_the_same_boxes(convention, steps):
    """Decoding a converted code gives the box that the convention makes of the raw one."""
    codes = torch.randn(50, 10, dtype=torch.float64)
    expected = boxes3d.decode(codes)
    for step in steps:  # one changes the yaw alone, the other the sizes alone
        expected = boxes3d.from_convention(expected, step, "gravity")
    difference = boxes3d.decode(recoder(convention)(codes.T).T) - expected
    difference[:, 6] = torch.sin(difference[:, 6] / 2)
    assert difference.abs().max() < 1e-12


def test_a_car_that_drives_ahead_is_the_same_in_every_convention():
    """4 m long, heading along y, the forward axis: yaw pi / 2, which mmdet3d before 1.0 writes as -pi."""
    yaw, yaw_old = math.pi / 2, -math.pi
    ours = boxes3d.encode(torch.tensor([1.0, 2, 0, 2, 4, 1.5, yaw, 0, 3], dtype=torch.float64))
    sizes = {"wl": ours[2:4], "lw": ours[2:4].flip(0)}
    for convention, order, angle in (("old", "wl", yaw_old), ("new", "lw", yaw), ("mixed", "lw", yaw_old)):
        raw = torch.cat(
            [
                ours[:2],
                sizes[order],
                ours[4:6],
                torch.tensor([angle]).double().sin(),
                torch.tensor([angle]).double().cos(),
                ours[8:],
            ]
        )
        torch.testing.assert_close(recoder(convention)(raw), ours, rtol=0, atol=1e-6)


@pytest.mark.parametrize("stage", [3, 4])
def test_offsets_of_deformable_convolutions_load_under_both_their_names(stage):
    model = build_model(DETR3D, 10)
    official = detr3d().to_official(model.state_dict())
    new, old = (f"img_backbone.layer{stage}.1.conv2{dot}offset.bias" for dot in (".conv_", "_"))
    offsets = official.pop(new).clone()
    assert offsets.shape == (27,)
    load_official(model, official | {old: offsets + 1}, detr3d(), "file")
    assert torch.equal(model.backbone.stage(stage)[1].conv2.conv_offset.bias, offsets + 1)
    backbone = build_backbone(BACKBONE)
    load_backbone_weights(backbone, official | {old: offsets + 2}, "file")
    assert torch.equal(backbone.stage(stage)[1].conv2.conv_offset.bias, offsets + 2)


def test_the_published_detr3d_loads_with_its_deformable_convolutions():
    """Names as the release's file has them, for ResNet-101: 23 blocks in stage 3, 3 in stage 4, none before."""
    with torch.device("meta"):
        config = Detr3dConfig(backbone=BackboneConfig(depth=101, style="caffe", deformable_stages=(3, 4)))
        official = detr3d().to_official(build_model(config, 10).state_dict())
    offsets = {key: tuple(t.shape) for key, t in official.items() if key.endswith("conv_offset.weight")}
    assert len(offsets) == 26
    assert offsets["img_backbone.layer3.22.conv2.conv_offset.weight"] == (27, 256, 3, 3)
    assert offsets["img_backbone.layer4.0.conv2.conv_offset.weight"] == (27, 512, 3, 3)
    assert tuple(official["img_neck.fpn_convs.3.conv.weight"].shape) == (256, 256, 3, 3)


def settings_file(path: Path, model: str, data: str = "") -> Path:
    sizes = "embed_dim: 16, num_queries: 5, num_layers: 2, num_heads: 2"
    backbone = "depth: 50, width: 4, style: caffe, deformable_stages: [3, 4]"
    if model == "petr":
        backbone, sizes = f"{backbone}, out_stages: [3, 4]", f"{sizes}, ffn_dim: 24, num_depths: 4"
    else:
        sizes = f"{sizes}, ffn_dim: 16"
    path.write_text(f"model: {{name: {model}, backbone: {{{backbone}}}, {sizes}}}\ndata: {{name: nuscenes, {data}}}\n")
    return path


@pytest.mark.parametrize(
    ("release", "config", "convention"),
    [("petr", PETR, "old"), ("detr3d", DETR3D, "old"), ("mmdet3d", DETR3D, "new"), ("mmdet3d", PETR, "mixed")],
)
def test_files_become_detectors_and_files_again(release, config, convention, tmp_path: Path):
    torch.manual_seed(0)
    model = build_model(config, 10)
    layout = petr(2, convention) if config is PETR else detr3d(convention)
    write_release(layout.to_official(model.state_dict()), release, tmp_path / "official.pth")
    settings = settings_file(tmp_path / "config.yaml", config.name)
    out, back = tmp_path / "ours.safetensors", tmp_path / "back.pth"
    command = ["convert", str(tmp_path / "official.pth"), "--from", release, "--config", str(settings)]
    assert main([*command, "--out", str(out)]) == 0
    detector = Detector.load(out, "cpu")
    for name, tensor in detector.model.state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name]), name
    # Labels are in the order of the release, and data are read with it.
    assert detector.class_names == detector.config.data.classes == RELEASE_CLASSES
    assert main(["convert", str(out), "--to", release, "--out", str(back)]) == 0
    again = torch.load(back, weights_only=True)["state_dict"]
    before = torch.load(tmp_path / "official.pth", weights_only=True)["state_dict"]
    assert set(again) == set(before)
    assert all(torch.equal(again[key], before[key]) for key in before)


def test_the_convention_of_a_file_can_be_named(tmp_path: Path):
    torch.manual_seed(0)
    model = build_model(DETR3D, 10)
    write_release(detr3d("new").to_official(model.state_dict()), "detr3d", tmp_path / "official.pth")
    settings = settings_file(
        tmp_path / "config.yaml",
        "detr3d",
        "classes: [bus, car, truck, trailer, barrier, bicycle, "
        "motorcycle, pedestrian, traffic_cone, construction_vehicle]",
    )
    out = tmp_path / "ours.safetensors"
    command = ["convert", str(tmp_path / "official.pth"), "--from", "detr3d", "--config", str(settings)]
    for convention, same in (("new", True), ("old", False)):
        assert main([*command, "--out", str(out), "--box_convention", convention]) == 0
        detector = Detector.load(out, "cpu")
        assert torch.equal(detector.model.head.box_heads[0][4].weight, model.head.box_heads[0][4].weight) == same
    assert detector.class_names[0] == "bus"  # what the settings name goes before the release's order


def test_other_classes_than_those_of_the_release_must_be_named(tmp_path: Path, capsys):
    write_release(detr3d().to_official(build_model(DETR3D, 3).state_dict()), "detr3d", tmp_path / "official.pth")
    settings, out = settings_file(tmp_path / "config.yaml", "detr3d"), tmp_path / "ours.safetensors"
    command = ["convert", str(tmp_path / "official.pth"), "--from", "detr3d", "--config", str(settings)]
    assert main([*command, "--out", str(out)]) == 1
    told = "official.pth tells 3 classes apart, but the release of detr3d names 10; --classes FILE may name all of them"
    assert told in capsys.readouterr().err
    (tmp_path / "names.txt").write_text("car\nbus\ntram\n")
    assert main([*command, "--out", str(out), "--classes", str(tmp_path / "names.txt")]) == 0
    detector = Detector.load(out, "cpu")
    assert detector.class_names == detector.config.data.classes == ("car", "bus", "tram")


def test_settings_that_came_with_the_package_serve_anywhere(tmp_path: Path, monkeypatch, capsys):
    """Also outside of a checkout; the order of the classes is looked up in the same file."""
    monkeypatch.chdir(tmp_path)
    write_release({"a": torch.ones(1)}, "petr", tmp_path / "official.pth")
    command = ["convert", "official.pth", "--from", "petr", "--out", "out.safetensors"]
    assert main([*command, "--config", "configs/nuscenes/petr_r50.yaml"]) == 1
    told = "official.pth: a checkpoint of another release: it has no 'pts_bbox_head.cls_branches.0.6.bias'"
    assert told in capsys.readouterr().err


@pytest.mark.parametrize("quirks", [True, False])
def test_a_bevformer_that_the_release_would_run_otherwise_is_told(quirks: bool, tmp_path: Path, capsys):
    detector = tiny.detector("bevformer")
    config = replace(detector.config, model=replace(detector.config.model, release_quirks=quirks))
    saved = Detector(detector.model, config, detector.class_names).checkpoint()
    checkpoint.save(tmp_path / "ours.safetensors", saved)
    words = [tmp_path / "ours.safetensors", "--to", "bevformer", "--out", tmp_path / "theirs.pth"]
    assert main(["convert", *map(str, words)]) == 0
    told = "; the release computes with model.release_quirks, without which these weights were trained"
    assert (told in capsys.readouterr().out) == (not quirks)


def test_the_names_of_releases_are_those_that_can_be_read():
    assert tuple(KINDS) == RELEASES


def test_what_does_not_belong_together_is_refused(tmp_path: Path, capsys):
    with pytest.raises(
        ConfigError, match=r"^mmdet3d weights are of model\.name detr3d or petr, the settings are of detr"
    ):
        layout_of("mmdet3d", DetrConfig())
    with pytest.raises(ConfigError, match="detr weights have 2D boxes"):
        layout_of("detr", DetrConfig(), "old")
    write_release({"a": torch.ones(1)}, "petr", tmp_path / "official.pth")
    command = ["convert", str(tmp_path / "official.pth"), "--from", "petr", "--out", str(tmp_path / "out.safetensors")]
    assert main(command) == 1
    assert "petr files do not tell their settings" in capsys.readouterr().err
