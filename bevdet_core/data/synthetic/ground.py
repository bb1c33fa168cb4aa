"""The street: asphalt with lane marks and crossings, kerbs, pavements, grass, squares and car parks."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit

from .noise import lattice, noise, smooth, wrap

GRASS, SQUARE, CAR_PARK = range(3)
"""What lies beyond a pavement."""

RGB = tuple[float, float, float]


class Ground(NamedTuple):
    """The street that a scene stands on, in metres; x is along the main road, y = 0 is its middle."""

    lanes: int  # in each direction
    lane_width: float
    road: float  # half of the asphalt, parking strip included
    pavement: float  # |y| where the pavement ends
    verge_left: int
    verge_right: int
    crossing: float  # x of the crossing street's middle
    crossing_half: float  # half of its asphalt; 0: no crossing street
    asphalt: RGB
    paving: RGB
    grass: RGB
    dry_grass: RGB


@njit(cache=True, inline="always", error_model="numpy")
def ground_noise(x, y, tile):
    """Noise at a point of the ground, three wavelengths: of metres, of decimetres, of centimetres."""
    return noise(tile, x * 0.9, y * 0.9), noise(tile, x * 1.9 + 17.0, y * 1.9 + 5.0), noise(tile, x * 17.0, y * 21.0)


@njit(cache=True, inline="always", error_model="numpy")
def lane_marks(along, across, lanes, lane_width, parking):
    """Paint at a point of a road between crossings: (white, yellow), 0 or 1 each."""
    side = abs(across)
    if 0.08 < side < 0.24:
        return 0.0, 1.0
    edge = lanes * lane_width
    if abs(side - edge) < 0.09:
        return 1.0, 0.0
    if side < edge:
        lane = side / lane_width
        if lane > 0.5 and abs(lane - np.floor(lane + 0.5)) * lane_width < 0.08 and wrap(along, 6.0) < 2.6:
            return 1.0, 0.0
    elif parking and wrap(along, 6.4) < 0.13:
        return 1.0, 0.0
    return 0.0, 0.0


@njit(cache=True, inline="always", error_model="numpy")
def zebra(beyond, across):
    """White stripes for pedestrians, `beyond` metres from the crossing street's edge."""
    return 1.0 if 0.9 < beyond < 3.9 and wrap(across, 1.1) < 0.55 else 0.0


@njit(cache=True, error_model="numpy")
def ground_colour(x, y, broad, coarse, fine, detail, ground, tile):
    """Colour of the ground at a point before light.

    Args:
        x: metres along the road.
        y: metres to the left of its middle.
        broad: noise as `ground_noise` gives it, here and in the next two.
        coarse: see above.
        fine: see above.
        detail: 1 near the camera, towards 0 where fine patterns would only flicker.
        ground: the street.
        tile: of noise.
    """
    side = abs(y)
    off = abs(x - ground.crossing)
    has_crossing = ground.crossing_half > 0.0
    on_main = side < ground.road
    on_cross = has_crossing and off < ground.crossing_half
    if on_main or on_cross:
        white, yellow = 0.0, 0.0
        if not on_cross:
            beyond = off - ground.crossing_half
            if has_crossing and beyond < 5.2:
                white = zebra(beyond, side)
                if 4.4 < beyond < 4.85 and side < ground.lanes * ground.lane_width:
                    white = 1.0
            else:
                parking = ground.road > ground.lanes * ground.lane_width + 1.0
                white, yellow = lane_marks(x, y, ground.lanes, ground.lane_width, parking)
        elif not on_main:
            beyond = side - ground.road
            if beyond < 5.2:
                white = zebra(beyond, off)
            else:
                white, yellow = lane_marks(y, x - ground.crossing, 1, ground.lane_width, False)
        worn = 0.92 - 0.25 * coarse
        white *= worn
        yellow *= worn
        shade = (0.84 + 0.14 * coarse + 0.10 * broad + 0.26 * (fine - 0.5) * detail) * (1 - white - yellow)
        return (
            ground.asphalt[0] * shade + 0.95 * white + 0.92 * yellow,
            ground.asphalt[1] * shade + 0.95 * white + 0.72 * yellow,
            ground.asphalt[2] * shade + 0.92 * white + 0.22 * yellow,
        )
    from_road = side - ground.road
    if has_crossing:
        from_road = min(from_road, off - ground.crossing_half)
    if from_road < 0.22:
        shade = 0.64 + 0.14 * coarse
        return shade, shade, 0.98 * shade
    walk = ground.pavement - ground.road
    verge = ground.verge_left if y > 0 else ground.verge_right
    if from_road < walk or verge == SQUARE:
        plate = 0.8 if from_road < walk else 1.6
        joint = 1.0 - 0.22 * detail if wrap(x, plate) < 0.05 or wrap(y, plate) < 0.05 else 1.0
        shade = 0.86 + 0.16 * coarse + 0.14 * (lattice(tile, x / plate, y / plate) - 0.5) * detail
        shade = (shade + 0.10 * (fine - 0.5) * detail) * joint
        return ground.paving[0] * shade, ground.paving[1] * shade, ground.paving[2] * shade
    if verge == CAR_PARK:
        row = wrap(from_road - walk, 11.0)
        paint = 0.75 * smooth(2.0 * detail) if 0.4 < row < 5.4 and wrap(x, 3.0) < 0.13 else 0.0
        shade = (0.96 + 0.16 * coarse + 0.2 * (fine - 0.5) * detail) * (1 - paint)
        paint *= 0.9
        return ground.asphalt[0] * shade + paint, ground.asphalt[1] * shade + paint, ground.asphalt[2] * shade + paint
    dry = smooth(1.6 * broad - 0.3)
    shade = 0.80 + 0.26 * coarse + 0.50 * (fine - 0.5) * detail
    return (
        (ground.grass[0] * (1 - dry) + ground.dry_grass[0] * dry) * shade,
        (ground.grass[1] * (1 - dry) + ground.dry_grass[1] * dry) * shade,
        (ground.grass[2] * (1 - dry) + ground.dry_grass[2] * dry) * shade,
    )
