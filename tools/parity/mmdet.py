"""Our settings of backbones, necks and losses that mmdet's config files describe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from bevdet_core.config import BackboneConfig, Detr3dLossConfig

from .settings import check_settings

# Settings of any module without influence on a record: what it starts from, and what it is called.
# All dropout rates are 0 in the records.
INERT = (
    "type",
    "init_cfg",
    "pretrained",
    "dropout",
    "attn_drop",
    "proj_drop",
    "ffn_dropout",
    "im2col_step",
    "two_stage_num_proposals",
)
ORDER = ["self_attn", "norm", "cross_attn", "norm", "ffn", "norm"]


def backbone_config(backbone: Mapping[str, Any], neck: Mapping[str, Any]) -> BackboneConfig:
    """The settings of an mmdet `ResNet` whose feature maps an `FPN` takes in.

    Raises:
        ValueError: a setting that our ResNet does not have.
    """
    check_settings(
        backbone,
        "img_backbone",
        read=("depth", "base_channels", "style", "norm_cfg", "frozen_stages", "out_indices", "dcn", "stage_with_dcn"),
        fixed={
            "type": "ResNet",
            "in_channels": 3,
            "num_stages": 4,
            "strides": (1, 2, 2, 2),
            "conv_cfg": None,
            "dilations": (1, 1, 1, 1),
            "deep_stem": False,
            "avg_down": False,
            "plugins": None,
        },
        # The statistics of norms are never updated in the records, whatever norm_eval says.
        inert=("norm_eval", "with_cp", "zero_init_residual", "pretrained", "init_cfg"),
    )
    norm = backbone.get("norm_cfg", {"type": "BN"})
    check_settings(norm, "img_backbone.norm_cfg", read=("type", "requires_grad"), fixed={"eps": 1e-5})
    if norm["type"] not in ("BN", "BN2d", "SyncBN"):
        raise ValueError(f"img_backbone.norm_cfg.type = {norm['type']!r} is not supported, only batch norms")
    deformable = backbone.get("dcn")
    if deformable:
        check_settings(
            deformable,
            "img_backbone.dcn",
            fixed={"type": "DCNv2", "deform_groups": 1, "deformable_groups": 1, "fallback_on_stride": False},
        )
        if deformable.get("type") != "DCNv2":
            raise ValueError("img_backbone.dcn.type must be 'DCNv2'")
    stages = [index + 1 for index in backbone.get("out_indices", (0, 1, 2, 3))]
    with_dcn = backbone.get("stage_with_dcn", ()) if deformable else ()
    return BackboneConfig(
        depth=backbone["depth"],
        width=backbone.get("base_channels", 64),
        style=backbone.get("style", "pytorch"),
        norm="affine" if norm.get("requires_grad", True) else "frozen",
        frozen_stages=max(backbone.get("frozen_stages", -1), 0),
        out_stages=tuple(stages[neck.get("start_level", 0) :]),
        deformable_stages=tuple(index + 1 for index, with_it in enumerate(with_dcn) if with_it),
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
    check_settings(
        neck,
        "img_neck",
        read=("in_channels", "out_channels", "num_outs", "start_level", "add_extra_convs", "relu_before_extra_convs"),
        fixed={
            "type": "FPN",
            "end_level": -1,
            "conv_cfg": None,
            "norm_cfg": None,
            "act_cfg": None,
            "upsample_cfg": {"mode": "nearest"},
        },
        inert=("no_norm_on_lateral", "init_cfg"),
    )
    extra = neck["num_outs"] - (len(neck["in_channels"]) - neck.get("start_level", 0))
    if extra and neck.get("add_extra_convs") != "on_output":
        raise ValueError("img_neck.add_extra_convs must be 'on_output' where there are extra levels")
    if extra > 1 and not neck.get("relu_before_extra_convs"):
        raise ValueError("img_neck.relu_before_extra_convs must be true where there are two or more extra levels")
    return neck["num_outs"]


def check_attention(
    settings: Mapping[str, Any], where: str, *read: str, batch_first: bool = False, **fixed: Any
) -> None:
    """Refuse settings of an attention that are neither read nor what we take for granted."""
    check_settings(
        settings,
        where,
        read=("embed_dims", *read),
        fixed={"batch_first": batch_first, "norm_cfg": None, "bias": True, **fixed},
        inert=(*INERT, "dropout_layer"),
    )


def check_layer(layer: Mapping[str, Any], where: str) -> None:
    """Refuse a transformer layer that is not built as ours, apart from its attentions and its width."""
    check_settings(
        layer,
        where,
        read=("attn_cfgs", "feedforward_channels"),
        fixed={
            "operation_order": ORDER,
            "act_cfg": {"type": "ReLU", "inplace": True},
            "norm_cfg": {"type": "LN"},
            "ffn_num_fcs": 2,
            "batch_first": False,
        },
        inert=INERT,
    )
    if list(layer["operation_order"]) != ORDER:
        raise ValueError(f"{where}.operation_order must be {ORDER}")


def check_model(model: Mapping[str, Any], *read: str) -> None:
    """Refuse a detector that has more than an image network and a head."""
    check_settings(
        model,
        "model",
        read=("img_backbone", "img_neck", "pts_bbox_head", "train_cfg", *read),
        fixed={"use_grid_mask": False},
        inert=(*INERT, "test_cfg"),
    )


def check_head(head: Mapping[str, Any], *read: str) -> None:
    """Refuse a head that is not built as ours; what `loss_config` reads is checked there."""
    check_settings(
        head,
        "pts_bbox_head",
        read=("num_query", "num_classes", "transformer", "bbox_coder", "loss_cls", "loss_bbox", *read),
        # The last number is that of hidden layers before the branches' last one.
        fixed={"with_box_refine": True, "as_two_stage": False, "code_size": 10, "num_reg_fcs": 2},
        # There is no loss of intersections, and the weights of the code are in the state dict.
        inert=(
            *INERT,
            "in_channels",
            "sync_cls_avg_factor",
            "loss_iou",
            "code_weights",
            "num_cls_fcs",
            "positional_encoding",
        ),
    )
    if not head.get("with_box_refine", False):
        raise ValueError("pts_bbox_head.with_box_refine must be True")
    coder = head["bbox_coder"]
    check_settings(
        coder,
        "pts_bbox_head.bbox_coder",
        read=("pc_range", "post_center_range", "max_num", "score_threshold"),
        fixed={"type": "NMSFreeCoder", "num_classes": head["num_classes"]},
        inert=("voxel_size",),
    )


def loss_config(model: Mapping[str, Any], code_weights: Sequence[float]) -> Detr3dLossConfig:
    """Costs and losses of a DETR3D or BEVFormer.

    Raises:
        ValueError: a setting that ours does not have.
    """
    head, assigner = model["pts_bbox_head"], model["train_cfg"]["pts"]["assigner"]
    focal = {"use_sigmoid": True, "gamma": 2.0, "alpha": 0.25, "reduction": "mean"}
    check_settings(head["loss_cls"], "loss_cls", ("loss_weight",), {"type": "FocalLoss", **focal})
    check_settings(head["loss_bbox"], "loss_bbox", ("loss_weight",), {"type": "L1Loss", "reduction": "mean"})
    check_settings(
        assigner,
        "assigner",
        read=("cls_cost", "reg_cost"),
        fixed={"type": "HungarianAssigner3D"},
        inert=("pc_range", "iou_cost"),  # they have no part in the sum of the costs
    )
    focal_cost = {"type": "FocalLossCost", "alpha": 0.25, "gamma": 2, "eps": 1e-12}
    check_settings(assigner["cls_cost"], "assigner.cls_cost", ("weight",), focal_cost)
    check_settings(assigner["reg_cost"], "assigner.reg_cost", ("weight",), {"type": "BBox3DL1Cost"})
    return Detr3dLossConfig(
        class_cost=assigner["cls_cost"]["weight"],
        box_cost=assigner["reg_cost"]["weight"],
        class_weight=head["loss_cls"]["loss_weight"],
        box_weight=head["loss_bbox"]["loss_weight"],
        code_weights=tuple(code_weights),
        drop_unknown=True,
    )
