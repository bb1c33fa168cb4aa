"""One-to-one assignment of queries to targets, by the Hungarian algorithm over a sum of cost terms.

2D and 3D detectors differ only in the terms that they hand in. Costs of all decoder layers, images and proposals are
computed where the predictions are and reach the host in a single copy.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from . import boxes as boxes2d
from .structures import Targets


class LossError(ValueError):
    """A cost or a loss that is not finite; the message names the sample, the layer and the term."""


class CostTerm(Protocol):
    """What pairing a query with a target costs, in one respect."""

    @property
    def name(self) -> str: ...

    def __call__(self, logits: Tensor, boxes: Tensor, targets: Targets) -> Tensor:
        """Weighted costs [L, Q, n] of the queries (logits [L, Q, C], boxes [L, Q, k]) of one image and its targets."""


@dataclass(frozen=True)
class FocalClassCost:
    """What the focal loss of the target's class falls by when the query is paired (Deformable DETR, DETR3D)."""

    weight: float = 2.0
    alpha: float = 0.25
    gamma: float = 2.0
    name: str = "class"

    def __call__(self, logits: Tensor, boxes: Tensor, targets: Targets) -> Tensor:
        score = logits[..., targets.labels].sigmoid()  # [L, Q, n]
        positive = self.alpha * (1 - score) ** self.gamma * -(score + 1e-8).log()
        negative = (1 - self.alpha) * score**self.gamma * -(1 - score + 1e-8).log()
        return self.weight * (positive - negative)


@dataclass(frozen=True)
class SoftmaxClassCost:
    """One minus the probability of the target's class, up to the constant (DETR); the last logit is "no object"."""

    weight: float = 1.0
    name: str = "class"

    def __call__(self, logits: Tensor, boxes: Tensor, targets: Targets) -> Tensor:
        return -self.weight * logits.softmax(-1)[..., targets.labels]


@dataclass(frozen=True)
class BoxL1Cost:
    """L1 distance of box numbers.

    Args:
        weight: factor.
        encode: takes the targets' boxes [n, k'] to the numbers [n, k] that the network predicts; None: they are those.
        numbers: only the first so many numbers count; None: all.
    """

    weight: float = 5.0
    encode: Callable[[Tensor], Tensor] | None = None
    numbers: int | None = None
    name: str = "box"

    def __call__(self, logits: Tensor, boxes: Tensor, targets: Targets) -> Tensor:
        wanted = targets.boxes if self.encode is None else self.encode(targets.boxes)
        return self.weight * torch.cdist(boxes[..., : self.numbers], wanted[:, : self.numbers].to(boxes), p=1)


@dataclass(frozen=True)
class GIoUCost:
    """Negative generalised IoU of 2D boxes (cx, cy, w, h)."""

    weight: float = 2.0
    name: str = "giou"

    def __call__(self, logits: Tensor, boxes: Tensor, targets: Targets) -> Tensor:
        ours, theirs = boxes2d.cxcywh_to_xyxy(boxes), boxes2d.cxcywh_to_xyxy(targets.boxes.to(boxes))
        return -self.weight * boxes2d.pairwise_giou(ours, theirs)


@dataclass
class LayerSet:
    """Predictions that are supervised alike: all decoder layers, or the proposals of a two-stage detector."""

    names: Sequence[str]  # [L] for messages and for the losses
    logits: Tensor  # [L, B, Q, C] float32 or better
    boxes: Tensor  # [L, B, Q, k]
    targets: Sequence[Targets]  # [B]


@dataclass
class Assignment:
    """The pairs of L layers of a batch; each image has min(queries, targets) of them, K in all, in every layer."""

    images: Tensor  # [K] int64, ascending
    queries: Tensor  # [L, K] int64, ascending within an image
    targets: Tensor  # [L, K] int64, index within the image's own targets


class HungarianMatcher:
    """Finds the cheapest one-to-one assignment in every layer and image.

    Args:
        cost_terms: their sum is the cost.
    """

    def __init__(self, cost_terms: Sequence[CostTerm]) -> None:
        if not cost_terms:
            raise ValueError("a matcher needs at least one cost term")
        self.cost_terms = tuple(cost_terms)

    @torch.no_grad()
    def __call__(self, sets: Sequence[LayerSet], tokens: Sequence[str] = ()) -> list[Assignment]:
        """Match sets of layers, which may differ in their numbers of layers, queries and classes.

        An image may have no targets, or more than there are queries.

        Args:
            sets: what to match, all on one device.
            tokens: [B] names of the images for error messages.

        Returns:
            An assignment for each set, on the device of the predictions.

        Raises:
            LossError: a cost is not finite; the message names image, layer and term.
        """
        # An image's queries meet its own targets only, so memory follows the number of objects, not its maximum.
        costs = [self._cost(layers, image) for layers in sets for image in range(len(layers.targets))]
        host = torch.cat([cost.flatten() for cost in costs]).cpu().numpy()
        finite = np.isfinite(host).all()
        assignments, start = [], 0
        for layers in sets:
            L, _, Q, _ = layers.logits.shape
            images, pairs = [], []
            for image, target in enumerate(layers.targets):
                cost = host[start : start + L * Q * len(target)].reshape(L, Q, len(target))
                start += cost.size
                if not finite:
                    self._check(cost, layers, image, tokens)
                pairs.append(np.array([linear_sum_assignment(layer) for layer in cost]))  # [L, 2, min(Q, n)]
                images.append(np.full((1, pairs[-1].shape[2]), image))
            indices = np.concatenate(pairs, 2).swapaxes(0, 1).reshape(2 * L, -1)
            table = torch.from_numpy(np.concatenate([np.concatenate(images, 1), indices])).to(layers.logits.device)
            assignments.append(Assignment(table[0], table[1 : L + 1], table[L + 1 :]))
        return assignments

    def _cost(self, layers: LayerSet, image: int) -> Tensor:
        """[L, Q, n]: every query of an image against its targets."""
        logits, boxes, target = layers.logits[:, image], layers.boxes[:, image], layers.targets[image]
        if not len(target):
            return logits.new_empty(*logits.shape[:2], 0)
        return torch.stack([term(logits, boxes, target) for term in self.cost_terms]).sum(0)

    def _check(self, cost: np.ndarray, layers: LayerSet, image: int, tokens: Sequence[str]) -> None:
        """Raise if a cost of an image is not finite."""
        bad = np.argwhere(~np.isfinite(cost))
        if not len(bad):
            return
        layer, query, index = bad[0].tolist()
        logits, boxes, target = layers.logits[:, image], layers.boxes[:, image], layers.targets[image]
        terms = [t.name for t in self.cost_terms if not t(logits, boxes, target)[layer, query, index].isfinite()]
        raise LossError(
            f"{sample_name(tokens, image)}, {layers.names[layer]}: the matching cost "
            f"{' and '.join(map(repr, terms))} of query {query} with target {index} is not finite: "
            f"logits {_numbers(logits[layer, query])}, box {_numbers(boxes[layer, query])}, "
            f"target box {_numbers(target.boxes[index])}"
        )


def sample_name(tokens: Sequence[str], image: int) -> str:
    """A sample of a batch in an error message: by its token, or by its place where there are no tokens."""
    return f"sample {tokens[image]!r}" if tokens else f"sample {image} of the batch"


def _numbers(values: Tensor) -> str:
    return "(" + ", ".join(f"{value:.4g}" for value in values.tolist()[:10]) + ")"
