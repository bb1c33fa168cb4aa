"""Pictures of one street for a synthetic COCO set, with the boxes and masks of what is visible."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .render import Camera, Renderer
from .rig import CAMERA_AXES, rotation_from_angles
from .shapes import CLASSES
from .world import World, sample_world

_SECONDS = 4.0
_EMPTY_SHARE = 0.04
_MIN_PIXELS = 12
_MIN_VISIBLE = 0.1


@dataclass(frozen=True)
class StreetJob:
    """What one process needs to know to render the pictures of one street."""

    folder: Path  # of the split's images
    seed: int
    index: int  # of the street
    ids: tuple[int, ...]  # of its images
    image_size: tuple[int, int]
    supersample: int
    quality: int


def run_lengths(mask: np.ndarray) -> list[int]:
    """COCO's uncompressed run-length code of a mask [H, W]: alternating runs down the columns, zeros first."""
    flat = np.concatenate([[False], mask.T.ravel(), [False]])
    changes = np.flatnonzero(flat[1:] != flat[:-1])
    lengths = np.diff(np.concatenate([[0], changes, [mask.size]]))
    return [int(length) for length in (lengths if lengths[-1] else lengths[:-1])]


def render_street(job: StreetJob) -> list[tuple[int, list[dict[str, Any]]]]:
    """Stores the pictures of one street; returns the image ids with their annotations, those without an id yet."""
    from PIL import Image

    rng = np.random.default_rng([job.seed, 1, job.index])
    world = sample_world(rng, _SECONDS)
    full = Renderer(world.meshes(), world.light, world.ground, job.supersample)
    deserted = Renderer([mesh for mesh, _ in world.props], world.light, world.ground, job.supersample)
    results = []
    for image_id in job.ids:
        time = rng.uniform(0, _SECONDS)
        camera = _sample_camera(rng, world, time, job.image_size)
        poses = world.poses(time)
        annotations: list[dict[str, Any]] = []
        if rng.random() < _EMPTY_SHARE:
            picture = deserted.picture(camera, poses[len(world.actors) :])
        else:
            picture = full.picture(camera, poses)
            for index, actor in enumerate(world.actors):
                mask = picture.solids == index
                area = int(mask.sum())
                if area < _MIN_PIXELS or picture.visible[index] < _MIN_VISIBLE * picture.covered[index]:
                    continue
                rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
                x, y = int(columns[0]), int(rows[0])
                annotations.append(
                    {
                        "image_id": image_id,
                        "category_id": CLASSES.index(actor.name) + 1,
                        "bbox": [x, y, int(columns[-1]) + 1 - x, int(rows[-1]) + 1 - y],
                        "area": area,
                        "iscrowd": 0,
                        "segmentation": {"size": list(mask.shape), "counts": run_lengths(mask)},
                    }
                )
        Image.fromarray(picture.image).save(job.folder / f"{image_id:012d}.jpg", quality=job.quality)
        results.append((image_id, annotations))
    return results


def _sample_camera(rng: np.random.Generator, world: World, time: float, image_size: tuple[int, int]) -> Camera:
    """A dash camera of any make: it looks any way, slightly down, from 1.3 to 2.3 m above the ground."""
    width, height = image_size
    heading = world.ego.angles(time)[2] + rng.uniform(-np.pi, np.pi)
    rotation = rotation_from_angles(float(rng.normal(0, 0.01)), float(rng.uniform(-0.02, 0.14)), heading) @ CAMERA_AXES
    position = np.array([*world.ego.position(time), rng.uniform(1.3, 2.3)])
    focal = rng.uniform(0.65, 1.05) * width
    intrinsic = np.array([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1]])
    return Camera(rotation, position, intrinsic, image_size)
