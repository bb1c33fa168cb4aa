"""Our settings from the names and shapes of an official state dict, which is all that a released file tells.

Two things leave no trace in the weights and are taken as published: the number of attention heads, 8, and that the last
stage of the backbone is not dilated; a DC5 model needs `model.backbone.dilation` set. Messages do not name the file.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Literal, cast

from torch import Tensor

from ..checkpoint import CheckpointError
from ..config import BackboneConfig, DeformableDetrConfig, DetrConfig
from ..models.resnet import STAGE_BLOCKS

HEADS = 8
# The bias of the first class head, with a number for each class.
CLASS_BIAS = {
    "deformable-detr": "class_embed.0.bias",
    "detr": "class_embed.bias",
    "hf-deformable-detr": "class_embed.0.bias",
    "hf-detr": "class_labels_classifier.bias",
}
CLASS_BIAS_3D = "pts_bbox_head.cls_branches.0.6.bias"
Depth = Literal[18, 34, 50, 101, 152]


def num_classes(weights: Mapping[str, Tensor], release: str) -> int:
    """How many classes a checkpoint of a release tells apart.

    Raises:
        CheckpointError: a state dict of something else.
    """
    key = CLASS_BIAS.get(release, CLASS_BIAS_3D)
    # Heads that a decoder shares may be stored under the decoder's name alone.
    key = next((name for name in weights if name.endswith(f".{key}")), key) if key not in weights else key
    (count,) = _shape(weights, key, 1)
    count -= release in ("detr", "hf-detr")  # the last logit is that of no object
    if not count:
        raise CheckpointError(f"{key}: a number for no object alone, and none for a class")
    return count


def deformable_detr(weights: Mapping[str, Tensor]) -> DeformableDetrConfig:
    """Settings of a checkpoint of the Deformable DETR release.

    Raises:
        CheckpointError: a state dict of something else.
    """
    two_stage = "transformer.enc_output.weight" in weights
    levels, dim = _shape(weights, "transformer.level_embed")
    rows, _ = _shape(weights, "transformer.encoder.layers.0.self_attn.sampling_offsets.weight")
    decoder_rows, _ = _shape(weights, "transformer.decoder.layers.0.cross_attn.sampling_offsets.weight")
    return DeformableDetrConfig(
        backbone=_backbone(weights, (2, 3, 4) if levels > 1 else (4,)),
        num_levels=levels,
        embed_dim=dim,
        num_queries=300 if two_stage else _shape(weights, "query_embed.weight")[0],
        encoder_layers=_count(weights, r"transformer\.encoder\.layers\.(\d+)\."),
        decoder_layers=_count(weights, r"transformer\.decoder\.layers\.(\d+)\."),
        num_heads=HEADS,
        encoder_points=rows // (2 * HEADS * levels),
        decoder_points=decoder_rows // (2 * HEADS * levels),
        ffn_dim=_shape(weights, "transformer.encoder.layers.0.linear1.weight")[0],
        position=_position(weights),
        refine="transformer.decoder.bbox_embed.0.layers.0.weight" in weights,
        two_stage=two_stage,
    )


def detr(weights: Mapping[str, Tensor]) -> DetrConfig:
    """Settings of a checkpoint of the DETR release.

    Raises:
        CheckpointError: a state dict of something else.
    """
    num_queries, dim = _shape(weights, "query_embed.weight")
    return DetrConfig(
        backbone=_backbone(weights, (4,)),
        embed_dim=dim,
        num_queries=num_queries,
        encoder_layers=_count(weights, r"transformer\.encoder\.layers\.(\d+)\."),
        decoder_layers=_count(weights, r"transformer\.decoder\.layers\.(\d+)\."),
        num_heads=HEADS,
        ffn_dim=_shape(weights, "transformer.encoder.layers.0.linear1.weight")[0],
        pre_norm="transformer.encoder.norm.weight" in weights,
        position=_position(weights),
    )


def _shape(weights: Mapping[str, Tensor], key: str, dims: int = 2) -> tuple[int, ...]:
    if key not in weights:
        raise CheckpointError(f"a checkpoint of another release: it has no {key!r}")
    shape = tuple(weights[key].shape)
    if len(shape) != dims or 0 in shape:
        raise CheckpointError(f"{key}: shape {shape}, in the release it has {dims} dimensions, none of them empty")
    return shape


def _count(weights: Mapping[str, Tensor], pattern: str) -> int:
    return len({match[1] for match in map(re.compile(pattern).match, weights) if match})


def _position(weights: Mapping[str, Tensor]) -> Literal["sine", "learned"]:
    return "learned" if "backbone.1.row_embed.weight" in weights else "sine"


def _backbone(weights: Mapping[str, Tensor], out_stages: tuple[int, ...]) -> BackboneConfig:
    width = _shape(weights, "backbone.0.body.conv1.weight", 4)[0]
    prefix = r"backbone\.0\.body\.layer"
    blocks = tuple(_count(weights, rf"{prefix}{stage}\.(\d+)\.") for stage in (1, 2, 3, 4))
    bottlenecks = "backbone.0.body.layer1.0.conv3.weight" in weights
    for depth, wanted in STAGE_BLOCKS.items():
        if wanted == blocks and (depth >= 50) == bottlenecks:
            return BackboneConfig(depth=cast(Depth, depth), width=width, out_stages=out_stages)
    raise CheckpointError(f"a backbone with {blocks} blocks in its stages is no ResNet-18, 34, 50, 101 or 152")
