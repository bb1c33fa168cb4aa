"""The layout of the BEVFormer release (mmdet3d before 1.0)."""

from __future__ import annotations

from .box_code import recoder
from .layout import Layout
from .mmcv import IMAGE_NETWORK, decoder_layer, ffn_and_norms
from .names import BoxConvention

_HEAD = "pts_bbox_head"
_TRANSFORMER = f"{_HEAD}.transformer"
_ENCODER = ("head.encoder.layers.#", f"{_TRANSFORMER}.encoder.layers.#")
_DECODER = ("head.layers.#", f"{_TRANSFORMER}.decoder.layers.#")
_LINEARS = ("sampling_offsets", "attention_weights", "value_proj", "output_proj")


def bevformer(convention: BoxConvention = "old") -> Layout:
    """How BEVFormer is stored; see `recoder` for the conventions."""
    return Layout(
        "BEVFormer",
        rules=(
            *IMAGE_NETWORK,
            ("head.bev_embed.weight", f"{_HEAD}.bev_embedding.weight"),
            ("head.position.rows.weight", f"{_HEAD}.positional_encoding.row_embed.weight"),
            ("head.position.columns.weight", f"{_HEAD}.positional_encoding.col_embed.weight"),
            ("head.camera_embed", f"{_TRANSFORMER}.cams_embeds"),
            ("head.level_embed", f"{_TRANSFORMER}.level_embeds"),
            ("head.motion_mlp.4.*", f"{_TRANSFORMER}.can_bus_mlp.norm.*"),
            ("head.motion_mlp.#.*", f"{_TRANSFORMER}.can_bus_mlp.#.*"),
            *(
                (f"{_ENCODER[0]}.temporal_attention.{name}.*", f"{_ENCODER[1]}.attentions.0.{name}.*")
                for name in _LINEARS
            ),
            # The release has the output projection outside of the attention.
            (f"{_ENCODER[0]}.spatial_attention.attention.output_proj.*", f"{_ENCODER[1]}.attentions.1.output_proj.*"),
            (f"{_ENCODER[0]}.spatial_attention.attention.*", f"{_ENCODER[1]}.attentions.1.deformable_attention.*"),
            *ffn_and_norms(*_ENCODER),
            ("head.query_embed.weight", f"{_HEAD}.query_embedding.weight"),
            ("head.reference_points.*", f"{_TRANSFORMER}.reference_points.*"),
            *decoder_layer(*_DECODER),
            (f"{_DECODER[0]}.cross_attention.*", f"{_DECODER[1]}.attentions.1.*"),
            ("head.class_heads.#.*", f"{_HEAD}.cls_branches.#.*"),
            ("head.box_heads.#.*", f"{_HEAD}.reg_branches.#.*"),
        ),
        involutions={"head.box_heads.#.4.*": recoder(convention)},
        ignored=(f"{_HEAD}.code_weights",),
    )


BEVFORMER = bevformer()
