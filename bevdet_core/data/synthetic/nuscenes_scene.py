"""One scene of a synthetic nuScenes set: its pictures, its lidar sweeps and its rows of the tables."""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from .can_bus import messages
from .lidar import sweep
from .mesh import Size
from .render import Camera, Renderer
from .rig import Sensor, quaternion, rotation_from_angles, sample_rig
from .tables import CATEGORIES, TABLES, Row, attribute, token, visibility
from .world import Actor, World, sample_world

KEY_FRAME_SECONDS = 0.5
ANNOTATED_METRES = 60.0


@dataclass(frozen=True)
class SceneJob:
    """What one process needs to know to render one scene."""

    folder: Path
    name: str
    seed: int
    index: int
    frames: int
    image_size: tuple[int, int]
    supersample: int
    quality: int
    can_bus: bool


def write_scene(job: SceneJob) -> dict[str, list[Row]]:
    """Renders the files of one scene and returns its rows of every table."""
    return _SceneWriter(job).write()


class _SceneWriter:
    """Renders one scene and collects its rows of the tables."""

    def __init__(self, job: SceneJob) -> None:
        self.job = job
        rng = np.random.default_rng([job.seed, job.index])
        self.duration = (job.frames - 1) * KEY_FRAME_SECONDS
        self.world: World = sample_world(rng, max(self.duration, KEY_FRAME_SECONDS))
        self.rig = sample_rig(rng, job.image_size)
        self.renderer = Renderer(self.world.meshes(), self.world.light, self.world.ground, job.supersample)
        self.turn = rotation_from_angles(0, 0, rng.uniform(-np.pi, np.pi))  # world of the scene -> global
        self.shift = np.array([*rng.uniform(300, 1700, 2), 0.0])
        self.heading = float(np.arctan2(self.turn[1, 0], self.turn[0, 0]))
        self.begin = 1_532_400_000_000_000 + job.index * 100_000_000 + int(rng.integers(10_000_000))
        jitter = rng.integers(-3_000, 3_000, job.frames)
        self.times = [
            int(frame * KEY_FRAME_SECONDS * 1e6 + jitter[frame]) for frame in range(job.frames)
        ]  # microseconds
        self.rng = rng
        self.rows: dict[str, list[Row]] = {name: [] for name in TABLES}
        self.log = f"synthetic-{job.seed:04d}-{job.index:04d}"

    def token(self, *parts: object) -> str:
        return token(self.job.seed, self.job.index, *parts)

    def write(self) -> dict[str, list[Row]]:
        frames = self.job.frames
        self.rows["log"] = [
            {
                "token": self.token("log"),
                "logfile": self.log,
                "vehicle": "synthetic",
                "date_captured": "2018-07-24",
                "location": "singapore-onenorth",
            }
        ]
        self.rows["scene"] = [
            {
                "token": self.token("scene"),
                "log_token": self.token("log"),
                "nbr_samples": frames,
                "first_sample_token": self.token("sample", 0),
                "last_sample_token": self.token("sample", frames - 1),
                "name": self.job.name,
                "description": f"Synthetic street, seed {self.job.seed}",
            }
        ]
        for sensor in self.rig:
            self.rows["calibrated_sensor"].append(
                {
                    "token": self.token("calibrated_sensor", sensor.channel),
                    "sensor_token": token("sensor", sensor.channel),
                    "translation": sensor.translation.tolist(),
                    "rotation": quaternion(sensor.rotation),
                    "camera_intrinsic": [] if sensor.intrinsic is None else sensor.intrinsic.tolist(),
                }
            )
            (self.job.folder / "samples" / sensor.channel).mkdir(parents=True, exist_ok=True)
        for frame in range(frames):
            self._write_frame(frame)
        self._link_annotations()
        if self.job.can_bus:
            self._write_can_bus()
        return self.rows

    def _write_frame(self, frame: int) -> None:
        sample = self.token("sample", frame)
        self.rows["sample"].append(
            {
                "token": sample,
                "timestamp": self.begin + self.times[frame],
                "scene_token": self.token("scene"),
                "prev": self._neighbour("sample", frame - 1),
                "next": self._neighbour("sample", frame + 1),
            }
        )
        seen = np.zeros((2, len(self.world.actors)), np.int64)
        points = np.zeros((0, 3))
        for sensor in self.rig:
            time = self.times[frame] - sensor.lead
            suffix = "pcd.bin" if sensor.intrinsic is None else "jpg"
            name = f"samples/{sensor.channel}/{self.log}__{sensor.channel}__{self.begin + time}.{suffix}"
            self._write_sample_data(sensor, frame, time, name)
            if sensor.intrinsic is None:
                points = self._write_lidar(sensor, time, name)
            else:
                seen += self._write_image(sensor, sensor.intrinsic, time, name)
        seconds = self.times[frame] * 1e-6
        ego = self.world.ego.position(seconds)
        for index, actor in enumerate(self.world.actors):
            if np.linalg.norm(actor.position(seconds) - ego) < ANNOTATED_METRES:
                self._annotate(frame, index, actor, points, visibility(int(seen[0, index]), int(seen[1, index])))

    def _neighbour(self, table: str, frame: int, *parts: object) -> str:
        return self.token(table, *parts, frame) if 0 <= frame < self.job.frames else ""

    def _ego_pose(self, time: int) -> tuple[np.ndarray, np.ndarray]:
        """Rotation [3, 3] and position [3] of the ego vehicle in the world of the scene."""
        seconds = time * 1e-6
        return rotation_from_angles(*self.world.ego.angles(seconds)), np.array([*self.world.ego.position(seconds), 0.0])

    def _write_can_bus(self) -> None:
        def pose_at(time: int) -> tuple[np.ndarray, np.ndarray]:
            rotation, position = self._ego_pose(time - self.begin)
            return self.turn @ rotation, self._to_global(position)

        folder = self.job.folder / "can_bus"
        folder.mkdir(exist_ok=True)
        found = messages(pose_at, self.begin, self.begin + self.times[-1])
        (folder / f"{self.job.name}_pose.json").write_text(json.dumps(found))

    def _to_global(self, points: np.ndarray) -> np.ndarray:
        return points @ self.turn.T + self.shift

    def _write_sample_data(self, sensor: Sensor, frame: int, time: int, name: str) -> None:
        rotation, position = self._ego_pose(time)
        key = self.token("sample_data", sensor.channel, frame)
        width, height = self.job.image_size if sensor.intrinsic is not None else (0, 0)
        self.rows["ego_pose"].append(
            {
                "token": key,
                "timestamp": self.begin + time,
                "rotation": quaternion(self.turn @ rotation),
                "translation": self._to_global(position).tolist(),
            }
        )
        self.rows["sample_data"].append(
            {
                "token": key,
                "sample_token": self.token("sample", frame),
                "ego_pose_token": key,
                "calibrated_sensor_token": self.token("calibrated_sensor", sensor.channel),
                "timestamp": self.begin + time,
                "fileformat": "pcd" if sensor.intrinsic is None else "jpg",
                "is_key_frame": True,
                "height": height,
                "width": width,
                "filename": name,
                "prev": self._neighbour("sample_data", frame - 1, sensor.channel),
                "next": self._neighbour("sample_data", frame + 1, sensor.channel),
            }
        )

    def _write_image(self, sensor: Sensor, intrinsic: np.ndarray, time: int, name: str) -> np.ndarray:
        """Renders and stores one picture; returns the seen and the coverable pixels of all actors [2, A]."""
        from PIL import Image

        rotation, position = self._ego_pose(time)
        camera = Camera(
            rotation @ sensor.rotation, rotation @ sensor.translation + position, intrinsic, self.job.image_size
        )
        picture = self.renderer.picture(camera, self.world.poses(time * 1e-6))
        Image.fromarray(picture.image).save(self.job.folder / name, quality=self.job.quality)
        actors = len(self.world.actors)
        return np.stack([picture.visible[:actors], picture.covered[:actors]])

    def _write_lidar(self, sensor: Sensor, time: int, name: str) -> np.ndarray:
        """Stores one sweep; returns its points in the global frame [N, 3], as a reader of the file gets them."""
        rotation, position = self._ego_pose(time)
        seconds = time * 1e-6
        origin = rotation @ sensor.translation + position
        cloud = sweep(self.renderer, self.world.poses(seconds), len(self.world.actors), rotation, origin, self.rng)
        axes = rotation @ sensor.rotation
        cloud[:, :3] = (cloud[:, :3] - origin) @ axes
        stored = cloud.astype(np.float32)
        world = stored[:, :3].astype(float) @ axes.T + origin
        clear = np.ones(len(stored), bool)
        for actor in self.world.actors:  # a point on the very skin of a box would be in or out by rounding alone
            inside = _depth_inside(
                world, np.array([*actor.position(seconds), actor.size[2] / 2]), actor.yaw, actor.size
            )
            clear &= np.abs(inside) > 0.002
        stored[clear].tofile(self.job.folder / name)
        return self._to_global(world[clear])

    def _annotate(self, frame: int, index: int, actor: Actor, points: np.ndarray, level: str) -> None:
        centre = np.array([*actor.position(self.times[frame] * 1e-6), actor.size[2] / 2])
        translation = np.round(self._to_global(centre), 3)
        yaw = actor.yaw + self.heading
        name = attribute(actor)
        self.rows["sample_annotation"].append(
            {
                "token": self.token("sample_annotation", index, frame),
                "sample_token": self.token("sample", frame),
                "instance_token": self.token("instance", index),
                "visibility_token": level,
                "attribute_tokens": [] if name is None else [token("attribute", name)],
                "translation": translation.tolist(),
                "size": list(actor.size),
                "rotation": quaternion(rotation_from_angles(0, 0, yaw)),
                "prev": "",
                "next": "",
                "num_lidar_pts": int((_depth_inside(points, translation, yaw, actor.size) > 0).sum()),
                "num_radar_pts": 0,
            }
        )

    def _link_annotations(self) -> None:
        """Chains the annotations of each object and writes the instance table."""
        tracks: dict[str, list[Row]] = {}
        for row in self.rows["sample_annotation"]:
            tracks.setdefault(row["instance_token"], []).append(row)
        for index, actor in enumerate(self.world.actors):
            key = self.token("instance", index)
            track = tracks.get(key, [])
            for before, after in pairwise(track):
                before["next"], after["prev"] = after["token"], before["token"]
            if track:
                self.rows["instance"].append(
                    {
                        "token": key,
                        "category_token": token("category", CATEGORIES[actor.name]),
                        "nbr_annotations": len(track),
                        "first_annotation_token": track[0]["token"],
                        "last_annotation_token": track[-1]["token"],
                    }
                )


def _depth_inside(points: np.ndarray, centre: np.ndarray, yaw: float, size: Size | np.ndarray) -> np.ndarray:
    """How far points [N, 3] lie inside a box, metres [N]: the distance to the nearest side, negative outside."""
    local = (points - centre) @ rotation_from_angles(0, 0, yaw)
    half = np.array([size[1], size[0], size[2]]) / 2
    inset = half - np.abs(local)
    return np.minimum(np.minimum(inset[:, 0], inset[:, 1]), inset[:, 2])
