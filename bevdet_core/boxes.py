"""2D boxes: formats and overlaps.

(cx, cy, w, h) is centre and size, (x0, y0, x1, y1) two opposite corners; any unit, so pixels or fractions of an image.
"""

from __future__ import annotations

import torch
from torch import Tensor

_TINY = 1e-12  # keeps the overlap of boxes without area at 0 instead of 0 / 0


def cxcywh_to_xyxy(boxes: Tensor) -> Tensor:
    """(cx, cy, w, h) -> (x0, y0, x1, y1), [..., 4]."""
    centre, half = boxes[..., :2], boxes[..., 2:] / 2
    return torch.cat([centre - half, centre + half], -1)


def xyxy_to_cxcywh(boxes: Tensor) -> Tensor:
    """(x0, y0, x1, y1) -> (cx, cy, w, h), [..., 4]."""
    low, high = boxes[..., :2], boxes[..., 2:]
    return torch.cat([(low + high) / 2, high - low], -1)


def area(boxes: Tensor) -> Tensor:
    """Areas [...] of boxes (x0, y0, x1, y1) [..., 4]."""
    return (boxes[..., 2:] - boxes[..., :2]).prod(-1)


def iou(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union [...] of boxes (x0, y0, x1, y1) [..., 4] that broadcast against each other."""
    intersection, union = _intersection_and_union(a, b)
    return intersection / union.clamp(min=_TINY)


def giou(a: Tensor, b: Tensor) -> Tensor:
    """Generalised IoU [...] in [-1, 1] (Rezatofighi et al., 2019) of boxes as in `iou`."""
    intersection, union = _intersection_and_union(a, b)
    hull = (torch.maximum(a[..., 2:], b[..., 2:]) - torch.minimum(a[..., :2], b[..., :2])).prod(-1)
    return intersection / union.clamp(min=_TINY) - (hull - union) / hull.clamp(min=_TINY)


def pairwise_iou(a: Tensor, b: Tensor) -> Tensor:
    """IoU [..., n, m] of every box of a [..., n, 4] with every box of b [..., m, 4]."""
    return iou(a[..., :, None, :], b[..., None, :, :])


def pairwise_giou(a: Tensor, b: Tensor) -> Tensor:
    """Generalised IoU [..., n, m] of every box of a [..., n, 4] with every box of b [..., m, 4]."""
    return giou(a[..., :, None, :], b[..., None, :, :])


def _intersection_and_union(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    overlap = torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2])
    intersection = overlap.clamp(min=0).prod(-1)
    return intersection, area(a) + area(b) - intersection
