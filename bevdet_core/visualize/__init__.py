"""Pictures: boxes on cameras and images, the bird's-eye view, training curves; scenes as films and recordings."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from ..structures import Sample, Targets
from .birds_eye import draw_birds_eye
from .cameras import draw_camera
from .curves import training_curve
from .frame import draw_frame
from .plain import draw_image
from .recording import write_recording
from .style import Objects, class_color, save
from .tracks import Moment, follow
from .video import write_video

if TYPE_CHECKING:
    from ..detections import Detections

__all__ = [
    "Moment",
    "Objects",
    "class_color",
    "draw_birds_eye",
    "draw_camera",
    "draw_detections",
    "draw_moments",
    "draw_sample",
    "follow",
    "training_curve",
    "write_recording",
    "write_video",
]


def draw_detections(
    detections: Detections,
    path: str | Path | None = None,
    truth: Targets | None = None,
    threshold: float = 0.3,
    *,
    width: int = 1920,
    reach: float = 50.0,
    points: np.ndarray | None = None,  # [p, >= 3] metres, lidar frame
) -> Image.Image:
    """Draw what a detector found: 2D boxes on the image, or 3D boxes on all cameras over the bird's-eye view.

    Args:
        detections: with the sample they belong to, whose images are drawn on.
        path: where to write the picture too, .png or .jpg.
        truth: the true objects, drawn as thin white dashes beside the predictions; boxes (x0, y0, x1, y1) in pixels
            or in the lidar frame, as `Targets` holds them.
        threshold: detections with a lower score are left out.
        width: of a picture of a rig frame, in pixels; one of a plain image has the image's size.
        reach: metres that the bird's-eye view shows ahead and behind.
        points: lidar points for the bird's-eye view.

    Raises:
        ValueError: detections without a sample, boxes and sample or truth of different kinds (2D, 3D), boxes that are
            not finite, labels without a name, or a path whose suffix names no picture format.
    """
    if detections.sample is None:
        raise ValueError("detections.sample is None: set it to the sample with the images to draw on")
    likely = detections.above(threshold)
    layers = [Objects.checked(likely.boxes, likely.labels, likely.class_names, likely.scores)]
    if truth is not None:
        layers.append(
            Objects.checked(truth.boxes, truth.labels, detections.class_names, reference=True, what="ground truth")
        )
    return _draw(detections.sample, layers, path, width, reach, points)


def draw_sample(
    sample: Sample,
    class_names: Sequence[str],
    path: str | Path | None = None,
    *,
    width: int = 1920,
    reach: float = 50.0,
    points: np.ndarray | None = None,  # [p, >= 3] metres, lidar frame
) -> Image.Image:
    """Draw the true objects of a sample in the colours of their classes; arguments as in `draw_detections`.

    Raises:
        ValueError: as `draw_detections`, or a sample without targets.
    """
    if sample.targets is None:
        raise ValueError(f"sample {sample.token!r} has no targets to draw")
    objects = Objects.checked(sample.targets.boxes, sample.targets.labels, class_names, what="ground truth")
    return _draw(sample, [objects], path, width, reach, points)


def draw_moments(
    moments: Iterable[Moment], times: Sequence[float], width: int = 1920, reach: float = 50.0
) -> Iterator[Image.Image]:
    """Draw the moments of a scene, one picture each: cameras, bird's-eye view, and where everything has been.

    Args:
        moments: as `follow` gives them.
        times: of all of them, in seconds.
        width: of the pictures in pixels.
        reach: metres that the bird's-eye view shows ahead and behind.
    """
    for number, moment in enumerate(moments, 1):
        note = f"frame {number} of {len(times)}    {times[number - 1] - times[0]:.1f} s"
        yield draw_frame(moment.sample, moment.layers, width, reach, ego_path=moment.ego_path, note=note)


def _draw(
    sample: Sample,
    layers: list[Objects],
    path: str | Path | None,
    width: int,
    reach: float,
    points: np.ndarray | None,
) -> Image.Image:
    kinds = {objects.boxes.shape[1] for objects in layers}
    if len(kinds) != 1:
        raise ValueError(f"predicted and true boxes must be of one kind, got boxes of {sorted(kinds)} numbers")
    if kinds == {9}:
        picture = draw_frame(sample, layers, width, reach, points)
    elif len(sample.images) == 1:
        picture = draw_image(sample.images[0], layers)
    else:
        raise ValueError(f"sample {sample.token!r}: 2D boxes belong to one image, got {len(sample.images)}")
    if path is not None:
        save(picture, path)
    return picture
