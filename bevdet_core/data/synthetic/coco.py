"""A synthetic data set in the COCO format: single pictures of streets with boxes and masks of what is visible."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .render import Camera, Renderer, check_picture_arguments
from .rig import CAMERA_AXES, rotation_from_angles
from .shapes import SHAPES
from .staging import is_complete, run_all, written_aside
from .world import World, sample_world

FORMAT = 1
"""Raised whenever the same arguments would give other bytes."""

CATEGORIES: tuple[str, ...] = tuple(SHAPES)
"""Category names; COCO's category id is the position plus one."""

_IMAGES_PER_WORLD = 4
_SECONDS = 4.0
_EMPTY_SHARE = 0.04
_MIN_PIXELS = 12
_MIN_VISIBLE = 0.1


@dataclass(frozen=True)
class _Job:
    folder: Path  # of the split's images
    seed: int
    index: int  # of the world
    ids: tuple[int, ...]  # of its images
    image_size: tuple[int, int]
    supersample: int
    quality: int


def synthesize_coco(
    out: str | Path,
    images: int = 200,
    seed: int = 0,
    *,
    val_images: int | None = None,
    image_size: tuple[int, int] = (640, 480),
    supersample: int = 2,
    jpeg_quality: int = 90,
    workers: int | None = None,
    progress: bool = True,
) -> Path:
    """Renders a data set in the COCO 2017 layout: `train2017/`, `val2017/`, `annotations/instances_*2017.json`.

    The pictures come from a camera on a vehicle in the streets of `synthesize_nuscenes`, with the ten nuScenes
    detection classes. Boxes and masks are those of the visible pixels, as in COCO; segmentations are uncompressed
    run-length codes. What shows less than a tenth of itself or fewer than 12 pixels is not labelled. About one picture
    in twenty-five shows no object. No street of the training pictures occurs in the validation pictures. The same
    arguments give the same files byte by byte, whatever the number of processes.

    With more than one worker new processes do the rendering: a script calls this below `if __name__ == "__main__":`.

    Args:
        out: folder of the data set. It must be new or empty; where it already holds the set that these arguments
            describe, nothing is done.
        images: number of pictures, training and validation together.
        seed: another seed gives other pictures.
        val_images: how many of them are for validation; None means a fifth, at least one.
        image_size: width and height in pixels.
        supersample: side of the square of samples behind each pixel; 1 is fast and jagged.
        jpeg_quality: 1 to 95.
        workers: processes; None means one for each usable core.
        progress: whether to show a progress bar.

    Returns:
        The folder.

    Raises:
        ValueError: an argument is out of its range.
        FileExistsError: `out` holds something else.
    """
    out = Path(out)
    if images < 1:
        raise ValueError(f"images must be at least 1, got {images}")
    val_images = max(1, round(images / 5)) if val_images is None else val_images
    if not 0 <= val_images <= images:
        raise ValueError(f"val_images must lie between 0 and images = {images}, got {val_images}")
    check_picture_arguments(image_size, supersample, jpeg_quality)
    size = (image_size[0], image_size[1])
    manifest = {
        "format": FORMAT,
        "kind": "coco",
        "images": images,
        "val_images": val_images,
        "seed": seed,
        "image_size": list(size),
        "supersample": supersample,
        "jpeg_quality": jpeg_quality,
    }
    if is_complete(out, manifest):
        return out
    with written_aside(out, manifest) as folder:
        jobs: list[_Job] = []
        for split, count in (("train2017", images - val_images), ("val2017", val_images)):
            (folder / split).mkdir()
            first = 1 if split == "train2017" else images - val_images + 1
            for start in range(first, first + count, _IMAGES_PER_WORLD):
                ids = tuple(range(start, min(start + _IMAGES_PER_WORLD, first + count)))
                jobs.append(_Job(folder / split, seed, len(jobs), ids, size, supersample, jpeg_quality))
        results = run_all(_render_world, jobs, workers, "Rendering streets", progress)
        (folder / "annotations").mkdir()
        for split in ("train2017", "val2017"):
            rows = [result for job, result in zip(jobs, results, strict=True) if job.folder.name == split]
            _write_instances(folder / "annotations" / f"instances_{split}.json", rows, size)
    return out


def run_lengths(mask: np.ndarray) -> list[int]:
    """COCO's uncompressed run-length code of a mask [H, W]: alternating runs down the columns, zeros first."""
    flat = np.concatenate([[False], mask.T.ravel(), [False]])
    changes = np.flatnonzero(flat[1:] != flat[:-1])
    lengths = np.diff(np.concatenate([[0], changes, [mask.size]]))
    return [int(length) for length in (lengths if lengths[-1] else lengths[:-1])]


def _render_world(job: _Job) -> list[tuple[int, list[dict[str, Any]]]]:
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
                        "category_id": CATEGORIES.index(actor.name) + 1,
                        "bbox": [x, y, int(columns[-1]) + 1 - x, int(rows[-1]) + 1 - y],
                        "area": area,
                        "iscrowd": 0,
                        "segmentation": {"size": list(mask.shape), "counts": run_lengths(mask)},
                    }
                )
        Image.fromarray(picture.image).save(job.folder / _file_name(image_id), quality=job.quality)
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


def _file_name(image_id: int) -> str:
    return f"{image_id:012d}.jpg"


def _write_instances(
    path: Path, results: list[list[tuple[int, list[dict[str, Any]]]]], image_size: tuple[int, int]
) -> None:
    width, height = image_size
    pictures = [picture for result in results for picture in result]
    annotations = [row for _, rows in pictures for row in rows]
    data = {
        "info": {"description": "Synthetic streets"},
        "licenses": [],
        "categories": [{"id": i + 1, "name": name, "supercategory": "street"} for i, name in enumerate(CATEGORIES)],
        "images": [
            {"id": image_id, "file_name": _file_name(image_id), "width": width, "height": height}
            for image_id, _ in pictures
        ],
        "annotations": [{"id": i + 1, **row} for i, row in enumerate(annotations)],
    }
    path.write_text(json.dumps(data))
