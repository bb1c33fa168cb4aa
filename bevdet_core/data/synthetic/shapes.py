"""What the ten nuScenes detection classes look like: a few prisms, boxes and wheels each.

Every function takes a random generator for colours and details and the true (width, length, height) of the box, and
returns a mesh that lies one centimetre inside that box. x is forward: lights, wind-screens and wheels show the heading.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import numpy as np

from .mesh import GLASS, GLOWING, Colour, Mesh, MeshBuilder

Size = tuple[float, float, float]
"""Width (y), length (x), height (z) in metres, the order of the nuScenes tables."""

GLASS_TINT: Colour = (0.13, 0.17, 0.22)
RUBBER: Colour = (0.10, 0.10, 0.11)
STEEL: Colour = (0.62, 0.63, 0.65)
DARK: Colour = (0.20, 0.20, 0.22)
HEADLIGHT: Colour = (1.0, 0.97, 0.85)
TAILLIGHT: Colour = (0.85, 0.07, 0.06)
SKIN: tuple[Colour, ...] = ((0.95, 0.78, 0.65), (0.80, 0.58, 0.44), (0.50, 0.34, 0.25), (0.36, 0.24, 0.18))

CAR_PAINT: tuple[Colour, ...] = (
    (0.90, 0.90, 0.91),
    (0.72, 0.74, 0.77),
    (0.20, 0.21, 0.24),
    (0.74, 0.11, 0.12),
    (0.13, 0.29, 0.62),
    (0.16, 0.42, 0.40),
    (0.85, 0.60, 0.16),
    (0.45, 0.14, 0.20),
    (0.30, 0.48, 0.68),
    (0.66, 0.62, 0.52),
)
CAB_PAINT: tuple[Colour, ...] = (
    (0.86, 0.86, 0.88),
    (0.72, 0.16, 0.13),
    (0.15, 0.33, 0.60),
    (0.20, 0.45, 0.33),
    (0.88, 0.55, 0.14),
)
BUS_PAINT: tuple[Colour, ...] = (
    (0.80, 0.13, 0.13),
    (0.12, 0.45, 0.55),
    (0.91, 0.70, 0.15),
    (0.25, 0.50, 0.26),
    (0.88, 0.88, 0.90),
)
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


def _pick(rng: np.random.Generator, palette: tuple[Colour, ...], spread: float = 0.05) -> Colour:
    colour = np.clip(np.array(palette[rng.integers(len(palette))]) + rng.uniform(-spread, spread, 3), 0.03, 0.98)
    return (float(colour[0]), float(colour[1]), float(colour[2]))


def _times(colour: Colour, factor: float) -> Colour:
    return (min(colour[0] * factor, 1.0), min(colour[1] * factor, 1.0), min(colour[2] * factor, 1.0))


def _four_wheels(m: MeshBuilder, xs: tuple[float, ...], half_width: float, radius: float, thick: float) -> None:
    for x in xs:
        m.wheel(x, (-half_width, -half_width + thick), radius, RUBBER, STEEL)
        m.wheel(x, (half_width - thick, half_width), radius, RUBBER, STEEL)


def _lights(m: MeshBuilder, front: float, rear: float, half_width: float, z: float, size: float) -> None:
    for side in (-1, 1):
        y = (side * half_width - size, side * half_width + size)
        m.box((front - 0.05, front + 0.03), y, (z - 0.09, z + 0.09), HEADLIGHT, GLOWING)
        m.box((rear - 0.03, rear + 0.05), y, (z - 0.07, z + 0.11), TAILLIGHT, GLOWING)


def car(rng: np.random.Generator, size: Size) -> Mesh:
    """A saloon, an estate or a box-like van: lower body, glass house, roof, wheels, lights."""
    w, length, h = size
    a, b = length / 2, w / 2
    paint = _pick(rng, CAR_PAINT)
    body = rng.integers(3)
    bonnet, boot = ((0.27, 0.17), (0.29, 0.03), (0.17, 0.03))[body]
    m = MeshBuilder()
    belt = 0.56 * h
    m.prism(
        [
            (-a, 0.17 * h),
            (a, 0.17 * h),
            (a, 0.38 * h),
            (0.96 * a, 0.47 * h),
            (a - bonnet * length, belt),
            (-a + 0.02, belt),
        ],
        (-b, b),
        paint,
        top=0.95,
    )
    m.box((-0.97 * a, 0.97 * a), (-0.94 * b, 0.94 * b), (0.12 * h, 0.18 * h), DARK)
    screen, rear = a - (bonnet - 0.02) * length, -a + boot * length
    roof_front, roof_rear = screen - 0.15 * length, rear + (0.10 if body == 0 else 0.05) * length
    m.prism(
        [(rear, belt), (screen, belt), (roof_front, 0.95 * h), (roof_rear, 0.95 * h)],
        (-0.93 * b, 0.93 * b),
        GLASS_TINT,
        GLASS,
        top=0.82,
    )
    m.prism(
        [
            (roof_rear - 0.03 * length, 0.93 * h),
            (roof_front + 0.03 * length, 0.93 * h),
            (roof_front, h),
            (roof_rear, h),
        ],
        (-0.79 * b, 0.79 * b),
        paint,
        top=0.94,
    )
    pillar = (roof_front + roof_rear) / 2 - 0.03 * length
    for x_low, x_high in ((pillar, pillar), (rear + 0.03 * length, roof_rear + 0.02 * length)):
        for side in (-1, 1):
            m.rod((x_low, side * 0.93 * b, belt), (x_high, side * 0.775 * b, 0.95 * h), 0.07, paint)
    _four_wheels(m, (-0.60 * a, 0.62 * a), b + 0.01, 0.185 * h + 0.02, 0.22)
    _lights(m, a - 0.01, -a + 0.01, 0.72 * b, 0.40 * h, 0.16 * b)
    m.box((a - 0.02, a + 0.015), (-0.45 * b, 0.45 * b), (0.25 * h, 0.35 * h), DARK)
    return m.build(size)


def truck(rng: np.random.Generator, size: Size) -> Mesh:
    """A cab in front of a pale cargo box (or an open flat bed with a load)."""
    w, length, h = size
    a, b = length / 2, w / 2
    paint = _pick(rng, CAB_PAINT)
    cargo = _pick(rng, ((0.88, 0.87, 0.84), (0.78, 0.82, 0.86), (0.90, 0.84, 0.68), _times(paint, 1.1)))
    cab = min(0.34 * length, 2.4)
    cab_height = min(0.92 * h, 2.7)
    m = MeshBuilder()
    floor = 0.30 * min(h, 3.2)
    m.box((-a, a), (-0.82 * b, 0.82 * b), (0.5 * floor, floor), DARK)
    m.prism(
        [
            (a - cab, floor * 0.7),
            (a, floor * 0.7),
            (a, 0.55 * cab_height),
            (a - 0.12 * cab, cab_height),
            (a - cab, cab_height),
        ],
        (-0.95 * b, 0.95 * b),
        paint,
        top=0.95,
    )
    m.prism(
        [
            (a + 0.01, 0.58 * cab_height),
            (a + 0.03, 0.58 * cab_height),
            (a - 0.10 * cab, 0.93 * cab_height),
            (a - 0.13 * cab, 0.93 * cab_height),
        ],
        (-0.85 * b, 0.85 * b),
        GLASS_TINT,
        GLASS,
        top=0.97,
    )
    m.box(
        (a - 0.72 * cab, a - 0.22 * cab),
        (-0.975 * b, 0.975 * b),
        (0.60 * cab_height, 0.90 * cab_height),
        GLASS_TINT,
        GLASS,
        0.97,
    )
    m.box((-a, a - cab - 0.12), (-b, b), (floor, h), cargo)
    m.box((-a - 0.012, a - cab - 0.10), (-b - 0.012, b + 0.012), (floor, floor + 0.07 * h), _times(paint, 0.7))
    m.box((-a - 0.02, -a + 0.02), (-0.03 * b, 0.03 * b), (floor, 0.98 * h), DARK)
    radius = min(0.17 * h, 0.5)
    _four_wheels(
        m,
        (-0.62 * a, -0.62 * a + 2.2 * radius, a - 0.5 * cab) if length > 7 else (-0.60 * a, a - 0.5 * cab),
        0.96 * b,
        radius,
        0.3,
    )
    _lights(m, a - 0.02, -a + 0.02, 0.76 * b, 0.85 * floor, 0.16 * b)
    return m.build(size)


def bus(rng: np.random.Generator, size: Size) -> Mesh:
    """A long body with a row of windows on each side, a large wind-screen and a lit destination sign."""
    w, length, h = size
    a, b = length / 2, w / 2
    paint = _pick(rng, BUS_PAINT)
    m = MeshBuilder()
    m.box((-a, a), (-b, b), (0.11 * h, 0.94 * h), paint)
    m.box((-0.98 * a, 0.98 * a), (-0.96 * b, 0.96 * b), (0.94 * h, 0.97 * h), _times(paint, 0.85))
    m.box((-0.5 * a, 0.1 * a), (-0.5 * b, 0.5 * b), (0.97 * h, h), (0.75, 0.76, 0.78))
    windows = max(4, round(length / 1.6))
    pitch = (2 * a - 1.0) / windows
    for i in range(windows):
        x = -a + 0.5 + i * pitch
        m.box((x + 0.08, x + pitch - 0.08), (-b - 0.012, b + 0.012), (0.45 * h, 0.78 * h), GLASS_TINT, GLASS)
    m.box((-0.99 * a, 0.99 * a), (-b - 0.006, b + 0.006), (0.34 * h, 0.39 * h), (0.93, 0.93, 0.90))
    m.box((a - 0.02, a + 0.015), (-0.88 * b, 0.88 * b), (0.36 * h, 0.76 * h), GLASS_TINT, GLASS)
    m.box((a - 0.02, a + 0.015), (-0.6 * b, 0.6 * b), (0.80 * h, 0.90 * h), (0.98, 0.75, 0.25), GLOWING)
    m.box((-a - 0.015, -a + 0.02), (-0.75 * b, 0.75 * b), (0.52 * h, 0.76 * h), GLASS_TINT, GLASS)
    _four_wheels(m, (-0.58 * a, 0.60 * a), b + 0.01, 0.145 * h, 0.3)
    _lights(m, a, -a, 0.78 * b, 0.23 * h, 0.14 * b)
    return m.build(size)


def trailer(rng: np.random.Generator, size: Size) -> Mesh:
    """A long box on rear axles with landing legs in front and no cab."""
    w, length, h = size
    a, b = length / 2, w / 2
    side = _pick(rng, ((0.55, 0.60, 0.66), (0.72, 0.70, 0.64), (0.42, 0.52, 0.60), (0.62, 0.50, 0.42)))
    m = MeshBuilder()
    floor = 0.30 * h
    m.box((-a, a), (-b, b), (floor, h), side)
    ribs = max(4, round(length / 1.2))
    for i in range(ribs + 1):
        x = -0.985 * a + i * 1.97 * a / ribs
        m.box((x - 0.05, x + 0.05), (-b - 0.02, b + 0.02), (floor, 0.99 * h), _times(side, 0.78))
    m.box((-a - 0.012, a + 0.012), (-b - 0.025, b + 0.025), (floor - 0.04 * h, floor + 0.02 * h), _times(side, 0.55))
    m.box((-0.95 * a, 0.9 * a), (-0.4 * b, 0.4 * b), (0.20 * h, floor), DARK)
    radius = 0.125 * h
    _four_wheels(m, tuple(-0.86 * a + i * 2.2 * radius for i in range(3)), 0.96 * b, radius, 0.32)
    for side_y in (-0.7, 0.7):
        m.box((0.52 * a, 0.56 * a), (side_y * b - 0.08, side_y * b + 0.08), (0.0, floor), STEEL)
    for side_y in (-1, 1):
        y = (side_y * 0.75 * b - 0.3, side_y * 0.75 * b + 0.3)
        m.box((-a - 0.02, -a + 0.02), y, (0.24 * h, 0.28 * h), TAILLIGHT, GLOWING)
    m.box((-a - 0.01, -a + 0.02), (-0.03, 0.03), (floor, 0.98 * h), DARK)
    return m.build(size)


def construction_vehicle(rng: np.random.Generator, size: Size) -> Mesh:
    """A yellow digger: crawler tracks, a cab, a counterweight and an arm that reaches forward."""
    w, length, h = size
    a, b = length / 2, w / 2
    yellow = _pick(rng, ((0.95, 0.70, 0.08), (0.96, 0.60, 0.10)), 0.03)
    m = MeshBuilder()
    for side in (-1, 1):
        y = (side * 0.80 * b - 0.2 * b, side * 0.80 * b + 0.2 * b)
        m.prism(
            [
                (-0.85 * a, 0.0),
                (0.25 * a, 0.0),
                (0.38 * a, 0.12 * h),
                (0.25 * a, 0.24 * h),
                (-0.85 * a, 0.24 * h),
                (-a, 0.12 * h),
            ],
            y,
            DARK,
        )
        m.box((-0.75 * a, 0.18 * a), (y[0] - 0.01, y[1] + 0.01), (0.08 * h, 0.16 * h), STEEL)
    m.box((-0.60 * a, 0.10 * a), (-0.55 * b, 0.55 * b), (0.20 * h, 0.32 * h), DARK)
    m.box((-0.98 * a, 0.15 * a), (-0.88 * b, 0.88 * b), (0.32 * h, 0.58 * h), yellow)
    m.box((-a, -0.80 * a), (-0.80 * b, 0.80 * b), (0.30 * h, 0.62 * h), DARK)
    m.box((-0.40 * a, 0.16 * a), (0.0, 0.86 * b), (0.58 * h, 0.92 * h), GLASS_TINT, GLASS, 0.94)
    m.box((-0.43 * a, 0.19 * a), (-0.03 * b, 0.88 * b), (0.92 * h, h), yellow)
    for x in (-0.40 * a, 0.15 * a):
        m.rod((x, 0.88 * b, 0.58 * h), (x, 0.86 * b, 0.93 * h), 0.10, yellow)
    elbow = (0.55 * a, -0.35 * b, 0.97 * h)
    m.rod((0.05 * a, -0.35 * b, 0.50 * h), elbow, 0.34, yellow)
    m.rod(elbow, (0.85 * a, -0.35 * b, 0.34 * h), 0.26, yellow)
    m.prism(
        [(0.72 * a, 0.05 * h), (0.95 * a, 0.02 * h), (a, 0.22 * h), (0.86 * a, 0.36 * h), (0.74 * a, 0.28 * h)],
        (-0.75 * b, 0.05 * b),
        _times(DARK, 1.3),
    )
    m.lathe([(0.09, h), (0.09, h + 0.14)], (1.0, 0.55, 0.05), (-0.1 * a, 0.4 * b), 6, GLOWING)
    return m.build(size)


def _person(
    m: MeshBuilder, rng: np.random.Generator, height: float, stride: float, half: tuple[float, float], hat: bool
) -> None:
    shirt, trousers, skin = _pick(rng, CLOTHES), _pick(rng, TROUSERS), _pick(rng, SKIN, 0.02)
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
            _times(shirt, 0.9),
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
        else _times(_pick(rng, ((0.20, 0.14, 0.10), (0.50, 0.36, 0.20), (0.10, 0.10, 0.11))), 1.0)
    )
    m.lathe(
        [(0.125 * s, top - 0.12 * s), (0.12 * s, top - 0.05 * s), (0.06 * s, top + 0.005)], cap, (-0.01 * s, 0.0), 7
    )
    if rng.random() < 0.35:
        m.box((-0.26 * s, -0.11 * s), (-0.15 * s, 0.15 * s), (hip + 0.08 * s, shoulder - 0.04 * s), _pick(rng, CLOTHES))


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
    shirt, trousers, skin = _pick(rng, CLOTHES), _pick(rng, TROUSERS), _pick(rng, SKIN, 0.02)
    shoulder = (seat[0] + 0.40 * (hands[0] - seat[0]), top - 0.30)
    m.rod((seat[0], 0.0, seat[1]), (shoulder[0], 0.0, shoulder[1]), 0.32, shirt)
    for side in (-1, 1):
        m.rod(
            (shoulder[0], side * 0.19, shoulder[1] - 0.04), (hands[0], side * 0.24, hands[1]), 0.09, _times(shirt, 0.9)
        )
        knee = (seat[0] + 0.36, side * 0.15, seat[1] - 0.10)
        m.rod((seat[0], side * 0.10, seat[1]), knee, 0.15, trousers)
        m.rod(knee, (feet[0], side * 0.13, feet[1]), 0.12, trousers)
    centre = (shoulder[0] + 0.10, 0.0)
    m.lathe([(0.07, top - 0.31), (0.11, top - 0.20), (0.11, top - 0.10)], skin, centre, 7)
    m.lathe([(0.13, top - 0.15), (0.13, top - 0.07), (0.06, top)], _pick(rng, CLOTHES), centre, 7)


def motorcycle(rng: np.random.Generator, size: Size, rider: bool) -> Mesh:
    """Two fat wheels, tank and seat, fork and head light; the rider leans forward."""
    w, length, h = size
    a = length / 2
    paint = _pick(
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
    paint = _pick(
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


def traffic_cone(rng: np.random.Generator, size: Size) -> Mesh:
    """An orange cone with white bands on a square foot."""
    w, _, h = size
    orange = _pick(rng, ((1.0, 0.38, 0.05), (0.98, 0.32, 0.10)), 0.03)
    white = (0.96, 0.96, 0.94)
    m = MeshBuilder()
    b = w / 2
    m.box((-b, b), (-b, b), (0.0, 0.06 * h), _times(orange, 0.75))
    bands = ((0.06, 0.36, orange), (0.36, 0.55, white), (0.55, 0.72, orange), (0.72, 0.84, white), (0.84, 1.0, orange))
    for low, high, colour in bands:
        m.lathe([(b * (0.86 - 0.70 * low), low * h), (b * (0.86 - 0.70 * high), high * h)], colour, sides=9)
    return m.build(size)


def barrier(rng: np.random.Generator, size: Size) -> Mesh:
    """Red and white boards across two feet; its long side is the width (y), as nuScenes labels barriers."""
    w, length, h = size
    a, b = length / 2, w / 2
    red, white = _pick(rng, ((0.84, 0.10, 0.10), (0.90, 0.28, 0.06)), 0.03), (0.95, 0.95, 0.93)
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
