"""BEVFormer as plain PyTorch runs it on a CPU: the road of the official release and of mmcv's CPU fallback.

Convolutions, batch norms and activations each make a pass of their own over maps in PyTorch's default layout. Every
camera's visible cells are gathered into lists, which needs their numbers on the host, and padded to the longest; the
attention samples each level by one `grid_sample` and stacks all samples; results are added back camera by camera.
Geometry, feed-forward layers and prediction heads are the library's own: plain PyTorch already.
"""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from bench_ops import grid_sample
from torch import Tensor, nn

from bevdet_core.models.bev_attention import SpatialCrossAttention, TemporalSelfAttention
from bevdet_core.models.bev_memory import BevMemory
from bevdet_core.models.bevformer import BevFormer
from bevdet_core.models.resnet import FrozenBatchNorm2d, ResNet
from bevdet_core.models.transformer import MultiHeadAttention
from bevdet_core.structures import ImageBatch, Predictions
from bevdet_ops import MSDeformAttn
from bevdet_ops.dense import TokenLinear

Shapes = tuple[tuple[int, int], ...]


class PlainBevFormer(nn.Module):
    """A detector with the weights of another, for inference.

    Args:
        detector: the other; it stays as it is.
    """

    def __init__(self, detector: BevFormer) -> None:
        super().__init__()
        self.detector = copy.deepcopy(detector).eval()
        _replace_parts(self.detector)

    def features(self, batch: ImageBatch) -> list[Tensor]:
        """Feature maps of all cameras in one pass, L x [B, N, D, H_l, W_l]."""
        maps = self.detector.neck(self.detector.backbone(batch.images.flatten(0, 1)))
        return [f.unflatten(0, batch.images.shape[:2]) for f in maps]

    def forward(self, batch: ImageBatch, memory: BevMemory) -> Predictions:
        """See `BevFormer.forward`."""
        return self.after_neck(batch, self.features(batch), memory)

    def after_neck(self, batch: ImageBatch, features: list[Tensor], memory: BevMemory) -> Predictions:
        """Encoder, decoder and heads."""
        return self.detector.head(self.detector.encode(batch, features, batch.scenes, memory))


class PlainResNet(ResNet):
    """All images go through all stages together."""

    def forward(self, x: Tensor) -> list[Tensor]:
        x = F.max_pool2d(self.bn1(self.conv1(x)).relu_(), 3, stride=2, padding=1)
        outputs = []
        for number in range(1, self.stages + 1):
            x = self.stage(number)(x)
            if number in self.out_stages:
                outputs.append(x)
        return outputs


class PlainBatchNorm(nn.Module):
    """A pass over the map, after the convolution."""

    def __init__(self, norm: FrozenBatchNorm2d) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        norm = self.norm
        return F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps)


