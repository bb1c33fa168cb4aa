"""Official checkpoints of the DETR family as files: what they tell, what does not fit, the way back."""

from __future__ import annotations

import errno
import os
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
BACKBONE = ["--from", "torchvision-resnet"]
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
        (
            lambda w: w.update({"level_scale": torch.ones(3)}),
            r"keys that a Deformable DETR checkpoint does not have:\n  level_s",
        ),
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
        (["--from", "detr", "--out", "x.pth"], 2, "--out x.pth: must end in .safetensors"),
        (
            ["--to", "deformable-detr", "--out", "x.pth"],
            1,
            "ours.safetensors: deformable-detr weights are of model.name deform",
        ),
        (["--from", "hf-detr", "--out", "x.safetensors"], 1, "config.json is missing"),
        (["--to", "detr", "--out", "x.onnx"], 2, "--out x.onnx: must end in .safetensors or .pth or .pt or .bin"),
        (
            ["--to", "detr", "--out", "x.pth", "--config", "a.yaml", "--classes", "a.txt", "--model.num_queries", "3"],
            2,
            "no use for --config, --classes, --model.num_queries: a checkpoint of this library has its settings and",
        ),
        (
            [*BACKBONE, "--out", "x.pth", "--to", "detr", "--box_convention", "old"],
            2,
            "no use for --to, --box_convention: what torchvision-resnet makes is a backbone of this library",
        ),
        ([*BACKBONE, "--out", "x.safetensors", "--model.dropout=0"], 2, "no use for --model.dropout: what torch"),
        (
            ["--from", "detr", "--out", "x.safetensors", "--classes", "a.txt", "--data.classes", "[a]"],
            2,
            "no use for --data.classes: --classes names the classes",
        ),
        (
            ["--to", "detr", "--out", "x.pth", "--box_convention", "old"],
            1,
            "ours.safetensors: detr weights have 2D boxes, --box_convention is for those of 3D detectors",
        ),
        ([*BACKBONE, "--out", "x.safetensors"], 1, "ours.safetensors: no ResNet with torchvision's names"),
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
            "official.pth tells 91 classes apart, but --classes names 2; --classes FILE may",
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
        (
            {"detr.yaml": "model: {name: detr}\ndata: {name: coco, classes: [cat, dog]}"},
            ["official.pth", "--from", "detr", "--config", "detr.yaml"],
            "official.pth tells 91 classes apart, but data.classes of detr.yaml names 2; --classes FILE may name all",
        ),
        (
            {},
            ["official.pth", "--from", "detr", "--data.classes", "[cat, dog, cow]"],
            "official.pth tells 91 classes apart, but data.classes names 3",
        ),
        (
            {"config.json": '{"id2label": {"0": "cat"}}'},
            ["official.pth", "--from", "hf-detr"],
            "official.pth: a checkpoint of another release: it has no 'class_labels_classifier.bias'",
        ),
        (
            {},
            ["official.pth", "--from", "hf-deformable-detr", "--config", "configs/nuscenes/detr3d_r50.yaml"],
            "configs/nuscenes/detr3d_r50.yaml: hf-deformable-detr weights are of model.name deformable_detr, the set",
        ),
        ({}, ["official.pth", "--from", "deformable-detr"], "official.pth: a checkpoint of another release: it has no"),
        ({}, ["official.pth", "--to", "detr"], "official.pth: no checkpoint of this library (a run folder or .safet"),
        (
            {"folder/config.yaml": "model: {name: detr}"},
            ["folder", "--to", "detr"],
            "folder: no model.safetensors and no checkpoint in this folder",
        ),
        (
            {"config.json": '{"model_type": "yolos"}'},
            ["official.pth", "--from", "hf-detr"],
            "config.json: model_type 'yolos', hf-detr has 'detr'",
        ),
        (
            {"config.json": '{"num_channels": 4}'},
            ["official.pth", "--from", "hf-detr"],
            "config.json: num_channels = 4 is not supported, only 3",
        ),
        (
            {"config.json": '{"id2label": {"0": "cat", "2": "dog"}}'},
            ["official.pth", "--from", "hf-detr"],
            "config.json: no settings of such a detector: KeyError '1'",
        ),
        (
            {"config.json": '{"id2label": {"0": "cat", "1": null}}'},
            ["official.pth", "--from", "hf-detr"],
            "config.json: id2label must name every class, got {'0': 'cat', '1': None}",
        ),
        ({"config.json/a": ""}, ["official.pth", "--from", "hf-detr"], "config.json: cannot be read: Is a directory"),
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


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("cat\n\ndog\n", "names.txt: line 2 is blank, every line must name a class"),
        ("cat\ndog\ncat\n", "names.txt: line 3 names 'cat' again, after line 1"),
        ("\n\n", "names.txt: names no class"),
        ("cat\n\xe9t\xe9".encode("latin-1"), "names.txt: not a list of class names: no UTF-8 text"),
        ("cat".encode("utf-16-le"), "names.txt: line 1: 'c\\x00a\\x00t\\x00' is no plain text; the file must be UTF-8"),
        ("x" * 2**20, "names.txt: not a list of class names: its 1,048,576 bytes are more than"),
        (None, "names.txt: cannot read the class names: No such file or directory"),
    ],
)
def test_what_is_wrong_in_a_file_of_class_names_is_told(detr_file, text, message: str, tmp_path: Path, capsys):
    names = tmp_path / "names.txt"
    if text is not None:
        names.write_bytes(text if isinstance(text, bytes) else text.encode())
    command = ["convert", str(detr_file), "--from", "detr", "--out", str(tmp_path / "ours.safetensors")]
    assert main([*command, "--classes", str(names)]) == 1
    assert message in capsys.readouterr().err


