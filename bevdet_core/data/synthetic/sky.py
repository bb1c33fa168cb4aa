"""Sun, sky, clouds, hills on the horizon and haze."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit

from .noise import noise, smooth

RGB = tuple[float, float, float]


class Light(NamedTuple):
    """Sun, sky and air of one scene; colours are RGB in [0, 1]."""

    sun: tuple[float, float, float]  # unit vector towards the sun, world frame
    sun_colour: RGB
    ambient: RGB  # from above
    bounce: RGB  # from below
    zenith: RGB
    horizon: RGB
    hills: RGB
    clouds: float  # share of the sky, 0 to 1
    haze: float  # 1 / m
    shadow: float  # how much of the sun a shadow takes, 0 to 1


@njit(cache=True, error_model="numpy")
def sky_colour(dx, dy, dz, light, tile):
    """Colour of the sky in a direction (any length)."""
    flat = max(np.sqrt(dx * dx + dy * dy), 1e-9)
    rise, cx, cy = dz / flat, dx / flat, dy / flat
    if rise < 0.10:
        far = 0.015 + 0.075 * noise(tile, 60.0 + 22.0 * cx, 90.0 + 22.0 * cy)
        near = 0.05 * noise(tile, 150.0 + 55.0 * cx, 30.0 + 55.0 * cy)
        if rise < near or rise < far:
            share = 0.45 if rise < near else 0.22
            return (
                light.horizon[0] * (1 - share) + light.hills[0] * share,
                light.horizon[1] * (1 - share) + light.hills[1] * share,
                light.horizon[2] * (1 - share) + light.hills[2] * share,
            )
    height = np.sqrt(min(rise * 1.1, 1.0))
    scale = 6.0 / (rise + 0.12)
    depth = 0.72 * noise(tile, 40.0 + cx * scale, 80.0 + cy * scale) + 0.28 * noise(
        tile, cx * scale * 3.1, cy * scale * 3.1
    )
    cloud = smooth((depth - (0.78 - 0.5 * light.clouds)) * 4.5) * min(rise * 7.0, 0.85)
    toward = max((dx * light.sun[0] + dy * light.sun[1] + dz * light.sun[2]) / np.sqrt(flat * flat + dz * dz), 0.0)
    wide = toward * toward
    wide *= wide
    wide *= wide * wide  # 12th power
    wide *= wide
    disc = wide * wide
    disc *= disc
    disc *= disc  # 192nd power
    glow = (0.35 * wide + 0.9 * disc * disc) * light.shadow
    red = light.horizon[0] * (1 - height) + light.zenith[0] * height
    green = light.horizon[1] * (1 - height) + light.zenith[1] * height
    blue = light.horizon[2] * (1 - height) + light.zenith[2] * height
    return (
        red * (1 - cloud) + min(0.35 * light.horizon[0] + 0.68, 1.0) * cloud + glow * light.sun_colour[0],
        green * (1 - cloud) + min(0.35 * light.horizon[1] + 0.68, 1.0) * cloud + glow * light.sun_colour[1],
        blue * (1 - cloud) + min(0.35 * light.horizon[2] + 0.68, 1.0) * cloud + glow * light.sun_colour[2],
    )
