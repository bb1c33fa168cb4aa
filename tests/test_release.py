"""Official checkpoints of the DETR family as files: what they tell, what does not fit, the way back."""

from __future__ import annotations

import re
from argparse import Namespace
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import bevdet_core.checkpoint as checkpoints
from bevdet_core import Detector
from bevdet_core.checkpoint import Checkpoint
from bevdet_core.cli import main
from bevdet_core.config import BackboneConfig, CocoConfig, Config, DeformableDetrConfig, DenoisingConfig, DetrConfig
from bevdet_core.convert.coco_names import COCO_91
from bevdet_core.convert.release import to_release, write_release
from bevdet_core.models import build_model
from bevdet_core.weights import read_weights

SIZES = {"embed_dim": 32, "num_queries": 7, "encoder_layers": 2, "decoder_layers": 3, "ffn_dim": 48}
SINGLE = BackboneConfig(depth=18, width=8, out_stages=(4,))
MODELS = {
    "deformable-detr": DeformableDetrConfig(backbone=BackboneConfig(depth=50, width=4), **SIZES),
    "deformable-detr single-scale": DeformableDetrConfig(backbone=SINGLE, num_levels=1, encoder_points=2, **SIZES),
    "deformable-detr refine": DeformableDetrConfig(refine=True, backbone=BackboneConfig(depth=18, width=8), **SIZES),
    "deformable-detr two-stage": DeformableDetrConfig(
        refine=True, two_stage=True, backbone=BackboneConfig(depth=34, width=8), **(SIZES | {"num_queries": 300})
    ),
    "detr": DetrConfig(backbone=SINGLE, **SIZES),
    "detr pre-norm": DetrConfig(backbone=SINGLE, pre_norm=True, position="learned", **SIZES),
}


@pytest.fixture(params=MODELS)
def official(request, tmp_path: Path) -> tuple[str, Checkpoint, Path]:
    """(release, our checkpoint, the file as the release writes it, with the arguments of its training)."""
    torch.manual_seed(0)
    release, config = request.param.split()[0], MODELS[request.param]
    weights = build_model(config, 91).state_dict()
    saved = Checkpoint(weights, Config(config, CocoConfig()).to_dict(), COCO_91)
    file = tmp_path / "official.pth"
    torch.save({"model": to_release(saved, release), "args": Namespace(lr=1e-4), "epoch": 49}, file)
    return release, saved, file


def test_an_official_file_becomes_a_detector_and_a_file_again(official, tmp_path: Path, capsys):
    release, saved, file = official
    out, back = tmp_path / "ours.safetensors", tmp_path / "back.pth"
    assert main(["convert", str(file), "--from", release, "--out", str(out)]) == 0
    assert "with 91 classes" in capsys.readouterr().out
    detector = Detector.load(out, "cpu")
    assert detector.config.to_dict() == saved.config  # all of it read off the weights
    assert detector.class_names[18] == "dog"
    for name, tensor in detector.model.state_dict().items():
        assert torch.equal(tensor, saved.weights[name]), name

    assert main(["convert", str(out), "--to", release, "--out", str(back)]) == 0
    before, after = read_weights(file), read_weights(back)
    assert set(before) == set(after)
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_the_release_repeats_heads_that_its_decoder_uses():
    config = MODELS["deformable-detr two-stage"]
    saved = Checkpoint(build_model(config, 91).state_dict(), Config(config, CocoConfig()).to_dict(), COCO_91)
    official = to_release(saved, "deformable-detr")
    for key in ("class_embed.3.bias", "bbox_embed.0.layers.2.weight"):
        assert torch.equal(official[f"transformer.decoder.{key}"], official[key])


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda w: w.pop("query_embed.weight"), "no 'query_embed.weight'"),
        (lambda w: w.pop("input_proj.0.0.bias"), "neck.levels.0.0.bias: missing"),
        (lambda w: w.update({"mask_head.lay1.weight": torch.ones(3)}), "mask_head.lay1.weight"),
        (lambda w: w.update({"level_scale": torch.ones(3)}), "Deformable DETR checkpoint does not have: level_scale"),
        (
            lambda w: w.update({"transformer.reference_points.bias": torch.ones(3)}),
            r"queries.reference_points.bias: shape \(3,\), the model has \(2,\)",
        ),
        (lambda w: w.pop("backbone.0.body.layer2.1.conv1.weight"), "backbone.layer2.1.conv1.weight: missing"),
        (
            lambda w: [w.pop(key) for key in list(w) if ".layer3.1." in key],
            r"a backbone with \(2, 2, 1, 2\) blocks in its stages is no ResNet-18",
        ),
    ],
)
def test_what_does_not_fit_is_named(edit, message: str, tmp_path: Path, capsys):
    config = MODELS["deformable-detr refine"]
    saved = Checkpoint(build_model(config, 91).state_dict(), Config(config, CocoConfig()).to_dict(), COCO_91)
    weights = to_release(saved, "deformable-detr")
    edit(weights)
    write_release(weights, "deformable-detr", tmp_path / "official.pth")
    out = tmp_path / "ours.safetensors"
    assert main(["convert", str(tmp_path / "official.pth"), "--from", "deformable-detr", "--out", str(out)]) == 1
    assert re.search(message, capsys.readouterr().err)
    assert not out.exists()


