"""nuScenes as a data set of rig frames."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset

from ..config import NuScenesConfig, Queue
from ..structures import Camera, Sample, Targets
from .can_bus import CanBus
from .images import SampleError, read_image
from .index_file import SKIPPING, describe_faults
from .nuscenes_index import open_index
from .rig import failed_camera, with_blanks
from .rig_transforms import rig_transform
from .transforms import Compose, DrawHistory, Transform


class NuScenesDataset(Dataset[Sample]):
    """The key frames of a split: images and calibration as they lie on disk, objects in the lidar frame.

    Objects of a class that is not asked for, and objects that no lidar or radar point hits, are left out, as in
    training and evaluation of the published systems. Frames without objects stay.

    Args:
        config: what to read.
        split: a split by name, or scene names or sample tokens separated by commas.
        training: augment in `transform`, and resample the frames if `config.cbgs`.
        queue: in training, `transform` also gives each sample earlier frames of its scene; see `DrawHistory`.

    Attributes:
        index: the tables.
        split: as given.
        class_names: the classes, in the order of the labels.
        transform: prepares a sample for the network; `loader.build_loader` calls it.
        on_error: `config.on_error`.
        tokens: of all samples of the split, in order, without resampling.
        scenes: of each sample, its row in `index.scenes`.

    Raises:
        FileNotFoundError: the root has no such version, or no folder `config.can_bus`.
        ValueError: an unknown split, class or camera, with the nearest that exist; or nothing to train on, as in
            v1.0-test, which has no annotations.
        SampleError: the tables have broken records and `config.on_error` is "raise".
    """

    def __init__(self, config: NuScenesConfig, split: str, training: bool = False, queue: Queue | None = None) -> None:
        self.config = config
        self.on_error = config.on_error
        self.split = split
        self.root = Path(config.root)
        self.index = open_index(config.root, config.version, config.index_dir)
        if self.index.faults and config.on_error == "raise":
            raise SampleError(describe_faults(self.root / config.version, self.index.faults) + SKIPPING)
        if training and not self.index.annotated:
            raise ValueError(
                f"data.train_split {split!r}: {self.root / config.version} has no annotations to train on; "
                "v1.0-trainval and v1.0-mini have them (data.version)"
            )
        self.class_names = tuple(config.classes)
        self._label_of = _labels(self.class_names, self.index.detection_names)
        for channel in config.cameras:
            self.index.camera_column(channel)
        self.can_bus = CanBus(self.root / config.can_bus) if config.can_bus is not None else None
        self.rows = self.index.select(split)
        self.tokens = tuple(self.index.token(row) for row in self.rows)
        if training and config.cbgs:
            self.rows = self._balanced_rows()
        self.scenes = self.index.sample_scene[self.rows].tolist()
        self.transform: Transform = rig_transform(config, training)
        if training and queue is not None:
            earlier = partial(self._earlier, annotated=queue.learn == "all")
            self.transform = Compose([DrawHistory(earlier, queue.length, queue.drop), self.transform])

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, position: int) -> Sample:
        """The sample as it lies on disk.

        Raises:
            SampleError: an image is missing or damaged, or a record of the sample or the CAN-bus file of its scene is.
        """
        return self._frame(int(self.rows[position]))

    def _earlier(self, sample: Sample, steps: int, annotated: bool) -> Sample | None:
        """The key frame so many steps before another in its scene."""
        row = self.index.rows[sample.token] - steps
        return self._frame(row, annotated) if row >= 0 and self.index.scene(row) == sample.scene else None

    def _frame(self, row: int, annotated: bool = True) -> Sample:
        """A key frame, with its objects where they are wanted and known."""
        index, token = self.index, self.index.token(row)
        if not np.isfinite(index.lidar2global[row]).all():
            raise SampleError(f"sample {token!r} has no complete lidar key frame in table sample_data")
        views = [self._view(row, channel) for channel in self.config.cameras]
        scene = index.scene(row)
        bus = self.can_bus if self.can_bus is not None and self.can_bus.has(scene) else None
        return Sample(
            with_blanks([image for image, _ in views]),
            [camera for _, camera in views],
            targets=self._targets(row) if annotated and index.annotated else None,
            token=token,
            lidar2global=index.lidar2global[row].copy(),
            timestamp=index.time(row),
            scene=scene,
            lidar2ego=np.linalg.inv(index.ego2global[row]) @ index.lidar2global[row],
            can_bus=None if bus is None else bus.signals(scene, int(index.timestamp[row])),
        )

    def _view(self, row: int, channel: str) -> tuple[np.ndarray | None, Camera]:
        """What a camera saw; where it gave no usable image, and settings allow that, None and a camera that failed."""
        try:
            file = self.index.camera_file(row, channel)
            try:
                return read_image(self.root / file), self.index.camera(row, channel)
            except SampleError as error:
                raise SampleError(f"sample {self.index.token(row)!r}: {error}") from error
        except SampleError:
            if self.config.missing_images == "error":
                raise
            return None, failed_camera(channel)

    def scene(self, position: int) -> str:
        """The name of the scene of a sample, without its images."""
        return self.index.scene(int(self.rows[position]))

    def time(self, position: int) -> float:
        """The time of a sample in seconds, without its images."""
        return self.index.time(int(self.rows[position]))

    def targets(self, position: int) -> Targets:
        """The objects of a sample, without its images."""
        return self._targets(int(self.rows[position]))

    def _targets(self, row: int) -> Targets:
        kept, labels = self._objects(row)
        return Targets(torch.from_numpy(labels[kept]), self.index.boxes(row)[torch.from_numpy(kept)])

    def _objects(self, row: int) -> tuple[np.ndarray, np.ndarray]:
        """Which annotations of a sample are objects to detect [n] bool, and the labels [n] int64 of all."""
        found = self.index.box_rows(row)
        labels = self._label_of[self.index.box_category[found]]
        hit = self.index.box_lidar_points[found] + self.index.box_radar_points[found] > 0
        return hit & (labels >= 0), labels

    def _balanced_rows(self) -> np.ndarray:
        """Class-balanced grouping and sampling: frames of every class are drawn with the same share.

        A class whose frames make up the fraction f of all (frame, class) pairs has them repeated 1 / (C f) times.
        The draw is the same in every process and run.
        """
        frames: list[list[int]] = [[] for _ in self.class_names]
        for row in self.rows:
            kept, labels = self._objects(int(row))
            for label in np.unique(labels[kept]):
                frames[label].append(row)
        pairs = sum(map(len, frames))
        if not pairs:
            raise ValueError("class-balanced resampling (data.cbgs) needs objects; this split has none")
        rng = np.random.default_rng(0)
        share = pairs / len(frames)
        return np.concatenate([rng.choice(rows, int(share)) for rows in frames if rows]).astype(np.int64)


def _labels(class_names: Sequence[str], detection_names: Sequence[str | None]) -> np.ndarray:
    """Label of every category, -1 for those that are not asked for."""
    from ..config import NUSCENES_CLASSES

    for name in class_names:
        if name not in NUSCENES_CLASSES:
            nearest = difflib.get_close_matches(name, NUSCENES_CLASSES, n=3, cutoff=0.4) or NUSCENES_CLASSES
            raise ValueError(f"data.classes: {name!r} is no nuScenes detection class; nearest: {', '.join(nearest)}")
    return np.array([class_names.index(n) if n in class_names else -1 for n in detection_names], np.int64)
