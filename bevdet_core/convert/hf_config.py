"""Our settings from the configuration of a `transformers` model (`config.json`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from ..config import (
    BackboneConfig,
    ConfigError,
    DeformableDetrConfig,
    DeformableDetrLossConfig,
    DetrConfig,
    DetrLossConfig,
)

Depth = Literal[18, 34, 50, 101, 152]

# What our detectors take for granted: the name in `transformers` and its value there.
_FIXED = {"activation_function": "relu", "num_channels": 3}


def deformable_detr_config(arguments: Mapping[str, Any]) -> DeformableDetrConfig:
    """Settings from the arguments of `transformers.DeformableDetrConfig`; what is left out has its default there.

    Raises:
        ConfigError: a setting that our Deformable DETR does not have.
    """
    get = _reader(arguments)
    levels, two_stage = get("num_feature_levels", 4), get("two_stage", False)
    return DeformableDetrConfig(
        backbone=_backbone(arguments, (2, 3, 4) if levels > 1 else (4,)),
        num_levels=levels,
        embed_dim=get("d_model", 256),
        num_queries=get("two_stage_num_proposals" if two_stage else "num_queries", 300),
        encoder_layers=get("encoder_layers", 6),
        decoder_layers=get("decoder_layers", 6),
        num_heads=_same(get, "encoder_attention_heads", "decoder_attention_heads", 8),
        encoder_points=get("encoder_n_points", 4),
        decoder_points=get("decoder_n_points", 4),
        ffn_dim=_same(get, "encoder_ffn_dim", "decoder_ffn_dim", 1024),
        dropout=get("dropout", 0.1),
        position=_position(get),
        refine=get("with_box_refine", False),
        two_stage=two_stage,
        loss=DeformableDetrLossConfig(
            class_cost=get("class_cost", 1),
            box_cost=get("bbox_cost", 5),
            giou_cost=get("giou_cost", 2),
            class_weight=1.0,
            box_weight=get("bbox_loss_coefficient", 5),
            giou_weight=get("giou_loss_coefficient", 2),
            focal_alpha=get("focal_alpha", 0.25),
        ),
    )


def detr_config(arguments: Mapping[str, Any]) -> DetrConfig:
    """Settings from the arguments of `transformers.DetrConfig`; what is left out has its default there.

    Raises:
        ConfigError: a setting that our DETR does not have.
    """
    get = _reader(arguments)
    return DetrConfig(
        backbone=_backbone(arguments, (4,)),
        embed_dim=get("d_model", 256),
        num_queries=get("num_queries", 100),
        encoder_layers=get("encoder_layers", 6),
        decoder_layers=get("decoder_layers", 6),
        num_heads=_same(get, "encoder_attention_heads", "decoder_attention_heads", 8),
        ffn_dim=_same(get, "encoder_ffn_dim", "decoder_ffn_dim", 2048),
        dropout=get("dropout", 0.1),
        position=_position(get),
        loss=DetrLossConfig(
            class_cost=get("class_cost", 1),
            box_cost=get("bbox_cost", 5),
            giou_cost=get("giou_cost", 2),
            box_weight=get("bbox_loss_coefficient", 5),
            giou_weight=get("giou_loss_coefficient", 2),
            no_object=get("eos_coefficient", 0.1),
        ),
    )


def _reader(arguments: Mapping[str, Any]):
    """A look-up with defaults, after a check of what we take for granted."""
    for name, value in _FIXED.items():
        if arguments.get(name, value) != value:
            raise ConfigError(f"{name} = {arguments[name]!r} is not supported, only {value!r}")

    def get(name: str, default: Any) -> Any:
        value = arguments.get(name)
        return default if value is None else value

    return get


def _same(get, first: str, second: str, default: int) -> int:
    if get(first, default) != get(second, default):
        raise ConfigError(f"{first} = {get(first, default)} and {second} = {get(second, default)} must be the same")
    return get(first, default)


def _position(get) -> Literal["sine", "learned"]:
    kind = get("position_embedding_type", "sine")
    if kind not in ("sine", "learned"):
        raise ConfigError(f"position_embedding_type = {kind!r} is not supported, only 'sine' and 'learned'")
    return kind


def _backbone(arguments: Mapping[str, Any], out_stages: tuple[int, ...]) -> BackboneConfig:
    """Of a `transformers` ResNet, or of a ResNet of timm by its name."""
    details = arguments.get("backbone_config") or {}
    if details.get("model_type") == "timm_backbone" or not details:
        name = details.get("backbone") or arguments.get("backbone") or "resnet50"
        depths: dict[str, Depth] = {"resnet18": 18, "resnet34": 34, "resnet50": 50, "resnet101": 101, "resnet152": 152}
        if name not in depths:
            raise ConfigError(f"the backbone {name!r} is not supported, only {', '.join(depths)}")
        # As ours by default, what comes before the second stage is frozen there.
        return BackboneConfig(depth=depths[name], out_stages=out_stages, dilation=bool(arguments.get("dilation")))
    if details.get("model_type", "resnet") != "resnet":
        raise ConfigError(f"a backbone of type {details['model_type']!r} is not supported, only ResNets")
    if details.get("downsample_in_first_stage"):
        raise ConfigError("downsample_in_first_stage of the backbone is not supported")
    if details.get("hidden_act", "relu") != "relu":
        raise ConfigError(f"hidden_act = {details['hidden_act']!r} of the backbone is not supported, only 'relu'")
    basic = details.get("layer_type", "bottleneck") == "basic"
    channels = details.get("hidden_sizes", (256, 512, 1024, 2048))
    return BackboneConfig(
        depth=18 if basic else 50,
        width=details.get("embedding_size", 64),
        stages=tuple(
            (blocks, hidden if basic else hidden // 4)
            for blocks, hidden in zip(details.get("depths", (3, 4, 6, 3)), channels, strict=True)
        ),
        style="caffe" if details.get("downsample_in_bottleneck") else "pytorch",
        # With their own ResNet the whole backbone is frozen there.
        frozen_stages=4,
        out_stages=_stages(details),
    )


def _stages(details: Mapping[str, Any]) -> tuple[int, ...]:
    """The stages whose feature maps a `transformers` ResNet returns; without a word about them, the last."""
    names = details.get("out_features")
    if names is None:
        indices = details.get("out_indices")
        names = ["stage4"] if indices is None else [f"stage{index}" if index else "stem" for index in indices]
    if not set(names) <= {f"stage{stage}" for stage in (1, 2, 3, 4)}:
        raise ConfigError(f"out_features = {list(names)} of the backbone are not supported, only stage1 to stage4")
    return tuple(int(name.removeprefix("stage")) for name in names)
