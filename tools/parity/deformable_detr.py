"""Deformable DETR: the release's model from the arguments of its training script."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from bevdet_core.config import BackboneConfig, DeformableDetrConfig, DeformableDetrLossConfig
from bevdet_core.convert.deformable_detr import deformable_detr
from bevdet_core.models.resnet import STAGE_BLOCKS

from . import images
from .settings import check_settings


def run(meta: dict, inputs: dict[str, np.ndarray], state_dict: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """All outputs of a `deformable-detr` record."""
    config = deformable_detr_config(meta["config"])
    arguments = meta["config"]
    layout = deformable_detr(config)
    auxiliary = arguments["aux_loss"]
    # Without auxiliary losses the release weighs the loss of proposals with nothing.
    return images.run(config, arguments["num_classes"], layout, meta, inputs, state_dict, auxiliary, auxiliary)


def deformable_detr_config(arguments: Mapping[str, Any]) -> DeformableDetrConfig:
    """Our settings from the release's arguments.

    Raises:
        ValueError: an argument that our Deformable DETR does not have.
    """
    losses = ("cls_loss_coef", "focal_alpha")
    variants = ("num_feature_levels", "enc_n_points", "dec_n_points", "with_box_refine", "two_stage")
    schedule = (
        "lr_backbone_names",
        "lr_linear_proj_names",
        "lr_linear_proj_mult",
        "lr_drop_epochs",
        "sgd",
        "cache_mode",
    )
    # The release does not use the scale.
    check_arguments(arguments, (*variants, *losses), (*schedule, "position_embedding_scale"))
    levels = arguments["num_feature_levels"]
    return DeformableDetrConfig(
        backbone=backbone_config(arguments, out_stages=(2, 3, 4) if levels > 1 else (4,)),
        num_levels=levels,
        embed_dim=arguments["hidden_dim"],
        num_queries=arguments["num_queries"],
        encoder_layers=arguments["enc_layers"],
        decoder_layers=arguments["dec_layers"],
        num_heads=arguments["nheads"],
        encoder_points=arguments["enc_n_points"],
        decoder_points=arguments["dec_n_points"],
        ffn_dim=arguments["dim_feedforward"],
        dropout=0.0,
        position=position(arguments),
        refine=arguments["with_box_refine"],
        two_stage=arguments["two_stage"],
        loss=DeformableDetrLossConfig(
            class_cost=arguments["set_cost_class"],
            box_cost=arguments["set_cost_bbox"],
            giou_cost=arguments["set_cost_giou"],
            class_weight=arguments["cls_loss_coef"],
            box_weight=arguments["bbox_loss_coef"],
            giou_weight=arguments["giou_loss_coef"],
            focal_alpha=arguments["focal_alpha"],
        ),
    )


def check_arguments(arguments: Mapping[str, Any], read: Sequence[str], inert: Sequence[str]) -> None:
    """Refuse an argument of the release's training script that our model does not have.

    Args:
        arguments: of the script.
        read: what is translated beside what DETR and Deformable DETR have in common.
        inert: what has no influence beside it.

    Raises:
        ValueError: such an argument; the message names it.
    """
    common = (
        "hidden_dim", "num_queries", "enc_layers", "dec_layers", "nheads", "dim_feedforward", "aux_loss", "dilation",
        "position_embedding", "backbone", "lr_backbone", "set_cost_class", "set_cost_bbox", "set_cost_giou",
        "bbox_loss_coef", "giou_loss_coef", "num_classes",
    )  # fmt: skip
    schedule = (
        "lr", "batch_size", "weight_decay", "epochs", "lr_drop", "clip_max_norm", "dropout", "mask_loss_coef",
        "dice_loss_coef", "dataset_file", "coco_path", "coco_panoptic_path", "remove_difficult", "output_dir", "device",
        "seed", "resume", "start_epoch", "eval", "num_workers", "world_size", "dist_url", "distributed", "rank", "gpu",
        "dist_backend",
    )  # fmt: skip
    fixed = {"masks": False, "frozen_weights": None}
    check_settings(arguments, "config", (*common, *read), fixed, (*schedule, *inert))


def backbone_config(arguments: Mapping[str, Any], out_stages: tuple[int, ...]) -> BackboneConfig:
    """The settings of the release's backbone, DETR's or Deformable DETR's.

    Raises:
        ValueError: a backbone that we do not have.
    """
    backbones = {f"resnet{depth}": depth for depth in STAGE_BLOCKS}
    if arguments["backbone"] not in backbones:
        raise ValueError(f"config.backbone = {arguments['backbone']!r} is not supported, only {', '.join(backbones)}")
    return BackboneConfig(
        depth=backbones[arguments["backbone"]],
        frozen_stages=1 if arguments["lr_backbone"] > 0 else 4,
        out_stages=out_stages,
        dilation=arguments["dilation"],
    )


def position(arguments: Mapping[str, Any]) -> str:
    """The kind of position embedding by our name."""
    return {"sine": "sine", "v2": "sine", "learned": "learned", "v3": "learned"}[arguments["position_embedding"]]
