"""Conventions of the regressed box code: the rows of a last layer that have to change places and signs.

The code is (cx, cy, log size, log size, cz, log h, sin yaw, cos yaw, vx, vy) everywhere. Releases differ in the order
of the two sizes and in the yaw: mmdet3d before 1.0 has (w, l) and yaw_old = -yaw - pi / 2, so sin = -cos_old and
cos = -sin_old; from 1.0 on (l, w) and our yaw. Taking one for the other leaves the centres, and with them the mAP, as
they are; its mark is a mean orientation error near 1.57 rad, or scale errors far too large.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from .names import BoxConvention

SIZES = (2, 3)  # places in the box code
YAW = (6, 7)


def turn_code(rows: Tensor) -> Tensor:
    """Rows [10, ...] that make box codes of one yaw -> rows that make those of the other: ours and that before 1.0."""
    out = rows.clone()
    out[list(YAW)] = -rows[list(reversed(YAW))]
    return out


def swap_sizes(rows: Tensor) -> Tensor:
    """Rows [10, ...] that make box codes with (w, l) -> rows that make those with (l, w), and back."""
    out = rows.clone()
    out[list(SIZES)] = rows[list(reversed(SIZES))]
    return out


def recoder(convention: BoxConvention) -> Callable[[Tensor], Tensor]:
    """What takes rows [10, ...] of a convention to ours, and back.

    Args:
        convention: "old": mmdet3d before 1.0; "new": from 1.0 on; "mixed": the sizes of the new one with the yaw of the
            old one, as PETR has them in the projects of mmdet3d 1.1.
    """
    return {"old": turn_code, "new": swap_sizes, "mixed": lambda rows: swap_sizes(turn_code(rows))}[convention]
