"""One rig frame as one picture: its cameras above the bird's-eye view, with a legend."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from ..structures import Camera, Sample
from .birds_eye import STILL, draw_arrow, draw_birds_eye
from .cameras import arrange, draw_camera
from .style import (
    BACKGROUND,
    FAINT,
    INK,
    OVERSAMPLING,
    PALETTE,
    WHITE,
    Objects,
    class_color,
    dashed,
    font,
    stroke_width,
)

WIDTHS = range(160, 16385)  # in pixels; in less there is nothing to be seen
VELOCITY = "velocity, 1 s ahead"
TRAIL = "earlier places; a colour for each object"

Box = tuple[int, int, int, int]  # left, top, width, height in pixels


def draw_frame(
    sample: Sample,
    layers: Sequence[Objects],
    width: int = 1920,
    reach: float = 50.0,
    points: np.ndarray | None = None,  # [p, >= 3] metres, lidar frame
    ego_path: np.ndarray | None = None,  # [k, 3] metres, lidar frame, oldest first
    note: str = "",
) -> Image.Image:
    """All cameras of a calibrated sample over the bird's-eye view.

    Args:
        sample: 1 to N cameras of any sizes.
        layers: objects with 3D boxes, drawn one after the other.
        width: of the picture in pixels, within `WIDTHS`.
        reach: metres that the bird's-eye view shows ahead and behind.
        points: lidar points for the bird's-eye view.
        ego_path: where the lidar was before, for the bird's-eye view.
        note: a line under the names of scene and sample.

    Raises:
        ValueError: a sample without calibration or without images, or a width beyond reason.
    """
    if width not in WIDTHS:
        raise ValueError(f"a picture's width must lie between {WIDTHS[0]} and {WIDTHS[-1]} pixels, got {width}")
    if not sample.cameras:
        raise ValueError(f"sample {sample.token!r} has no calibrated camera; 3D boxes need at least one")
    unit, gap = width / 1920, max(2, width // 320)
    sizes = [(image.shape[0], image.shape[1]) for image in sample.images]
    places, top = _layout(sample.cameras, sizes, width, gap)
    birds_eye = (width, round(0.43 * width))
    picture = Image.new("RGB", (width, top + birds_eye[1]), BACKGROUND)
    for index, (left, upper, columns, rows) in places.items():
        tile = draw_camera(sample.images[index], sample.cameras[index], layers, (columns, rows), unit)
        picture.paste(tile, (left, upper))
    scene = draw_birds_eye(layers, birds_eye, reach, sample.cameras, sizes, points, unit, ego_path)
    picture.paste(scene, (0, top))
    margin = round(32 * unit)
    legend = _legend(layers, unit)
    picture.paste(legend, (margin, top + margin), legend)
    facts = _facts(sample, note, unit)
    picture.paste(facts, (width - margin - facts.width, top + margin), facts)
    return picture


def _layout(
    cameras: Sequence[Camera], sizes: Sequence[tuple[int, int]], width: int, gap: int
) -> tuple[dict[int, Box], int]:
    """Where each camera goes, and where the last row ends: full rows, cameras of a row equally high."""
    places, top = {}, 0
    for row in arrange(cameras):
        aspects = [sizes[i][1] / sizes[i][0] for i in row]
        free = width - gap * (len(row) - 1)
        height = round(min(free / sum(aspects), 0.35 * width))
        widths = [max(1, round(height * aspect)) for aspect in aspects]
        left = max(0, (free - sum(widths)) // 2)
        for index, columns in zip(row, widths, strict=True):
            places[index] = (left, top, columns, height)
            left += columns + gap
        top += height + gap
    return places, top


def _legend(layers: Sequence[Objects], unit: float) -> Image.Image:
    """A table on a clear ground: what the lines mean, and how many objects of each class every layer shows."""
    names = {int(k): objects.class_names[k] for objects in layers for k in np.unique(objects.labels)}
    moving = any((np.linalg.norm(objects.boxes[:, 7:9], axis=1) > STILL).any() for objects in layers)
    tracked = any(objects.tracks is not None for objects in layers)
    unit *= OVERSAMPLING
    row = min(28.0, 740 / (len(names) + 3 + tracked)) * unit  # fits into the panel however many classes there are
    face, small = font(round(0.58 * row)), font(round(0.5 * row))
    mark = 1.1 * row
    texts = [names[label].replace("_", " ") for label in sorted(names)]
    middle = mark + 0.5 * row + max(face.getlength(text) for text in [*texts, VELOCITY, *[TRAIL] * tracked])
    column = small.getlength("ground truth") + row
    picture = Image.new(
        "RGBA", (round(middle + column * len(layers)), round(row * (len(names) + 3 + tracked))), (0, 0, 0, 0)
    )
    draw = ImageDraw.Draw(picture)
    for place, objects in enumerate(layers):
        right = middle + column * (place + 1)
        draw.text((right, 0.4 * row), _kind(objects), FAINT, small, anchor="rm")
        start, end = np.array([right - mark, 0.95 * row]), np.array([right, 0.95 * row])
        if objects.reference:
            dashed(draw, start, end, WHITE, stroke_width(1.5 * unit), 4 * unit)
        else:
            draw.line([tuple(start), tuple(end)], PALETTE[0], stroke_width(2 * unit))
        for line, label in enumerate(sorted(names)):
            count = int((objects.labels == label).sum())
            draw.text((right, (line + 1.8) * row), str(count), INK if count else FAINT, face, anchor="rm")
    for line, (label, text) in enumerate(zip(sorted(names), texts, strict=True)):
        y, color = (line + 1.8) * row, class_color(label)
        box = (unit, y - 0.28 * row, mark, y + 0.28 * row)
        if not tracked:  # else colours tell objects apart, not classes
            draw.rounded_rectangle(box, 2 * unit, (*color, 90), color, stroke_width(1.8 * unit))
        draw.text((mark + 0.5 * row, y), text, INK, face, anchor="lm")
    if moving:
        y = (len(names) + 2.1) * row
        draw_arrow(draw, np.array([0, y]), np.array([mark, y]), INK, unit, stroke_width(1.8 * unit))
        draw.text((mark + 0.5 * row, y), VELOCITY, INK, face, anchor="lm")
    if tracked:
        y = (len(names) + 3.1) * row
        for place, color in enumerate(PALETTE[:4]):
            left = mark * place / 4
            draw.line([(left, y), (left + mark / 4, y)], color, stroke_width(1.8 * unit))
        draw.text((mark + 0.5 * row, y), TRAIL, INK, face, anchor="lm")
    return picture.reduce(OVERSAMPLING)


def _kind(objects: Objects) -> str:
    return "ground truth" if objects.reference or objects.scores is None else "predicted"


def _facts(sample: Sample, note: str, unit: float) -> Image.Image:
    """Which frame this is, set flush right."""
    lines = [(text, size) for text, size in ((sample.scene, 18), (sample.token, 13), (note, 13)) if text]
    unit *= OVERSAMPLING
    row = 28 * unit
    faces = [font(round(size * unit), bold=size > 15) for _, size in lines]
    columns = max((face.getlength(text) for face, (text, _) in zip(faces, lines, strict=True)), default=0) + 4 * unit
    picture = Image.new("RGBA", (round(columns), round(row * max(len(lines), 1))), (0, 0, 0, 0))
    draw = ImageDraw.Draw(picture)
    for line, (face, (text, _)) in enumerate(zip(faces, lines, strict=True)):
        at = (picture.width - 1, (line + 0.5) * row)
        draw.text(at, text, FAINT if line else INK, face, anchor="rm")
    return picture.reduce(OVERSAMPLING)