def test_class_names_may_come_from_any_editor(detr_file, tmp_path: Path):
    """With a byte order mark, carriage returns, and blank lines at the end; the settings need not name them again."""
    (tmp_path / "names.txt").write_bytes(b"\xef\xbb\xbf" + b"".join(b"class %d \r\n" % i for i in range(91)) + b"\r\n")
    settings = Config(MODELS["detr"], CocoConfig())
    (tmp_path / "detr.yaml").write_text(settings.to_yaml())
    out = tmp_path / "ours.safetensors"
    command = ["convert", str(detr_file), "--from", "detr", "--out", str(out), "--config", str(tmp_path / "detr.yaml")]
    assert main([*command, "--classes", str(tmp_path / "names.txt")]) == 0
    assert Detector.load(out, "cpu").class_names == tuple(f"class {i}" for i in range(91))


@pytest.mark.parametrize(
    ("key", "tensor", "message"),
    [
        ("query_embed.weight", torch.ones(3), "query_embed.weight: shape (3,), in the release it has 2 dimensions"),
        ("class_embed.bias", torch.ones(0), "class_embed.bias: shape (0,), in the release it has 1 dimensions, none"),
        ("class_embed.bias", torch.ones(1), "class_embed.bias: a number for no object alone, and none for a class"),
        ("query_embed.weight", torch.ones(7, 30), "model.embed_dim = 30 must be a multiple of model.num_heads = 8"),
    ],
)
def test_shapes_that_tell_no_settings_are_named(detr_file, key: str, tensor, message: str, tmp_path: Path, capsys):
    write_release(read_weights(detr_file) | {key: tensor}, "detr", tmp_path / "odd.pth")
    out = tmp_path / "ours.safetensors"
    assert main(["convert", str(tmp_path / "odd.pth"), "--from", "detr", "--out", str(out)]) == 1
    assert f"{tmp_path / 'odd.pth'}: {message}" in capsys.readouterr().err
    assert not out.exists()


def conversions(folder: Path, detr_file: Path) -> dict[str, tuple[list[str], Path]]:
    """Each kind of conversion: its command without --out, and a file that it may write."""
    run = folder / "run"
    assert main(["convert", str(detr_file), "--from", "detr", "--out", str(run / "model.safetensors")]) == 0
    weights = {name.removeprefix("backbone."): t for name, t in load_file(run / "model.safetensors").items()}
    torch.save({name: t for name, t in weights.items() if name.startswith(("conv1", "bn1", "layer"))}, folder / "r.pth")
    return {
        "in": ([str(detr_file), "--from", "detr"], folder / "in.safetensors"),
        "out": ([str(run), "--to", "detr"], folder / "out.pth"),
        "out, safetensors": ([str(run), "--to", "detr"], folder / "out.safetensors"),
        "backbone": ([str(folder / "r.pth"), *BACKBONE], folder / "backbone.safetensors"),
    }


@pytest.mark.parametrize("kind", ["in", "out", "out, safetensors", "backbone"])
def test_a_file_is_replaced_by_a_whole_one_or_not_at_all(kind, detr_file, tmp_path: Path, monkeypatch, capsys):
    command, out = conversions(tmp_path, detr_file)[kind]
    out.write_text("from yesterday")
    capsys.readouterr()

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    before = sorted(tmp_path.rglob("*"))
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        assert main(["convert", *command, "--out", str(out)]) == 1
    assert re.search(rf"{out}: cannot write the (weights|checkpoint): .*No space left", capsys.readouterr().err)
    assert out.read_text() == "from yesterday"
    assert sorted(tmp_path.rglob("*")) == before

    assert main(["convert", *command, "--out", str(out)]) == 0
    assert capsys.readouterr().out.startswith(f"written: {out}, ")
    assert read_weights(out)

    assert main(["convert", *command, "--out", str(out / f"below{out.suffix}")]) == 1
    assert f"below{out.suffix}: cannot write the" in capsys.readouterr().err
    (tmp_path / f"folder{out.suffix}").mkdir()
    assert main(["convert", *command, "--out", str(tmp_path / f"folder{out.suffix}")]) == 1
    assert f"folder{out.suffix}: a folder, --out must name the file to write" in capsys.readouterr().err


def test_what_is_converted_is_not_overwritten(detr_file, tmp_path: Path, capsys):
    (command, _) = conversions(tmp_path, detr_file)["out"]
    for out in (tmp_path / "run" / "model.safetensors", tmp_path / "run" / ".." / "run" / "model.safetensors"):
        assert main(["convert", *command, "--out", str(out)]) == 1
        assert f"{out}: the very file that is converted, --out must name another one" in capsys.readouterr().err
    assert Detector.load(tmp_path / "run", "cpu").class_names == COCO_91


@pytest.mark.parametrize("terminal", [True, False])
def test_the_wait_is_shown_on_a_terminal_alone(terminal: bool, detr_file, tmp_path: Path, monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1" if terminal else "")
    out = tmp_path / "ours.safetensors"
    assert main(["convert", str(detr_file), "--from", "detr", "--out", str(out)]) == 0
    told = capsys.readouterr()
    assert ("reading, converting, writing" in told.err) == terminal
    assert told.out == f"written: {out}, a detr with 91 classes, {len(load_file(out))} tensors\n"
