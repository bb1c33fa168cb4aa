"""PETR: 3D detection from cameras whose features know their place in space (Liu et al., ECCV 2022)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .. import boxes3d
from ..structures import CameraRig, ImageBatch, Predictions
from .detr import DetrDecoder
from .detr3d import Detr3d
from .heads import MLP, inverse_sigmoid
from .position3d import RayEmbedding, RigSineEmbedding, point_embedding
from .query_head import Proposals, class_head, in_metres
from .transformer import resize_mask


class PetrHead(nn.Module):
    """Decoder and prediction heads: from a feature map of all cameras to boxes.

    The box code, its matching, its losses and its decoding are those of DETR3D. What differs: a query starts from an
    anchor that is learned itself, not predicted from the query; its embedding makes the query's position. All layers
    predict the centre relative to this same anchor, no layer corrects the one before, so gradients reach the anchor
    from every layer. All layers share their heads. Two ranges are at work: centres lie within `pc_range`, while places
    along the rays are normalised by the larger `position_range`.

    Args:
        num_classes: of the detector.
        in_channels: of the feature map.
        embed_dim: width of queries and tokens.
        num_queries: objects that a frame can have.
        num_layers: decoder layers.
        num_heads: of all attention layers.
        ffn_dim: hidden width of the feed-forward layers.
        dropout: rate in the decoder, while training.
        num_depths: see `RayEmbedding`.
        depth_start: likewise.
        position_range: likewise.
        pc_range: (x0, y0, z0, x1, y1, z1) in metres, lidar frame, that anchors and centres cover.
    """

    pc_range: Tensor

    def __init__(
        self,
        num_classes: int,
        in_channels: int = 256,
        embed_dim: int = 256,
        num_queries: int = 900,
        num_layers: int = 6,
        num_heads: int = 8,
        ffn_dim: int = 2048,
        dropout: float = 0.1,
        num_depths: int = 64,
        depth_start: float = 1.0,
        position_range: Sequence[float] = (-61.2, -61.2, -10.0, 61.2, 61.2, 10.0),
        pc_range: Sequence[float] = (-51.2, -51.2, -5.0, 51.2, 51.2, 3.0),
    ) -> None:
        super().__init__()
        self.register_buffer("pc_range", torch.tensor(pc_range, dtype=torch.float32), persistent=False)
        self.embed_dim = embed_dim
        self.input_proj = nn.Conv2d(in_channels, embed_dim, 1)
        self.ray_embed = RayEmbedding(embed_dim, num_depths, depth_start, position_range)
        self.sine_embed = RigSineEmbedding(embed_dim)
        self.anchors = nn.Embedding(num_queries, 3)
        self.query_embed = MLP(embed_dim // 2 * 3, embed_dim, embed_dim)
        self.decoder = DetrDecoder(embed_dim, num_layers, num_heads, ffn_dim, dropout)
        self.class_head = class_head(embed_dim, num_classes)
        self.box_head = MLP(embed_dim, embed_dim, embed_dim, boxes3d.CODE_SIZE)
        nn.init.uniform_(self.anchors.weight)
        for module in self.decoder.modules():
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)

    def forward(
        self,
        features: Tensor,  # [B, N, C, H, W]
        lidar2img: Tensor,  # [B, N, 4, 4]
        image_size: tuple[int, int],  # (height, width) of the padded images
        padding: Tensor,  # [B, N, height, width] bool of the images, True under padding
        hidden: Tensor | None = None,  # [B, N] bool, cameras that nothing is read from; None: no such one
    ) -> Predictions:
        """See `Predictions`; its hidden states are filled in."""
        B, N, _, H, W = features.shape
        padding = resize_mask(padding.flatten(0, 1), (H, W)).unflatten(0, (B, N))
        memory = tokens_of(self.input_proj(features.flatten(0, 1)).unflatten(0, (B, N)))
        positions = self.ray_embed((H, W), lidar2img, image_size) + self.sine_embed(padding)
        valid = ~padding.flatten(1)  # [B, S]
        if hidden is not None:
            valid = valid & ~hidden.repeat_interleave(H * W, 1)
            # Attention over no token at all has no value; a frame without cameras reads blank ones instead.
            memory = memory.masked_fill(~valid[..., None], 0.0)
            valid = valid | ~valid.any(1, keepdim=True)
        # Coordinates stay in float32: bfloat16 would round a range of 100 m to steps of 0.4 m.
        with torch.autocast(features.device.type, enabled=False):
            anchors = self.anchors.weight
            query_pos = self.query_embed(point_embedding(anchors, self.embed_dim // 2))
        states = self.decoder(query_pos.expand(B, -1, -1), memory, tokens_of(positions), valid[:, None, None])
        with torch.autocast(features.device.type, enabled=False):
            codes = self.box_head(states.to(anchors.dtype))
            centres = (codes[..., [0, 1, 4]] + inverse_sigmoid(anchors)).sigmoid()
            boxes = boxes3d.with_centres(codes, in_metres(centres, self.pc_range))
        return Predictions(self.class_head(states), boxes, hidden=states)


def tokens_of(maps: Tensor) -> Tensor:
    """Maps [B, N, D, H, W] -> tokens [B, N * H * W, D], camera by camera, each row by row."""
    return maps.flatten(3).transpose(2, 3).flatten(1, 2)


class Petr(Detr3d):
    """The detector: DETR3D around another head, which reads the finest level of the neck; arguments as for `Detr3d`."""

    def read(
        self, features: Sequence[Tensor], batch: ImageBatch, rig: CameraRig, proposals: Proposals | None
    ) -> Predictions:
        size = (batch.images.shape[-2], batch.images.shape[-1])
        return self.head(features[0], rig.lidar2img, size, batch.mask, rig.hidden)
