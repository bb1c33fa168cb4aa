"""The 3D detectors: their settings, with the values of the published networks."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from .errors import ConfigError
from .network import BackboneConfig, PixelConfig

Range3d = tuple[float, float, float, float, float, float]  # x0, y0, z0, x1, y1, z1


@dataclass(frozen=True)
class Detr3dLossConfig:
    """Weights of the matching costs and of the loss terms of DETR3D and PETR.

    Args:
        class_cost: focal class cost of the matcher.
        box_cost: L1 cost of the matcher, on the first eight code numbers.
        class_weight: focal loss.
        box_weight: L1 loss.
        code_weights: weight of each of the ten code numbers in the L1 loss.
        drop_unknown: an object with an unknown velocity takes no part in the L1 loss at all, as in the release; false
            leaves out its velocity alone.
    """

    class_cost: float = 2.0
    box_cost: float = 0.25
    class_weight: float = 2.0
    box_weight: float = 0.25
    code_weights: tuple[float, ...] = (1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.2, 0.2)
    drop_unknown: bool = False

    def __post_init__(self) -> None:
        if len(self.code_weights) != 10:
            raise ConfigError(f"model.loss.code_weights must be a list of 10 numbers, got {len(self.code_weights)}")


@dataclass(frozen=True)
class Detr3dConfig:
    """DETR3D (Wang et al., CoRL 2021).

    Args:
        name: the detector.
        pixels: normalisation and padding of the images.
        backbone: the image network.
        num_cameras: cameras that a rig may have; each has weights of its own.
        num_levels: feature levels of the FPN, from the first of the backbone's out_stages on.
        embed_dim: width of queries and feature maps.
        num_queries: objects that a frame can have.
        num_layers: decoder layers.
        num_heads: heads of the self-attention.
        ffn_dim: hidden width of the feed-forward layers.
        dropout: rate in the decoder, while training.
        pc_range: (x0, y0, z0, x1, y1, z1) in metres, lidar frame, that reference points cover.
        post_center_range: detections with a centre outside are dropped.
        max_detections: the best (query, class) pairs kept per frame.
        score_threshold: detections below are dropped.
        perspective: while training, a dense head on the finest feature level predicts boxes too (as in BEVFormer v2);
            what a training from random weights needs, and no part of the published network.
        num_proposals: queries beside num_queries that start from the likeliest boxes that head sees. Their places are
            reference points, as in BEVFormer v2; the rest of their codes is what the layers correct. Codes, class
            logits and the features that the head saw make up the first content of the queries.
        loss: matching costs and loss weights.
    """

    name: Literal["detr3d"] = "detr3d"
    pixels: PixelConfig = field(default_factory=PixelConfig)
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    num_cameras: int = 6
    num_levels: int = 4
    embed_dim: int = 256
    num_queries: int = 900
    num_layers: int = 6
    num_heads: int = 8
    ffn_dim: int = 512
    dropout: float = 0.1
    pc_range: Range3d = (-51.2, -51.2, -5.0, 51.2, 51.2, 3.0)
    post_center_range: Range3d = (-61.2, -61.2, -10.0, 61.2, 61.2, 10.0)
    max_detections: int = 300
    score_threshold: float = 0.0
    perspective: bool = False
    num_proposals: int = 0
    loss: Detr3dLossConfig = field(default_factory=Detr3dLossConfig)

    def __post_init__(self) -> None:
        _check_proposals(self.num_proposals, self.perspective)


@dataclass(frozen=True)
class BevFormerConfig:
    """BEVFormer (Li et al., ECCV 2022); the defaults are those of its base model.

    Args:
        name: the detector.
        pixels: normalisation and padding of the images.
        backbone: the image network.
        num_cameras: cameras that a rig may have; each has weights of its own.
        num_levels: feature levels of the FPN, from the first of the backbone's out_stages on.
        embed_dim: width of cells, queries and feature maps.
        bev_shape: (rows, columns) of the bird's-eye view, which covers `pc_range`.
        num_queries: objects that a frame can have.
        encoder_layers: layers that fill the bird's-eye view.
        decoder_layers: number of them.
        num_heads: heads of all attention layers.
        pillar_points: anchors in the pillar over a cell, at which cameras look; must divide `spatial_points`.
        spatial_points: samples per head and level around the anchors that a camera sees.
        temporal_points: samples per head in each of the previous and the current view.
        decoder_points: samples per head in the view around a query.
        ffn_dim: hidden width of the feed-forward layers.
        dropout: rate, while training.
        queue_length: frames of a training sample. 1: no history, neither in training nor afterwards.
        queue_drop: draw the others from the `queue_length` key frames before it, all but one, as published, which
            varies the time between frames; otherwise they are those right before.
        queue_learn: what is learned from. "last": the last frame, while those before it are looked at without
            gradients, as published. "all": every frame, each with those before it as its history; a frame then costs
            hardly more than without history, and a step has up to `queue_length` times as many. "stream": the frames of
            a scene come one after the other, several scenes by turns, and each sees the views that were made of those
            before it when they were learned from, as in StreamPETR (Wang et al., ICCV 2023); the length of the queue
            then says no more than that there is history.
        temporal: how a view takes up earlier ones. "attention": each cell looks around its place in the one before, the
            published network. "convolution": they are moved to where things are now, and convolutions look at all of
            them, as in BEVFormer v2 (Yang et al., CVPR 2023).
        history_steps: which earlier views, in frames before the present one; convolutions may look at several. Those
            from before the queue, or before the scene, are missing.
        history_gap: after so many seconds without a frame, a scene starts anew.
        pc_range: (x0, y0, z0, x1, y1, z1) in metres, lidar frame, that cells and reference points cover.
        post_center_range: detections with a centre outside are dropped.
        max_detections: the best (query, class) pairs kept per frame.
        score_threshold: detections below are dropped.
        perspective: see `Detr3dConfig`.
        num_proposals: likewise.
        num_bev_proposals: queries beside them that start from the likeliest boxes which a dense head sees in the view,
            and with it in the past. It learns beside the queries; no part of the published network.
        release_quirks: what official weights have learned to live with. The previous view is turned about cell (100,
            100) whatever its size, as if cells were squares, and shifted and turned by the motion of the ego's origin
            instead of the lidar's; the turn in degrees enters the network as a plain difference, which may pass 180.
            (What the release mixes up between the samples of a batch is right here in any case: its weights come from
            batches of one.)
        loss: matching costs and loss weights.
    """

    name: Literal["bevformer"] = "bevformer"
    pixels: PixelConfig = field(default_factory=PixelConfig)
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    num_cameras: int = 6
    num_levels: int = 4
    embed_dim: int = 256
    bev_shape: tuple[int, int] = (200, 200)
    num_queries: int = 900
    encoder_layers: int = 6
    decoder_layers: int = 6
    num_heads: int = 8
    pillar_points: int = 4
    spatial_points: int = 8
    temporal_points: int = 4
    decoder_points: int = 4
    ffn_dim: int = 512
    dropout: float = 0.1
    queue_length: int = 4
    queue_drop: bool = True
    queue_learn: Literal["last", "all", "stream"] = "last"
    temporal: Literal["attention", "convolution"] = "attention"
    history_steps: tuple[int, ...] = (1,)
    history_gap: float = 2.0
    pc_range: Range3d = (-51.2, -51.2, -5.0, 51.2, 51.2, 3.0)
    post_center_range: Range3d = (-61.2, -61.2, -10.0, 61.2, 61.2, 10.0)
    max_detections: int = 300
    score_threshold: float = 0.0
    perspective: bool = False
    num_proposals: int = 0
    num_bev_proposals: int = 0
    release_quirks: bool = False
    loss: Detr3dLossConfig = field(default_factory=Detr3dLossConfig)

    def __post_init__(self) -> None:
        _check_proposals(self.num_proposals, self.perspective)
        steps = list(self.history_steps)
        if steps[:1] != [1] or steps != sorted(set(steps)):
            raise ConfigError(f"model.history_steps must begin with 1 and rise, got {steps}")
        if self.temporal == "attention" and steps != [1]:
            raise ConfigError(f"model.temporal attention looks at one view, model.history_steps [1], got {steps}")
        if self.pillar_points < 1 or self.spatial_points % self.pillar_points:
            raise ConfigError(
                f"model.spatial_points = {self.spatial_points} must be a multiple of model.pillar_points = "
                f"{self.pillar_points}: every anchor gets as many samples"
            )

    @property
    def history(self) -> tuple[int, ...]:
        """The `history_steps` where there is history, otherwise none."""
        return self.history_steps if self.queue_length > 1 else ()


@dataclass(frozen=True)
class PetrConfig:
    """PETR (Liu et al., ECCV 2022).

    Args:
        name: the detector.
        pixels: normalisation and padding of the images.
        backbone: the image network.
        fpn: read the finest level of a feature pyramid over the backbone's out_stages ("p4"); without it, the first of
            them as it is ("c5" with out_stages [4]).
        embed_dim: width of queries and tokens.
        num_queries: objects that a frame can have.
        num_layers: decoder layers.
        num_heads: heads of all attention layers.
        ffn_dim: hidden width of the feed-forward layers.
        dropout: rate in the decoder, while training.
        num_depths: points along the ray of every cell that tell where it looks.
        depth_start: depth of the first in metres; the last comes close to the end of position_range along x.
        position_range: (x0, y0, z0, x1, y1, z1) in metres, lidar frame, that these points are told apart in.
        pc_range: likewise, that anchors and centres cover.
        post_center_range: detections with a centre outside are dropped.
        max_detections: the best (query, class) pairs kept per frame.
        score_threshold: detections below are dropped.
        perspective: see `Detr3dConfig`.
        loss: matching costs and loss weights.
    """

    name: Literal["petr"] = "petr"
    pixels: PixelConfig = field(default_factory=PixelConfig)
    backbone: BackboneConfig = field(default_factory=lambda: BackboneConfig(out_stages=(3, 4)))
    fpn: bool = True
    embed_dim: int = 256
    num_queries: int = 900
    num_layers: int = 6
    num_heads: int = 8
    ffn_dim: int = 2048
    dropout: float = 0.1
    num_depths: int = 64
    depth_start: float = 1.0
    position_range: Range3d = (-61.2, -61.2, -10.0, 61.2, 61.2, 10.0)
    pc_range: Range3d = (-51.2, -51.2, -5.0, 51.2, 51.2, 3.0)
    post_center_range: Range3d = (-61.2, -61.2, -10.0, 61.2, 61.2, 10.0)
    max_detections: int = 300
    score_threshold: float = 0.0
    perspective: bool = False
    loss: Detr3dLossConfig = field(default_factory=Detr3dLossConfig)

    def __post_init__(self) -> None:
        if self.embed_dim % 4:
            raise ConfigError(f"model.embed_dim of PETR must be a multiple of 4, got {self.embed_dim}")
        if not 0 < self.depth_start < self.position_range[3]:
            raise ConfigError(
                f"model.depth_start must lie between 0 and the x1 = {self.position_range[3]} of model.position_range, "
                f"got {self.depth_start}"
            )


def _check_proposals(num_proposals: int, perspective: bool) -> None:
    if num_proposals > 0 and not perspective:
        raise ConfigError("model.num_proposals needs model.perspective: true, the head that proposes")
