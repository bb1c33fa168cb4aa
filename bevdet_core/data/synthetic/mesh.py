"""Solids made of flat convex faces, and the arrays that the rasteriser reads.

Every solid is built in metres in its own frame: x forward, y left, z up, origin on the ground below its centre.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

PLAIN, GLASS, FOLIAGE, FACADE, GLOWING = range(5)
"""Materials: how the shader treats a face."""

Size = tuple[float, float, float]
"""Width (y), length (x), height (z) in metres, the order of the nuScenes tables."""

INSET = 0.01
"""Metres between a mesh and the sides of its box: a surface point is inside the box beyond doubt."""

Colour = tuple[float, float, float]
"""Red, green and blue in [0, 1]."""


@dataclass(frozen=True)
class Mesh:
    """One solid: faces are closed loops of vertices, all normals point outwards."""

    vertices: np.ndarray  # [V, 3] metres
    loops: np.ndarray  # [K] vertex indices of all faces, one after the other
    loop_start: np.ndarray  # [F + 1] where each face's vertices begin in `loops`
    normals: np.ndarray  # [F, 3] unit length
    colours: np.ndarray  # [F, 3] in [0, 1]
    materials: np.ndarray  # [F]


class MeshBuilder:
    """Collects convex solids; `build` turns them into a `Mesh`."""

    def __init__(self) -> None:
        self._vertices: list[np.ndarray] = []
        self._faces: list[list[int]] = []
        self._normals: list[tuple[float, float, float]] = []
        self._colours: list[Colour] = []
        self._materials: list[int] = []
        self._count = 0

    def solid(
        self, vertices: np.ndarray, faces: Sequence[Sequence[int]], colours: Sequence[Colour], material: int
    ) -> None:
        """Adds a convex solid from vertices [V, 3] and one colour for each face; the winding may be either way."""
        points = vertices.tolist()
        middle = vertices.mean(0).tolist()
        for face, colour in zip(faces, colours, strict=True):
            self._faces.append([self._count + index for index in face])
            self._normals.append(_outward_normal([points[index] for index in face], middle))
            self._colours.append(colour)
            self._materials.append(material)
        self._vertices.append(vertices)
        self._count += len(vertices)

    def prism(
        self,
        profile: Sequence[tuple[float, float]],
        y: tuple[float, float],
        colour: Colour,
        material: int = PLAIN,
        top: float = 1.0,
    ) -> None:
        """A convex side view [(x, z), ...] extruded from y[0] to y[1].

        Args:
            profile: corners of the side view in order.
            y: the two ends of the extrusion.
            colour: of all faces.
            material: of all faces.
            top: share of the width that is left at the highest point (a cabin leans inwards).
        """
        side = np.asarray(profile, float)
        low, high = side[:, 1].min(), side[:, 1].max()
        width = 1 + (top - 1) * (side[:, 1] - low) / max(high - low, 1e-9)
        middle, half = (y[0] + y[1]) / 2, (y[1] - y[0]) / 2
        right = np.stack([side[:, 0], middle - half * width, side[:, 1]], 1)
        left = np.stack([side[:, 0], middle + half * width, side[:, 1]], 1)
        n = len(side)
        faces = [list(range(n)), list(range(n, 2 * n))]
        faces += [[i, (i + 1) % n, n + (i + 1) % n, n + i] for i in range(n)]
        self.solid(np.concatenate([right, left]), faces, [colour] * len(faces), material)

    def box(
        self,
        x: tuple[float, float],
        y: tuple[float, float],
        z: tuple[float, float],
        colour: Colour,
        material: int = PLAIN,
        top: float = 1.0,
    ) -> None:
        """An upright box between two x, two y and two z; `top` as in `prism`."""
        self.prism([(x[0], z[0]), (x[1], z[0]), (x[1], z[1]), (x[0], z[1])], y, colour, material, top)

    def lathe(
        self,
        rings: Sequence[tuple[float, float]],
        colour: Colour,
        centre: tuple[float, float] = (0.0, 0.0),
        sides: int = 8,
        material: int = PLAIN,
        turn: float = 0.5,
    ) -> None:
        """A solid of revolution about a vertical axis, one band for each pair of rings.

        Args:
            rings: (radius, z) from the bottom to the top.
            colour: of all faces.
            centre: x and y of the axis.
            sides: corners of a ring.
            material: of all faces.
            turn: rotation of the rings in steps of one side.
        """
        angle = (np.arange(sides) + turn) * (2 * np.pi / sides)
        circle = np.stack([np.cos(angle), np.sin(angle)], 1)
        for band, ((r0, z0), (r1, z1)) in enumerate(pairwise(rings)):
            low = np.column_stack([circle * max(r0, 1e-3) + centre, np.full(sides, z0)])
            high = np.column_stack([circle * max(r1, 1e-3) + centre, np.full(sides, z1)])
            faces = [[i, (i + 1) % sides, sides + (i + 1) % sides, sides + i] for i in range(sides)]
            if band == 0:
                faces.append(list(range(sides)))
            if band == len(rings) - 2:
                faces.append(list(range(sides, 2 * sides)))
            self.solid(np.concatenate([low, high]), faces, [colour] * len(faces), material)

    def wheel(
        self, x: float, y: tuple[float, float], radius: float, tyre: Colour, hub: Colour, sides: int = 10
    ) -> None:
        """A wheel that stands on the ground at x, its axle along y."""
        angle = np.arange(sides) * (2 * np.pi / sides)
        outer = [(x + radius * np.cos(a), radius + radius * np.sin(a)) for a in angle]
        inner = [(x + 0.55 * radius * np.cos(a), radius + 0.55 * radius * np.sin(a)) for a in angle]
        self.prism(outer, y, tyre)
        rim = 0.04 * (y[1] - y[0])
        self.prism(inner, (y[0] - rim, y[1] + rim), hub)

    def rod(
        self,
        start: tuple[float, float, float],
        end: tuple[float, float, float],
        thickness: float,
        colour: Colour,
        material: int = PLAIN,
    ) -> None:
        """A square bar from one point to another."""
        a, b = np.asarray(start, float), np.asarray(end, float)
        along = (b - a) / max(float(np.linalg.norm(b - a)), 1e-9)
        helper = np.array([0.0, 1.0, 0.0]) if abs(along[1]) < 0.9 else np.array([1.0, 0.0, 0.0])
        u = np.cross(along, helper)
        u *= thickness / 2 / np.linalg.norm(u)
        v = np.cross(along, u)
        ring = np.stack([u + v, u - v, -u - v, -u + v])
        faces = [[0, 1, 2, 3], [4, 5, 6, 7]] + [[i, (i + 1) % 4, 4 + (i + 1) % 4, 4 + i] for i in range(4)]
        self.solid(np.concatenate([a + ring, b + ring]), faces, [colour] * 6, material)

    def build(self, size: Size | None = None) -> Mesh:
        """The mesh; with `size` (width, length, height) it fills that box on the ground but for `INSET`."""
        vertices = np.concatenate(self._vertices)
        if size is not None:
            low, high = vertices.min(0), vertices.max(0)
            extent = np.array([size[1], size[0], size[2]]) - 2 * INSET
            vertices = (vertices - (low + high) / 2) * (extent / (high - low)) + [0, 0, size[2] / 2]
            scale = (high - low) / extent  # normals scale inversely
            normals = np.array(self._normals) * scale
            normals /= np.linalg.norm(normals, axis=1, keepdims=True)
        else:
            normals = np.array(self._normals)
        lengths = [len(face) for face in self._faces]
        return Mesh(
            vertices=vertices.astype(np.float32),
            loops=np.concatenate([np.asarray(face) for face in self._faces]).astype(np.int32),
            loop_start=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32),
            normals=normals.astype(np.float32),
            colours=np.array(self._colours, np.float32),
            materials=np.array(self._materials, np.uint8),
        )


def _outward_normal(corners: list[list[float]], inside: list[float]) -> tuple[float, float, float]:
    """Unit normal of a flat loop of corners that points away from `inside` (Newell's sum)."""
    nx = ny = nz = 0.0
    xi, yi, zi = corners[-1]
    for xj, yj, zj in corners:
        nx += (yi - yj) * (zi + zj)
        ny += (zi - zj) * (xi + xj)
        nz += (xi - xj) * (yi + yj)
        xi, yi, zi = xj, yj, zj
    length = max((nx * nx + ny * ny + nz * nz) ** 0.5, 1e-12)
    if nx * (xi - inside[0]) + ny * (yi - inside[1]) + nz * (zi - inside[2]) < 0:
        length = -length
    return nx / length, ny / length, nz / length