class PlainSelfAttention(MultiHeadAttention):
    """With the matrix of all weights, as `nn.MultiheadAttention` computes it where it returns them."""

    def forward(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
        parts = zip((query, key, value), self.in_proj.weight.chunk(3), self.in_proj.bias.chunk(3), strict=True)
        q, k, v = (self._split_heads(F.linear(x, weight, bias)) for x, weight, bias in parts)
        weights = (q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5).softmax(-1)
        return self.out_proj((weights @ v).transpose(1, 2).flatten(2))


def sampled(value: Tensor, shapes: Shapes, reference: Tensor, offsets: Tensor, weights: Tensor) -> Tensor:
    """Attention of queries to the maps of their own image.

    Args:
        value: [B, S, M, D].
        shapes: (H, W) of the levels.
        reference: [B, Q, L or 1, Z, 2] in [0, 1]; point p belongs to anchor p modulo Z.
        offsets: [B, Q, M, L, P, 2] in pixels.
        weights: [B, Q, M, L, P] before the softmax.

    Returns:
        [B, Q, M * D].
    """
    sizes = torch.tensor(shapes)
    normalizer = sizes.flip(-1).to(offsets.dtype)[:, None]  # [L, 1, 2]
    points, anchors = offsets.shape[-2], reference.shape[-2]
    places = reference.repeat(1, 1, 1, points // anchors, 1)[:, :, None]  # [B, Q, 1, L or 1, P, 2]
    weights = weights.flatten(-2).softmax(-1).view_as(weights)
    return grid_sample(value, sizes, sizes, places + offsets / normalizer, weights)


class PlainMSDeformAttn(MSDeformAttn):
    """The decoder's cross-attention."""

    def forward(
        self, query: Tensor, reference_points: Tensor, input_flatten: Tensor, input_spatial_shapes: Shapes, **_: None
    ) -> Tensor:
        samples = (self.n_heads, self.n_levels, self.n_points)
        attended = sampled(
            self.value_proj(input_flatten).unflatten(-1, (self.n_heads, -1)),
            input_spatial_shapes,
            reference_points[:, :, :, None],
            self.sampling_offsets(query).unflatten(-1, (*samples, 2)),
            self.attention_weights(query).unflatten(-1, samples),
        )
        return self.output_proj(attended)


class PlainSpatialCrossAttention(SpatialCrossAttention):
    """Gathers the cells that each camera sees, pads them to the longest list, and adds the results back."""

    def forward(
        self, query: Tensor, tokens: Tensor, spatial_shapes: Shapes, locations: Tensor, visible: Tensor
    ) -> Tensor:
        own = self.attention
        (B, N), D = tokens.shape[:2], query.shape[-1]
        lists = [[camera.nonzero().squeeze(-1) for camera in frame] for frame in visible]
        longest = max(len(cells) for frame in lists for cells in frame)
        queries = query.new_zeros(B, N, longest, D)
        reference = locations.new_zeros(B, N, longest, *locations.shape[3:])
        for b in range(B):
            for n, cells in enumerate(lists[b]):
                queries[b, n, : len(cells)] = query[b, cells]
                reference[b, n, : len(cells)] = locations[b, n, cells]
        queries, reference = queries.flatten(0, 1), reference.flatten(0, 1)
        samples = (own.n_heads, own.n_levels, own.n_points)
        attended = sampled(
            own.value_proj(tokens.flatten(0, 1)).unflatten(-1, (own.n_heads, -1)),
            spatial_shapes,
            reference[:, :, None],
            own.sampling_offsets(queries).unflatten(-1, (*samples, 2)),
            own.attention_weights(queries).unflatten(-1, samples),
        ).unflatten(0, (B, N))
        slots = torch.zeros_like(query)
        for b in range(B):
            for n, cells in enumerate(lists[b]):
                slots[b, cells] += attended[b, n, : len(cells)]
        return own.output_proj(slots / visible.sum(1).clamp(min=1)[..., None])


class PlainTemporalSelfAttention(TemporalSelfAttention):
    """Both views as two items of a batch."""

    def forward(
        self, query: Tensor, query_pos: Tensor, shape: tuple[int, int], reference_points: Tensor, views: Tensor | None
    ) -> Tensor:
        B, Q, _ = query.shape
        views = torch.stack([query, query], 1) if views is None else views
        both = torch.cat([views[:, 0], query + query_pos], -1)
        samples = (self.num_heads, 2, 1, self.num_points)
        offsets = self.sampling_offsets(both).view(B, Q, *samples, 2).movedim(3, 1).flatten(0, 1)
        weights = self.attention_weights(both).view(B, Q, *samples).movedim(3, 1).flatten(0, 1)
        value = self.value_proj(views.flatten(0, 1)).unflatten(-1, (self.num_heads, -1))
        reference = reference_points.flatten(0, 1)[:, :, None, None]
        return self.output_proj(sampled(value, (shape,), reference, offsets, weights).unflatten(0, (B, 2)).mean(1))


PLAIN = {
    ResNet: PlainResNet,
    TokenLinear: nn.Linear,
    MultiHeadAttention: PlainSelfAttention,
    MSDeformAttn: PlainMSDeformAttn,
    SpatialCrossAttention: PlainSpatialCrossAttention,
    TemporalSelfAttention: PlainTemporalSelfAttention,
}


def _replace_parts(model: nn.Module) -> None:
    """Let every part with a faster road than plain PyTorch take the plain one, with the parameters that it has."""
    for module in list(model.modules()):
        module.__class__ = PLAIN.get(type(module), type(module))
        for name, child in list(module.named_children()):
            if isinstance(child, FrozenBatchNorm2d):
                setattr(module, name, PlainBatchNorm(child))
