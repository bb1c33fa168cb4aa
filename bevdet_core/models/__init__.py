"""Detectors and their criteria, built from settings.

A detector offers `forward(batch: ImageBatch) -> Predictions` and
`decode(predictions, batch) -> [(scores, labels, boxes), ...]`, one entry per image or rig frame.
"""

from __future__ import annotations

from typing import Literal

from torch import nn

from .. import boxes3d
from ..config import (
    BackboneConfig,
    BevFormerConfig,
    DeformableDetrConfig,
    Detr3dConfig,
    DetrConfig,
    ModelConfig,
    PetrConfig,
)
from ..losses import BoxL1Loss, CardinalityError, ClassError, FocalLoss, GIoULoss, SetCriterion, SoftmaxLoss
from ..matching import BoxL1Cost, FocalClassCost, GIoUCost, HungarianMatcher, SoftmaxClassCost
from ..weights import read_weights
from .bev_boxes import BevBoxHead
from .bevformer import BevFormer, BevFormerHead
from .deformable_detr import DeformableDetr, LearnedQueries
from .deformable_transformer import DeformableDecoder, DeformableDecoderLayer, DeformableEncoder
from .denoising import DenoisingGenerator
from .detr import Detr, DetrDecoder, DetrEncoder
from .detr3d import Detr3d, Detr3dHead
from .heads import MLP, deformable_heads
from .neck import FPN, LevelProjection
from .perspective import PerspectiveHead
from .petr import Petr, PetrHead
from .position import LearnedPositionEmbedding, SinePositionEmbedding
from .proposals import ProposalGenerator
from .resnet import ResNet, load_backbone_weights

__all__ = ["build_backbone", "build_bevformer_head", "build_criterion", "build_detr3d_head", "build_model"]


def build_model(config: ModelConfig, num_classes: int, pretrained: bool = True) -> nn.Module:
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
    if isinstance(config, DetrConfig):
        return build_detr(config, num_classes, backbone)
    if isinstance(config, DeformableDetrConfig):
        return build_deformable_detr(config, num_classes, backbone)
    if isinstance(config, PetrConfig):
        return build_petr(config, num_classes, backbone)
    neck = FPN(backbone.out_channels, config.embed_dim, config.num_levels)
    limits = (config.post_center_range, config.max_detections, config.score_threshold)
    if isinstance(config, BevFormerConfig):
        bev_head = build_bevformer_head(config, num_classes)
        past = (config.history, config.history_gap, config.release_quirks)
        boxes = None
        if config.num_bev_proposals:
            boxes = BevBoxHead(config.embed_dim, num_classes, bev_head.grid, config.num_bev_proposals)
        return BevFormer(backbone, neck, bev_head, *past, boxes, build_perspective(config, num_classes), *limits)
    head = build_detr3d_head(config, num_classes)
    return Detr3d(backbone, neck, head, build_perspective(config, num_classes), *limits)


def build_detr(config: DetrConfig, num_classes: int, backbone: ResNet) -> Detr:
    """DETR on a backbone; see `build_model`."""
    dim = config.embed_dim
    layers = (config.num_heads, config.ffn_dim, config.dropout, config.pre_norm)
    return Detr(
        backbone=backbone,
        neck=nn.Conv2d(backbone.out_channels[-1], dim, 1),
        position=build_position(config.position, dim, centred=False),
        encoder=DetrEncoder(dim, config.encoder_layers, *layers),
        decoder=DetrDecoder(dim, config.decoder_layers, *layers),
        class_head=nn.Linear(dim, num_classes + 1),
        box_head=MLP(dim, dim, dim, 4),
        num_queries=config.num_queries,
        embed_dim=dim,
    )


def build_deformable_detr(config: DeformableDetrConfig, num_classes: int, backbone: ResNet) -> DeformableDetr:
    """Deformable DETR on a backbone; see `build_model`."""
    dim, heads, levels = config.embed_dim, config.num_heads, config.num_levels
    encoder = DeformableEncoder(
        dim, config.encoder_layers, heads, levels, config.encoder_points, config.ffn_dim, config.dropout
    )
    layers = [
        DeformableDecoderLayer(dim, heads, levels, config.decoder_points, config.ffn_dim, config.dropout)
        for _ in range(config.decoder_layers)
    ]
    # The proposals of a two-stage detector have heads of their own, as if they came from a layer more.
    class_heads, box_heads = deformable_heads(
        dim, num_classes, config.decoder_layers + config.two_stage, config.refine, config.two_stage
    )
    queries: LearnedQueries | ProposalGenerator
    if config.two_stage:
        queries = ProposalGenerator(dim, config.num_queries, class_heads.pop(), box_heads.pop())
    else:
        queries = LearnedQueries(config.num_queries, dim)
    denoising = None
    if config.denoising.groups:
        noise = config.denoising
        denoising = DenoisingGenerator(dim, num_classes, noise.groups, noise.label_noise, noise.box_noise)
    return DeformableDetr(
        backbone=backbone,
        neck=LevelProjection(backbone.out_channels, dim, levels),
        position=build_position(config.position, dim, centred=True),
        encoder=encoder,
        queries=queries,
        decoder=DeformableDecoder(layers, class_heads, box_heads, config.refine),
        denoising=denoising,
        num_levels=levels,
        embed_dim=dim,
        max_detections=config.max_detections,
    )


