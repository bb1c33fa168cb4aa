"""Layouts of DETR: the official release and `transformers`."""

from __future__ import annotations

from collections.abc import Mapping

from .layout import Layout, Rule
from .resnet import hf_backbone, torchvision_resnet

BOX_HEAD_STEPS = {0: 0, 2: 1, 4: 2}  # linear layers: their place among ours, which count the ReLUs too, and theirs


def box_head(ours: str, theirs: str) -> tuple[Rule, ...]:
    """Rules for a box head with three linear layers."""
    return tuple((f"{ours}.{i}.*", f"{theirs}.layers.{j}.*") for i, j in BOX_HEAD_STEPS.items())


def _official_attention(ours: str, theirs: str) -> tuple[Rule, ...]:
    return (
        (f"{ours}.in_proj.weight", f"{theirs}.in_proj_weight"),
        (f"{ours}.in_proj.bias", f"{theirs}.in_proj_bias"),
        (f"{ours}.out_proj.*", f"{theirs}.out_proj.*"),
    )


def hf_attention(ours: str, theirs: str) -> tuple[Rule, ...]:
    """Rules for multi-head attention whose three input projections are stored one by one."""
    return (
        (f"{ours}.in_proj.*", tuple(f"{theirs}.{name}_proj.*" for name in "qkv")),
        (f"{ours}.out_proj.*", f"{theirs}.out_proj.*"),
    )


def renamed(ours: str, theirs: str, names: Mapping[str, str]) -> tuple[Rule, ...]:
    """Rules for the modules of a layer: our name -> theirs."""
    return tuple((f"{ours}.{own}.*", f"{theirs}.{name}.*") for own, name in names.items())


_FFN = {"ffn.linear1": "linear1", "ffn.linear2": "linear2"}
HF_FFN = {"ffn.linear1": "fc1", "ffn.linear2": "fc2"}

# Version 5 of transformers has learned positions elsewhere.
HF_POSITION: tuple[Rule, ...] = tuple(
    (f"position.{ours}.weight", f"{place}.position_embedding.{theirs}_embeddings.weight")
    for place in ("model.backbone", "model")
    for ours, theirs in (("rows", "row"), ("columns", "column"))
)
HF_DECODER_LAYER = {
    **HF_FFN,
    "norm1": "self_attn_layer_norm",
    "norm2": "encoder_attn_layer_norm",
    "norm3": "final_layer_norm",
}

_ENCODER, _DECODER = "transformer.encoder.layers.#", "transformer.decoder.layers.#"

DETR = Layout(
    "DETR",
    rules=(
        *torchvision_resnet("backbone.0.body."),
        ("position.rows.weight", "backbone.1.row_embed.weight"),
        ("position.columns.weight", "backbone.1.col_embed.weight"),
        ("neck.*", "input_proj.*"),
        *_official_attention("encoder.layers.#.self_attention", f"{_ENCODER}.self_attn"),
        *renamed("encoder.layers.#", _ENCODER, {**_FFN, "norm1": "norm1", "norm2": "norm2"}),
        ("encoder.norm.*", "transformer.encoder.norm.*"),
        *_official_attention("decoder.layers.#.self_attention", f"{_DECODER}.self_attn"),
        *_official_attention("decoder.layers.#.cross_attention", f"{_DECODER}.multihead_attn"),
        *renamed("decoder.layers.#", _DECODER, {**_FFN, "norm1": "norm1", "norm2": "norm2", "norm3": "norm3"}),
        ("decoder.norm.*", "transformer.decoder.norm.*"),
        ("query_embed.weight", "query_embed.weight"),
        ("class_head.*", "class_embed.*"),
        *box_head("box_head", "bbox_embed"),
    ),
)

_HF_ENCODER, _HF_DECODER = "model.encoder.layers.#", "model.decoder.layers.#"

HF_DETR = Layout(
    "transformers DETR",
    rules=(
        *hf_backbone("model.backbone.conv_encoder.model."),
        *HF_POSITION,
        ("neck.*", "model.input_projection.*"),
        *hf_attention("encoder.layers.#.self_attention", f"{_HF_ENCODER}.self_attn"),
        *renamed(
            "encoder.layers.#",
            _HF_ENCODER,
            {**HF_FFN, "norm1": "self_attn_layer_norm", "norm2": "final_layer_norm"},
        ),
        *hf_attention("decoder.layers.#.self_attention", f"{_HF_DECODER}.self_attn"),
        *hf_attention("decoder.layers.#.cross_attention", f"{_HF_DECODER}.encoder_attn"),
        *renamed("decoder.layers.#", _HF_DECODER, HF_DECODER_LAYER),
        ("decoder.norm.*", "model.decoder.layernorm.*"),
        ("query_embed.weight", "model.query_position_embeddings.weight"),
        ("class_head.*", "class_labels_classifier.*"),
        *box_head("box_head", "bbox_predictor"),
    ),
)
