"""Our settings of backbones and necks that mmdet's config files describe."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from bevdet_core.config import BackboneConfig


def backbone_config(backbone: Mapping[str, Any], neck: Mapping[str, Any]) -> BackboneConfig:
    """The settings of an mmdet `ResNet` whose feature maps an `FPN` takes in.

    Raises:
        ValueError: a setting that our ResNet does not have.
    """
    for name in ("deep_stem", "avg_down", "plugins"):
        if backbone.get(name):
            raise ValueError(f"img_backbone.{name} is not supported")
    if backbone["type"] != "ResNet":
        raise ValueError(f"img_backbone of type {backbone['type']!r} is not supported")
    stages = [index + 1 for index in backbone.get("out_indices", (0, 1, 2, 3))]
    if backbone.get("dcn") and backbone["dcn"].get("deform_groups", 1) != 1:
        raise ValueError("img_backbone.dcn.deform_groups must be 1")
    with_dcn = backbone.get("stage_with_dcn", ()) if backbone.get("dcn") else ()
    return BackboneConfig(
        depth=backbone["depth"],
        width=backbone.get("base_channels", 64),
        style=backbone.get("style", "pytorch"),
        # Statistics are never updated in the records, whatever norm_eval says.
        norm="affine" if backbone.get("norm_cfg", {}).get("requires_grad", True) else "frozen",
        frozen_stages=max(backbone.get("frozen_stages", -1), 0),
        out_stages=tuple(stages[neck.get("start_level", 0) :]),
        deformable_stages=tuple(index + 1 for index, deformable in enumerate(with_dcn) if deformable),
    )


def freeze_stem(model: nn.Module, backbone: Mapping[str, Any]) -> None:
    """Freeze the stem alone where an mmdet `ResNet` has frozen_stages = 0, which our setting cannot say."""
    if backbone.get("frozen_stages") == 0:
        for module in (model.backbone.conv1, model.backbone.bn1):
            module.requires_grad_(False)


def num_levels(neck: Mapping[str, Any]) -> int:
    """How many maps an mmdet `FPN` returns.

    Raises:
        ValueError: a setting that our FPN does not have.
    """
    if neck["type"] != "FPN":
        raise ValueError(f"img_neck of type {neck['type']!r} is not supported")
    extra = neck["num_outs"] - (len(neck["in_channels"]) - neck.get("start_level", 0))
    if extra and neck.get("add_extra_convs") != "on_output":
        raise ValueError("img_neck.add_extra_convs must be 'on_output' where there are extra levels")
    if extra > 1 and not neck.get("relu_before_extra_convs"):
        raise ValueError("img_neck.relu_before_extra_convs must be true where there are two or more extra levels")
    return neck["num_outs"]
