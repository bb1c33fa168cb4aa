"""What stands around and is not labelled: buildings, trees, bushes, lamps."""

from __future__ import annotations

import numpy as np

from .mesh import FACADE, FOLIAGE, GLOWING, Colour, Mesh, MeshBuilder
from .paint import pick

BAY, STOREY = 2.6, 3.2
"""Metres from window to window, across and upwards."""

WALLS: tuple[Colour, ...] = (
    (0.78, 0.70, 0.60),
    (0.70, 0.45, 0.36),
    (0.82, 0.80, 0.76),
    (0.60, 0.64, 0.68),
    (0.86, 0.77, 0.55),
    (0.58, 0.50, 0.46),
    (0.72, 0.76, 0.70),
    (0.80, 0.62, 0.52),
)
LEAVES: tuple[Colour, ...] = (
    (0.24, 0.44, 0.18),
    (0.32, 0.52, 0.20),
    (0.18, 0.38, 0.22),
    (0.50, 0.52, 0.18),
    (0.62, 0.40, 0.14),
)


def building(rng: np.random.Generator, width: float, depth: float, storeys: int) -> Mesh:
    """A block of floors of 3.2 m with windows on all sides under a flat or a pitched roof; x is along `width`."""
    wall = pick(rng, WALLS, 0.04)
    height = STOREY * storeys + 0.8
    a, b = width / 2, depth / 2
    m = MeshBuilder()
    m.box((-a, a), (-b, b), (0.0, height), wall, FACADE)
    if storeys <= 3 and rng.random() < 0.7:
        roof = pick(rng, ((0.52, 0.24, 0.18), (0.34, 0.30, 0.30), (0.45, 0.32, 0.24)))
        m.prism([(-a - 0.5, height), (a + 0.5, height), (0.0, height + 0.32 * width)], (-b - 0.5, b + 0.5), roof)
    else:
        m.box((-a - 0.2, a + 0.2), (-b - 0.2, b + 0.2), (height, height + 0.5), (0.55, 0.54, 0.52))
        m.box((-0.4 * a, 0.1 * a), (-0.4 * b, 0.4 * b), (height + 0.5, height + 2.0), (0.60, 0.60, 0.60))
    return m.build()


def tree(rng: np.random.Generator) -> Mesh:
    """A trunk under a round crown, or a conifer."""
    leaves = pick(rng, LEAVES, 0.04)
    height = rng.uniform(5.0, 9.0)
    m = MeshBuilder()
    trunk = rng.uniform(0.13, 0.22)
    if rng.random() < 0.3:
        m.lathe([(trunk, 0.0), (trunk * 0.8, 0.2 * height)], (0.36, 0.26, 0.18), sides=6)
        for low, high, radius in ((0.15, 0.55, 0.26), (0.38, 0.78, 0.20), (0.62, 1.0, 0.13)):
            m.lathe([(radius * height, low * height), (0.02, high * height)], leaves, sides=8, material=FOLIAGE)
        return m.build()
    m.lathe([(trunk, 0.0), (trunk * 0.7, 0.55 * height)], (0.40, 0.30, 0.22), sides=6)
    for _ in range(3):
        x, y = rng.uniform(-0.09, 0.09, 2) * height
        z, r = rng.uniform(0.55, 0.72) * height, rng.uniform(0.20, 0.28) * height
        rings = [
            (0.35 * r, z - 0.85 * r),
            (0.88 * r, z - 0.45 * r),
            (r, z),
            (0.80 * r, z + 0.52 * r),
            (0.25 * r, z + 0.88 * r),
        ]
        m.lathe(rings, leaves, (x, y), 9, FOLIAGE, turn=float(rng.uniform()))
    return m.build()


def bush(rng: np.random.Generator) -> Mesh:
    """A low round shrub."""
    r = rng.uniform(0.5, 0.9)
    m = MeshBuilder()
    m.lathe(
        [(0.8 * r, 0.0), (r, 0.45 * r), (0.7 * r, 0.95 * r), (0.2 * r, 1.15 * r)],
        pick(rng, LEAVES[:4]),
        sides=9,
        material=FOLIAGE,
    )
    return m.build()


def lamp(rng: np.random.Generator) -> Mesh:
    """A street lamp whose arm points along x."""
    height = rng.uniform(6.0, 7.5)
    grey = (0.38, 0.40, 0.42)
    m = MeshBuilder()
    m.lathe([(0.12, 0.0), (0.07, height)], grey, sides=6)
    m.rod((0.0, 0.0, height - 0.05), (1.7, 0.0, height + 0.25), 0.09, grey)
    m.box((1.4, 2.1), (-0.14, 0.14), (height + 0.14, height + 0.28), grey)
    m.box((1.45, 2.05), (-0.11, 0.11), (height + 0.10, height + 0.14), (1.0, 0.96, 0.80), GLOWING)
    return m.build()
