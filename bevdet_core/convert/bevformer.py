"""The layout of the BEVFormer release (mmdet3d before 1.0)."""

from __future__ import annotations

from .detr3d import turn_code
from .layout import Layout, Rule

_HEAD = "pts_bbox_head"
_TRANSFORMER = f"{_HEAD}.transformer"
_ENCODER = ("head.encoder.layers.#", f"{_TRANSFORMER}.encoder.layers.#")
_DECODER = ("head.layers.#", f"{_TRANSFORMER}.decoder.layers.#")
_LINEARS = ("sampling_offsets", "attention_weights", "value_proj", "output_proj")


def _ffn_and_norms(ours: str, theirs: str) -> tuple[Rule, ...]:
    return (
        (f"{ours}.ffn.linear1.*", f"{theirs}.ffns.0.layers.0.0.*"),
        (f"{ours}.ffn.linear2.*", f"{theirs}.ffns.0.layers.1.*"),
        *((f"{ours}.norm{i + 1}.*", f"{theirs}.norms.{i}.*") for i in range(3)),
    )


BEVFORMER = Layout(
    "BEVFormer",
    rules=(
        ("backbone.*", "img_backbone.*"),
        ("neck.lateral_convs.#.*", "img_neck.lateral_convs.#.conv.*"),
        ("neck.output_convs.#.*", "img_neck.fpn_convs.#.conv.*"),
        ("head.bev_embed.weight", f"{_HEAD}.bev_embedding.weight"),
        ("head.position.rows.weight", f"{_HEAD}.positional_encoding.row_embed.weight"),
        ("head.position.columns.weight", f"{_HEAD}.positional_encoding.col_embed.weight"),
        ("head.camera_embed", f"{_TRANSFORMER}.cams_embeds"),
        ("head.level_embed", f"{_TRANSFORMER}.level_embeds"),
        ("head.motion_mlp.4.*", f"{_TRANSFORMER}.can_bus_mlp.norm.*"),
        ("head.motion_mlp.#.*", f"{_TRANSFORMER}.can_bus_mlp.#.*"),
        *((f"{_ENCODER[0]}.temporal_attention.{name}.*", f"{_ENCODER[1]}.attentions.0.{name}.*") for name in _LINEARS),
        # The release has the output projection outside of the attention.
        (f"{_ENCODER[0]}.spatial_attention.attention.output_proj.*", f"{_ENCODER[1]}.attentions.1.output_proj.*"),
        (f"{_ENCODER[0]}.spatial_attention.attention.*", f"{_ENCODER[1]}.attentions.1.deformable_attention.*"),
        *_ffn_and_norms(*_ENCODER),
        ("head.query_embed.weight", f"{_HEAD}.query_embedding.weight"),
        ("head.reference_points.*", f"{_TRANSFORMER}.reference_points.*"),
        (f"{_DECODER[0]}.self_attention.in_proj.weight", f"{_DECODER[1]}.attentions.0.attn.in_proj_weight"),
        (f"{_DECODER[0]}.self_attention.in_proj.bias", f"{_DECODER[1]}.attentions.0.attn.in_proj_bias"),
        (f"{_DECODER[0]}.self_attention.out_proj.*", f"{_DECODER[1]}.attentions.0.attn.out_proj.*"),
        (f"{_DECODER[0]}.cross_attention.*", f"{_DECODER[1]}.attentions.1.*"),
        *_ffn_and_norms(*_DECODER),
        ("head.class_heads.#.*", f"{_HEAD}.cls_branches.#.*"),
        ("head.box_heads.#.*", f"{_HEAD}.reg_branches.#.*"),
    ),
    involutions={"head.box_heads.#.4.*": turn_code},
    ignored=(f"{_HEAD}.code_weights",),
)
