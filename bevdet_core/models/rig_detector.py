"""What the 3D detectors share around their heads: how they are put together, what cells add, and how they decode."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .. import boxes3d
from ..structures import ImageBatch, Predictions
from .cells import Cells
from .heads import top_predictions
from .perspective import PerspectiveHead


class RigDetector(nn.Module):
    """A detector of rig frames.

    Args:
        backbone: images [B, 3, H, W] -> feature maps.
        neck: feature maps -> the levels that the head reads.
        head: levels of all cameras -> `Predictions`.
        perspective: reads the finest level too; see `PerspectiveHead`. None: nothing does.
        post_center_range: (x0, y0, z0, x1, y1, z1) in metres; detections with a centre outside are dropped.
        max_detections: the best (query, class) pairs kept per frame.
        score_threshold: detections that do not score higher are dropped.
    """

    def __init__(
        self,
        backbone: nn.Module,
        neck: nn.Module,
        head: nn.Module,
        perspective: PerspectiveHead | None = None,
        post_center_range: Sequence[float] = (-61.2, -61.2, -10.0, 61.2, 61.2, 10.0),
        max_detections: int = 300,
        score_threshold: float = 0.0,
    ) -> None:
        super().__init__()
        self.backbone, self.neck, self.head, self.perspective = backbone, neck, head, perspective
        self.post_center_range = tuple(post_center_range)
        self.max_detections, self.score_threshold = max_detections, score_threshold

    def with_cells(self, predictions: Predictions, batch: ImageBatch, **cells: Cells | None) -> Predictions:
        """The predictions; while training, what the cells of maps say is learned from beside them."""
        if self.training and batch.targets is not None:
            predictions.paired = {name: c.paired(batch.targets) for name, c in cells.items() if c is not None}
        return predictions

    def decode(self, predictions: Predictions, batch: ImageBatch | None = None) -> list[tuple[Tensor, Tensor, Tensor]]:
        """The detections of each frame, best first.

        Returns:
            (scores [n], labels [n], boxes [n, 9]) per frame; boxes as in `Targets`.
        """
        return decode(predictions, self.max_detections, self.post_center_range, self.score_threshold)


@torch.no_grad()
def decode(
    predictions: Predictions,
    max_detections: int,
    post_center_range: Sequence[float],
    score_threshold: float = 0.0,
) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Detections of the last layer: the best (query, class) pairs, then the filters; see `RigDetector`."""
    scores, labels, queries = top_predictions(predictions.logits[-1].float(), max_detections)
    codes = predictions.boxes[-1].float()
    boxes = boxes3d.decode(codes.take_along_dim(queries[..., None], 1))  # [B, n, 9]
    low, high = boxes.new_tensor(post_center_range).chunk(2)
    keep = ((boxes[..., :3] >= low) & (boxes[..., :3] <= high)).all(-1) & (scores > score_threshold)
    return [(s[k], c[k], b[k]) for s, c, b, k in zip(scores, labels, boxes, keep, strict=True)]
