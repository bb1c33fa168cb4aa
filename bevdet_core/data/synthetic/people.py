"""Pedestrian, motorcycle and bicycle, the latter two with or without a rider.

Every function takes a random generator for colours and details and the (width, length, height) of the box to fill. x is
forward.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from .mesh import GLOWING, Colour, Mesh, MeshBuilder, Size
from .paint import DARK, HEADLIGHT, RUBBER, STEEL, TAILLIGHT, pick, times

SKIN: tuple[Colour, ...] = ((0.95, 0.78, 0.65), (0.80, 0.58, 0.44), (0.50, 0.34, 0.25), (0.36, 0.24, 0.18))
CLOTHES: tuple[Colour, ...] = (
    (0.78, 0.22, 0.22),
    (0.20, 0.36, 0.66),
    (0.92, 0.92, 0.90),
    (0.93, 0.72, 0.20),
    (0.23, 0.52, 0.34),
    (0.52, 0.28, 0.56),
    (0.17, 0.18, 0.22),
    (0.90, 0.50, 0.35),
    (0.45, 0.62, 0.72),
)
TROUSERS: tuple[Colour, ...] = ((0.16, 0.20, 0.34), (0.12, 0.12, 0.14), (0.45, 0.38, 0.30), (0.34, 0.36, 0.40))


def _person(
    m: MeshBuilder, rng: np.random.Generator, height: float, stride: float, half: tuple[float, float], hat: bool
) -> None:
    shirt, trousers, skin = pick(rng, CLOTHES), pick(rng, TROUSERS), pick(rng, SKIN, 0.02)
    a, b = half
    s = height / 1.75
    hip, shoulder = 0.86 * s, 1.46 * s
    for side in (-1, 1):
        foot = side * stride
        m.rod((foot, side * 0.10 * s, 0.06 * s), (0.0, side * 0.09 * s, hip), 0.15 * s, trousers)
        m.box(
            (foot - 0.09 * s, foot + 0.17 * s),
            (side * 0.10 * s - 0.06 * s, side * 0.10 * s + 0.06 * s),
            (0.0, 0.09 * s),
            DARK,
        )
        m.rod(
            (-side * min(0.8 * stride, a), side * b, 0.86 * s),
            (0.0, side * 0.22 * s, shoulder - 0.05 * s),
            0.10 * s,
            times(shirt, 0.9),
        )
    m.prism(
        [
            (-0.11 * s, hip - 0.04 * s),
            (0.11 * s, hip - 0.04 * s),
            (0.14 * s, shoulder - 0.14 * s),
            (0.09 * s, shoulder),
            (-0.10 * s, shoulder),
        ],
        (-0.21 * s, 0.21 * s),
        shirt,
    )
    top = height
    m.lathe(
        [(0.06 * s, shoulder - 0.02 * s), (0.115 * s, top - 0.20 * s), (0.115 * s, top - 0.08 * s), (0.06 * s, top)],
        skin,
        (0.02 * s, 0.0),
        7,
    )
    cap = (
        (0.97, 0.80, 0.10)
        if hat
        else times(pick(rng, ((0.20, 0.14, 0.10), (0.50, 0.36, 0.20), (0.10, 0.10, 0.11))), 1.0)
    )
    m.lathe(
        [(0.125 * s, top - 0.12 * s), (0.12 * s, top - 0.05 * s), (0.06 * s, top + 0.005)], cap, (-0.01 * s, 0.0), 7
    )
    if rng.random() < 0.35:
        m.box((-0.26 * s, -0.11 * s), (-0.15 * s, 0.15 * s), (hip + 0.08 * s, shoulder - 0.04 * s), pick(rng, CLOTHES))


def pedestrian(rng: np.random.Generator, size: Size) -> Mesh:
    """Head, torso, two arms, two legs in mid-step; some wear a helmet and a backpack."""
    m = MeshBuilder()
    _person(m, rng, size[2], 0.24 * size[1], (0.35 * size[1], 0.40 * size[0]), bool(rng.random() < 0.25))
    return m.build(size)


def _rider(
    m: MeshBuilder,
    rng: np.random.Generator,
    seat: tuple[float, float],
    hands: tuple[float, float],
    feet: tuple[float, float],
    top: float,
) -> None:
    shirt, trousers, skin = pick(rng, CLOTHES), pick(rng, TROUSERS), pick(rng, SKIN, 0.02)
    shoulder = (seat[0] + 0.40 * (hands[0] - seat[0]), top - 0.30)
    m.rod((seat[0], 0.0, seat[1]), (shoulder[0], 0.0, shoulder[1]), 0.32, shirt)
    for side in (-1, 1):
        m.rod(
            (shoulder[0], side * 0.19, shoulder[1] - 0.04), (hands[0], side * 0.24, hands[1]), 0.09, times(shirt, 0.9)
        )
        knee = (seat[0] + 0.36, side * 0.15, seat[1] - 0.10)
        m.rod((seat[0], side * 0.10, seat[1]), knee, 0.15, trousers)
        m.rod(knee, (feet[0], side * 0.13, feet[1]), 0.12, trousers)
    centre = (shoulder[0] + 0.10, 0.0)
    m.lathe([(0.07, top - 0.31), (0.11, top - 0.20), (0.11, top - 0.10)], skin, centre, 7)
    m.lathe([(0.13, top - 0.15), (0.13, top - 0.07), (0.06, top)], pick(rng, CLOTHES), centre, 7)


def motorcycle(rng: np.random.Generator, size: Size, rider: bool) -> Mesh:
    """Two fat wheels, tank and seat, fork and head light; the rider leans forward."""
    w, length, h = size
    a = length / 2
    paint = pick(
        rng, ((0.78, 0.10, 0.10), (0.10, 0.14, 0.30), (0.12, 0.12, 0.13), (0.10, 0.45, 0.25), (0.90, 0.45, 0.08))
    )
    base = 1.12 if rider else h
    radius = 0.28 * base
    m = MeshBuilder()
    for x in (-a + radius, a - radius):
        m.wheel(x, (-0.09, 0.09), radius, RUBBER, STEEL)
    m.box((-0.45 * a, 0.35 * a), (-0.16, 0.16), (0.26 * base, 0.56 * base), DARK)
    m.prism(
        [(-0.05 * a, 0.56 * base), (0.45 * a, 0.52 * base), (0.40 * a, 0.80 * base), (0.05 * a, 0.78 * base)],
        (-0.17, 0.17),
        paint,
        top=0.8,
    )
    m.prism(
        [(-0.85 * a, 0.62 * base), (-0.02 * a, 0.55 * base), (0.0, 0.68 * base), (-0.80 * a, 0.78 * base)],
        (-0.15, 0.15),
        DARK,
    )
    m.prism(
        [(-a, 0.56 * base), (-0.55 * a, 0.56 * base), (-0.6 * a, 0.66 * base), (-0.98 * a, 0.70 * base)],
        (-0.12, 0.12),
        paint,
    )
    m.rod((a - radius, 0.0, radius), (0.42 * a, 0.0, 0.92 * base), 0.12, STEEL)
    m.rod((0.36 * a, -w / 2, 0.95 * base), (0.36 * a, w / 2, 0.95 * base), 0.07, DARK)
    m.box((0.48 * a, 0.62 * a), (-0.13, 0.13), (0.68 * base, 0.86 * base), HEADLIGHT, GLOWING)
    m.box((-a - 0.01, -a + 0.04), (-0.1, 0.1), (0.60 * base, 0.68 * base), TAILLIGHT, GLOWING)
    if not rider:
        m.rod((0.36 * a, -0.8 * w / 2, 0.95 * base), (0.30 * a, -0.8 * w / 2, h), 0.05, DARK)
    else:
        _rider(m, rng, (-0.30 * a, 0.72 * base), (0.34 * a, 0.95 * base), (-0.05 * a, 0.22), h)
    return m.build(size)


def bicycle(rng: np.random.Generator, size: Size, rider: bool) -> Mesh:
    """Two thin wheels and a diamond frame; the rider sits upright."""
    w, length, h = size
    a = length / 2
    paint = pick(
        rng, ((0.10, 0.60, 0.70), (0.85, 0.20, 0.25), (0.15, 0.15, 0.17), (0.95, 0.75, 0.10), (0.35, 0.65, 0.25))
    )
    base = 1.06 if rider else h
    radius = min(0.34 * base, 0.36)
    m = MeshBuilder()
    rear, front = -a + radius, a - radius
    for x in (rear, front):
        sides = 14
        angle = np.arange(sides + 1) * (2 * np.pi / sides)
        for t0, t1 in pairwise(angle):
            rim = [
                (x + r * np.cos(t), radius + r * np.sin(t))
                for t, r in ((t0, radius), (t1, radius), (t1, 0.83 * radius), (t0, 0.83 * radius))
            ]
            m.prism(rim, (-0.025, 0.025), RUBBER)
        for t in angle[:-1:2]:
            m.rod(
                (x, 0.0, radius), (x + 0.85 * radius * np.cos(t), 0.0, radius + 0.85 * radius * np.sin(t)), 0.015, STEEL
            )
    crank, seat, head = (-0.08 * a, 0.0, 0.28 * base), (-0.28 * a, 0.0, 0.84 * base), (0.42 * a, 0.0, 0.82 * base)
    for start, end in (
        (crank, seat),
        (crank, head),
        (seat, head),
        ((rear, 0.0, radius), seat),
        ((rear, 0.0, radius), crank),
        ((front, 0.0, radius), head),
    ):
        m.rod(start, end, 0.055, paint)
    m.rod((head[0], 0.0, head[2]), (head[0] - 0.02, 0.0, 0.97 * base), 0.05, DARK)
    m.rod((head[0] - 0.02, -w / 2, 0.98 * base), (head[0] - 0.02, w / 2, 0.98 * base), 0.05, DARK)
    m.box((seat[0] - 0.16, seat[0] + 0.12), (-0.09, 0.09), (0.85 * base, 0.93 * base), DARK)
    m.box((rear - 0.02, rear + 0.05), (-0.05, 0.05), (0.70 * base, 0.78 * base), TAILLIGHT, GLOWING)
    if not rider:
        m.rod((head[0] - 0.02, -0.3 * w, 0.97 * base), (head[0] - 0.02, -0.3 * w, base), 0.04, DARK)
    else:
        _rider(m, rng, (seat[0], 0.90 * base), (head[0], 1.0 * base), (crank[0], 0.14), h)
    return m.build(size)
