"""Names that releases on mmdet and mmcv share: image network, feature pyramid, attention and feed-forward layers."""

from __future__ import annotations

from .layout import Rule

IMAGE_NETWORK: tuple[Rule, ...] = (
    # Weights from before mmcv 1.0 have the offsets of deformable convolutions beside the convolution, not within.
    ("backbone.layer#.#.conv2.conv_offset.*", "img_backbone.layer#.#.conv2.conv_offset.*"),
    ("backbone.layer#.#.conv2.conv_offset.*", "img_backbone.layer#.#.conv2_offset.*"),
    ("backbone.*", "img_backbone.*"),
    ("neck.lateral_convs.#.*", "img_neck.lateral_convs.#.conv.*"),
    ("neck.output_convs.#.*", "img_neck.fpn_convs.#.conv.*"),
)


def attention(ours: str, theirs: str) -> tuple[Rule, ...]:
    """Rules for multi-head attention."""
    return (
        (f"{ours}.in_proj.weight", f"{theirs}.attn.in_proj_weight"),
        (f"{ours}.in_proj.bias", f"{theirs}.attn.in_proj_bias"),
        (f"{ours}.out_proj.*", f"{theirs}.attn.out_proj.*"),
    )


def ffn_and_norms(ours: str, theirs: str) -> tuple[Rule, ...]:
    """Rules for the feed-forward part of a layer and its three norms."""
    return (
        (f"{ours}.ffn.linear1.*", f"{theirs}.ffns.0.layers.0.0.*"),
        (f"{ours}.ffn.linear2.*", f"{theirs}.ffns.0.layers.1.*"),
        *((f"{ours}.norm{i + 1}.*", f"{theirs}.norms.{i}.*") for i in range(3)),
    )


def decoder_layer(ours: str, theirs: str) -> tuple[Rule, ...]:
    """Rules for a decoder layer, but for its cross-attention."""
    return (
        *attention(f"{ours}.self_attention", f"{theirs}.attentions.0"),
        *ffn_and_norms(ours, theirs),
    )
