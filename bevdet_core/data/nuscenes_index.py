"""A compact index of the nuScenes tables: built once, mapped into memory ever after.

The devkit needs a minute and gigabytes to load the tables of v1.0-trainval. The index is one safetensors file of plain
columns: it opens at once, without the devkit, and processes that read it share its pages. A change of any table
(size or modification time) makes it stale, and it is built again.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .. import boxes3d
from ..geometry import quaternion_to_matrix, yaw_of
from ..structures import Camera
from .file_names import data_root, leaves_folder
from .images import SampleError
from .index_file import file_stamp, index_path, open_fresh, read_index, text_of
from .nuscenes_tables import FIELDS, Fault, read_tables

FORMAT = 1  # raise it whenever the content of an index changes


class NuScenesIndex:
    """The key frames of a nuScenes data set, in the order of its scenes and of time.

    A sample is named by its row, 0 to `len(index) - 1`. Strings are rows of bytes.

    Attributes:
        path: the file.
        scenes: scene names.
        cameras: camera channels, in the order of the arrays below.
        categories: nuScenes category names; `box_category` points here.
        detection_names: the detection class of each category, or None.
        attributes: attribute names; `box_attribute` points here, -1 is none.
        annotated: False for a version without annotations (v1.0-test).
        faults: records that were left out.
        timestamp: [S] int64, microseconds.
        sample_scene: [S] int32, row in `scenes`.
        lidar2global: [S, 4, 4] float64, of LIDAR_TOP; NaN where a sample has none.
        ego2global: [S, 4, 4] float64, at the time stamp of LIDAR_TOP.
        camera2lidar: [S, N, 4, 4] float64, ego motion between the two time stamps included.
        camera_intrinsic: [S, N, 3, 3] float64.
        camera_size: [S, N, 2] int32, (height, width).
        box_start: [S + 1] int64: the boxes of sample s are box_start[s] to box_start[s + 1] - 1.
        box_translation: [A, 3] float64, metres, global frame.
        box_size: [A, 3] float64, metres, (w, l, h).
        box_rotation: [A, 4] float64, quaternion (w, x, y, z), global frame.
        box_velocity: [A, 2] float64, m/s, global frame; NaN where unknown.
        box_category: [A] int16.
        box_attribute: [A] int16.
        box_lidar_points: [A] int32.
        box_radar_points: [A] int32.
    """

    timestamp: np.ndarray
    sample_scene: np.ndarray
    lidar2global: np.ndarray
    ego2global: np.ndarray
    camera2lidar: np.ndarray
    camera_intrinsic: np.ndarray
    camera_size: np.ndarray
    box_start: np.ndarray
    box_translation: np.ndarray
    box_size: np.ndarray
    box_rotation: np.ndarray
    box_velocity: np.ndarray
    box_category: np.ndarray
    box_attribute: np.ndarray
    box_lidar_points: np.ndarray
    box_radar_points: np.ndarray

    def __init__(self, path: Path) -> None:
        """Map an index file that `open_index` has built."""
        self.path = path
        self._text = {}
        columns, info = read_index(path)
        for name, column in columns.items():
            if name in ("sample_token", "box_token", "camera_file"):
                self._text[name] = text_of(column)
            else:
                setattr(self, name, column)
        self.scenes: list[str] = info["scenes"]
        self.cameras: list[str] = info["cameras"]
        self.categories: list[str] = info["categories"]
        self.detection_names: list[str | None] = info["detection_names"]
        self.attributes: list[str] = info["attributes"]
        self.annotated: bool = info["annotated"]
        self.faults = [Fault(**fault) for fault in info["faults"]]
        self.stamp: str = info["stamp"]
        self._splits: dict[str, list[int]] = info["splits"]

    def __len__(self) -> int:
        return len(self.timestamp)

    def __reduce__(self):
        return NuScenesIndex, (self.path,)

    @cached_property
    def rows(self) -> Mapping[str, int]:
        """Sample token -> row."""
        return {token.decode(): row for row, token in enumerate(self._text["sample_token"])}

    def token(self, row: int) -> str:
        """The token of a sample."""
        return self._text["sample_token"][row].decode()

    def scene(self, row: int) -> str:
        """The name of the scene of a sample."""
        return self.scenes[self.sample_scene[row]]

    def time(self, row: int) -> float:
        """When a sample was taken, in seconds."""
        return 1e-6 * float(self.timestamp[row])

    def box_rows(self, row: int) -> slice:
        """Where the annotations of a sample lie in the box arrays."""
        return slice(int(self.box_start[row]), int(self.box_start[row + 1]))

    def box_tokens(self, row: int) -> list[str]:
        """The tokens of the annotations of a sample."""
        return [token.decode() for token in self._text["box_token"][self.box_rows(row)]]

    def boxes(self, row: int) -> Tensor:
        """All annotated boxes [n, 9] float32 of a sample, in the lidar frame; see `structures.Targets`."""
        found = self.box_rows(row)
        yaw = yaw_of(quaternion_to_matrix(self.box_rotation[found]))
        columns = [self.box_translation[found], self.box_size[found], yaw[:, None], self.box_velocity[found]]
        boxes = torch.from_numpy(np.concatenate(columns, 1))
        return boxes3d.transform(boxes, np.linalg.inv(self.lidar2global[row])).float()

    def camera_file(self, row: int, channel: str) -> str:
        """The image of a camera, relative to the root.

        Raises:
            SampleError: the tables have no usable record of it.
        """
        file = self._text["camera_file"][row, self.camera_column(channel)].decode()
        if not file:
            raise SampleError(f"sample {self.token(row)!r} has no complete {channel} key frame in table sample_data")
        if leaves_folder(file):
            raise SampleError(f"{self.path}: the file name {file!r} leads out of the root of the data set")
        return file

    def camera(self, row: int, channel: str) -> Camera:
        """The calibration of a camera, for the image as it lies on disk."""
        column = self.camera_column(channel)
        return Camera(channel, self.camera_intrinsic[row, column].copy(), self.camera2lidar[row, column].copy())

    def camera_column(self, channel: str) -> int:
        """Where a camera stands in the camera arrays."""
        if channel not in self.cameras:
            raise ValueError(f"no camera {channel!r} in table sensor; it has {', '.join(self.cameras)}")
        return self.cameras.index(channel)

    def select(self, split: str) -> np.ndarray:
        """The rows of a split, in order.

        Args:
            split: an official split or one of the data set's `splits.json` by name; or scene names or sample tokens,
                separated by commas.

        Raises:
            ValueError: a name that is none of these (with the nearest that are), or a split without a sample here.
        """
        if split in self._splits:
            rows = np.flatnonzero(np.isin(self.sample_scene, self._splits[split]))
            if not len(rows):
                present = ", ".join(name for name, scenes in self._splits.items() if scenes) or "none"
                raise ValueError(
                    f"split {split!r} has no sample in this data set; splits with samples: {present} (choose with "
                    "data.train_split and data.val_split)"
                )
            return rows
        picked: set[int] = set()
        for name in filter(None, (part.strip() for part in split.split(","))):
            if name in self.scenes:
                picked.update(np.flatnonzero(self.sample_scene == self.scenes.index(name)).tolist())
            elif name in self.rows:
                picked.add(self.rows[name])
            else:
                valid = [*self._splits, *self.scenes, *self.rows]
                nearest = difflib.get_close_matches(name, valid, n=3, cutoff=0.5) or sorted(self._splits)
                raise ValueError(f"no split, scene or sample token {name!r}; nearest: {', '.join(nearest)}")
        if not picked:
            raise ValueError(f"split {split!r} names nothing: give a split, scene names or sample tokens")
        return np.array(sorted(picked))


def open_index(root: str | Path, version: str, index_dir: str | Path | None = None) -> NuScenesIndex:
    """Open the index of a nuScenes data set; build it first where there is none or the tables have changed.

    Args:
        root: the folder that holds the tables' folder.
        version: the tables' folder, v1.0-trainval for example.
        index_dir: where the index is kept; default: the root, or the user's cache folder if the root is read-only.

    Raises:
        FileNotFoundError: there is no such folder or version.
        SampleError: a table is missing or damaged. Single broken records are left out: see `NuScenesIndex.faults`.
    """
    folder = data_root(root) / version
    if not folder.is_dir():
        versions = sorted(path.name for path in Path(root).glob("v[0-9]*") if path.is_dir())
        found = f"it has {', '.join(versions)}" if versions else "no folder there looks like one"
        if any(Path(root).glob("annotations/*.json")) or any(Path(root).glob("*/_annotations.coco.json")):
            found = "it holds a COCO data set, which configurations with data.name coco read"
        raise FileNotFoundError(f"no nuScenes version {version!r} in {Path(root).absolute()}: {found}")

    def build():
        content = read_tables(folder)
        return content.arrays, content.info

    return open_fresh(index_path(Path(root), version, index_dir), _stamp(folder), NuScenesIndex, build)


def _stamp(folder: Path) -> str:
    """What an index must have been built from to be fresh: the format, and every table's size and time of change."""
    return json.dumps([FORMAT, *(file_stamp(folder / f"{name}.json") for name in (*FIELDS, "splits"))])
