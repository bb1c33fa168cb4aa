"""Recorded outputs of official releases, through the tool that users run."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import check_parity
import numpy as np
import pytest
import torch

from bevdet_core.convert.detr3d import DETR3D
from bevdet_core.models import build_model
from bevdet_core.models.resnet import FrozenBatchNorm2d, ResNet

ROOT = Path(__file__).parents[1]
RECORDS = sorted((ROOT.parent / "shared" / "parity").glob("*.npz"))
TOOL = ROOT / "tools" / "check_parity.py"


@pytest.fixture
def record(shared: Path, tmp_path: Path) -> Path:
    """A copy of a record, to be changed."""
    shutil.copy(shared / "parity" / "parity_weights.py", tmp_path)
    return Path(shutil.copy(shared / "parity" / "detr3d_head.npz", tmp_path))


def rewrite(path: Path, edit) -> None:
    """Change the arrays of a record; `edit` gets (meta, arrays)."""
    with np.load(path) as data:
        arrays = {key: data[key] for key in data.files}
    meta = json.loads(arrays["meta"].tobytes())
    edit(meta, arrays)
    arrays["meta"] = np.frombuffer(json.dumps(meta).encode(), np.uint8)
    np.savez_compressed(path, **arrays)


@pytest.mark.parametrize("path", RECORDS, ids=lambda path: path.stem)
def test_record(path: Path):
    meta, _, outputs, _ = check_parity.load_record(path)
    if not check_parity.has_handler(meta["source"]):
        pytest.skip(f"records of source {meta['source']!r} have no handler yet")
    lines = list(check_parity.check(path))
    assert [str(line) for line in lines if not line.ok] == []
    assert {line.name for line in lines} == set(outputs)


def test_tool_prints_a_line_for_each_output(record: Path):
    done = subprocess.run([sys.executable, TOOL, record], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    _, _, outputs, _ = check_parity.load_record(record)
    lines = [line.split(" ") for line in done.stdout.splitlines()]
    assert {name for name, *_ in lines} == set(outputs)
    assert all(float(absolute) >= 0 and float(relative) >= 0 and ok == "ok" for _, absolute, relative, ok in lines)


def test_tool_fails_on_other_outputs(record: Path, monkeypatch, capsys):
    def edit(meta, arrays):
        arrays["output/hs"] = arrays["output/hs"] + np.float32(0.1)  # another value
        arrays["output/reference/init"] = arrays["output/reference/init"][:1]  # another shape
        arrays["output/decoded/0/labels"][3] += 1  # another decision
        arrays["output/unheard/of"] = np.zeros(3, np.float32)  # nobody computes it
        meta["tolerance"]["unheard/of"] = 1.0
        del arrays["output/grad_norm/pts_bbox_head.query_embedding.weight"]  # said to be frozen

    rewrite(record, edit)
    monkeypatch.setattr(sys, "argv", ["check_parity.py", str(record)])
    assert check_parity.main() == 1
    failed = [line.split()[0] for line in capsys.readouterr().out.splitlines() if line.endswith("FAIL")]
    assert sorted(failed) == [
        "decoded/0/labels",
        "grad_norm/pts_bbox_head.query_embedding.weight",
        "hs",
        "reference/init",
        "unheard/of",
    ]


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda meta, _: meta.update(source="yolo"), "nothing here computes records of source 'yolo'"),
        (lambda meta, _: meta["weights"]["state_dict"].update({"pts_bbox_head.extra": [1]}), "pts_bbox_head.extra"),
        (
            lambda meta, _: meta["config"]["pts_bbox_head"].update(as_two_stage=True),
            "pts_bbox_head.as_two_stage = True",
        ),
        (lambda meta, _: meta["config"]["pts_bbox_head"]["loss_cls"].update(gamma=1.5), "loss_cls.gamma = 1.5"),
    ],
)
def test_tool_says_why_a_record_cannot_be_computed(record: Path, monkeypatch, capsys, edit, message: str):
    rewrite(record, edit)
    monkeypatch.setattr(sys, "argv", ["check_parity.py", str(record)])
    assert check_parity.main() == 1
    assert message in capsys.readouterr().out


def test_full_detr3d_and_empty_frames(record: Path):
    """A record of the full detector has every output it should, for the config that the release trains with.

    No official numbers are at hand for it, so this is about names, shapes and what is frozen.
    """
    from parity import detr3d

    meta, inputs, _, _ = check_parity.load_record(record)
    meta["config"]["img_backbone"] = {
        "type": "ResNet",
        "depth": 50,
        "num_stages": 4,
        "out_indices": (0, 1, 2, 3),
        "frozen_stages": 1,
        "norm_cfg": {"type": "BN2d", "requires_grad": False},
        "norm_eval": True,
        "style": "caffe",
        "base_channels": 8,
        "dcn": {"type": "DCNv2", "deform_groups": 1, "fallback_on_stride": False},
        "stage_with_dcn": (False, False, True, True),
    }
    meta["config"]["img_neck"] = {
        "type": "FPN",
        "in_channels": [32, 64, 128, 256],
        "out_channels": 256,
        "start_level": 1,
        "add_extra_convs": "on_output",
        "num_outs": 4,
        "relu_before_extra_convs": True,
    }
    torch.manual_seed(0)
    config = detr3d.detr3d_config(meta["config"], torch.ones(10))
    official = DETR3D.to_official(build_model(config, 10).state_dict())
    state_dict = {key: tensor.numpy() for key, tensor in official.items()}
    state_dict["pts_bbox_head.code_weights"] = np.ones(10, np.float32)
    state_dict["img_backbone.bn1.num_batches_tracked"] = np.zeros((), np.int64)
    inputs = {"lidar2img": inputs["lidar2img"], "img_shape": np.array([64, 96])}
    inputs["img"] = np.random.RandomState(0).standard_normal((2, 6, 3, 64, 96)).astype(np.float32)
    inputs["targets/count"], inputs["targets/labels"] = np.zeros(2, np.int64), np.zeros(0, np.int64)
    inputs["targets/boxes_gravity"] = np.zeros((0, 9), np.float32)
    outputs = detr3d.run(meta, inputs, state_dict)
    for i, stride in enumerate((4, 8, 16, 32)):
        assert outputs[f"backbone/{i}"].shape == (2, 6, 8, 64 // stride, 96 // stride)
        assert outputs[f"fpn/{i}"].shape == (2, 6, 8, 64 // (2 * stride), -(-96 // (2 * stride)))
    assert outputs["match/2/1/pred"].shape == (0,)
    assert outputs["loss/loss_bbox"] == 0
    assert all(np.isfinite(value).all() for value in outputs.values())
    trained = {key.removeprefix("grad_norm/") for key in outputs if key.startswith("grad_norm/")}
    norms = {key for key in state_dict if ".bn" in key or "downsample.1" in key}
    frozen = {key for key in state_dict if key.startswith(("img_backbone.conv1", "img_backbone.layer1."))}
    assert trained == set(state_dict) - norms - frozen - {"pts_bbox_head.code_weights"}


@pytest.mark.parametrize(
    ("part", "settings", "message"),
    [
        ("img_backbone", {"dcn": {"type": "DCN", "deform_groups": 1}}, "img_backbone.dcn.type = 'DCN'"),
        ("img_backbone", {"dcn": {"type": "DCNv2", "fallback_on_stride": True}}, "img_backbone.dcn.fallback_on_stride"),
        ("img_backbone", {"norm_cfg": {"type": "GN", "num_groups": 32}}, "img_backbone.norm_cfg.num_groups"),
        ("img_backbone", {"dilations": (1, 1, 1, 2)}, r"img_backbone.dilations = \(1, 1, 1, 2\)"),
        ("img_backbone", {"gen_attention": {}}, "img_backbone.gen_attention = {} is not known"),
        ("img_neck", {"upsample_cfg": {"mode": "bilinear"}}, "img_neck.upsample_cfg"),
        ("img_neck", {"act_cfg": {"type": "ReLU"}}, "img_neck.act_cfg"),
        ("img_neck", {"add_extra_convs": "on_input"}, "img_neck.add_extra_convs must be 'on_output'"),
        ("img_neck", {"start_level": 2, "relu_before_extra_convs": False}, "img_neck.relu_before_extra_convs"),
    ],
)
def test_settings_of_an_image_network_that_ours_does_not_have_are_named(part: str, settings, message: str):
    from parity import mmdet

    parts = {
        "img_backbone": {"type": "ResNet", "depth": 50, "stage_with_dcn": (False, False, True, True)},
        "img_neck": {"type": "FPN", "in_channels": [256, 512, 1024, 2048], "out_channels": 256, "num_outs": 4,
                     "start_level": 1, "add_extra_convs": "on_output", "relu_before_extra_convs": True},
    }  # fmt: skip

    def read() -> int:
        mmdet.backbone_config(parts["img_backbone"], parts["img_neck"])
        return mmdet.num_levels(parts["img_neck"])

    assert read() == 4
    parts[part] |= settings
    with pytest.raises(ValueError, match=message):
        read()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"masks": True}, "config.masks = True"),
        ({"backbone": "resnext50_32x4d"}, "config.backbone = 'resnext50_32x4d'"),
        ({"look_forward_twice": True}, "config.look_forward_twice = True is not known"),
    ],
)
def test_arguments_that_our_2d_detectors_do_not_have_are_named(shared: Path, settings, message: str):
    from parity import deformable_detr, detr

    for name, read in (
        ("ddetr_plain", deformable_detr.deformable_detr_config),
        ("detr_post_norm", detr.detr_config),
    ):
        arguments = check_parity.load_record(shared / "parity" / f"{name}.npz")[0]["config"]
        read(arguments)
        with pytest.raises(ValueError, match=message):
            read(arguments | settings)


def test_without_auxiliary_losses_proposals_weigh_nothing(shared: Path):
    """As in the release; their loss is told all the same."""
    from parity import deformable_detr

    meta, inputs, recorded, state_dict = check_parity.load_record(shared / "parity" / "ddetr_two_stage.npz")
    meta["config"]["aux_loss"] = False
    outputs = deformable_detr.run(meta, inputs, state_dict)
    loss = outputs["loss/total"] - sum(
        meta["config"][f"{name}_loss_coef"] * outputs[f"loss/loss_{ours}"]
        for name, ours in (("cls", "ce"), ("bbox", "bbox"), ("giou", "giou"))
    )
    np.testing.assert_allclose(loss, 0, atol=1e-4)
    np.testing.assert_allclose(outputs["loss/loss_ce_enc"], recorded["loss/loss_ce_enc"], rtol=1e-4)
    head = "class_embed.2.bias"  # of the proposals
    assert f"grad_norm/{head}" in recorded
    assert f"grad_norm/{head}" not in outputs
    assert "loss/loss_ce_0" not in outputs


def test_gradients_are_named_as_the_record_names_its_backbone():
    from parity import hf

    from bevdet_core.convert.detr import HF_DETR

    place = "model.backbone.conv_encoder.model"
    for stem in (f"{place}.conv1.weight", f"{place}.embedder.embedder.convolution.weight"):
        layout = hf.named_as(HF_DETR, {stem})
        weight = {"backbone.conv1.weight": torch.ones(1)}
        assert list(layout.to_official(weight)) == [stem]
        assert layout.from_official({stem: weight["backbone.conv1.weight"]}) == weight


@pytest.mark.parametrize("depth", [18, 50])
def test_a_record_is_computed_with_convolutions_and_norms_one_after_the_other(depth: int):
    from parity.rounding import released_rounding

    torch.manual_seed(0)
    backbone = ResNet(depth, 8, out_stages=(4,))
    for module in backbone.modules():
        if isinstance(module, FrozenBatchNorm2d):
            module.running_var.uniform_(0.5, 1.5)
    x = torch.randn(1, 3, 64, 64).contiguous(memory_format=torch.channels_last)
    norms: list[str] = []
    backbone.layer1[0].bn1.register_forward_hook(lambda *_: norms.append("bn1"))
    (folded,) = backbone(x)
    with released_rounding():
        (apart,) = backbone(x)
    assert apart.is_contiguous()
    assert norms == ["bn1"]  # it runs on its own there, and nowhere else
    torch.testing.assert_close(apart, folded, rtol=0, atol=1e-4 * float(apart.detach().max()))
    assert torch.equal(backbone(x)[0], folded)
    assert norms == ["bn1"]
