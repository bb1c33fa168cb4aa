"""DETR3D: 3D detection from cameras by sampling image features at projected reference points (Wang et al., 2021)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from torch import Tensor, nn

from bevdet_ops import multi_camera_deformable_attention

from ..geometry import locate_in_images
from ..structures import CameraRig, ImageBatch, Predictions
from .cameras import calibration, camera_features, check_features
from .heads import inverse_sigmoid
from .perspective import look
from .query_head import BoxQueryHead, Proposals
from .rig_detector import RigDetector
from .transformer import FeedForward, MultiHeadAttention, flatten_levels, xavier_init


class CameraCrossAttention(nn.Module):
    """Reads every camera that sees a query's reference point: one sample per level, each with a sigmoid weight.

    Args:
        dim: width of queries and features.
        num_cameras: cameras that the rig may have; each has weights of its own.
        num_levels: levels of the feature pyramid.
        dropout: rate on the output, while training.
    """

    def __init__(self, dim: int, num_cameras: int, num_levels: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.num_cameras, self.num_levels = num_cameras, num_levels
        self.attention_weights = nn.Linear(dim, num_cameras * num_levels)
        self.output_proj = nn.Linear(dim, dim)
        self.position_encoder = nn.Sequential(
            nn.Linear(3, dim), nn.LayerNorm(dim), nn.ReLU(), nn.Linear(dim, dim), nn.LayerNorm(dim), nn.ReLU()
        )
        self.dropout = nn.Dropout(dropout)

    def init_weights(self) -> None:
        """Equal weights for all cameras and levels."""
        nn.init.zeros_(self.attention_weights.weight)
        nn.init.zeros_(self.attention_weights.bias)
        nn.init.zeros_(self.output_proj.bias)

    def forward(
        self,
        query: Tensor,  # [B, Q, D]
        query_pos: Tensor,  # [B, Q, D]
        value: Tensor,  # [B, N, S, 1, D]
        spatial_shapes: tuple[tuple[int, int], ...],
        reference_points: Tensor,  # [B, Q, 3] in [0, 1] of the point cloud range
        locations: Tensor,  # [B, N, Q, 2] of the reference points in [0, 1] of the padded images
        visible: Tensor,  # [B, N, Q] bool
    ) -> Tensor:
        """Returns [B, Q, D], to be added to the query."""
        weights = self.attention_weights(query + query_pos).unflatten(-1, (self.num_cameras, self.num_levels))
        weights = weights[:, :, : value.shape[1]]  # a rig may have fewer cameras
        sampled = multi_camera_deformable_attention(
            value,
            spatial_shapes,
            locations[:, :, :, None, None],  # [B, N, Q, 1, 1, 2]
            None,
            weights.transpose(1, 2)[:, :, :, None, :, None],  # [B, N, Q, 1, L, 1]
            visible,
            weight_activation="sigmoid",
        )
        return self.dropout(self.output_proj(sampled)) + self.position_encoder(inverse_sigmoid(reference_points))


class Detr3dDecoderLayer(nn.Module):
    """Self-attention, camera cross-attention and feed-forward layer, each followed by a LayerNorm."""

    def __init__(
        self, dim: int, num_heads: int, ffn_dim: int, num_cameras: int, num_levels: int, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.self_attention = MultiHeadAttention(dim, num_heads, dropout)
        self.cross_attention = CameraCrossAttention(dim, num_cameras, num_levels, dropout)
        self.ffn = FeedForward(dim, ffn_dim, dropout)
        self.norm1, self.norm2, self.norm3 = nn.LayerNorm(dim), nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.dropout = nn.Dropout(dropout)
        xavier_init(self)
        self.cross_attention.init_weights()

    def forward(self, query: Tensor, query_pos: Tensor, *camera_inputs) -> Tensor:
        """Queries [B, Q, D] -> queries; `camera_inputs` are those of `CameraCrossAttention` from `value` on."""
        where = query + query_pos
        query = self.norm1(query + self.dropout(self.self_attention(where, where, query)))
        query = self.norm2(query + self.cross_attention(query, query_pos, *camera_inputs))
        return self.norm3(query + self.dropout(self.ffn(query)))


class Detr3dHead(BoxQueryHead):
    """Decoder and prediction heads: from feature maps of all cameras to boxes.

    Args:
        num_classes: of the detector.
        num_cameras: cameras that the rig may have; each has weights of its own.
        num_levels: levels of the feature pyramid.
        embed_dim: width of queries and features.
        num_queries: see `BoxQueryHead`.
        num_proposals: likewise.
        num_layers: decoder layers; each refines the reference points of the one before.
        num_heads: of the self-attention.
        ffn_dim: hidden width of the feed-forward layers.
        dropout: rate in the decoder, while training.
        pc_range: (x0, y0, z0, x1, y1, z1) in metres, lidar frame, that reference points cover.
    """

    def __init__(
        self,
        num_classes: int,
        num_cameras: int = 6,
        num_levels: int = 4,
        embed_dim: int = 256,
        num_queries: int = 900,
        num_proposals: int = 0,
        num_layers: int = 6,
        num_heads: int = 8,
        ffn_dim: int = 512,
        dropout: float = 0.1,
        pc_range: Sequence[float] = (-51.2, -51.2, -5.0, 51.2, 51.2, 3.0),
    ) -> None:
        layer = partial(Detr3dDecoderLayer, embed_dim, num_heads, ffn_dim, num_cameras, num_levels, dropout)
        super().__init__(num_classes, embed_dim, num_queries, num_proposals, num_layers, pc_range, layer)
        self.num_cameras, self.num_levels = num_cameras, num_levels

    def forward(
        self,
        features: Sequence[Tensor],  # L x [B, N, D, H_l, W_l], fine to coarse
        lidar2img: Tensor,  # [B, N, 4, 4]
        image_size: tuple[int, int],  # (height, width) of the padded images
        hidden: Tensor | None = None,  # [B, N] bool, cameras that nothing is read from; None: no such one
        proposals: Proposals | None = None,
    ) -> Predictions:
        """See `Predictions`; its hidden states and references are filled in.

        Raises:
            ValueError: more cameras than the head has weights for, or another number of levels.
        """
        check_features(features, self.num_cameras, self.num_levels)
        B, N = features[0].shape[:2]
        tokens, spatial_shapes = flatten_levels([f.flatten(0, 1) for f in features])
        value = tokens.unflatten(0, (B, N)).unsqueeze(3)  # [B, N, S, 1, D]

        def attend(layer: nn.Module, query: Tensor, query_pos: Tensor, reference: Tensor) -> Tensor:
            seen = locate_in_images(self.to_metres(reference), lidar2img, image_size, hidden)
            return layer(query, query_pos, value, spatial_shapes, reference, *seen)

        return self.refine(attend, B, proposals)


class Detr3d(RigDetector):
    """The detector around a `Detr3dHead`, or another that reads the neck's levels; arguments as for `RigDetector`."""

    def forward(self, batch: ImageBatch) -> Predictions:
        """Detect objects in rig frames. While training, `batch.targets` feed the perspective head.

        Raises:
            ValueError: the batch has no calibration, or more cameras than the head.
        """
        rig = calibration(batch, type(self).__name__.upper())
        features = camera_features(self.backbone, self.neck, batch, rig.shown)
        cells = look(self.perspective, features[0], batch, rig)
        predictions = self.read(features, batch, rig, None if cells is None else cells.proposals)
        return self.with_cells(predictions, batch, perspective=cells)

    def read(
        self, features: Sequence[Tensor], batch: ImageBatch, rig: CameraRig, proposals: Proposals | None
    ) -> Predictions:
        """What the head makes of the neck's levels, L x [B, N, D, H_l, W_l], and of proposed boxes."""
        size = (batch.images.shape[-2], batch.images.shape[-1])
        return self.head(features, rig.lidar2img, size, rig.hidden, proposals)
