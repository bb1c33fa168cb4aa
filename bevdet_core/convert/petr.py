"""The layout of PETR: the release (mmdet3d before 1.0) and the projects of mmdet3d, which differ in the box code."""

from __future__ import annotations

from .box_code import recoder
from .layout import Layout
from .mmcv import IMAGE_NETWORK, attention, decoder_layer
from .names import BoxConvention

_HEAD = "pts_bbox_head"
_LAYER = f"{_HEAD}.transformer.decoder.layers.#"


def petr(num_layers: int, convention: BoxConvention = "old") -> Layout:
    """How PETR is stored.

    Args:
        num_layers: decoder layers; the release repeats the heads, which they share, for each.
        convention: see `recoder`.
    """
    branches = ("cls_branches", "reg_branches")
    return Layout(
        "PETR",
        rules=(
            *IMAGE_NETWORK,
            ("head.input_proj.*", f"{_HEAD}.input_proj.*"),
            ("head.ray_embed.encoder.*", f"{_HEAD}.position_encoder.*"),
            ("head.sine_embed.encoder.*", f"{_HEAD}.adapt_pos3d.*"),
            ("head.anchors.weight", f"{_HEAD}.reference_points.weight"),
            ("head.query_embed.*", f"{_HEAD}.query_embedding.*"),
            *decoder_layer("head.decoder.layers.#", _LAYER),
            *attention("head.decoder.layers.#.cross_attention", f"{_LAYER}.attentions.1"),
            ("head.decoder.norm.*", f"{_HEAD}.transformer.decoder.post_norm.*"),
            ("head.class_head.*", f"{_HEAD}.cls_branches.0.*"),
            ("head.box_head.*", f"{_HEAD}.reg_branches.0.*"),
        ),
        involutions={"head.box_head.4.*": recoder(convention)},
        ignored=(f"{_HEAD}.code_weights",),
        copies=[(f"{_HEAD}.{b}.{i}.*", f"{_HEAD}.{b}.0.*") for b in branches for i in range(1, num_layers)],
    )
