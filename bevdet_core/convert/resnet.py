"""Layouts of ResNets."""

from __future__ import annotations

from .layout import Rule


def torchvision_resnet(prefix: str) -> tuple[Rule, ...]:
    """Rules for a backbone under torchvision's names, which are ours."""
    return (("backbone.*", f"{prefix}*"),)


def hf_backbone(prefix: str) -> tuple[Rule, ...]:
    """Rules for a backbone in `transformers`: under the names of its own ResNet, or of timm's, which are torchvision's.

    The published checkpoints have timm's; on the way out the names are those of its own.
    """
    rules = [
        ("backbone.conv1.weight", f"{prefix}embedder.embedder.convolution.weight"),
        ("backbone.bn1.*", f"{prefix}embedder.embedder.normalization.*"),
    ]
    for stage in range(4):
        ours, theirs = f"backbone.layer{stage + 1}.#", f"{prefix}encoder.stages.{stage}.layers.#"
        rules += [
            (f"{ours}.downsample.0.weight", f"{theirs}.shortcut.convolution.weight"),
            (f"{ours}.downsample.1.*", f"{theirs}.shortcut.normalization.*"),
        ]
        for conv in range(3):
            rules += [
                (f"{ours}.conv{conv + 1}.weight", f"{theirs}.layer.{conv}.convolution.weight"),
                (f"{ours}.bn{conv + 1}.*", f"{theirs}.layer.{conv}.normalization.*"),
            ]
    return (*rules, *torchvision_resnet(prefix))
