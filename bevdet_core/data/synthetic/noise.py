"""Smooth noise for surfaces: a periodic tile, looked up bilinearly."""

from __future__ import annotations

import numpy as np
from numba import njit

NOISE_SIZE = 256


def noise_tile(seed: int = 7) -> np.ndarray:
    """A periodic tile of smooth noise [256, 256] in [0, 1], several octaves."""
    rng = np.random.default_rng(seed)
    tile = np.zeros((NOISE_SIZE, NOISE_SIZE))
    frequency = np.hypot(np.fft.fftfreq(NOISE_SIZE)[:, None], np.fft.fftfreq(NOISE_SIZE)[None]) * NOISE_SIZE
    for cutoff, weight in ((6.0, 1.0), (20.0, 0.6), (70.0, 0.35)):
        octave = np.fft.ifft2(np.fft.fft2(rng.normal(size=tile.shape)) * np.exp(-((frequency / cutoff) ** 2))).real
        tile += weight * octave / octave.std()
    return np.clip(0.5 + 0.22 * tile / tile.std(), 0, 1).astype(np.float32)


@njit(cache=True, inline="always", error_model="numpy")
def noise(tile, x, y):
    """Value of the tile at a point; one unit is one texel."""
    fx, fy = np.floor(x), np.floor(y)
    ix, iy = int(fx) & (NOISE_SIZE - 1), int(fy) & (NOISE_SIZE - 1)
    jx, jy = (ix + 1) & (NOISE_SIZE - 1), (iy + 1) & (NOISE_SIZE - 1)
    ax, ay = x - fx, y - fy
    top = tile[iy, ix] * (1 - ax) + tile[iy, jx] * ax
    low = tile[jy, ix] * (1 - ax) + tile[jy, jx] * ax
    return top * (1 - ay) + low * ay


@njit(cache=True, inline="always", error_model="numpy")
def lattice(tile, x, y):
    """One value for each cell of a grid, without interpolation."""
    return tile[int(np.floor(y)) * 71 & (NOISE_SIZE - 1), int(np.floor(x)) * 113 & (NOISE_SIZE - 1)]


@njit(cache=True, inline="always", error_model="numpy")
def wrap(value, period):
    """Remainder in [0, period)."""
    return value - period * np.floor(value / period)


@njit(cache=True, inline="always", error_model="numpy")
def smooth(value):
    """Clamps to [0, 1] with soft ends."""
    value = min(max(value, 0.0), 1.0)
    return value * value * (3 - 2 * value)
