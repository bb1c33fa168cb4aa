"""What the heads of all detectors share: perceptrons, reference arithmetic, the choice of the best predictions."""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor, nn

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


def set_class_prior(classifier: nn.Linear) -> None:
    """Start a sigmoid classifier where every class has the probability `CLASS_PRIOR`."""
    nn.init.constant_(classifier.bias, -math.log((1 - CLASS_PRIOR) / CLASS_PRIOR))


def inverse_sigmoid(x: Tensor, eps: float = 1e-5) -> Tensor:
    """Logit of x in [0, 1], with x and 1 - x no smaller than `eps`."""
    x = x.clamp(0, 1)
    return (x.clamp(min=eps) / (1 - x).clamp(min=eps)).log()


def top_predictions(
    logits: Tensor,  # [B, Q, C]
    count: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """The best (query, class) pairs by sigmoid score: scores, labels and queries, each [B, min(count, Q * C)]."""
    scores, flat = logits.sigmoid().flatten(1).topk(min(count, logits[0].numel()))
    classes = logits.shape[-1]
    return scores, flat % classes, torch.div(flat, classes, rounding_mode="floor")
