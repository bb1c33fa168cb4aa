"""Colours that the shapes share, and how they vary."""

from __future__ import annotations

import numpy as np

from .mesh import Colour

GLASS_TINT: Colour = (0.13, 0.17, 0.22)
RUBBER: Colour = (0.10, 0.10, 0.11)
STEEL: Colour = (0.62, 0.63, 0.65)
DARK: Colour = (0.20, 0.20, 0.22)
HEADLIGHT: Colour = (1.0, 0.97, 0.85)
TAILLIGHT: Colour = (0.85, 0.07, 0.06)


def pick(rng: np.random.Generator, palette: tuple[Colour, ...], spread: float = 0.05) -> Colour:
    """One colour of a palette, each channel moved by at most `spread`."""
    colour = np.clip(np.array(palette[rng.integers(len(palette))]) + rng.uniform(-spread, spread, 3), 0.02, 0.98)
    return (float(colour[0]), float(colour[1]), float(colour[2]))


def times(colour: Colour, factor: float) -> Colour:
    """A colour made darker or lighter."""
    return (min(colour[0] * factor, 1.0), min(colour[1] * factor, 1.0), min(colour[2] * factor, 1.0))
