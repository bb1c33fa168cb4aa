"""3D boxes in perspective, on the images of the cameras that see them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw

from ..boxes3d import EDGES, corners
from ..structures import Camera
from .style import INK, OVERSAMPLING, Captions, Color, Objects, dashed, fading, font, stroke_width

NEAR = 0.1  # metres; what is nearer to the image plane, or behind it, is cut off
FRONT_FACE = (0, 1, 5, 4)  # see CORNER_SIGNS


def draw_camera(
    image: np.ndarray,  # [H, W, 3] uint8 RGB
    camera: Camera,
    layers: Sequence[Objects],
    size: tuple[int, int] | None = None,
    unit: float | None = None,
    title: bool = True,
) -> Image.Image:
    """One camera's image with the 3D boxes it sees; the front face of a box is filled, nearer boxes cover farther.

    Args:
        image: as the camera's intrinsics describe it.
        camera: the calibration.
        layers: objects with 3D boxes, drawn one after the other.
        size: (width, height) of the result; default: that of the image.
        unit: pixels of the result that a thin line is wide; default: 1/800 of the result's width, but not less than 1.
        title: write the camera's name into the corner.
    """
    width, height = size or (image.shape[1], image.shape[0])
    unit = OVERSAMPLING * (unit or max(1.0, width / 800))
    large = (width * OVERSAMPLING, height * OVERSAMPLING)
    picture = Image.fromarray(image).resize(large, Image.Resampling.BICUBIC, reducing_gap=2.0)
    draw = ImageDraw.Draw(picture, "RGBA")
    scale = np.diag([large[0] / image.shape[1], large[1] / image.shape[0], 1.0])
    projection = scale @ camera.lidar2img[:3]  # [3, 4]: metres -> (u d, v d, d) in pixels of the picture
    tags: list[tuple[float, str, float, float, Color]] = []
    seen = () if camera.hidden else layers
    for objects in seen:
        _draw_trails(draw, objects, projection, large, unit)
    for objects in seen:
        tags += _draw_objects(draw, objects, projection, large, unit)
    captions = Captions(draw, round(11 * unit))
    if title:
        captions.reserve(_draw_title(draw, camera.name + " (no image)" * camera.hidden, unit))
    for _, text, left, bottom, color in sorted(tags):
        captions.write(text, left, bottom, color)
    return picture.reduce(OVERSAMPLING)


def _draw_trails(
    draw: ImageDraw.ImageDraw,
    objects: Objects,
    projection: np.ndarray,  # [3, 4]
    size: tuple[int, int],
    unit: float,
) -> None:
    """The path of every object over the ground, the older the fainter, with a dot for each earlier box."""
    for index, past in enumerate(objects.trails):
        boxes = np.concatenate([past, objects.boxes[index : index + 1]])
        ground = boxes[:, :3] - [0, 0, 0.5] * boxes[:, 5:6]  # [k + 1, 3] centres of the bottom faces
        points = ground @ projection[:, :3].T + projection[:, 3]
        color = objects.color(index)
        for age, start, end in zip(fading(len(past)), points[:-1], points[1:], strict=True):
            for a, b in clip_segments(np.stack([start, end])[None], size):
                draw.line([tuple(a), tuple(b)], (*color, round(220 * age)), stroke_width(1.5 * unit))
            if start[2] > NEAR:
                u, v = start[:2] / start[2]
                radius = unit * np.clip(45 / start[2], 1.2, 4)
                draw.ellipse((u - radius, v - radius, u + radius, v + radius), (*color, round(255 * age)))


def _draw_objects(
    draw: ImageDraw.ImageDraw,
    objects: Objects,
    projection: np.ndarray,  # [3, 4]
    size: tuple[int, int],
    unit: float,
) -> list[tuple[float, str, float, float, Color]]:
    """Draw boxes from far to near; returns the tags to write: depth, text, left, bottom, colour."""
    points = corners(torch.from_numpy(objects.boxes)).numpy()  # [n, 8, 3]
    points = points @ projection[:, :3].T + projection[:, 3]  # [n, 8, 3] as (u d, v d, d)
    depths = points[..., 2].mean(1)
    tags = []
    for index in np.argsort(-depths):
        segments = clip_segments(points[index][np.array(EDGES)], size)
        if not len(segments):
            continue
        color = objects.color(index)
        if objects.reference:
            for start, end in segments:
                dashed(draw, start, end, (*color, 230), stroke_width(unit), 5 * unit)
            continue
        front = clip_polygon(points[index][list(FRONT_FACE)], size)
        if len(front) > 2:
            draw.polygon([tuple(p) for p in front], (*color, 80))
        # Distant boxes get thinner lines, else a queue of cars is one blob.
        stroke = stroke_width(unit * np.clip(30 / max(depths[index], 1), 0.9, 2))
        for start, end in segments:
            draw.line([tuple(start), tuple(end)], (*color, 255), stroke)
        u, v = segments.reshape(-1, 2).T
        top, height = v.min(), np.ptp(v)
        if height > 16 * unit:
            left = u[v <= top + 0.15 * height].min()  # of the upper end: the box may lean far over to a side
            tags.append((depths[index], objects.caption(index), left, top - unit, color))
    return tags


def _draw_title(draw: ImageDraw.ImageDraw, name: str, unit: float) -> tuple[float, float, float, float]:
    """Write a camera's name; returns (left, top, right, bottom) of what it covers."""
    face, pad = font(round(13 * unit), bold=True), 6 * unit
    text = name.removeprefix("CAM_").replace("_", " ").lower()
    ascent, descent = face.getmetrics()
    covered = (pad, pad, 3 * pad + draw.textlength(text, face), 2 * pad + ascent + descent)
    draw.rounded_rectangle(covered, pad, fill=(0, 0, 0, 150))
    draw.text((2 * pad, 1.5 * pad), text, INK, face)
    return covered


