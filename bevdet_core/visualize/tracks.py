"""The objects of successive frames joined to tracks, and where each of them has been."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch

from ..boxes3d import transform
from ..detections import Detections
from ..structures import Sample
from .style import Objects

SLACK_SPEED = 3.0  # m/s; how wrong a velocity may be before an object is taken for another one
MAX_GAP = 1.25  # seconds for which a track goes on unseen: two key frames of nuScenes


@dataclass(frozen=True)
class Moment:
    """One frame of a scene as it is drawn: what is there, and what was there before."""

    sample: Sample
    pose: np.ndarray  # [4, 4] lidar2global
    layers: list[Objects]  # the first one with tracks and trails
    ego_path: np.ndarray  # [k, 3] metres, earlier places of the lidar in its present frame, oldest first


def follow(
    frames: Iterable[tuple[Sample, Detections | None]],
    class_names: tuple[str, ...],
    threshold: float = 0.3,
    seconds: float = 4.0,
) -> Iterator[Moment]:
    """Follow the objects of one scene through time: detections where there are some, else the truth.

    Args:
        frames: samples in the order of time with their detections; without them the truth is followed.
        class_names: of the data set's labels.
        threshold: detections with a lower score are left out.
        seconds: how far back trails go.

    Raises:
        ValueError: a sample without pose or time, or with neither detections nor truth; the message names it.
    """
    trails = Trails(seconds)
    for sample, found in frames:
        truth = sample.targets
        layers = []
        if found is not None:
            likely = found.above(threshold)
            layers.append(Objects.checked(likely.boxes, likely.labels, likely.class_names, likely.scores))
        if truth is not None:
            beside = bool(layers)
            layers.append(Objects.checked(truth.boxes, truth.labels, class_names, None, beside, "ground truth"))
        if not layers:
            raise ValueError(f"sample {sample.token!r} has neither detections nor truth to draw")
        if sample.lidar2global is None or sample.timestamp is None:
            raise ValueError(f"sample {sample.token!r} has no pose (lidar2global) or no time; trails need both")
        layers[0], path = trails.follow(layers[0], sample.lidar2global, sample.timestamp)
        yield Moment(sample, sample.lidar2global, layers, path)


class Trails:
    """Where the objects of a scene have been, seen from wherever the vehicle is now."""

    def __init__(self, seconds: float = 4.0) -> None:
        self._seconds = seconds
        self._tracker = Tracker()
        self._past: list[tuple[float, np.ndarray, dict[int, np.ndarray]]] = []  # time, pose, box of each track; global

    def follow(self, objects: Objects, lidar2global: np.ndarray, timestamp: float) -> tuple[Objects, np.ndarray]:
        """Add the objects of the next frame.

        Args:
            objects: with 3D boxes in the lidar frame.
            lidar2global: [4, 4] pose of the frame.
            timestamp: seconds, not earlier than that of the frame before.

        Returns:
            The objects with their tracks and trails, and the path of the lidar [k, 3], oldest place first. All that
            is past has been carried by the poses into the present lidar frame.
        """
        self._past = [moment for moment in self._past if timestamp - moment[0] <= self._seconds]
        boxes = _moved(objects.boxes, lidar2global)
        tracks = self._tracker.update(boxes, objects.labels, timestamp)
        global2lidar = np.linalg.inv(lidar2global)
        trails = tuple(
            _moved(np.array([seen[track] for _, _, seen in self._past if track in seen]).reshape(-1, 9), global2lidar)
            for track in tracks
        )
        places = np.array([pose[:, 3] for _, pose, _ in self._past]).reshape(-1, 4)
        self._past.append((timestamp, lidar2global, dict(zip(tracks.tolist(), boxes, strict=True))))
        return replace(objects, tracks=tracks, trails=trails), (places @ global2lidar.T)[:, :3]


@dataclass
class _Track:
    box: np.ndarray  # [9] global frame
    label: int
    timestamp: float


class Tracker:
    """Greedy association of boxes with tracks by the distance of their centres, as CenterPoint does (Yin et al. 2021).

    Every track moves on with its last velocity, or stands still where that is unknown. Pairs of a track and a box of
    one class are joined from the nearest to the farthest, if the box lies within half of its own diagonal, plus what an
    error of `SLACK_SPEED` makes up since the track was last seen. A box without a track begins one; a track that is not
    seen for `MAX_GAP` ends. There is no motion filter and no memory of looks: this draws trails, it wins no contest.
    """

    def __init__(self) -> None:
        self._tracks: dict[int, _Track] = {}
        self._next = 0

    def update(self, boxes: np.ndarray, labels: np.ndarray, timestamp: float) -> np.ndarray:
        """The track [n] int64 of each box [n, 9] (global frame) with a label [n], at a time in seconds."""
        self._tracks = {k: t for k, t in self._tracks.items() if timestamp - t.timestamp <= MAX_GAP}
        out = np.full(len(boxes), -1, np.int64)
        for track, index in self._pairs(boxes, labels, timestamp):
            if out[index] < 0 and track not in out:
                out[index] = track
        for index in np.flatnonzero(out < 0):
            out[index], self._next = self._next, self._next + 1
        for track, box, label in zip(out.tolist(), boxes, labels.tolist(), strict=True):
            self._tracks[track] = _Track(box, label, timestamp)
        return out

    def _pairs(self, boxes: np.ndarray, labels: np.ndarray, timestamp: float) -> list[tuple[int, int]]:
        """(track, index of a box) that may be one object, the nearest pair first."""
        if not self._tracks or not len(boxes):
            return []
        names, tracks = list(self._tracks), list(self._tracks.values())
        known = np.array([track.box for track in tracks])  # [t, 9]
        passed = timestamp - np.array([track.timestamp for track in tracks])  # [t]
        expected = known[:, :2] + np.nan_to_num(known[:, 7:9]) * passed[:, None]
        distance = np.linalg.norm(expected[:, None] - boxes[None, :, :2], axis=2)  # [t, n]
        allowed = np.linalg.norm(boxes[:, 3:5], axis=1) / 2 + SLACK_SPEED * passed[:, None]
        same = np.array([track.label for track in tracks])[:, None] == labels
        rows, columns = np.nonzero(same & (distance <= allowed))
        order = np.argsort(distance[rows, columns], kind="stable")
        return [(names[row], int(column)) for row, column in zip(rows[order], columns[order], strict=True)]


def _moved(boxes: np.ndarray, a2b: np.ndarray) -> np.ndarray:
    return transform(torch.from_numpy(boxes), a2b).numpy()
