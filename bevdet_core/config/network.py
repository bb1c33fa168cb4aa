"""What all detectors have: how pixels enter the network, and the backbone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from .errors import ConfigError


@dataclass(frozen=True)
class PixelConfig:
    """How pixel values enter the network.

    Args:
        mean: subtracted from each channel, in 0..255, in the order the network sees.
        std: divides each channel.
        bgr: feed blue, green, red ("caffe" weights) instead of red, green, blue.
        size_divisor: pad height and width to multiples of this.
    """

    mean: tuple[float, float, float] = (123.675, 116.28, 103.53)
    std: tuple[float, float, float] = (58.395, 57.12, 57.375)
    bgr: bool = False
    size_divisor: int = 32


@dataclass(frozen=True)
class BackboneConfig:
    """A ResNet.

    Args:
        depth: number of layers.
        width: channels of the stem; 64 is the published network.
        style: where the stride of a bottleneck sits: "pytorch" in its 3x3, "caffe" in its first 1x1 convolution.
        norm: batch norm that learns statistics, scale and shift ("batch"), keeps the statistics of the weights it
            starts from ("affine"), or keeps all of them ("frozen").
        frozen_stages: the stem and this many stages get no gradient; 0 trains everything.
        out_stages: the stages (1 to 4, strides 4 to 32) whose feature maps go on to the neck.
        dilation: dilate the last stage instead of striding it (DC5).
        deformable_stages: stages whose 3x3 convolutions are modulated deformable ones (DCNv2); depth 50 or more.
        stages: (blocks, width) of each of the four stages, where they are not those of `depth` and `width`; `depth`
            then only tells the kind of block (two 3x3 convolutions below 50, bottlenecks from 50 on).
        weights: file with torchvision-named weights to start from (.safetensors or .pth); none: random.
    """

    depth: Literal[18, 34, 50, 101, 152] = 50
    width: int = 64
    style: Literal["pytorch", "caffe"] = "pytorch"
    norm: Literal["frozen", "affine", "batch"] = "frozen"
    frozen_stages: int = 1
    out_stages: tuple[int, ...] = (2, 3, 4)
    dilation: bool = False
    deformable_stages: tuple[int, ...] = ()
    stages: tuple[tuple[int, int], ...] | None = None
    weights: str | None = None

    def __post_init__(self) -> None:
        if list(self.out_stages) != sorted(set(self.out_stages)):
            raise ConfigError(f"model.backbone.out_stages must be stages that rise, got {list(self.out_stages)}")
        if self.deformable_stages and self.depth < 50:
            raise ConfigError(f"model.backbone.deformable_stages need a depth of 50 or more, got {self.depth}")
        if self.stages is not None and len(self.stages) != 4:
            raise ConfigError(f"model.backbone.stages must be four pairs of blocks and width, got {len(self.stages)}")
