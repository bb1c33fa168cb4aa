"""The scene from above: boxes, headings, velocities, range rings, the ego vehicle, its cameras and its lidar."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw

from ..boxes3d import corners
from ..structures import Camera
from .style import FAINT, INK, OVERSAMPLING, PANEL, Color, Objects, dashed, fading, font, stroke_width

ToPixels = Callable[[np.ndarray], np.ndarray]  # metres [..., 2 or 3] of the lidar frame -> pixels [..., 2]

EGO_SIZE = (1.73, 4.08)  # width and length in metres of the nuScenes vehicle; the lidar is near its middle
FAR = 1e5  # pixels; well outside of any picture
STILL = 0.5  # m/s; a slower object gets no velocity arrow


def draw_birds_eye(
    layers: Sequence[Objects],
    size: tuple[int, int],
    reach: float = 50.0,
    cameras: Sequence[Camera] = (),
    sizes: Sequence[tuple[int, int]] = (),
    points: np.ndarray | None = None,  # [p, >= 3] metres, lidar frame
    unit: float | None = None,
    ego_path: np.ndarray | None = None,  # [k, 3] metres, lidar frame, oldest first
) -> Image.Image:
    """The lidar frame from above, ahead is up; velocity arrows end where the object will be in one second.

    Args:
        layers: objects with 3D boxes, drawn one after the other.
        size: (width, height) of the picture.
        reach: metres that are shown at least, from the lidar to each edge of the picture.
        cameras: whose fields of view are hinted at.
        sizes: (height, width) in pixels of their images.
        points: lidar points.
        unit: pixels that a thin line is wide; default: 1/800 of the picture's height, but not less than 1.
        ego_path: where the lidar was before.
    """
    width, height = (edge * OVERSAMPLING for edge in size)
    unit = OVERSAMPLING * (unit or max(1.0, size[1] / 800))
    scale = min(width, height) / 2.05 / reach  # pixels per metre
    origin = np.array([width / 2, height / 2])

    def to_pixels(metres: np.ndarray) -> np.ndarray:
        # What an untrained network predicts may be further away than Pillow can count.
        return (origin + metres[..., :2] * (scale, -scale)).clip(-FAR, FAR)

    picture = Image.new("RGB", (width, height), PANEL)
    draw = ImageDraw.Draw(picture, "RGBA")
    for camera, (rows, columns) in zip(cameras, sizes, strict=True):
        if camera.hidden:
            continue
        _draw_view(draw, camera, rows, columns, to_pixels, reach)
    _draw_rings(draw, origin, scale, reach, unit)
    if points is not None:
        picture = _add_points(picture, points, to_pixels)
        draw = ImageDraw.Draw(picture, "RGBA")
    if ego_path is not None:
        _draw_path(draw, to_pixels(np.concatenate([ego_path[:, :2], np.zeros((1, 2))])), INK, stroke_width(2 * unit))
    _draw_ego(draw, to_pixels)
    for objects in layers:
        _draw_trails(draw, objects, to_pixels, unit)
    for objects in layers:
        _draw_objects(draw, objects, to_pixels, unit)
    return picture.reduce(OVERSAMPLING)


def _draw_trails(draw: ImageDraw.ImageDraw, objects: Objects, to_pixels: ToPixels, unit: float) -> None:
    """Outlines of earlier boxes and the path of their centres, the older the fainter."""
    for index, past in enumerate(objects.trails):
        color = objects.color(index)
        for age, outline in zip(fading(len(past)), _outlines(past, to_pixels), strict=True):
            ring = [tuple(p) for p in outline]
            draw.line([*ring, ring[0]], (*color, round(110 * age)), stroke_width(unit))
        centers = np.concatenate([past[:, :2], objects.boxes[index : index + 1, :2]])
        _draw_path(draw, to_pixels(centers), color, stroke_width(1.8 * unit))


def _draw_path(draw: ImageDraw.ImageDraw, places: np.ndarray, color: Color, width: int) -> None:
    for age, start, end in zip(fading(len(places) - 1), places[:-1], places[1:], strict=True):
        draw.line([tuple(start), tuple(end)], (*color, round(220 * age)), width)


def _outlines(boxes: np.ndarray, to_pixels: ToPixels) -> np.ndarray:
    """Bottom faces [n, 4, 2] in pixels."""
    return to_pixels(corners(torch.from_numpy(boxes)).numpy()[:, :4])


def _draw_objects(draw: ImageDraw.ImageDraw, objects: Objects, to_pixels: ToPixels, unit: float) -> None:
    outlines = _outlines(objects.boxes, to_pixels)
    centers = to_pixels(objects.boxes[:, :2])
    arrows = to_pixels(objects.boxes[:, :2] + objects.boxes[:, 7:9])
    speeds = np.linalg.norm(objects.boxes[:, 7:9], axis=1)
    thin, thick = stroke_width(unit), stroke_width(1.8 * unit)
    for index, outline in enumerate(outlines):
        color = objects.color(index)
        nose = tuple(outline[:2].mean(0))
        ring = [tuple(p) for p in outline]
        if objects.reference:
            for start, end in zip(ring, ring[1:] + ring[:1], strict=True):
                dashed(draw, start, end, (*color, 235), thin, 3.5 * unit)
            draw.line([tuple(centers[index]), nose], (*color, 200), thin)
        else:
            draw.polygon(ring, (*color, 70))
            draw.line([*ring, ring[0], ring[1]], (*color, 255), thick, joint="curve")
            draw.line([tuple(centers[index]), nose], (*color, 255), thick)
        if speeds[index] > STILL:  # never so where the velocity is unknown
            draw_arrow(draw, centers[index], arrows[index], color, unit, thin if objects.reference else thick)


def draw_arrow(
    draw: ImageDraw.ImageDraw,
    start: np.ndarray,  # [2] pixels
    end: np.ndarray,  # [2] pixels
    color: Color,
    unit: float,
    width: int,
) -> None:
    """A line with a filled head."""
    length = float(np.linalg.norm(end - start))
    ahead = (end - start) / max(length, 1e-6)
    across = np.array([-ahead[1], ahead[0]])
    head = min(8 * unit, 0.6 * length)
    base = end - head * ahead
    draw.line([tuple(start), tuple(base)], (*color, 230), width)
    draw.polygon([tuple(end), tuple(base + 0.45 * head * across), tuple(base - 0.45 * head * across)], (*color, 230))


def _draw_rings(draw: ImageDraw.ImageDraw, origin: np.ndarray, scale: float, reach: float, unit: float) -> None:
    step = 10 if reach <= 60 else 25
    face = font(round(11 * unit))
    farthest = float(np.hypot(*origin)) / scale
    for radius in range(step, int(farthest) + 1, step):
        inner = radius <= reach
        box = (*(origin - radius * scale), *(origin + radius * scale))
        draw.ellipse(box, outline=(255, 255, 255, 38 if inner else 16), width=stroke_width(unit))
        if inner:
            at = origin - (radius * scale, 0)  # to the left, where roads are emptiest
            draw.text(tuple(at), f"{radius} m", FAINT, face, "mm", stroke_width=round(2 * unit), stroke_fill=PANEL)


def _draw_view(
    draw: ImageDraw.ImageDraw, camera: Camera, rows: int, columns: int, to_pixels: ToPixels, reach: float
) -> None:
    """The sector that the camera's middle row of pixels sees, as a faint veil."""
    edges = np.array([[u, rows / 2, 1.0] for u in np.linspace(0, columns, 33)])
    rays = edges @ np.linalg.inv(camera.intrinsic).T @ camera.camera2lidar[:3, :3].T  # [33, 3]
    rays = rays[:, :2] / np.linalg.norm(rays[:, :2], axis=1, keepdims=True).clip(1e-6)
    start = camera.camera2lidar[:2, 3]
    outline = to_pixels(np.concatenate([start[None], start + reach * rays]))
    draw.polygon([tuple(p) for p in outline], (150, 190, 255, 12))


