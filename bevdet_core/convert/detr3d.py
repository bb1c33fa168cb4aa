"""The layout of the DETR3D release (mmdet3d before 1.0)."""

from __future__ import annotations

from torch import Tensor

from .layout import Layout

SIN, COS = 6, 7  # places in the box code


def turn_code(rows: Tensor) -> Tensor:
    """Rows [10, ...] that make box codes of one yaw convention -> rows that make those of the other.

    mmdet3d before 1.0 has yaw_old = -yaw - pi / 2, so sin = -cos_old and cos = -sin_old. Sizes are (w, l, h) in both.
    """
    out = rows.clone()
    out[SIN], out[COS] = -rows[COS], -rows[SIN]
    return out


_HEAD = "pts_bbox_head"
_LAYER = "pts_bbox_head.transformer.decoder.layers.#"

DETR3D = Layout(
    "DETR3D",
    rules=(
        ("backbone.*", "img_backbone.*"),
        ("neck.lateral_convs.#.*", "img_neck.lateral_convs.#.conv.*"),
        ("neck.output_convs.#.*", "img_neck.fpn_convs.#.conv.*"),
        ("head.query_embed.weight", f"{_HEAD}.query_embedding.weight"),
        ("head.reference_points.*", f"{_HEAD}.transformer.reference_points.*"),
        ("head.layers.#.self_attention.in_proj.weight", f"{_LAYER}.attentions.0.attn.in_proj_weight"),
        ("head.layers.#.self_attention.in_proj.bias", f"{_LAYER}.attentions.0.attn.in_proj_bias"),
        ("head.layers.#.self_attention.out_proj.*", f"{_LAYER}.attentions.0.attn.out_proj.*"),
        ("head.layers.#.cross_attention.*", f"{_LAYER}.attentions.1.*"),
        ("head.layers.#.ffn.linear1.*", f"{_LAYER}.ffns.0.layers.0.0.*"),
        ("head.layers.#.ffn.linear2.*", f"{_LAYER}.ffns.0.layers.1.*"),
        ("head.layers.#.norm1.*", f"{_LAYER}.norms.0.*"),
        ("head.layers.#.norm2.*", f"{_LAYER}.norms.1.*"),
        ("head.layers.#.norm3.*", f"{_LAYER}.norms.2.*"),
        ("head.class_heads.#.*", f"{_HEAD}.cls_branches.#.*"),
        ("head.box_heads.#.*", f"{_HEAD}.reg_branches.#.*"),
    ),
    involutions={"head.box_heads.#.4.*": turn_code},
    ignored=(f"{_HEAD}.code_weights",),
)
