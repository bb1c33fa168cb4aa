"""What the hour, the weather and the town make of a scene: its light and its street."""

from __future__ import annotations

import numpy as np

from .ground import RGB, Ground
from .sky import Light

# Each hour: how often it comes, the sun's height above the horizon in degrees, and its light (the direction is drawn).
_UP = (0.0, 0.0, 1.0)
_CLEAR_DAY = Light(
    sun=_UP,
    sun_colour=(0.66, 0.62, 0.54),
    ambient=(0.56, 0.60, 0.67),
    bounce=(0.33, 0.32, 0.30),
    zenith=(0.24, 0.46, 0.80),
    horizon=(0.76, 0.86, 0.95),
    hills=(0.36, 0.48, 0.52),
    clouds=0.45,
    haze=0.0022,
    shadow=0.90,
)
_GOLDEN_EVENING = Light(
    sun=_UP,
    sun_colour=(0.86, 0.64, 0.40),
    ambient=(0.54, 0.52, 0.58),
    bounce=(0.35, 0.31, 0.28),
    zenith=(0.34, 0.46, 0.70),
    horizon=(0.98, 0.82, 0.62),
    hills=(0.46, 0.36, 0.40),
    clouds=0.40,
    haze=0.0032,
    shadow=0.88,
)
_OVERCAST = Light(
    sun=_UP,
    sun_colour=(0.28, 0.28, 0.29),
    ambient=(0.76, 0.78, 0.81),
    bounce=(0.42, 0.42, 0.42),
    zenith=(0.62, 0.67, 0.73),
    horizon=(0.84, 0.86, 0.88),
    hills=(0.48, 0.53, 0.55),
    clouds=0.85,
    haze=0.0045,
    shadow=0.75,
)
_HAZY_MORNING = Light(
    sun=_UP,
    sun_colour=(0.64, 0.58, 0.48),
    ambient=(0.60, 0.60, 0.62),
    bounce=(0.36, 0.35, 0.33),
    zenith=(0.50, 0.66, 0.80),
    horizon=(0.93, 0.90, 0.84),
    hills=(0.52, 0.56, 0.56),
    clouds=0.20,
    haze=0.0080,
    shadow=0.85,
)
_HOURS: tuple[tuple[float, tuple[float, float], Light], ...] = (
    (0.40, (38, 62), _CLEAR_DAY),
    (0.22, (24, 34), _GOLDEN_EVENING),
    (0.20, (60, 72), _OVERCAST),
    (0.18, (30, 45), _HAZY_MORNING),
)


def sample_light(rng: np.random.Generator) -> Light:
    """A clear day, a low golden sun, an overcast sky or a hazy morning, each with its own variation."""
    _, height, light = _HOURS[rng.choice(len(_HOURS), p=[share for share, _, _ in _HOURS])]
    azimuth, elevation = rng.uniform(0, 2 * np.pi), np.radians(rng.uniform(*height))
    exposure = float(rng.uniform(0.93, 1.07))
    flat = np.cos(elevation)
    return Light(
        sun=(float(np.cos(azimuth) * flat), float(np.sin(azimuth) * flat), float(np.sin(elevation))),
        sun_colour=_vary(rng, light.sun_colour, exposure),
        ambient=_vary(rng, light.ambient, exposure),
        bounce=_vary(rng, light.bounce, exposure),
        zenith=_vary(rng, light.zenith),
        horizon=_vary(rng, light.horizon),
        hills=_vary(rng, light.hills),
        clouds=float(np.clip(light.clouds + rng.uniform(-0.2, 0.15), 0, 1)),
        haze=float(light.haze * rng.uniform(0.7, 1.4)),
        shadow=light.shadow,
    )


def sample_ground(rng: np.random.Generator, reach: float) -> Ground:
    """A street of two or four lanes with parking strips and pavements; grass, a square or a car park beyond.

    Args:
        rng: source of all choices.
        reach: half of the stretch of road, metres, in which a crossing street may lie.
    """
    lanes = int(rng.choice([1, 2], p=[0.35, 0.65]))
    lane_width = float(rng.uniform(3.3, 3.7))
    road = lanes * lane_width + float(rng.choice([0.5, 2.6], p=[0.3, 0.7]))
    crossing = rng.random() < 0.6
    grass = _vary(rng, (0.32, 0.49, 0.22), float(rng.uniform(0.9, 1.15)), 0.1)
    return Ground(
        lanes=lanes,
        lane_width=lane_width,
        road=road,
        pavement=road + float(rng.uniform(2.6, 4.0)),
        verge_left=int(rng.choice(3, p=[0.45, 0.2, 0.35])),
        verge_right=int(rng.choice(3, p=[0.45, 0.2, 0.35])),
        crossing=float(rng.choice([-1, 1]) * rng.uniform(0.35, 0.8) * reach),
        crossing_half=lane_width + 0.5 if crossing else 0.0,
        asphalt=_vary(rng, (0.37, 0.37, 0.38), float(rng.uniform(0.85, 1.2)), 0.03),
        paving=_vary(rng, (0.66, 0.62, 0.56), float(rng.uniform(0.88, 1.1)), 0.06),
        grass=grass,
        dry_grass=(grass[0] * 1.25, grass[1] * 1.08, grass[2] * 0.95),
    )


def _vary(rng: np.random.Generator, colour: RGB, factor: float = 1.0, spread: float = 0.04) -> RGB:
    red, green, blue = np.clip(np.array(colour) * factor * rng.uniform(1 - spread, 1 + spread, 3), 0, 1)
    return float(red), float(green), float(blue)