def test_settings_and_class_names_can_be_given(tmp_path: Path):
    config = replace(MODELS["detr"], num_queries=5)
    saved = Checkpoint(build_model(config, 3).state_dict(), Config(config, CocoConfig()).to_dict(), ("a", "b", "c"))
    write_release(to_release(saved, "detr"), "detr", tmp_path / "official.safetensors")
    (tmp_path / "names.txt").write_text("cat\ndog\ncow\n")
    out = tmp_path / "ours.safetensors"
    command = ["convert", str(tmp_path / "official.safetensors"), "--from", "detr", "--out", str(out)]
    assert main([*command, "--classes", str(tmp_path / "names.txt"), "--model.backbone.dilation", "true"]) == 0
    detector = Detector.load(out, "cpu")
    assert detector.class_names == ("cat", "dog", "cow")
    assert detector.config.model.backbone.dilation


def test_denoising_weights_stay_behind():
    config = replace(MODELS["deformable-detr"], denoising=DenoisingConfig(groups=2))
    saved = Checkpoint(build_model(config, 91).state_dict(), Config(config, CocoConfig()).to_dict(), COCO_91)
    assert not any("denoising" in key or "label_embed" in key for key in to_release(saved, "deformable-detr"))


def test_a_torchvision_backbone_starts_a_detector(tmp_path: Path, capsys):
    backbone = build_model(MODELS["detr"], 1).backbone.state_dict()
    torch.save(backbone | {"fc.weight": torch.ones(2, 2), "fc.bias": torch.ones(2)}, tmp_path / "resnet.pth")
    out = tmp_path / "resnet.safetensors"
    command = ["convert", str(tmp_path / "resnet.pth"), "--from", "torchvision-resnet", "--out", str(out)]
    assert main(command) == 0
    assert "without fc.bias, fc.weight" in capsys.readouterr().out
    assert set(load_file(out)) == set(backbone)
    model = build_model(replace(MODELS["detr"], backbone=replace(SINGLE, weights=str(out))), 1)
    assert torch.equal(model.backbone.conv1.weight, backbone["conv1.weight"])


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (["--out", "x.safetensors"], 2, "name the release"),
        (["--from", "detr", "--out", "x.pth"], 2, "this library writes .safetensors files"),
        (["--to", "deformable-detr", "--out", "x.pth"], 1, "need a DeformableDetrConfig"),
        (["--from", "hf-detr", "--out", "x.safetensors"], 1, "config.json is missing"),
    ],
)
def test_commands_that_cannot_be_carried_out(words, status: int, message: str, tmp_path: Path, capsys):
    config = MODELS["detr"]
    file = tmp_path / "ours.safetensors"
    model = build_model(config, 91)
    checkpoints.save(file, Checkpoint(model.state_dict(), Config(config, CocoConfig()).to_dict(), COCO_91))
    assert main(["convert", str(file), *words]) == status
    assert message in capsys.readouterr().err


@pytest.fixture(scope="module")
def detr_file(tmp_path_factory) -> Path:
    """A file of the DETR release."""
    config = MODELS["detr"]
    saved = Checkpoint(build_model(config, 91).state_dict(), Config(config, CocoConfig()).to_dict(), COCO_91)
    path = tmp_path_factory.mktemp("release") / "official.pth"
    write_release(to_release(saved, "detr"), "detr", path)
    return path


@pytest.mark.parametrize(
    ("files", "words", "message"),
    [
        (
            {"names.txt": "cat\ndog\n"},
            ["official.pth", "--from", "detr", "--classes", "names.txt"],
            "official.pth tells 91 classes apart, but 2 class names are given",
        ),
        (
            {"detr.yaml": "model: {name: detr}\ndata: {name: coco}"},
            ["official.pth", "--from", "detr", "--config", "detr.yaml"],
            "detr.yaml: data.classes must name the classes of official.pth, in the order of its labels",
        ),
        (
            {},
            ["official.pth", "--from", "torchvision-resnet"],
            "official.pth: no ResNet with torchvision's names: it has no 'conv1' or 'layer4'",
        ),
        (
            {"folder/readme.txt": "weights come later"},
            ["folder", "--from", "hf-detr"],
            "folder: neither model.safetensors nor pytorch_model.bin in this folder",
        ),
        ({"config.json": "{"}, ["official.pth", "--from", "hf-detr"], "config.json: not a JSON file: Expecting"),
        ({"config.json": "[1]"}, ["official.pth", "--from", "hf-detr"], "config.json: must be a JSON object, got [1]"),
    ],
)
def test_files_that_do_not_belong_together_are_named(detr_file, files, words, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("official.pth").symlink_to(detr_file)
    for name, text in files.items():
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_text(text)
    assert main(["convert", *words, "--out", "ours.safetensors"]) == 1
    assert message in capsys.readouterr().err
    assert not Path("ours.safetensors").exists()
