"""What the heads of all detectors share: perceptrons, reference arithmetic, the choice of the best predictions."""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor, nn

from ..boxes import cxcywh_to_xyxy
from ..structures import ImageBatch

CLASS_PRIOR = 0.01  # probability that an untrained class head gives to every class (focal loss paper)


class MLP(nn.Sequential):
    """Linear layers with ReLU between them.

    Args:
        widths: of the input, of every hidden layer, and of the output.
    """

    def __init__(self, *widths: int) -> None:
        layers: list[nn.Module] = []
        for i, (before, after) in enumerate(pairwise(widths)):
            if i:
                layers.append(nn.ReLU())
            layers.append(nn.Linear(before, after))
        super().__init__(*layers)


def set_class_prior(classifier: nn.Linear | nn.Conv2d) -> None:
    """Start a sigmoid classifier where every class has the probability `CLASS_PRIOR`."""
    assert classifier.bias is not None
    nn.init.constant_(classifier.bias, -math.log((1 - CLASS_PRIOR) / CLASS_PRIOR))


def deformable_heads(
    dim: int, num_classes: int, count: int, refine: bool, two_stage: bool
) -> tuple[list[nn.Linear], list[MLP]]:
    """Class and box heads of `count` layers with the start values of Deformable DETR.

    Args:
        dim: width of the queries.
        num_classes: of the detector.
        count: number of layers.
        refine: every layer has heads of its own; otherwise all share one.
        two_stage: references are boxes from the start.
    """
    class_heads = [nn.Linear(dim, num_classes) for _ in range(count if refine else 1)]
    box_heads = [MLP(dim, dim, dim, 4) for _ in class_heads]
    for class_head, box_head in zip(class_heads, box_heads, strict=True):
        set_class_prior(class_head)
        for parameter in box_head[-1].parameters():
            nn.init.zeros_(parameter)
    if not two_stage:
        # A reference point gets a box of an eighth of the image, which further layers correct.
        first = box_heads[0].get_parameter(f"{len(box_heads[0]) - 1}.bias")
        nn.init.constant_(first[2:], -2.0)
    return (class_heads, box_heads) if refine else (class_heads * count, box_heads * count)


def inverse_sigmoid(x: Tensor, eps: float = 1e-5) -> Tensor:
    """Logit of x in [0, 1], with x and 1 - x no smaller than `eps`."""
    return (x.clamp(eps, 1.0) / (1 - x).clamp(eps, 1.0)).log()


def top_predictions(
    logits: Tensor,  # [B, Q, C]
    count: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """The best (query, class) pairs by sigmoid score: scores, labels and queries, each [B, min(count, Q * C)]."""
    scores, flat = logits.sigmoid().flatten(1).topk(min(count, logits[0].numel()))
    classes = logits.shape[-1]
    return scores, flat % classes, torch.div(flat, classes, rounding_mode="floor")


def scale_to_pixels(boxes: Tensor, batch: ImageBatch) -> Tensor:
    """Boxes (cx, cy, w, h) [B, n, 4] as fractions of the image -> (x0, y0, x1, y1) in pixels of the original image.

    Raises:
        ValueError: the batch does not know the original sizes.
    """
    if batch.original_sizes is None:
        raise ValueError("decoding 2D boxes needs batch.original_sizes, the (height, width) of the images as they came")
    size = batch.original_sizes[:, 0].flip(-1).to(boxes)  # [B, 2] (width, height)
    return cxcywh_to_xyxy(boxes) * size.repeat(1, 2)[:, None]
