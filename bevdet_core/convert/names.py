"""What may be converted, by name; light enough for the help of the command line."""

from __future__ import annotations

from typing import Literal, get_args

RELEASES = ("deformable-detr", "detr", "hf-deformable-detr", "hf-detr", "detr3d", "petr", "bevformer", "mmdet3d")
BACKBONE = "torchvision-resnet"  # a classifier's weights, of which a backbone is made
BoxConvention = Literal["old", "new", "mixed"]
BOX_CONVENTIONS: tuple[BoxConvention, ...] = get_args(BoxConvention)
SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")  # of files that are written; the first is that of this library
