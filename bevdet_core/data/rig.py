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
      "timestamp": 1532402927.6,
      "scene": "drive-1"
    }

`image` is relative to the file and lies beside it or in a folder below: a frame that somebody sends cannot name
pictures elsewhere. null says that the camera gave none, and it then needs no calibration. `intrinsic` is 3x3, in pixels
of the image as it lies on disk. `camera2lidar` is 4x4, in metres: it takes points of the camera (x
right, y down, z forward) to the frame in which boxes are wanted (x right, y forward, z up at nuScenes), by a rotation
and a shift. Where cameras fire at different times and the rig moves, it includes the motion.

A rig has any number of cameras, of any sizes. Cameras that have the names of the detector's own (`data.cameras`) take
their places in whatever order they come, and those that are not there count as failed; a rig with other names is taken
in its own order.

`lidar2global`, `timestamp` (seconds) and `scene` (frames of one name follow each other in time) are optional: detectors
that look at one frame alone need none of them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..documents import DocumentError, is_number, is_text, parse_json, read_text, shown
from ..structures import Camera, Sample
from .file_names import file_name, leaves_folder
from .images import read_image

MAX_CAMERAS = 100
LARGEST = 1e9  # metres or pixels; beyond it there is no calibration, and an inverse may overflow
TOLERANCE = 1e-3  # of calibrations that are written with a few digits
BLANK = (450, 800)  # (height, width) of the picture of a camera that gave none, in a frame without any


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
    unknown = set(frame) - {"cameras", "lidar2global", "timestamp", "scene"}
    if unknown:
        raise ValueError(f"{path}: unknown entries {sorted(unknown)}")
    cameras = [_camera(entry, number, f"{path}: cameras[{number}]") for number, entry in enumerate(entries)]
    images = with_blanks([None if e["image"] is None else read_image(path.parent / e["image"]) for e in entries])
    lidar2global = _pose(frame, "lidar2global", str(path)) if "lidar2global" in frame else None
    timestamp = frame.get("timestamp")
    if timestamp is not None and not (is_number(timestamp) and math.isfinite(timestamp)):
        raise ValueError(f"{path}: 'timestamp' must be a number of seconds, got {shown(timestamp)}")
    scene = frame.get("scene")
    if scene is not None and not is_text(scene):
        raise ValueError(f"{path}: 'scene' must be a name, got {shown(scene)}")
    return Sample(images, cameras, token=path.stem, lidar2global=lidar2global, timestamp=timestamp, scene=scene)


def with_blanks(images: Sequence[np.ndarray | None]) -> list[np.ndarray]:
    """Images [H, W, 3], black ones of the size of the first in the place of those that are None."""
    height, width = next((image.shape[:2] for image in images if image is not None), BLANK)
    return [np.zeros((height, width, 3), np.uint8) if image is None else image for image in images]


def failed_camera(name: str) -> Camera:
    """A camera that gave no image, and of which nothing else is known."""
    return Camera(name, np.eye(3), np.eye(4), hidden=True)


def write_frame(sample: Sample, path: str | Path) -> None:
    """Write a sample with calibrated cameras as a frame file, with its images as PNG beside it."""
    from PIL import Image

    if sample.cameras is None:
        raise ValueError(f"sample {sample.token!r} has no calibrated cameras, it is no rig frame")
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    frame: dict[str, Any] = {"cameras": []}
    for camera, image in zip(sample.cameras, sample.images, strict=True):
        name = None if camera.hidden else f"{path.stem}-{file_name(camera.name)}.png"
        if name is not None:
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
    if sample.scene is not None:
        frame["scene"] = sample.scene
    path.write_text(json.dumps(frame, indent=1))


def _camera(entry: Mapping[str, Any], number: int, where: str) -> Camera:
    unknown = set(entry) - {"name", "image", "intrinsic", "camera2lidar"}
    if unknown:
        raise ValueError(f"{where}: unknown entries {sorted(unknown)}")
    image, name = entry.get("image"), entry.get("name", f"camera {number}")
    hidden = image is None and "image" in entry
    if not hidden and (not is_text(image) or not image or leaves_folder(image)):
        raise ValueError(
            f"{where}: 'image' must be a file name in the folder of the frame, or null where the camera gave none, got "
            f"{shown(image)}"
        )
    if not is_text(name):
        raise ValueError(f"{where}: 'name' must be a text, got {shown(name)}")
    if hidden and not {"intrinsic", "camera2lidar"} & set(entry):
        return failed_camera(name)
    where += f" ({name})" * ("name" in entry)
    return Camera(name, _intrinsic(entry, where), _pose(entry, "camera2lidar", where), hidden)


def _intrinsic(entry: Mapping[str, Any], where: str) -> np.ndarray:
    matrix = _matrix(entry, "intrinsic", 3, where)
    if not np.allclose(matrix[2], (0, 0, 1), rtol=0, atol=TOLERANCE):
        raise ValueError(f"{where}: the last row of 'intrinsic' must be 0, 0, 1, got {shown(matrix[2].tolist())}")
    if not (matrix[[0, 1], [0, 1]] > 0).all():
        focal = shown(matrix[[0, 1], [0, 1]].tolist())
        raise ValueError(f"{where}: the focal lengths of 'intrinsic', in its diagonal, must be positive, got {focal}")
    return matrix


def _pose(entry: Mapping[str, Any], name: str, where: str) -> np.ndarray:
    """A rigid motion: anything else would bend the rays of the cameras without a word."""
    matrix = _matrix(entry, name, 4, where)
    if not np.allclose(matrix[3], (0, 0, 0, 1), rtol=0, atol=TOLERANCE):
        raise ValueError(f"{where}: the last row of {name!r} must be 0, 0, 0, 1, got {shown(matrix[3].tolist())}")
    turn = matrix[:3, :3]
    if not np.allclose(turn @ turn.T, np.eye(3), rtol=0, atol=TOLERANCE):
        lengths = [round(float(length), 3) for length in np.linalg.norm(turn, axis=0)]
        raise ValueError(
            f"{where}: the first three rows and columns of {name!r} must be a rotation, with columns of length 1 at "
            f"right angles; theirs are {shown(lengths)} long"
        )
    if np.linalg.det(turn) < 0:
        raise ValueError(f"{where}: {name!r} mirrors: it takes a right-handed frame to a left-handed one")
    return matrix


def _matrix(entry: Mapping[str, Any], name: str, size: int, where: str) -> np.ndarray:
    if name not in entry:
        raise ValueError(f"{where}: {name!r} is missing")
    try:
        matrix = np.array(entry[name], np.float64)
    except (TypeError, ValueError, OverflowError):
        matrix = np.empty(0)
    if matrix.shape != (size, size) or not (abs(matrix) < LARGEST).all():
        raise ValueError(f"{where}: {name!r} must be {size}x{size} finite numbers")
    return matrix
