"""The 2D detectors: their settings, with the values of the published networks."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from .errors import ConfigError
from .network import BackboneConfig, PixelConfig


@dataclass(frozen=True)
class DetrLossConfig:
    """Weights of the matching costs and of the loss terms of DETR.

    Args:
        class_cost: softmax class cost of the matcher.
        box_cost: L1 cost of the matcher.
        giou_cost: generalised IoU cost of the matcher.
        class_weight: cross-entropy.
        box_weight: L1 loss.
        giou_weight: generalised IoU loss.
        no_object: weight of the class "no object" in the cross-entropy.
    """

    class_cost: float = 1.0
    box_cost: float = 5.0
    giou_cost: float = 2.0
    class_weight: float = 1.0
    box_weight: float = 5.0
    giou_weight: float = 2.0
    no_object: float = 0.1


@dataclass(frozen=True)
class DetrConfig:
    """DETR (Carion et al., ECCV 2020).

    Args:
        name: the detector.
        pixels: normalisation and padding of the images.
        backbone: the image network; the last of its out_stages is used.
        embed_dim: width of queries and feature map.
        num_queries: objects that an image can have.
        encoder_layers: number of them.
        decoder_layers: number of them.
        num_heads: heads of all attention layers.
        ffn_dim: hidden width of the feed-forward layers.
        dropout: rate in the transformer, while training.
        pre_norm: normalise what goes into each part of a layer, instead of the sum after it.
        position: sine waves, or learned for maps of up to 50 x 50 cells.
        loss: matching costs and loss weights.
    """

    name: Literal["detr"] = "detr"
    pixels: PixelConfig = field(default_factory=lambda: PixelConfig(size_divisor=1))
    backbone: BackboneConfig = field(default_factory=lambda: BackboneConfig(out_stages=(4,)))
    embed_dim: int = 256
    num_queries: int = 100
    encoder_layers: int = 6
    decoder_layers: int = 6
    num_heads: int = 8
    ffn_dim: int = 2048
    dropout: float = 0.1
    pre_norm: bool = False
    position: Literal["sine", "learned"] = "sine"
    loss: DetrLossConfig = field(default_factory=DetrLossConfig)


@dataclass(frozen=True)
class DenoisingConfig:
    """Denoising queries (DN-DETR, Li et al., CVPR 2022): targets with noise, restored while training.

    Args:
        groups: how often each target is shown; 0 for none.
        label_noise: probability that a label is replaced by a random one.
        box_noise: centres move by up to this part of half the box's size, sizes change by up to this part.
    """

    groups: int = 0
    label_noise: float = 0.2
    box_noise: float = 0.4


@dataclass(frozen=True)
class DeformableDetrLossConfig:
    """Weights of the matching costs and of the loss terms of Deformable DETR.

    Args:
        class_cost: focal class cost of the matcher.
        box_cost: L1 cost of the matcher.
        giou_cost: generalised IoU cost of the matcher.
        class_weight: focal loss.
        box_weight: L1 loss.
        giou_weight: generalised IoU loss.
        focal_alpha: weight of present classes in the focal loss, against 1 - alpha for absent ones.
    """

    class_cost: float = 2.0
    box_cost: float = 5.0
    giou_cost: float = 2.0
    class_weight: float = 2.0
    box_weight: float = 5.0
    giou_weight: float = 2.0
    focal_alpha: float = 0.25


@dataclass(frozen=True)
class DeformableDetrConfig:
    """Deformable DETR (Zhu et al., ICLR 2021).

    Args:
        name: the detector.
        pixels: normalisation and padding of the images.
        backbone: the image network. Single-scale: out_stages [4]; single-scale DC5: dilation too.
        num_levels: feature levels; those beyond the backbone's are made from its coarsest. Single-scale: 1.
        embed_dim: width of queries and feature maps.
        num_queries: objects that an image can have.
        encoder_layers: number of them.
        decoder_layers: number of them.
        num_heads: heads of all attention layers.
        encoder_points: samples per head and level, in the encoder.
        decoder_points: likewise, in the decoder.
        ffn_dim: hidden width of the feed-forward layers.
        dropout: rate in the transformer, while training.
        position: sine waves, or learned for maps of up to 50 x 50 cells.
        refine: each decoder layer corrects the boxes of the one before (iterative box refinement).
        two_stage: queries start from boxes that the encoder proposes; needs refine.
        max_detections: the best (query, class) pairs kept per image.
        denoising: denoising queries.
        loss: matching costs and loss weights.
    """

    name: Literal["deformable_detr"] = "deformable_detr"
    pixels: PixelConfig = field(default_factory=lambda: PixelConfig(size_divisor=1))
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    num_levels: int = 4
    embed_dim: int = 256
    num_queries: int = 300
    encoder_layers: int = 6
    decoder_layers: int = 6
    num_heads: int = 8
    encoder_points: int = 4
    decoder_points: int = 4
    ffn_dim: int = 1024
    dropout: float = 0.1
    position: Literal["sine", "learned"] = "sine"
    refine: bool = False
    two_stage: bool = False
    max_detections: int = 100
    denoising: DenoisingConfig = field(default_factory=DenoisingConfig)
    loss: DeformableDetrLossConfig = field(default_factory=DeformableDetrLossConfig)

    def __post_init__(self) -> None:
        if self.two_stage and not self.refine:
            raise ConfigError("model.two_stage needs model.refine: proposals are boxes that the decoder corrects")
        if self.embed_dim % 32:
            raise ConfigError(f"model.embed_dim of Deformable DETR must be a multiple of 32, got {self.embed_dim}")
