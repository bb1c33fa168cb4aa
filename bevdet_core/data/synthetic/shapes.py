"""The ten nuScenes detection classes and what each looks like; cone and barrier are shaped here."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .mesh import GLOWING, Mesh, MeshBuilder, Size
from .paint import DARK, STEEL, pick, times
from .people import bicycle, motorcycle, pedestrian
from .vehicles import bus, car, construction_vehicle, trailer, truck


def traffic_cone(rng: np.random.Generator, size: Size) -> Mesh:
    """An orange cone with white bands on a square foot."""
    w, _, h = size
    orange = pick(rng, ((1.0, 0.38, 0.05), (0.98, 0.32, 0.10)), 0.03)
    white = (0.96, 0.96, 0.94)
    m = MeshBuilder()
    b = w / 2
    m.box((-b, b), (-b, b), (0.0, 0.06 * h), times(orange, 0.75))
    bands = ((0.06, 0.36, orange), (0.36, 0.55, white), (0.55, 0.72, orange), (0.72, 0.84, white), (0.84, 1.0, orange))
    for low, high, colour in bands:
        m.lathe([(b * (0.86 - 0.70 * low), low * h), (b * (0.86 - 0.70 * high), high * h)], colour, sides=9)
    return m.build(size)


def barrier(rng: np.random.Generator, size: Size) -> Mesh:
    """Red and white boards across two feet; its long side is the width (y), as nuScenes labels barriers."""
    w, length, h = size
    a, b = length / 2, w / 2
    red, white = pick(rng, ((0.84, 0.10, 0.10), (0.90, 0.28, 0.06)), 0.03), (0.95, 0.95, 0.93)
    m = MeshBuilder()
    pieces = max(4, round(w / 0.42))
    for low, high, phase in ((0.62, 1.0, 0), (0.24, 0.52, 1)):
        for i in range(pieces):
            y = (-b + i * w / pieces, -b + (i + 1) * w / pieces)
            m.box((-0.16 * a, 0.16 * a), y, (low * h, high * h), red if (i + phase) % 2 else white)
    for side in (-0.8, 0.8):
        m.box((-a, a), (side * b - 0.07, side * b + 0.07), (0.0, 0.10 * h), DARK)
        m.box((-0.14 * a, 0.14 * a), (side * b - 0.05, side * b + 0.05), (0.0, 0.98 * h), STEEL)
    m.lathe([(0.06, h), (0.06, h + 0.12)], (1.0, 0.70, 0.10), (0.0, 0.8 * b), 6, GLOWING)
    return m.build(size)


SHAPES: dict[str, Callable[..., Mesh]] = {
    "car": car,
    "truck": truck,
    "bus": bus,
    "trailer": trailer,
    "construction_vehicle": construction_vehicle,
    "pedestrian": pedestrian,
    "motorcycle": motorcycle,
    "bicycle": bicycle,
    "traffic_cone": traffic_cone,
    "barrier": barrier,
}
"""The function that shapes each detection class; `motorcycle` and `bicycle` also take `rider`."""

CLASSES: tuple[str, ...] = tuple(SHAPES)
"""The ten detection classes of nuScenes."""
