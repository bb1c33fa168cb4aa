"""A synthetic data set in the COCO format: single pictures of streets with boxes and masks of what is visible."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from .shapes import CLASSES
from .staging import check_picture_arguments, is_complete, run_all, written_aside

FORMAT = 1
"""Raised whenever the same arguments would give other bytes."""

_IMAGES_PER_STREET = 4


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
    from .coco_street import StreetJob, render_street

    with written_aside(out, manifest) as folder:
        jobs: list[StreetJob] = []
        for split, count in (("train2017", images - val_images), ("val2017", val_images)):
            (folder / split).mkdir()
            first = 1 if split == "train2017" else images - val_images + 1
            for start in range(first, first + count, _IMAGES_PER_STREET):
                ids = tuple(range(start, min(start + _IMAGES_PER_STREET, first + count)))
                jobs.append(StreetJob(folder / split, seed, len(jobs), ids, size, supersample, jpeg_quality))
        results = run_all(render_street, jobs, workers, "rendering streets", progress)
        (folder / "annotations").mkdir()
        for split in ("train2017", "val2017"):
            rows = [result for job, result in zip(jobs, results, strict=True) if job.folder.name == split]
            _write_instances(folder / "annotations" / f"instances_{split}.json", rows, size)
    return out


def _write_instances(
    path: Path, results: list[list[tuple[int, list[dict[str, Any]]]]], image_size: tuple[int, int]
) -> None:
    width, height = image_size
    pictures = [picture for result in results for picture in result]
    annotations = [row for _, rows in pictures for row in rows]
    data = {
        "info": {"description": "Synthetic streets"},
        "licenses": [],
        "categories": [{"id": i + 1, "name": name, "supercategory": "street"} for i, name in enumerate(CLASSES)],
        "images": [
            {"id": image_id, "file_name": f"{image_id:012d}.jpg", "width": width, "height": height}
            for image_id, _ in pictures
        ],
        "annotations": [{"id": i + 1, **row} for i, row in enumerate(annotations)],
    }
    path.write_text(json.dumps(data))
