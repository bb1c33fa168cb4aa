"""What a detector found in one image or rig frame, and the forms in which others want it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from . import boxes3d
from .geometry import yaw_to_quaternion
from .structures import Sample

if TYPE_CHECKING:
    from PIL.Image import Image

MOVING_SPEED = 0.2  # m/s; what is faster is said to move (nuScenes attributes, as in the DETR3D release)

# Attribute of a class: at rest, moving.
_ATTRIBUTES = {
    "car": ("vehicle.parked", "vehicle.moving"),
    "truck": ("vehicle.parked", "vehicle.moving"),
    "bus": ("vehicle.stopped", "vehicle.moving"),
    "trailer": ("vehicle.parked", "vehicle.moving"),
    "construction_vehicle": ("vehicle.parked", "vehicle.moving"),
    "pedestrian": ("pedestrian.standing", "pedestrian.moving"),
    "motorcycle": ("cycle.without_rider", "cycle.with_rider"),
    "bicycle": ("cycle.without_rider", "cycle.with_rider"),
}
# All that a submission may say; "" for none.
ATTRIBUTES = ("", "pedestrian.sitting_lying_down", *sorted({name for pair in _ATTRIBUTES.values() for name in pair}))


@dataclass
class Detections:
    """The objects found in one sample.

    Examples:
        >>> found = Detections(torch.tensor([0.9, 0.2]), torch.tensor([0, 1]), torch.rand(2, 4), ("cat", "dog"))
        >>> [found.class_names[label] for label in found.above(0.5).labels]
        ['cat']
    """

    scores: Tensor  # [n] float32, in 0..1
    labels: Tensor  # [n] int64, into class_names
    boxes: Tensor  # [n, 4] (x0, y0, x1, y1) in pixels of the original image, or [n, 9] lidar frame, see `boxes3d`
    class_names: tuple[str, ...]
    sample: Sample | None = None  # what was looked at

    def __post_init__(self) -> None:
        n = len(self.scores)
        if self.labels.shape != (n,) or self.boxes.shape not in ((n, 4), (n, 9)):
            raise ValueError(
                f"detections need scores [n], labels [n] and boxes [n, 4] or [n, 9], got {list(self.scores.shape)}, "
                f"{list(self.labels.shape)} and {list(self.boxes.shape)}"
            )

    def __len__(self) -> int:
        return len(self.scores)

    def __getitem__(self, index: Tensor | slice | Sequence[int] | int) -> Detections:
        """The detections picked by a mask, by indices, by a slice or by one index."""
        if isinstance(index, int):
            index = [index]
        return replace(self, scores=self.scores[index], labels=self.labels[index], boxes=self.boxes[index])

    def above(self, threshold: float) -> Detections:
        """The detections with at least this score."""
        return self[self.scores >= threshold]

    def to_coco(self, image_id: int, category_ids: Sequence[int] | None = None) -> list[dict[str, Any]]:
        """Entries of a COCO result file: boxes as (x, y, width, height) in pixels.

        Args:
            image_id: of the image in the annotation file.
            category_ids: COCO category of each label; default: the label itself.

        Raises:
            ValueError: these are 3D boxes.
        """
        if self.boxes.shape[1] != 4:
            raise ValueError("COCO results need 2D boxes [n, 4]; these detections are 3D: use to_nuscenes()")
        sizes = self.boxes[:, 2:] - self.boxes[:, :2]
        return [
            {
                "image_id": image_id,
                "category_id": label if category_ids is None else category_ids[label],
                "bbox": box,
                "score": score,
            }
            for label, box, score in zip(
                self.labels.tolist(),
                torch.cat([self.boxes[:, :2], sizes], 1).tolist(),
                self.scores.tolist(),
                strict=True,
            )
        ]

    def to_nuscenes(self, token: str | None = None, lidar2global: np.ndarray | None = None) -> list[dict[str, Any]]:
        """Entries of a nuScenes submission, in the global frame; the best 500 where there are more.

        The attribute follows from the speed. A velocity that is not known is written as zero.

        Args:
            token: of the sample; default: that of `sample`.
            lidar2global: [4, 4]; default: that of `sample`.

        Raises:
            ValueError: these are 2D boxes, or neither the arguments nor `sample` tell the token and the pose.
        """
        if self.boxes.shape[1] != 9:
            raise ValueError("nuScenes results need 3D boxes [n, 9]; these detections are 2D: use to_coco()")
        if token is None:
            token = self.sample.token if self.sample is not None else ""
        if lidar2global is None:
            lidar2global = self.sample.lidar2global if self.sample is not None else None
        if not token or lidar2global is None:
            raise ValueError("nuScenes results need the sample's token and lidar2global: pass them, or set `sample`")
        best = self if len(self) <= 500 else self[self.scores.topk(500).indices]
        boxes = boxes3d.transform(best.boxes.double(), lidar2global).numpy()
        velocity = np.nan_to_num(boxes[:, 7:9], nan=0.0)
        rotation = yaw_to_quaternion(boxes[:, 6])
        names = [self.class_names[label] for label in best.labels.tolist()]
        return [
            {
                "sample_token": token,
                "translation": boxes[i, :3].tolist(),
                "size": boxes[i, 3:6].tolist(),
                "rotation": rotation[i].tolist(),
                "velocity": velocity[i].tolist(),
                "detection_name": name,
                "detection_score": float(best.scores[i]),
                "attribute_name": attribute_of(name, float(np.hypot(*velocity[i]))),
            }
            for i, name in enumerate(names)
        ]

    def draw(self, path: str | Path | None = None, **options: Any) -> Image:
        """A picture of the detections on the images they were found in; see `visualize.draw_detections`."""
        from .visualize import draw_detections

        return draw_detections(self, path, **options)


def attribute_of(name: str, speed: float) -> str:
    """The nuScenes attribute of a detection class at a speed in m/s; "" for classes that have none."""
    at_rest, moving = _ATTRIBUTES.get(name, ("", ""))
    return moving if speed > MOVING_SPEED else at_rest