def _planes(size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Coefficients [5, 3] and offsets [5] that are not negative where a point (u d, v d, d) is in the image."""
    width, height = size
    coefficients = np.array([[0, 0, 1], [1, 0, 0], [-1, 0, width], [0, 1, 0], [0, -1, height]], float)
    return coefficients, np.array([-NEAR, 0, 0, 0, 0])


def clip_segments(
    segments: np.ndarray,  # [n, 2, 3] ends as (u d, v d, d)
    size: tuple[int, int],
) -> np.ndarray:
    """The parts of straight lines that an image of (width, height) shows: [m, 2, 2] pixels, m <= n.

    Clipping comes before the division by the depth, so a line that passes the camera cannot come back mirrored.
    """
    coefficients, offsets = _planes(size)
    inside = segments @ coefficients.T + offsets  # [n, 2, 5]
    start, end = inside[:, 0], inside[:, 1]
    with np.errstate(divide="ignore", invalid="ignore"):
        crossing = start / (start - end)  # [n, 5] fraction of the way at which a plane is met
    enter = np.where((start < 0) & (end >= 0), crossing, 0).max(1)
    leave = np.where((end < 0) & (start >= 0), crossing, 1).min(1)
    seen = ~((start < 0) & (end < 0)).any(1) & (enter < leave)
    a, way = segments[seen, :1], segments[seen, 1:] - segments[seen, :1]
    points = a + way * np.stack([enter, leave], 1)[seen, :, None]  # [m, 2, 3]
    return points[..., :2] / points[..., 2:]


def clip_polygon(
    polygon: np.ndarray,  # [k, 3] corners as (u d, v d, d)
    size: tuple[int, int],
) -> np.ndarray:
    """The part of a flat convex polygon that an image of (width, height) shows: [j, 2] pixels (Sutherland-Hodgman)."""
    for coefficients, offset in zip(*_planes(size), strict=True):
        inside = polygon @ coefficients + offset
        kept: list[np.ndarray] = []
        for k in range(len(polygon)):
            if inside[k - 1] * inside[k] < 0:
                fraction = inside[k - 1] / (inside[k - 1] - inside[k])
                kept.append(polygon[k - 1] + fraction * (polygon[k] - polygon[k - 1]))
            if inside[k] >= 0:
                kept.append(polygon[k])
        polygon = np.array(kept).reshape(-1, 3)
    return polygon[:, :2] / polygon[:, 2:]


def arrange(cameras: Sequence[Camera], per_row: int = 4) -> list[list[int]]:
    """Rows of camera indices: those that look ahead over those that look back, each from the left to the right.

    For the nuScenes rig: front left, front, front right over back left, back, back right.
    """
    axes = np.array([camera.camera2lidar[:3, 2] for camera in cameras]).reshape(-1, 3)  # viewing directions
    azimuths = np.arctan2(-axes[:, 0], axes[:, 1])  # 0 ahead, positive to the left
    ahead = np.abs(azimuths) <= np.pi / 2 + 1e-3  # a camera that looks straight to the side joins those ahead
    groups = (
        sorted(np.flatnonzero(ahead), key=lambda i: -azimuths[i]),
        sorted(np.flatnonzero(~ahead), key=lambda i: azimuths[i] % (2 * np.pi)),
    )
    rows: list[list[int]] = []
    for group in groups:
        count = -(-len(group) // per_row)
        rows += [[int(i) for i in part] for part in np.array_split(group, count)] if count else []
    return rows
