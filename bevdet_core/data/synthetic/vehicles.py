"""Car, truck, bus, trailer and construction vehicle.

Every function takes a random generator for colours and details and the (width, length, height) of the box to fill. x is
forward: lights, wind-screens and cabs show the heading.
"""

from __future__ import annotations

import numpy as np

from .mesh import GLASS, GLOWING, Colour, Mesh, MeshBuilder, Size
from .paint import DARK, GLASS_TINT, HEADLIGHT, RUBBER, STEEL, TAILLIGHT, pick, times

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
    paint = pick(rng, CAR_PAINT)
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
    paint = pick(rng, CAB_PAINT)
    cargo = pick(rng, ((0.88, 0.87, 0.84), (0.78, 0.82, 0.86), (0.90, 0.84, 0.68), times(paint, 1.1)))
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
    m.box((-a - 0.012, a - cab - 0.10), (-b - 0.012, b + 0.012), (floor, floor + 0.07 * h), times(paint, 0.7))
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
    paint = pick(rng, BUS_PAINT)
    m = MeshBuilder()
    m.box((-a, a), (-b, b), (0.11 * h, 0.94 * h), paint)
    m.box((-0.98 * a, 0.98 * a), (-0.96 * b, 0.96 * b), (0.94 * h, 0.97 * h), times(paint, 0.85))
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
    side = pick(rng, ((0.55, 0.60, 0.66), (0.72, 0.70, 0.64), (0.42, 0.52, 0.60), (0.62, 0.50, 0.42)))
    m = MeshBuilder()
    floor = 0.30 * h
    m.box((-a, a), (-b, b), (floor, h), side)
    ribs = max(4, round(length / 1.2))
    for i in range(ribs + 1):
        x = -0.985 * a + i * 1.97 * a / ribs
        m.box((x - 0.05, x + 0.05), (-b - 0.02, b + 0.02), (floor, 0.99 * h), times(side, 0.78))
    m.box((-a - 0.012, a + 0.012), (-b - 0.025, b + 0.025), (floor - 0.04 * h, floor + 0.02 * h), times(side, 0.55))
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
    yellow = pick(rng, ((0.95, 0.70, 0.08), (0.96, 0.60, 0.10)), 0.03)
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
        times(DARK, 1.3),
    )
    m.lathe([(0.09, h), (0.09, h + 0.14)], (1.0, 0.55, 0.05), (-0.1 * a, 0.4 * b), 6, GLOWING)
    return m.build(size)
