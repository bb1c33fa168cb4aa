"""Our settings from the names and shapes of an official state dict, which is all that a released file tells.

Two things leave no trace in the weights and are taken as published: the number of attention heads, 8, and that the last
stage of the backbone is not dilated; a DC5 model needs `model.backbone.dilation` set.
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
Depth = Literal[18, 34, 50, 101, 152]


def deformable_detr(weights: Mapping[str, Tensor]) -> tuple[DeformableDetrConfig, int]:
    """Settings and number of classes of a checkpoint of the Deformable DETR release.

    Raises:
        CheckpointError: a state dict of something else.
    """
    two_stage = "transformer.enc_output.weight" in weights
    levels, dim = _shape(weights, "transformer.level_embed")
    rows, _ = _shape(weights, "transformer.encoder.layers.0.self_attn.sampling_offsets.weight")
    decoder_rows, _ = _shape(weights, "transformer.decoder.layers.0.cross_attn.sampling_offsets.weight")
    config = DeformableDetrConfig(
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
    return config, _shape(weights, "class_embed.0.weight")[0]


def detr(weights: Mapping[str, Tensor]) -> tuple[DetrConfig, int]:
    """Settings and number of classes of a checkpoint of the DETR release.

    Raises:
        CheckpointError: a state dict of something else.
    """
    num_queries, dim = _shape(weights, "query_embed.weight")
    config = DetrConfig(
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
    return config, _shape(weights, "class_embed.weight")[0] - 1


def _shape(weights: Mapping[str, Tensor], key: str) -> tuple[int, ...]:
    if key not in weights:
        raise CheckpointError(f"a checkpoint of another release: it has no {key!r}")
    return tuple(weights[key].shape)


def _count(weights: Mapping[str, Tensor], pattern: str) -> int:
    return len({match[1] for match in map(re.compile(pattern).match, weights) if match})


def _position(weights: Mapping[str, Tensor]) -> Literal["sine", "learned"]:
    return "learned" if "backbone.1.row_embed.weight" in weights else "sine"


def _backbone(weights: Mapping[str, Tensor], out_stages: tuple[int, ...]) -> BackboneConfig:
    prefix = r"backbone\.0\.body\.layer"
    blocks = tuple(_count(weights, rf"{prefix}{stage}\.(\d+)\.") for stage in (1, 2, 3, 4))
    bottlenecks = "backbone.0.body.layer1.0.conv3.weight" in weights
    for depth, wanted in STAGE_BLOCKS.items():
        if wanted == blocks and (depth >= 50) == bottlenecks:
            width = _shape(weights, "backbone.0.body.conv1.weight")[0]
            return BackboneConfig(depth=cast(Depth, depth), width=width, out_stages=out_stages)
    raise CheckpointError(f"a backbone with {blocks} blocks in its stages is no ResNet-18, 34, 50, 101 or 152")
