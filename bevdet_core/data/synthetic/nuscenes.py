"""A synthetic data set in the nuScenes format: a dataroot that nuscenes-devkit loads like the real one."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from ..nuscenes_tables import official_splits
from .staging import check_picture_arguments, is_complete, run_all, written_aside
from .tables import TABLES, Row, fixed_tables, token

FORMAT = 2
"""Raised whenever the same arguments would give other bytes."""


def synthesize_nuscenes(
    out: str | Path,
    scenes: int = 10,
    seed: int = 0,
    *,
    frames_per_scene: int = 8,
    val_scenes: int | None = None,
    image_size: tuple[int, int] = (800, 450),
    supersample: int = 2,
    jpeg_quality: int = 90,
    can_bus: bool = False,
    version: str | None = None,
    workers: int | None = None,
    progress: bool = True,
) -> Path:
    """Renders a data set of street scenes in the nuScenes format (nuscenes-devkit 1.2).

    Six cameras and a lidar on a moving vehicle, key frames at 2 Hz, objects of the ten detection classes with sizes and
    motion as in nuScenes. Every sensor samples at its own time; vehicle and objects move in between. The same arguments
    give the same files byte by byte, whatever the number of processes. Scenes carry names of the official splits, which
    makes the devkit's evaluation apply:

    - at most eight scenes for training and two for validation: version `v1.0-mini` (splits `mini_train`, `mini_val`),
    - more: version `v1.0-trainval` (splits `train`, `val`; at most 700 and 150).

    With more than one worker new processes do the rendering: a script calls this below `if __name__ == "__main__":`.

    Args:
        out: folder of the data set (the devkit's dataroot). It must be new or empty; where it already holds the set
            that these arguments describe, nothing is done.
        scenes: number of scenes, training and validation together.
        seed: another seed gives other scenes.
        frames_per_scene: key frames of a scene, half a second apart (40 in nuScenes).
        val_scenes: how many of the scenes belong to the validation split; None means a fifth, at least one.
        image_size: width and height in pixels; the intrinsics scale with the width.
        supersample: side of the square of samples behind each pixel; 1 is fast and jagged.
        jpeg_quality: 1 to 95.
        can_bus: write what the vehicle measures about its motion as well, in the format of the CAN bus expansion
            (`can_bus/SCENE_pose.json`).
        version: `v1.0-mini` or `v1.0-trainval`; None means the smaller one that has room.
        workers: processes; None means one for each usable core.
        progress: whether to show a progress bar.

    Returns:
        The folder.

    Raises:
        ValueError: an argument is out of its range, or a split has too few scene names.
        FileExistsError: `out` holds something else.
    """
    out = Path(out)
    if scenes < 1:
        raise ValueError(f"scenes must be at least 1, got {scenes}")
    if frames_per_scene < 1:
        raise ValueError(f"frames_per_scene must be at least 1, got {frames_per_scene}")
    check_picture_arguments(image_size, supersample, jpeg_quality)
    val_scenes = max(1, round(scenes / 5)) if val_scenes is None else val_scenes
    if not 0 <= val_scenes <= scenes:
        raise ValueError(f"val_scenes must lie between 0 and scenes = {scenes}, got {val_scenes}")
    if version is None:
        version = "v1.0-mini" if scenes - val_scenes <= 8 and val_scenes <= 2 else "v1.0-trainval"
    names = _scene_names(version, scenes - val_scenes, val_scenes)
    manifest: dict[str, object] = {
        "format": FORMAT,
        "kind": "nuscenes",
        "version": version,
        "scenes": scenes,
        "val_scenes": val_scenes,
        "seed": seed,
        "frames_per_scene": frames_per_scene,
        "image_size": list(image_size),
        "supersample": supersample,
        "jpeg_quality": jpeg_quality,
    }
    if can_bus:
        manifest["can_bus"] = True
    if is_complete(out, manifest):
        return out
    from .nuscenes_scene import SceneJob, write_scene

    with written_aside(out, manifest) as folder:
        jobs = [
            SceneJob(
                folder,
                name,
                seed,
                index,
                frames_per_scene,
                (image_size[0], image_size[1]),
                supersample,
                jpeg_quality,
                can_bus,
            )
            for index, name in enumerate(names)
        ]
        tables: dict[str, list[Row]] = {**{name: [] for name in TABLES}, **fixed_tables()}
        for rows in run_all(write_scene, jobs, workers, "rendering scenes", progress):
            for name, new in rows.items():
                tables[name] += new
        _write_map(folder, tables)
        (folder / version).mkdir()
        for name in TABLES:
            (folder / version / f"{name}.json").write_text(json.dumps(tables[name], indent=0))
    return out


def _scene_names(version: str, train: int, val: int) -> list[str]:
    splits = {"v1.0-mini": ("mini_train", "mini_val"), "v1.0-trainval": ("train", "val")}
    if version not in splits:
        raise ValueError(f"version must be one of {', '.join(splits)}, got {version!r}")
    names: list[str] = []
    available = official_splits()
    for split, wanted in zip(splits[version], (train, val), strict=True):
        if wanted > len(available[split]):
            raise ValueError(
                f"{version} has {len(available[split])} scene names in its split {split}, {wanted} are needed"
            )
        names += sorted(available[split])[:wanted]
    return names


def _write_map(folder: Path, tables: dict[str, list[Row]]) -> None:
    """The devkit wants a map mask for every log; here it is a small empty one."""
    from PIL import Image

    key = token("map")
    (folder / "maps").mkdir()
    Image.fromarray(np.zeros((16, 16), np.uint8)).save(folder / "maps" / f"{key}.png")
    logs = [row["token"] for row in tables["log"]]
    tables["map"] = [{"token": key, "category": "semantic_prior", "filename": f"maps/{key}.png", "log_tokens": logs}]