def _draw_ego(draw: ImageDraw.ImageDraw, to_pixels: ToPixels) -> None:
    half = np.array(EGO_SIZE) / 2
    (left, top), (right, bottom) = to_pixels(half * (-1, 1)), to_pixels(half * (1, -1))
    draw.rounded_rectangle((left, top, right, bottom), (right - left) * 0.3, (*INK, 255))
    glass = np.array([[-0.62, 0.38], [0.62, 0.38], [0.5, 0.05], [-0.5, 0.05]]) * half
    draw.polygon([tuple(p) for p in to_pixels(glass)], (*PANEL, 255))


def _add_points(picture: Image.Image, points: np.ndarray, to_pixels: ToPixels) -> Image.Image:
    """Lidar points as dots, the ground dark and what stands on it brighter."""
    points = points[np.isfinite(points[:, :3]).all(1)]
    pixels = np.array(picture)
    u, v = np.floor(to_pixels(points[:, :2])).astype(int).T
    inside = (u >= 0) & (v >= 0) & (u < pixels.shape[1] - 1) & (v < pixels.shape[0] - 1)
    u, v, z = u[inside], v[inside], points[inside, 2]
    order = np.argsort(z)
    low, high = np.percentile(z, (20, 97)) if len(z) else (0.0, 1.0)
    level = np.clip((z[order] - low) / max(high - low, 0.1), 0, 1)[:, None]
    colors = (np.array([52, 66, 92]) * (1 - level) + np.array([158, 178, 214]) * level).astype(np.uint8)
    for dv, du in ((0, 0), (0, 1), (1, 0), (1, 1)):
        pixels[v[order] + dv, u[order] + du] = colors
    return Image.fromarray(pixels)
