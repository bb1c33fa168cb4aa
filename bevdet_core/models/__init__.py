"""Detectors and their criteria, built from settings.

A detector offers `forward(batch: ImageBatch) -> Predictions` and
`decode(predictions, batch) -> [(scores, labels, boxes), ...]`, one entry per image or rig frame.
"""

from __future__ import annotations

from typing import Literal

from torch import nn

from .. import boxes3d
from ..config import BackboneConfig, Detr3dConfig
from ..losses import BoxL1Loss, FocalLoss, SetCriterion
from ..matching import BoxL1Cost, FocalClassCost, HungarianMatcher
from ..weights import read_weights
from .detr3d import Detr3d, Detr3dHead
from .neck import FPN
from .resnet import ResNet, load_backbone_weights

__all__ = ["build_backbone", "build_criterion", "build_detr3d_head", "build_model"]


def build_model(config: Detr3dConfig, num_classes: int, pretrained: bool = True) -> nn.Module:
    """The detector that the settings describe.

    Args:
        config: its settings.
        num_classes: classes to tell apart.
        pretrained: read the backbone's weights file if the settings name one.

    Raises:
        CheckpointError: the backbone's weights cannot be read or do not fit.
        ValueError: settings that contradict each other.
    """
    backbone = build_backbone(config.backbone, pretrained)
    neck = FPN(backbone.out_channels, config.embed_dim, config.num_levels)
    head = build_detr3d_head(config, num_classes)
    return Detr3d(backbone, neck, head, config.post_center_range, config.max_detections, config.score_threshold)


def build_detr3d_head(config: Detr3dConfig, num_classes: int) -> Detr3dHead:
    """The decoder and prediction heads alone, for features from elsewhere; see `build_model`."""
    return Detr3dHead(
        num_classes=num_classes,
        num_cameras=config.num_cameras,
        num_levels=config.num_levels,
        embed_dim=config.embed_dim,
        num_queries=config.num_queries,
        num_layers=config.num_layers,
        num_heads=config.num_heads,
        ffn_dim=config.ffn_dim,
        dropout=config.dropout,
        pc_range=config.pc_range,
    )


def build_backbone(config: BackboneConfig, pretrained: bool = True) -> ResNet:
    """The image network that the settings describe; see `build_model`."""
    backbone = ResNet(
        depth=config.depth,
        width=config.width,
        style=config.style,
        norm=config.norm,
        frozen_stages=config.frozen_stages,
        out_stages=config.out_stages,
        dilation=config.dilation,
        deformable_stages=config.deformable_stages,
    )
    if pretrained and config.weights is not None:
        load_backbone_weights(backbone, read_weights(config.weights), config.weights)
    return backbone


def build_criterion(config: Detr3dConfig) -> SetCriterion:
    """Matcher and losses with the settings' weights."""
    loss = config.loss
    # The matcher leaves the velocity out: it is unknown for some targets.
    matcher = HungarianMatcher([FocalClassCost(loss.class_cost), BoxL1Cost(loss.box_cost, boxes3d.encode, numbers=8)])
    unknown: Literal["box", "number"] = "box" if loss.drop_unknown else "number"
    box_loss = BoxL1Loss(loss.box_weight, boxes3d.encode, loss.code_weights, unknown)
    return SetCriterion(matcher, [FocalLoss(loss.class_weight), box_loss], count="pairs")
