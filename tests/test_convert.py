"""Official layouts: there and back without a changed bit, yaw conventions, and what does not fit."""

from __future__ import annotations

import pytest
import torch

from bevdet_core import boxes3d
from bevdet_core.checkpoint import CheckpointError
from bevdet_core.config import BackboneConfig, Detr3dConfig
from bevdet_core.convert.detr3d import DETR3D, turn_code
from bevdet_core.convert.layout import Layout, load_official
from bevdet_core.models import build_model

CONFIG = Detr3dConfig(
    backbone=BackboneConfig(depth=50, width=4, style="caffe", deformable_stages=(3, 4)),
    embed_dim=16,
    num_queries=5,
    num_layers=2,
    num_heads=2,
    ffn_dim=16,
)


@pytest.fixture
def model() -> torch.nn.Module:
    """A small DETR3D as the release has it."""
    torch.manual_seed(0)
    return build_model(CONFIG, 10)


def test_weights_survive_the_way_there_and_back(model):
    official = DETR3D.to_official(model.state_dict())
    assert len(official) == len(model.state_dict())
    other = build_model(CONFIG, 10)
    load_official(other, official, DETR3D, "there and back")
    for name, tensor in other.state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name]), name


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("backbone.layer3.5.conv2.conv_offset.weight", "img_backbone.layer3.5.conv2.conv_offset.weight"),
        ("backbone.layer1.0.downsample.1.running_var", "img_backbone.layer1.0.downsample.1.running_var"),
        ("neck.lateral_convs.2.bias", "img_neck.lateral_convs.2.conv.bias"),
        ("neck.output_convs.3.weight", "img_neck.fpn_convs.3.conv.weight"),
        ("head.query_embed.weight", "pts_bbox_head.query_embedding.weight"),
        (
            "head.layers.1.self_attention.in_proj.bias",
            "pts_bbox_head.transformer.decoder.layers.1.attentions.0.attn.in_proj_bias",
        ),
        (
            "head.layers.0.cross_attention.position_encoder.3.weight",
            "pts_bbox_head.transformer.decoder.layers.0.attentions.1.position_encoder.3.weight",
        ),
        ("head.layers.1.norm3.bias", "pts_bbox_head.transformer.decoder.layers.1.norms.2.bias"),
        ("head.class_heads.1.6.bias", "pts_bbox_head.cls_branches.1.6.bias"),
    ],
)
def test_names(model, ours, theirs):
    official = DETR3D.to_official(model.state_dict())
    assert torch.equal(official[theirs], model.state_dict()[ours])


def test_box_codes_turn_with_the_convention():
    """Decoding a turned code gives the box that `from_convention` makes of the old release's box."""
    codes = torch.randn(20, 10, dtype=torch.float64)
    ours = boxes3d.decode(turn_code(codes.T).T)
    theirs = boxes3d.from_convention(boxes3d.decode(codes), "mmdet3d-0", "gravity")
    difference = ours - theirs
    difference[:, 6] = torch.sin(difference[:, 6] / 2)
    assert difference.abs().max() < 1e-12
    assert torch.equal(turn_code(turn_code(codes.T)), codes.T)


def test_batch_counters_and_code_weights_have_no_place(model):
    official = DETR3D.to_official(model.state_dict())
    official["img_backbone.bn1.num_batches_tracked"] = torch.tensor(7)
    official["pts_bbox_head.code_weights"] = torch.ones(10)
    load_official(model, official, DETR3D, "checkpoint")


def test_batch_counters_may_be_missing():
    config = Detr3dConfig(backbone=BackboneConfig(depth=18, width=4, norm="batch"), embed_dim=16, num_queries=2)
    model = build_model(config, 10)
    official = {k: t for k, t in DETR3D.to_official(model.state_dict()).items() if "num_batches" not in k}
    load_official(model, official, DETR3D, "checkpoint")


def test_misfits_are_named(model):
    official = DETR3D.to_official(model.state_dict())
    with pytest.raises(CheckpointError, match=r"not have:\n  module\.a\n  pts_roi_head\.b$"):
        load_official(model, official | {"module.a": torch.ones(1), "pts_roi_head.b": torch.ones(1)}, DETR3D, "file")
    missing = {k: t for k, t in official.items() if k != "pts_bbox_head.reg_branches.0.2.bias"}
    with pytest.raises(CheckpointError, match=r"file: .*\n.*head\.box_heads\.0\.2\.bias: missing"):
        load_official(model, missing, DETR3D, "file")
    wide = official | {"pts_bbox_head.query_embedding.weight": torch.zeros(5, 512)}
    with pytest.raises(CheckpointError, match=r"head\.query_embed\.weight: shape \(5, 512\), the model has \(5, 32\)"):
        load_official(model, wide, DETR3D, "file")
    with pytest.raises(CheckpointError, match=r"DETR3D layout has no place for:\n  encoder$"):
        DETR3D.to_official({"encoder": torch.ones(1)})


def test_a_part_that_is_missing_is_named():
    layout = Layout("Example", [("layers.#.qkv.weight", ("block.#.q", "block.#.k", "block.#.v"))])
    with pytest.raises(CheckpointError, match=r"an? Example checkpoint must have:\n  block\.7\.q\n  block\.7\.v$"):
        layout.from_official({"block.7.k": torch.ones(1)})


def test_parts_of_different_shapes_are_named():
    layout = Layout("Example", [("qkv", ("q", "k", "v"))])
    with pytest.raises(CheckpointError, match=r"that an? Example checkpoint has in one shape:\n  q\n  k\n  v$"):
        layout.from_official({"q": torch.ones(2), "k": torch.ones(2), "v": torch.ones(3)})


def test_of_many_misfits_the_first_are_named():
    with pytest.raises(CheckpointError) as error:
        DETR3D.from_official({f"encoder.{i}": torch.ones(1) for i in range(300)})
    lines = str(error.value).splitlines()
    assert lines[0] == "keys that a DETR3D checkpoint does not have:"
    assert lines[1:] == [*(f"  encoder.{i}" for i in range(8)), "  ... and 292 more"]


def test_rows_that_are_no_box_code_are_named(model):
    official = DETR3D.to_official(model.state_dict()) | {"pts_bbox_head.reg_branches.0.4.bias": torch.ones(4)}
    with pytest.raises(
        CheckpointError, match=r"^file: head\.box_heads\.0\.4\.bias: shape \(4,\), too few rows for a box"
    ):
        load_official(model, official, DETR3D, "file")


def test_rules_are_exact():
    layout = Layout("Example", [("layers.#.*", "blocks.#.body.*"), ("first.weight", "embed")], {}, ["*.steps"])
    one = torch.ones(1)
    renamed = layout.from_official({"blocks.12.body.a.b": one, "embed": one, "ema.steps": one})
    assert sorted(renamed) == ["first.weight", "layers.12.a.b"]
    for key in ("blocks.x.body.a", "blocks.1xbody.a", "embed.weight", "steps"):
        with pytest.raises(CheckpointError, match="Example checkpoint does not have"):
            layout.from_official({key: one})
