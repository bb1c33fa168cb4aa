"""DETR: the release's model from the arguments of its training script."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from bevdet_core.config import DetrConfig, DetrLossConfig
from bevdet_core.convert.detr import DETR

from . import images
from .deformable_detr import backbone_config, check_arguments, position


def run(meta: dict, inputs: dict[str, np.ndarray], state_dict: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """All outputs of a `detr` record."""
    arguments = meta["config"]
    config = detr_config(arguments)
    return images.run(config, arguments["num_classes"], DETR, meta, inputs, state_dict, arguments["aux_loss"])


def detr_config(arguments: Mapping[str, Any]) -> DetrConfig:
    """Our settings from the release's arguments.

    Raises:
        ValueError: an argument that our DETR does not have.
    """
    check_arguments(arguments, ("pre_norm", "eos_coef"), ())
    return DetrConfig(
        backbone=backbone_config(arguments, out_stages=(4,)),
        embed_dim=arguments["hidden_dim"],
        num_queries=arguments["num_queries"],
        encoder_layers=arguments["enc_layers"],
        decoder_layers=arguments["dec_layers"],
        num_heads=arguments["nheads"],
        ffn_dim=arguments["dim_feedforward"],
        dropout=0.0,
        pre_norm=arguments["pre_norm"],
        position=position(arguments),
        loss=DetrLossConfig(
            class_cost=arguments["set_cost_class"],
            box_cost=arguments["set_cost_bbox"],
            giou_cost=arguments["set_cost_giou"],
            box_weight=arguments["bbox_loss_coef"],
            giou_weight=arguments["giou_loss_coef"],
            no_object=arguments["eos_coef"],
        ),
    )
