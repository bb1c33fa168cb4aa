"""Denoising queries (DN-DETR, Li et al., 2022): targets shown with noise, which the decoder is asked to restore.

They know their target from the start, so they teach the decoder from the first step on, while the assignment of the
learned queries still changes from step to step. They are used in training alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from ..structures import PairedQueries, Targets
from .heads import MLP
from .position import box_embedding


@dataclass
class DenoisingQueries:
    """K queries for every image: G groups of as many as the image with most targets has."""

    query: Tensor  # [B, K, D] content
    query_pos: Tensor  # [B, K, D]
    boxes: Tensor  # [B, K, 4] with noise, fractions of the image
    present: Tensor  # [B, K] bool, False where an image has fewer targets
    targets: Targets  # the P true objects of the present queries, in their order
    groups: int

    def attention_mask(self, num_learned: int) -> Tensor:
        """[B, 1, Q + K, Q + K] bool, True: may attend; the Q learned queries come first.

        Learned queries see none of these, or they would be told the answer; a group sees itself and the learned ones.
        """
        B, K = self.present.shape
        device = self.present.device
        total = num_learned + K
        index = torch.arange(K, device=device)
        group = torch.div(index * self.groups, max(K, 1), rounding_mode="floor")
        same_group = (group[:, None] == group) & self.present[:, None]
        mask = torch.zeros(B, total, total, dtype=torch.bool, device=device)
        mask[:, :, :num_learned] = True
        mask[:, num_learned:, num_learned:] = same_group | (index[:, None] == index)
        return mask[:, None]

    def pick(self, logits: Tensor, boxes: Tensor) -> PairedQueries:
        """The predictions [L, B, K, ...] of the queries that are present, beside what they should be."""
        own = torch.arange(len(self.targets), device=logits.device)
        return PairedQueries(logits[:, self.present], boxes[:, self.present], self.targets, own)


class DenoisingGenerator(nn.Module):
    """Makes queries from targets.

    Args:
        dim: width of the queries.
        num_classes: of the detector.
        groups: how often each target is shown, each time with other noise.
        label_noise: probability that a label is replaced by a random one.
        box_noise: centres move by up to this part of half the box's size, sizes change by up to this part.
    """

    def __init__(self, dim: int, num_classes: int, groups: int, label_noise: float, box_noise: float) -> None:
        super().__init__()
        self.dim, self.num_classes, self.groups = dim, num_classes, groups
        self.label_noise, self.box_noise = label_noise, box_noise
        self.label_embed = nn.Embedding(num_classes, dim)
        self.box_embed = MLP(2 * dim, dim, dim)

    def forward(self, targets: Sequence[Targets]) -> DenoisingQueries:
        """Targets [B] with boxes (cx, cy, w, h) as fractions of the image -> queries."""
        labels = pad_sequence([target.labels for target in targets], batch_first=True).repeat(1, self.groups)
        boxes = pad_sequence([target.boxes for target in targets], batch_first=True).repeat(1, self.groups, 1)
        counts = torch.tensor([len(target) for target in targets], device=labels.device)
        slots = torch.arange(labels.shape[1] // self.groups, device=labels.device)
        present = (slots < counts[:, None]).repeat(1, self.groups)  # [B, K]
        truth = Targets(labels[present], boxes[present])

        random_labels = torch.randint_like(labels, self.num_classes)
        labels = torch.where(torch.rand(labels.shape, device=labels.device) < self.label_noise, random_labels, labels)
        reach = torch.cat([boxes[..., 2:] / 2, boxes[..., 2:]], -1) * self.box_noise
        boxes = (boxes + (2 * torch.rand_like(boxes) - 1) * reach).clamp(0, 1)
        query_pos = self.box_embed(box_embedding(boxes, self.dim // 2))
        return DenoisingQueries(self.label_embed(labels), query_pos, boxes, present, truth, self.groups)
