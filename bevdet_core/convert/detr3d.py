"""The layout of DETR3D: the release (mmdet3d before 1.0) and the projects of mmdet3d, which differ in the box code."""

from __future__ import annotations

from .box_code import recoder, turn_code
from .layout import Layout
from .mmcv import IMAGE_NETWORK, decoder_layer
from .names import BoxConvention

__all__ = ["DETR3D", "detr3d", "turn_code"]

_HEAD = "pts_bbox_head"
_LAYER = f"{_HEAD}.transformer.decoder.layers.#"


def detr3d(convention: BoxConvention = "old") -> Layout:
    """How DETR3D is stored; see `recoder` for the conventions."""
    return Layout(
        "DETR3D",
        rules=(
            *IMAGE_NETWORK,
            ("head.query_embed.weight", f"{_HEAD}.query_embedding.weight"),
            ("head.reference_points.*", f"{_HEAD}.transformer.reference_points.*"),
            *decoder_layer("head.layers.#", _LAYER),
            ("head.layers.#.cross_attention.*", f"{_LAYER}.attentions.1.*"),
            ("head.class_heads.#.*", f"{_HEAD}.cls_branches.#.*"),
            ("head.box_heads.#.*", f"{_HEAD}.reg_branches.#.*"),
        ),
        involutions={"head.box_heads.#.4.*": recoder(convention)},
        ignored=(f"{_HEAD}.code_weights",),
    )


DETR3D = detr3d()
