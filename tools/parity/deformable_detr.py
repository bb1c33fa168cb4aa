"""Deformable DETR: the release's model from the arguments of its training script."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from bevdet_core.config import BackboneConfig, DeformableDetrConfig, DeformableDetrLossConfig
from bevdet_core.convert.deformable_detr import deformable_detr

from . import images


def run(meta: dict, inputs: dict[str, np.ndarray], state_dict: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """All outputs of a `deformable-detr` record."""
    config = deformable_detr_config(meta["config"])
    arguments = meta["config"]
    layout = deformable_detr(config)
    return images.run(config, arguments["num_classes"], layout, meta, inputs, state_dict, arguments["aux_loss"])


def deformable_detr_config(arguments: Mapping[str, Any]) -> DeformableDetrConfig:
    """Our settings from the release's arguments."""
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


def backbone_config(arguments: Mapping[str, Any], out_stages: tuple[int, ...]) -> BackboneConfig:
    """The settings of the release's backbone, DETR's or Deformable DETR's."""
    return BackboneConfig(
        depth=int(arguments["backbone"].removeprefix("resnet")),
        frozen_stages=1 if arguments["lr_backbone"] > 0 else 4,
        out_stages=out_stages,
        dilation=arguments["dilation"],
    )


def position(arguments: Mapping[str, Any]) -> str:
    """The kind of position embedding by our name."""
    return {"sine": "sine", "v2": "sine", "learned": "learned", "v3": "learned"}[arguments["position_embedding"]]
