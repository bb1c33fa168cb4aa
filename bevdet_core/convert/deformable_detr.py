"""Layouts of Deformable DETR: the official release and `transformers`."""

from __future__ import annotations

from ..config import DeformableDetrConfig
from .detr import HF_DECODER_LAYER, HF_FFN, HF_POSITION, box_head, hf_attention, renamed
from .layout import Layout, Rule
from .resnet import hf_backbone, torchvision_resnet

_ENCODER, _DECODER = "transformer.encoder.layers.#", "transformer.decoder.layers.#"
_HF_ENCODER, _HF_DECODER = "model.encoder.layers.#", "model.decoder.layers.#"


def deformable_detr(config: DeformableDetrConfig) -> Layout:
    """The layout of the official release; it stores heads that the decoder needs a second time under its own name."""
    return Layout(
        "Deformable DETR",
        rules=(
            *torchvision_resnet("backbone.0.body."),
            ("position.rows.weight", "backbone.1.row_embed.weight"),
            ("position.columns.weight", "backbone.1.col_embed.weight"),
            ("neck.levels.#.*", "input_proj.#.*"),
            ("level_embed", "transformer.level_embed"),
            ("encoder.layers.#.self_attention.*", f"{_ENCODER}.self_attn.*"),
            *renamed(
                "encoder.layers.#",
                _ENCODER,
                {"norm1": "norm1", "ffn.linear1": "linear1", "ffn.linear2": "linear2", "norm2": "norm2"},
            ),
            ("decoder.layers.#.self_attention.in_proj.weight", f"{_DECODER}.self_attn.in_proj_weight"),
            ("decoder.layers.#.self_attention.in_proj.bias", f"{_DECODER}.self_attn.in_proj_bias"),
            ("decoder.layers.#.self_attention.out_proj.*", f"{_DECODER}.self_attn.out_proj.*"),
            ("decoder.layers.#.cross_attention.*", f"{_DECODER}.cross_attn.*"),
            *renamed(
                "decoder.layers.#",
                _DECODER,
                # The release numbers norms in the order of its constructor, not of their use.
                {
                    "norm1": "norm2",
                    "norm2": "norm1",
                    "ffn.linear1": "linear1",
                    "ffn.linear2": "linear2",
                    "norm3": "norm3",
                },
            ),
            ("queries.query_embed.weight", "query_embed.weight"),
            *_query_rules(config, "transformer."),
            *_head_rules(),
        ),
        copies=_copies(config, "transformer.decoder."),
    )


def hf_deformable_detr(config: DeformableDetrConfig) -> Layout:
    """The layout of `transformers`."""
    return Layout(
        "transformers Deformable DETR",
        rules=(
            *hf_backbone("model.backbone.conv_encoder.model."),
            *HF_POSITION,
            ("neck.levels.#.*", "model.input_proj.#.*"),
            ("level_embed", "model.level_embed"),
            ("encoder.layers.#.self_attention.*", f"{_HF_ENCODER}.self_attn.*"),
            *renamed(
                "encoder.layers.#",
                _HF_ENCODER,
                {"norm1": "self_attn_layer_norm", **HF_FFN, "norm2": "final_layer_norm"},
            ),
            *hf_attention("decoder.layers.#.self_attention", f"{_HF_DECODER}.self_attn"),
            ("decoder.layers.#.cross_attention.*", f"{_HF_DECODER}.encoder_attn.*"),
            *renamed("decoder.layers.#", _HF_DECODER, HF_DECODER_LAYER),
            ("queries.query_embed.weight", "model.query_position_embeddings.weight"),
            *_query_rules(config, "model."),
            *_head_rules(),
        ),
        copies=_copies(config, "model.decoder."),
    )


def _query_rules(config: DeformableDetrConfig, prefix: str) -> tuple[Rule, ...]:
    if not config.two_stage:
        return (("queries.reference_points.*", f"{prefix}reference_points.*"),)
    last = config.decoder_layers  # the proposals' heads follow those of the decoder
    return (
        ("queries.memory_proj.*", f"{prefix}enc_output.*"),
        ("queries.memory_norm.*", f"{prefix}enc_output_norm.*"),
        ("queries.query_proj.*", f"{prefix}pos_trans.*"),
        ("queries.query_norm.*", f"{prefix}pos_trans_norm.*"),
        ("queries.class_head.*", f"class_embed.{last}.*"),
        *box_head("queries.box_head", f"bbox_embed.{last}"),
    )


def _head_rules() -> tuple[Rule, ...]:
    return (("decoder.class_heads.#.*", "class_embed.#.*"), *box_head("decoder.box_heads.#", "bbox_embed.#"))


def _copies(config: DeformableDetrConfig, decoder: str) -> tuple[tuple[str, str], ...]:
    copies = [(f"{decoder}bbox_embed.#.*", "bbox_embed.#.*")] if config.refine else []
    if config.two_stage:
        copies.append((f"{decoder}class_embed.#.*", "class_embed.#.*"))
    return tuple(copies)
