"""A rig frame in a file of its own: the pictures of all cameras at one moment with their calibration, as JSON.

    {
      "cameras": [
        {
          "name": "CAM_FRONT",
          "image": "front.jpg",
          "intrinsic": [[1266.4, 0, 816.3], [0, 1266.4, 491.5], [0, 0, 1]],
          "camera2lidar": [[...], [...], [...], [0, 0, 0, 1]]
        }
      ],
      "lidar2global": [[...], [...], [...], [0, 0, 0, 1]],
      "timestamp": 1532402927.6
    }

`image` is relative to the file and lies beside it or in a folder below: a frame that somebody sends cannot name
pictures elsewhere. `intrinsic` is 3x3, in pixels. `camera2lidar` is 4x4, in metres: it takes points of the
camera (x right, y down, z forward) to the frame in which boxes are wanted (x right, y forward, z up at nuScenes). Where
cameras fire at different times and the rig moves, it includes the motion. `lidar2global` and `timestamp` (seconds) are
optional. A rig has any number of cameras.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..documents import DocumentError, is_number, is_text, parse_json, read_text, shown
from ..structures import Camera, Sample
from .file_names import file_name, leaves_folder
from .images import read_image

MAX_CAMERAS = 100
LARGEST = 1e9  # metres or pixels; beyond it there is no calibration, and an inverse may overflow


def read_frame(path: str | Path) -> Sample:
    """Read a frame file and its images.

    Raises:
        ValueError: no valid frame file; the message names the file and the entry.
        OSError: the file or an image is missing or broken.
    """
    path = Path(path)
    try:
        frame = parse_json(read_text(path))
    except DocumentError as error:
        raise ValueError(f"{path}: not a JSON file that can be used: {error}") from error
    entries = frame.get("cameras") if isinstance(frame, dict) else None
    if not isinstance(entries, list) or not entries or not all(isinstance(entry, dict) for entry in entries):
        raise ValueError(f"{path}: a frame needs 'cameras', a list of mappings with at least one camera")
    if len(entries) > MAX_CAMERAS:
        raise ValueError(f"{path}: {len(entries)} cameras, more than {MAX_CAMERAS}")
    cameras, images = [], []
    for number, entry in enumerate(entries):
        where = f"{path}: cameras[{number}]"
        unknown = set(entry) - {"name", "image", "intrinsic", "camera2lidar"}
        if unknown:
            raise ValueError(f"{where}: unknown entries {sorted(unknown)}")
        image, name = entry.get("image"), entry.get("name", f"camera {number}")
        if not is_text(image) or not image or leaves_folder(image):
            raise ValueError(f"{where}: 'image' must be a file name in the folder of the frame, got {shown(image)}")
        if not is_text(name):
            raise ValueError(f"{where}: 'name' must be a text, got {shown(name)}")
        intrinsic = _matrix(entry, "intrinsic", 3, where)
        camera2lidar = _matrix(entry, "camera2lidar", 4, where)
        cameras.append(Camera(name, intrinsic, camera2lidar))
        images.append(read_image(path.parent / image))
    lidar2global = _matrix(frame, "lidar2global", 4, str(path)) if "lidar2global" in frame else None
    timestamp = frame.get("timestamp")
    if timestamp is not None and not (is_number(timestamp) and math.isfinite(timestamp)):
        raise ValueError(f"{path}: 'timestamp' must be a number of seconds, got {shown(timestamp)}")
    return Sample(images, cameras, token=path.stem, lidar2global=lidar2global, timestamp=timestamp)


def write_frame(sample: Sample, path: str | Path) -> None:
    """Write a sample with calibrated cameras as a frame file, with its images as PNG beside it."""
    from PIL import Image

    if sample.cameras is None:
        raise ValueError(f"sample {sample.token!r} has no calibrated cameras, it is no rig frame")
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    frame: dict[str, Any] = {"cameras": []}
    for camera, image in zip(sample.cameras, sample.images, strict=True):
        name = f"{path.stem}-{file_name(camera.name)}.png"
        Image.fromarray(image).save(path.parent / name)
        frame["cameras"].append(
            {
                "name": camera.name,
                "image": name,
                "intrinsic": camera.intrinsic.tolist(),
                "camera2lidar": camera.camera2lidar.tolist(),
            }
        )
    if sample.lidar2global is not None:
        frame["lidar2global"] = sample.lidar2global.tolist()
    if sample.timestamp is not None:
        frame["timestamp"] = sample.timestamp
    path.write_text(json.dumps(frame, indent=1))


def _matrix(entry: Mapping[str, Any], name: str, size: int, where: str) -> np.ndarray:
    if name not in entry:
        raise ValueError(f"{where}: {name!r} is missing")
    try:
        matrix = np.array(entry[name], np.float64)
    except (TypeError, ValueError, OverflowError):
        matrix = np.empty(0)
    if matrix.shape != (size, size) or not (abs(matrix) < LARGEST).all():
        raise ValueError(f"{where}: {name!r} must be {size}x{size} finite numbers")
    if abs(np.linalg.det(matrix)) < 1e-9:
        raise ValueError(f"{where}: {name!r} has no inverse")
    return matrix
