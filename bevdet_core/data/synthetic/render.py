"""Pictures of a scene: cameras, the solids of a scene packed into arrays, and the renderer that draws them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .ground import Ground
from .mesh import Mesh
from .noise import noise_tile
from .raster import cast_shadows, rasterise
from .shading import light_faces, shade
from .sky import Light


@dataclass(frozen=True)
class Camera:
    """A pinhole camera in the world of a scene; x right, y down, z forward."""

    rotation: np.ndarray  # [3, 3] camera -> world
    position: np.ndarray  # [3] metres
    intrinsic: np.ndarray  # [3, 3] pixels
    image_size: tuple[int, int]  # width, height


@dataclass(frozen=True)
class Picture:
    """What a camera sees."""

    image: np.ndarray  # [H, W, 3] uint8, RGB
    solids: np.ndarray  # [H, W] int32: index of the solid that fills most of a pixel, -1 for ground and sky
    visible: np.ndarray  # [O] supersampled pixels of each solid
    covered: np.ndarray  # [O] the same as if nothing stood in front of it


@dataclass(frozen=True)
class Range:
    """What the rays of a depth camera meet first."""

    depth: np.ndarray  # [H, W] metres along the optical axis, 0 where nothing is met
    solids: np.ndarray  # [H, W] int32: index of the solid, -1 where none is met
    brightness: np.ndarray  # [H, W] of the surface in [0, 1]


class Renderer:
    """Draws solids that stand on the ground z = 0.

    Args:
        meshes: one for each solid.
        light: sun, sky and air.
        ground: the street.
        supersample: side of the square of samples that are averaged for one pixel.
    """

    def __init__(self, meshes: Sequence[Mesh], light: Light, ground: Ground, supersample: int = 2) -> None:
        if supersample < 1:
            raise ValueError(f"supersample must be at least 1, got {supersample}")
        self.light, self.ground, self.supersample = light, ground, supersample
        self._tile = noise_tile()
        vertex_counts = [len(mesh.vertices) for mesh in meshes]
        face_counts = [len(mesh.colours) for mesh in meshes]
        loop_counts = [len(mesh.loops) for mesh in meshes]
        self._vertex_start = _offsets(vertex_counts)
        self._face_start = _offsets(face_counts)
        loop_base = _offsets(loop_counts)
        empty = np.zeros((0, 3), np.float32)
        self._vertices = np.concatenate([mesh.vertices for mesh in meshes] or [empty]).astype(np.float64)
        self._normals = np.concatenate([mesh.normals for mesh in meshes] or [empty]).astype(np.float64)
        self._colours = np.concatenate([mesh.colours for mesh in meshes] or [empty])
        self._materials = np.concatenate([mesh.materials for mesh in meshes] or [np.zeros(0, np.uint8)])
        self._loops = np.concatenate(
            [mesh.loops + base for mesh, base in zip(meshes, self._vertex_start, strict=False)]
            or [np.zeros(0, np.int32)]
        ).astype(np.int32)
        self._loop_start = np.concatenate(
            [[0]] + [mesh.loop_start[1:] + base for mesh, base in zip(meshes, loop_base, strict=False)]
        ).astype(np.int32)
        self._face_solids = np.repeat(np.arange(len(meshes), dtype=np.int32), face_counts)
        self._heights = np.array([mesh.vertices[:, 2].max() for mesh in meshes], float)
        self._radii = np.array(
            [
                np.linalg.norm(mesh.vertices - [0, 0, h / 2], axis=1).max()
                for mesh, h in zip(meshes, self._heights, strict=True)
            ],
            float,
        )
        self._face_colours = np.zeros((len(self._colours), 3))

    def picture(
        self,
        camera: Camera,
        poses: np.ndarray,  # [O, 4]
    ) -> Picture:
        """The view of a camera.

        Args:
            camera: in the world of the scene.
            poses: x, y, z (metres) and yaw (radians about z, from the x axis) of every solid.
        """
        width, height = camera.image_size
        s = self.supersample
        intrinsic = _four(camera.intrinsic) * s
        poses = self._checked(poses)
        inverse_depth, face_index, covered = self._rasterise(camera, intrinsic, poses, (height * s, width * s))
        mask = np.empty((height * s, width * s), np.uint8)
        rotation, position = _world_to_camera(camera)
        cast_shadows(
            rotation,
            position,
            intrinsic,
            self.light.sun,
            poses,
            self._radii,
            self._heights,
            self._vertices,
            self._vertex_start,
            self._loops,
            self._loop_start,
            self._normals,
            self._face_start,
            mask,
        )
        light_faces(
            poses, self._face_start, self._normals, self._colours, self._materials, self.light, self._face_colours
        )
        image = np.empty((height, width, 3), np.uint8)
        solids = np.empty((height, width), np.int32)
        visible = np.zeros(len(poses), np.int64)
        shade(
            rotation,
            position,
            intrinsic,
            inverse_depth,
            face_index,
            mask,
            self._face_colours,
            self._face_solids,
            self._materials,
            self._normals,
            poses,
            self.light,
            self.ground,
            self._tile,
            image,
            solids,
            visible,
        )
        return Picture(image, solids, visible, covered)

    def depth(
        self,
        camera: Camera,
        poses: np.ndarray,  # [O, 4]
    ) -> Range:
        """Depth of the nearest surface, a solid or the ground, through the middle of every pixel (no supersampling)."""
        width, height = camera.image_size
        intrinsic = _four(camera.intrinsic)
        poses = self._checked(poses)
        inverse_depth, face_index, _ = self._rasterise(camera, intrinsic, poses, (height, width))
        hit = face_index >= 0
        solids = np.where(hit, self._face_solids[face_index] if len(self._face_solids) else -1, -1).astype(np.int32)
        brightness = np.where(hit, self._colours.mean(1)[face_index] if len(self._colours) else 0.3, 0.3)
        rays = pixel_rays(camera.intrinsic, camera.image_size) @ camera.rotation.T
        falling = np.where(rays[..., 2] < -1e-6, rays[..., 2], -1e-6)
        ground = np.where(rays[..., 2] < -1e-6, -camera.position[2] / falling, 0.0)
        depth = np.where(hit, 1.0 / np.where(hit, inverse_depth, 1.0), ground)
        return Range(depth, solids, brightness)

    def _rasterise(
        self, camera: Camera, intrinsic: np.ndarray, poses: np.ndarray, shape: tuple[int, int]
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        rotation, position = _world_to_camera(camera)
        inverse_depth = np.empty(shape, np.float32)
        face_index, stamp = np.empty(shape, np.int32), np.empty(shape, np.int32)
        covered = np.zeros(len(poses), np.int64)
        rasterise(
            rotation,
            position,
            intrinsic,
            poses,
            self._radii,
            self._heights,
            self._vertices,
            self._vertex_start,
            self._loops,
            self._loop_start,
            self._normals,
            self._face_start,
            inverse_depth,
            face_index,
            stamp,
            covered,
        )
        return inverse_depth, face_index, covered

    def _checked(self, poses: np.ndarray) -> np.ndarray:
        if poses.shape != (len(self._heights), 4):
            raise ValueError(
                f"poses must be [{len(self._heights)}, 4] (x, y, z, yaw of every solid), got {list(poses.shape)}"
            )
        return np.ascontiguousarray(poses, np.float64)


def pixel_rays(intrinsic: np.ndarray, image_size: tuple[int, int]) -> np.ndarray:
    """Directions through the middles of all pixels in the camera frame, z = 1 -> [H, W, 3]."""
    width, height = image_size
    columns, rows = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
    x = (columns - intrinsic[0, 2]) / intrinsic[0, 0]
    y = (rows - intrinsic[1, 2]) / intrinsic[1, 1]
    return np.stack([x, y, np.ones_like(x)], -1)


def _four(intrinsic: np.ndarray) -> np.ndarray:
    return np.array([intrinsic[0, 0], intrinsic[1, 1], intrinsic[0, 2], intrinsic[1, 2]], float)


def _world_to_camera(camera: Camera) -> tuple[np.ndarray, np.ndarray]:
    return np.ascontiguousarray(camera.rotation.T, np.float64), np.asarray(camera.position, np.float64)


def _offsets(counts: Sequence[int]) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