def build_position(kind: Literal["sine", "learned"], dim: int, centred: bool) -> nn.Module:
    """The position embedding of a 2D detector; see `SinePositionEmbedding`."""
    return SinePositionEmbedding(dim, centred) if kind == "sine" else LearnedPositionEmbedding(dim)


def build_petr(config: PetrConfig, num_classes: int, backbone: ResNet) -> Petr:
    """PETR on a backbone; see `build_model`."""
    neck = FPN(backbone.out_channels, config.embed_dim, 1) if config.fpn else nn.Identity()
    channels = config.embed_dim if config.fpn else backbone.out_channels[0]
    head = PetrHead(
        num_classes=num_classes,
        in_channels=channels,
        embed_dim=config.embed_dim,
        num_queries=config.num_queries,
        num_layers=config.num_layers,
        num_heads=config.num_heads,
        ffn_dim=config.ffn_dim,
        dropout=config.dropout,
        num_depths=config.num_depths,
        depth_start=config.depth_start,
        position_range=config.position_range,
        pc_range=config.pc_range,
    )
    perspective = PerspectiveHead(channels, num_classes) if config.perspective else None
    return Petr(
        backbone, neck, head, perspective, config.post_center_range, config.max_detections, config.score_threshold
    )


def build_detr3d_head(config: Detr3dConfig, num_classes: int) -> Detr3dHead:
    """The decoder and prediction heads alone, for features from elsewhere; see `build_model`."""
    return Detr3dHead(
        num_classes=num_classes,
        num_cameras=config.num_cameras,
        num_levels=config.num_levels,
        embed_dim=config.embed_dim,
        num_queries=config.num_queries,
        num_proposals=config.num_proposals,
        num_layers=config.num_layers,
        num_heads=config.num_heads,
        ffn_dim=config.ffn_dim,
        dropout=config.dropout,
        pc_range=config.pc_range,
    )


def build_bevformer_head(config: BevFormerConfig, num_classes: int) -> BevFormerHead:
    """The encoder, decoder and prediction heads alone, for features from elsewhere; see `build_model`."""
    return BevFormerHead(
        num_classes=num_classes,
        bev_shape=config.bev_shape,
        num_cameras=config.num_cameras,
        num_levels=config.num_levels,
        embed_dim=config.embed_dim,
        num_queries=config.num_queries,
        num_proposals=config.num_proposals + config.num_bev_proposals,
        encoder_layers=config.encoder_layers,
        decoder_layers=config.decoder_layers,
        num_heads=config.num_heads,
        pillar_points=config.pillar_points,
        spatial_points=config.spatial_points,
        temporal_points=config.temporal_points,
        decoder_points=config.decoder_points,
        ffn_dim=config.ffn_dim,
        dropout=config.dropout,
        pc_range=config.pc_range,
        release_quirks=config.release_quirks,
        fused_views=len(config.history_steps) if config.temporal == "convolution" else 0,
    )


def build_perspective(config: Detr3dConfig | BevFormerConfig, num_classes: int) -> PerspectiveHead | None:
    """The dense head on the image features, if the settings ask for it."""
    return PerspectiveHead(config.embed_dim, num_classes, config.num_proposals) if config.perspective else None


def build_backbone(config: BackboneConfig, pretrained: bool = True) -> ResNet:
    """The image network that the settings describe; see `build_model`."""
    backbone = ResNet(
        depth=config.depth,
        width=config.width,
        stages=config.stages,
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


def build_criterion(config: ModelConfig) -> SetCriterion:
    """Matcher and losses with the settings' weights."""
    if isinstance(config, DetrConfig):
        return detr_criterion(config)
    if isinstance(config, DeformableDetrConfig):
        return deformable_detr_criterion(config)
    loss = config.loss
    # The matcher leaves the velocity out: it is unknown for some targets.
    matcher = HungarianMatcher([FocalClassCost(loss.class_cost), BoxL1Cost(loss.box_cost, boxes3d.encode, numbers=8)])
    unknown: Literal["box", "number"] = "box" if loss.drop_unknown else "number"
    box_loss = BoxL1Loss(loss.box_weight, boxes3d.encode, loss.code_weights, unknown)
    return SetCriterion(matcher, [FocalLoss(loss.class_weight), box_loss], count="pairs")


def detr_criterion(config: DetrConfig) -> SetCriterion:
    """Softmax classification with "no object", L1 and generalised IoU."""
    loss = config.loss
    matcher = HungarianMatcher([SoftmaxClassCost(loss.class_cost), BoxL1Cost(loss.box_cost), GIoUCost(loss.giou_cost)])
    class_loss = SoftmaxLoss(loss.class_weight, loss.no_object)
    box_losses = BoxL1Loss(loss.box_weight), GIoULoss(loss.giou_weight)
    return SetCriterion(matcher, (class_loss, *box_losses, CardinalityError(), ClassError()))


def deformable_detr_criterion(config: DeformableDetrConfig) -> SetCriterion:
    """Focal classification, L1 and generalised IoU."""
    loss = config.loss
    matcher = HungarianMatcher([FocalClassCost(loss.class_cost), BoxL1Cost(loss.box_cost), GIoUCost(loss.giou_cost)])
    class_loss = FocalLoss(loss.class_weight, loss.focal_alpha)
    box_losses = BoxL1Loss(loss.box_weight), GIoULoss(loss.giou_weight)
    return SetCriterion(matcher, (class_loss, *box_losses, CardinalityError(no_object=False), ClassError()))
