"""2D boxes on a plain image."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from .style import Captions, Objects, dashed


def draw_image(
    image: np.ndarray,  # [H, W, 3] uint8 RGB
    layers: Sequence[Objects],
) -> Image.Image:
    """The image in its own size with 2D boxes; smaller boxes cover larger ones, likelier names less likely ones."""
    picture = Image.fromarray(image)
    draw = ImageDraw.Draw(picture, "RGBA")
    unit = max(1.0, min(picture.size) / 480)
    captions = Captions(draw, round(12 * unit))
    for objects in layers:
        x0, y0, x1, y1 = objects.boxes.T
        for index in np.argsort(-(x1 - x0) * (y1 - y0)):
            _draw_box(draw, objects, index, unit)
    for objects in layers:
        if objects.reference:
            continue
        scores = np.ones(len(objects)) if objects.scores is None else objects.scores
        for index in np.argsort(-scores, kind="stable"):
            left, top = objects.boxes[index, :2]
            captions.write(objects.caption(index), left, top, objects.color(index))
    return picture


def _draw_box(draw: ImageDraw.ImageDraw, objects: Objects, index: int, unit: float) -> None:
    box, color = objects.boxes[index], objects.color(index)
    x0, x1 = sorted(box[::2])
    y0, y1 = sorted(box[1::2])
    if objects.reference:
        corners = [(x0, y0), (x1, y0), (x1, y1), (x0, y1)]
        for start, end in zip(corners, corners[1:] + corners[:1], strict=True):
            dashed(draw, start, end, (*color, 235), max(1, round(unit)), 5 * unit)
    else:
        draw.rectangle((x0, y0, x1, y1), (*color, 28), (*color, 255), round(2 * unit))
