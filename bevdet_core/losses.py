"""The set criterion: predictions are matched with targets, then loss terms are summed over all layers.

2D and 3D detectors differ only in the terms that they hand in. A term works on all decoder layers at once and returns
one number for each.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from . import boxes as boxes2d
from . import processes
from .matching import Assignment, HungarianMatcher, LayerSet, LossError, sample_name
from .structures import PairedQueries, Predictions, Targets

__all__ = [
    "BoxL1Loss",
    "CardinalityError",
    "ClassError",
    "FocalLoss",
    "GIoULoss",
    "LossError",
    "LossTerm",
    "MatchedLayers",
    "SetCriterion",
    "SoftmaxLoss",
]


LAST = "last layer"


@dataclass
class MatchedLayers:
    """L layers of predictions with their pairs of queries and targets."""

    logits: Tensor  # [L, B, Q, C]
    boxes: Tensor  # [L, B, Q, k]
    targets: Sequence[Targets]  # [B]
    assignment: Assignment  # of K pairs in each layer
    count: Tensor | float  # what sums over targets are divided by: their mean number per process, at least 1

    @cached_property
    def pair_index(self) -> tuple[Tensor, Tensor, Tensor]:
        """(layer, image, query), each broadcasting to [L, K]: picks the paired queries out of [L, B, Q, ...]."""
        layers = torch.arange(len(self.logits), device=self.logits.device)[:, None]
        return layers, self.assignment.images[None], self.assignment.queries

    @cached_property
    def paired_boxes(self) -> Tensor:
        """[L, K, k] boxes of the paired queries."""
        return self.boxes[self.pair_index]

    @cached_property
    def target_labels(self) -> Tensor:
        """[L, K] labels of the paired targets."""
        return torch.cat([target.labels for target in self.targets])[self._target_rows]

    @cached_property
    def target_boxes(self) -> Tensor:
        """[L, K, k'] boxes of the paired targets."""
        return torch.cat([target.boxes for target in self.targets]).to(self.boxes)[self._target_rows]

    @cached_property
    def _target_rows(self) -> Tensor:
        """[L, K] place of each paired target among those of the whole batch."""
        ends = accumulate((len(target) for target in self.targets), initial=0)
        first = torch.tensor(list(ends)[:-1], device=self.logits.device)
        return self.assignment.targets + first[self.assignment.images]


class LossTerm(Protocol):
    """One summand of the loss."""

    @property
    def name(self) -> str: ...

    @property
    def weight(self) -> float | None:
        """Factor in the total; None: a metric, reported and not summed."""

    def __call__(self, layers: MatchedLayers) -> Tensor:
        """[L], without the weight."""


@dataclass(frozen=True)
class FocalLoss:
    """Sigmoid focal loss over all queries and classes (Lin et al., 2017), divided by the number of targets."""

    weight: float = 2.0
    alpha: float = 0.25
    gamma: float = 2.0
    name: str = "class"

    def __call__(self, layers: MatchedLayers) -> Tensor:
        positive = torch.zeros_like(layers.logits, dtype=torch.bool)
        positive[(*layers.pair_index, layers.target_labels)] = True
        # With the sign turned where the class is present, both branches of the loss read the same.
        wrong = torch.where(positive, -layers.logits, layers.logits)
        loss = F.softplus(wrong) * wrong.sigmoid() ** self.gamma
        loss = loss * torch.where(positive, self.alpha, 1 - self.alpha)
        return loss.sum((1, 2, 3)) / layers.count


@dataclass(frozen=True)
class SoftmaxLoss:
    """Cross-entropy with a "no object" class at the end, averaged with that class at a lower weight (DETR)."""

    weight: float = 1.0
    no_object: float = 0.1
    name: str = "class"

    def __call__(self, layers: MatchedLayers) -> Tensor:
        logits = layers.logits
        last = logits.shape[-1] - 1
        labels = torch.full(logits.shape[:-1], last, dtype=torch.int64, device=logits.device)
        labels[layers.pair_index] = layers.target_labels
        weights = torch.where(labels == last, self.no_object, 1.0)
        loss = F.cross_entropy(logits.movedim(-1, 1), labels, reduction="none")  # [L, B, Q]
        return (loss * weights).sum((1, 2)) / weights.sum((1, 2))


@dataclass(frozen=True)
class BoxL1Loss:
    """L1 distance of box numbers, divided by the number of targets.

    Args:
        weight: of the term.
        encode: takes the targets' boxes [..., k'] to the numbers [..., k] that the network predicts; None: they are
            those.
        code_weights: [k] weight of each number; None: all 1.
        unknown: what a target's non-finite number takes out of the loss: that "number" alone, or the whole "box". The
            DETR3D release drops the box, which for a frame without neighbours in time, where no velocity is known,
            would throw all its boxes away; there the data set had set such velocities to 0 before.
    """

    weight: float = 5.0
    encode: Callable[[Tensor], Tensor] | None = None
    code_weights: Sequence[float] | None = None
    unknown: Literal["number", "box"] = "number"
    name: str = "box"

    def __call__(self, layers: MatchedLayers) -> Tensor:
        wanted = layers.target_boxes if self.encode is None else self.encode(layers.target_boxes)
        known = wanted.isfinite()
        if self.unknown == "box":
            known = known.all(-1, keepdim=True)
        distance = (layers.paired_boxes - wanted.where(known, 0.0)).abs().where(known, 0.0)
        if self.code_weights is not None:
            distance = distance * distance.new_tensor(self.code_weights)
        return distance.sum((1, 2)) / layers.count


@dataclass(frozen=True)
class GIoULoss:
    """One minus the generalised IoU of 2D boxes (cx, cy, w, h), divided by the number of targets."""

    weight: float = 2.0
    name: str = "giou"

    def __call__(self, layers: MatchedLayers) -> Tensor:
        ours, theirs = boxes2d.cxcywh_to_xyxy(layers.paired_boxes), boxes2d.cxcywh_to_xyxy(layers.target_boxes)
        return (1 - boxes2d.giou(ours, theirs)).sum(1) / layers.count


@dataclass(frozen=True)
class CardinalityError:
    """Metric: difference between the numbers of targets and of queries that claim an object.

    Args:
        no_object: a query claims one if its best class is not the last one, "no object"; the Deformable DETR release
            counts so too, although it has no such class. False: if a class has more than half the probability.
    """

    no_object: bool = True
    weight: None = None
    name: str = "cardinality_error"

    @torch.no_grad()
    def __call__(self, layers: MatchedLayers) -> Tensor:
        best, label = layers.logits.max(-1)
        found = ((label != layers.logits.shape[-1] - 1) if self.no_object else best > 0).sum(2)  # [L, B]
        wanted = torch.tensor([len(target) for target in layers.targets], device=found.device)
        return (found - wanted).abs().to(layers.logits.dtype).mean(1)


@dataclass(frozen=True)
class ClassError:
    """Metric: percentage of paired queries whose best class is wrong; 100 where there is no pair."""

    weight: None = None
    name: str = "class_error"

    @torch.no_grad()
    def __call__(self, layers: MatchedLayers) -> Tensor:
        right = layers.logits[layers.pair_index].argmax(-1) == layers.target_labels  # [L, K]
        return 100 - 100 * right.sum(1).to(layers.logits.dtype) / max(right.shape[1], 1)


class SetCriterion:
    """Matches each layer anew and sums the loss terms over all layers, proposals included.

    Args:
        matcher: pairs queries with targets.
        loss_terms: what is summed, with their weights.
        count: what the terms divide by: the number of "targets" (DETR family) or of "pairs" (DETR3D), which differ
            only where an image has more targets than queries. Either is averaged over processes and at least 1.
    """

    def __init__(
        self,
        matcher: HungarianMatcher,
        loss_terms: Sequence[LossTerm],
        count: Literal["targets", "pairs"] = "targets",
    ) -> None:
        self.matcher = matcher
        self.loss_terms = tuple(loss_terms)
        self.count = count

    def __call__(
        self, predictions: Predictions, targets: Sequence[Targets], tokens: Sequence[str] = ()
    ) -> dict[str, Tensor]:
        """Losses of a batch.

        Args:
            predictions: of B images or rig frames.
            targets: [B], on the same device. Proposals are supervised with the same boxes, all labelled 0.
            tokens: [B] names for error messages.

        Returns:
            "total", to be differentiated; and every summand, weighted and detached: "loss_class", "loss_box", ... of
            the last layer, "layer0/loss_class", ... of those before, "proposals/loss_class", ...,
            "denoising/loss_class", "denoising/layer0/loss_class", ...; metrics under their own name.

        Raises:
            LossError: a cost or a loss is not finite; the message names samples, layer and term.
        """
        sets = self.layer_sets(predictions, targets)
        assignments = self.matcher(sets, tokens)
        for name, queries in predictions.paired.items():
            layers, pairs = paired_set(name, queries)
            sets, assignments = [*sets, layers], [*assignments, pairs]
        return self.losses(sets, assignments, tokens)

    def layer_sets(self, predictions: Predictions, targets: Sequence[Targets]) -> list[LayerSet]:
        """What is supervised: the decoder's layers and, in a two-stage detector, the class-agnostic proposals."""
        if len(targets) != predictions.logits.shape[1]:
            raise ValueError(f"predictions of {predictions.logits.shape[1]} images but targets of {len(targets)}")
        names = [*(f"layer{i}" for i in range(len(predictions.logits) - 1)), LAST]
        sets = [_layer_set(names, predictions.logits, predictions.boxes, targets)]
        if predictions.proposals is not None:
            agnostic = [Targets(torch.zeros_like(target.labels), target.boxes) for target in targets]
            sets.append(_layer_set(["proposals"], predictions.proposals.logits, predictions.proposals.boxes, agnostic))
        return sets

    def losses(
        self, sets: Sequence[LayerSet], assignments: Sequence[Assignment], tokens: Sequence[str] = ()
    ) -> dict[str, Tensor]:
        """The losses of layers that have been matched; see `__call__`."""
        summands: dict[str, Tensor] = {}
        metrics: dict[str, Tensor] = {}
        for layers, assignment in zip(sets, assignments, strict=True):
            matched = MatchedLayers(
                layers.logits, layers.boxes, layers.targets, assignment, self._count(layers, assignment)
            )
            for term in self.loss_terms:
                out, prefix, weight = (metrics, "", 1.0) if term.weight is None else (summands, "loss_", term.weight)
                for name, value in zip(layers.names, (weight * term(matched)).unbind(), strict=True):
                    out[f"{name}/{prefix}{term.name}".removeprefix(f"{LAST}/")] = value
        stacked = torch.stack(list(summands.values()))
        if not stacked.isfinite().all():
            bad = [name for name, value in summands.items() if not value.isfinite()]
            raise LossError(f"not finite: {', '.join(bad)} of {_not_finite(sets, tokens)}")
        return {"total": stacked.sum()} | {name: value.detach() for name, value in (summands | metrics).items()}

    def _count(self, layers: LayerSet, assignment: Assignment) -> Tensor | float:
        number = len(assignment.images) if self.count == "pairs" else sum(len(target) for target in layers.targets)
        if processes.count() == 1:
            return max(float(number), 1.0)
        return processes.mean(torch.tensor(float(number), device=layers.logits.device)).clamp(min=1)


def _not_finite(sets: Sequence[LayerSet], tokens: Sequence[str]) -> str:
    """The samples with predictions that are not finite, in words; all of the batch, where it is not the predictions."""
    B = len(sets[0].targets)
    bad = torch.zeros(B, dtype=torch.bool)
    for layers in sets:
        if len(layers.targets) != B:  # paired queries, of all images together
            continue
        for values in (layers.logits, layers.boxes):
            bad |= ~values.isfinite().all(-1).all(-1).all(0).cpu()
    return ", ".join(sample_name(tokens, image) for image in range(B) if bad[image] or not bad.any())


def paired_set(name: str, queries: PairedQueries) -> tuple[LayerSet, Assignment]:
    """Queries of all images as those of one image, with the pairs that they came with: there is nothing to match."""
    L = len(queries.logits)
    names = [*(f"{name}/layer{i}" for i in range(L - 1)), name]
    layers = _layer_set(names, queries.logits[:, None], queries.boxes[:, None], [queries.targets])
    own = torch.arange(len(queries.targets), device=queries.logits.device)
    return layers, Assignment(torch.zeros_like(own), queries.queries.expand(L, -1), own.expand(L, -1))


def _layer_set(names: Sequence[str], logits: Tensor, boxes: Tensor, targets: Sequence[Targets]) -> LayerSet:
    """With 16-bit predictions widened: costs and losses are no place for bfloat16."""
    dtype = torch.promote_types(logits.dtype, torch.float32)
    return LayerSet(names, logits.to(dtype), boxes.to(dtype), targets)
