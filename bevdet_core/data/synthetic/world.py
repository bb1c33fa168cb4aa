"""A street scene that moves: the ego vehicle, labelled objects of the ten classes, scenery, light and ground.

World frame of a scene: metres, x along the main road, y to its left, z up, the ground at z = 0. Time is in seconds from
the first key frame. Objects move at constant velocity, so that annotations, pictures and lidar agree at any time.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from . import scenery
from .ground import Ground
from .mesh import Mesh, Size
from .shapes import SHAPES
from .sky import Light
from .weather import sample_ground, sample_light

# Mean and relative spread of (width, length, height) in nuScenes trainval; spread of each axis around a shared scale.
SIZES: dict[str, tuple[tuple[float, float, float], float]] = {
    "car": ((1.95, 4.62, 1.73), 0.06),
    "truck": ((2.51, 6.93, 2.84), 0.10),
    "bus": ((2.95, 11.19, 3.49), 0.06),
    "trailer": ((2.92, 11.80, 3.87), 0.07),
    "construction_vehicle": ((2.82, 6.56, 3.20), 0.10),
    "pedestrian": ((0.67, 0.73, 1.77), 0.06),
    "motorcycle": ((0.77, 2.11, 1.46), 0.05),
    "bicycle": ((0.61, 1.70, 1.30), 0.05),
    "traffic_cone": ((0.41, 0.41, 1.07), 0.10),
    "barrier": ((2.51, 0.50, 0.99), 0.06),
}

# How many of each class stand in a scene of a few seconds (low, high).
COUNTS: dict[str, tuple[int, int]] = {
    "bus": (1, 2),
    "trailer": (1, 2),
    "construction_vehicle": (1, 2),
    "truck": (2, 3),
    "car": (4, 7),
    "motorcycle": (2, 3),
    "bicycle": (2, 3),
    "pedestrian": (4, 6),
    "barrier": (3, 5),
    "traffic_cone": (3, 5),
}

# Farthest distance from the ego vehicle at which each class is placed; well inside the range of the nuScenes metric.
REACH: dict[str, float] = {
    "bus": 34,
    "trailer": 34,
    "construction_vehicle": 32,
    "truck": 33,
    "car": 33,
    "motorcycle": 25,
    "bicycle": 25,
    "pedestrian": 26,
    "barrier": 22,
    "traffic_cone": 20,
}

EGO_SIZE: Size = (1.9, 4.6, 1.8)
EGO_CENTRE = 1.4
"""Metres from the ego frame's origin (middle of the rear axle) to the middle of the vehicle."""


@dataclass(frozen=True)
class Actor:
    """A labelled object."""

    name: str  # detection class
    size: Size  # width, length, height; metres, whole millimetres
    start: np.ndarray  # [2] x, y of the centre at time 0, metres
    yaw: float  # radians from the x axis; the way x of its mesh points
    speed: float  # m/s along yaw
    rider: bool  # of a motorcycle or a bicycle
    parked: bool  # a vehicle without a driver
    mesh: Mesh

    def position(self, time: float | np.ndarray) -> np.ndarray:
        """X and y of the centre at a time (or at times [T] -> [T, 2])."""
        heading = np.array([np.cos(self.yaw), np.sin(self.yaw)])
        return self.start + np.multiply.outer(np.asarray(time) * self.speed, heading)


@dataclass(frozen=True)
class EgoMotion:
    """Drives at constant speed and constant yaw rate, with a slight sway of the body on its springs."""

    start: np.ndarray  # [2] x, y at time 0
    yaw: float  # at time 0, radians
    speed: float  # m/s
    yaw_rate: float  # rad/s
    sway: float  # radians, amplitude of roll and pitch

    def position(self, time: float) -> np.ndarray:
        """X and y of the ego frame's origin, metres."""
        if abs(self.yaw_rate) < 1e-6:
            way = self.speed * time
            return self.start + way * np.array([np.cos(self.yaw), np.sin(self.yaw)])
        radius = self.speed / self.yaw_rate
        yaw = self.yaw + self.yaw_rate * time
        return self.start + radius * np.array([np.sin(yaw) - np.sin(self.yaw), np.cos(self.yaw) - np.cos(yaw)])

    def angles(self, time: float) -> tuple[float, float, float]:
        """Roll, pitch and yaw in radians: rotation = Rz(yaw) Ry(pitch) Rx(roll)."""
        roll = self.sway * np.sin(2.1 * time + 0.4)
        pitch = self.sway * np.sin(2.9 * time + 1.3)
        return float(roll), float(pitch), float(self.yaw + self.yaw_rate * time)


@dataclass(frozen=True)
class World:
    """One scene."""

    ego: EgoMotion
    actors: list[Actor]
    props: list[tuple[Mesh, np.ndarray]]  # unlabelled solids with their fixed pose [4]
    light: Light
    ground: Ground

    def meshes(self) -> list[Mesh]:
        """Of the actors, then of the props."""
        return [actor.mesh for actor in self.actors] + [mesh for mesh, _ in self.props]

    def poses(self, time: float) -> np.ndarray:
        """x, y, z, yaw of all solids at a time, in the order of `meshes` -> [O, 4]."""
        moving = [[*actor.position(time), 0.0, actor.yaw] for actor in self.actors]
        return np.array(moving + [list(pose) for _, pose in self.props]).reshape(-1, 4)


def sample_world(rng: np.random.Generator, duration: float) -> World:
    """A random scene.

    Args:
        rng: source of all choices.
        duration: seconds that the scene lasts; the number of objects grows with the way that the ego vehicle drives.
    """
    light = sample_light(rng)
    speed = float(rng.choice([0.0, rng.uniform(1.5, 6.5)], p=[0.15, 0.85]))
    way = speed * duration
    ground = sample_ground(rng, reach=30.0 + way / 2)
    lane = -(rng.integers(ground.lanes) + 0.5) * ground.lane_width
    turning = rng.random() < 0.3
    yaw_rate = float(rng.choice([-1, 1]) * rng.uniform(0.02, 0.06)) if turning else 0.0
    yaw_rate /= max(1.0, duration / 4)
    yaw = float(rng.normal(0, 0.03)) - yaw_rate * duration / 2
    ego = EgoMotion(np.array([-way / 2, lane]), yaw, speed, yaw_rate, sway=float(rng.uniform(0.001, 0.004)))
    planner = _Planner(rng, ego, ground, duration)
    crowd = 1.0 + max(0.0, way - 20.0) / 60.0
    for name, (low, high) in COUNTS.items():
        for _ in range(round(int(rng.integers(low, high + 1)) * crowd)):
            planner.add(name)
    return World(ego, planner.actors, planner.scenery(way), light, ground)


class _Planner:
    """Places objects one by one where they make sense, touch nothing at any time and hide little."""

    def __init__(self, rng: np.random.Generator, ego: EgoMotion, ground: Ground, duration: float) -> None:
        self.rng, self.ego, self.ground, self.duration = rng, ego, ground, duration
        self.times = np.linspace(-0.1, duration + 0.1, max(5, int(duration / 0.15)))
        self.ego_track = np.array([ego.position(t) for t in self.times])  # [T, 2]
        self.ego_yaw = np.array([ego.angles(t)[2] for t in self.times])
        heading = np.stack([np.cos(self.ego_yaw), np.sin(self.ego_yaw)], 1)
        self.actors: list[Actor] = []
        self._centres = [self.ego_track + EGO_CENTRE * heading]  # of the ego vehicle and of all actors, [T, 2] each
        self._yaws = [self.ego_yaw]
        self._sizes: list[Size] = [EGO_SIZE]

    def add(self, name: str) -> None:
        """One more object of a class; gives up quietly where a crowded scene has no room for it."""
        rng = self.rng
        rider = name in ("motorcycle", "bicycle") and rng.random() < 0.65
        size = self._sample_size(name, rider)
        for attempt in range(60):
            anchor, yaw, speed = self._sample_motion(name, rider)
            anchor_time = rng.uniform(0.3, 0.7) * self.duration
            way = speed * np.array([np.cos(yaw), np.sin(yaw)])
            start = anchor - way * anchor_time
            track = start + self.times[:, None] * way
            distance = np.linalg.norm(anchor - self.ego.position(anchor_time), axis=-1)
            if distance > REACH[name] or (attempt < 40 and rng.random() > (8.0 / max(distance, 8.0)) ** 0.5):
                continue
            yaws = np.full(len(self.times), yaw)
            if attempt < 50 and self._looms(track, yaws, size):
                continue
            if self._collides(track, yaws, size) or self._hides(track, yaws, size) > 0.25 + 0.01 * attempt:
                continue
            shape = {"rider": rider} if name in ("motorcycle", "bicycle") else {}
            parked = speed == 0 and rng.random() < 0.7
            self.actors.append(
                Actor(name, size, start, float(yaw), float(speed), rider, parked, SHAPES[name](rng, size, **shape))
            )
            self._centres.append(track)
            self._yaws.append(yaws)
            self._sizes.append(size)
            return

    def scenery(self, way: float) -> list[tuple[Mesh, np.ndarray]]:
        """Buildings behind the verges, trees, bushes and lamps along the pavements."""
        rng, ground = self.rng, self.ground
        props: list[tuple[Mesh, np.ndarray]] = []
        reach = way / 2 + 75.0
        for side, verge in ((1, ground.verge_left), (-1, ground.verge_right)):
            depth = rng.uniform(14.0, 19.0) if verge else rng.uniform(8.0, 14.0)
            front = max(ground.pavement + depth, 20.0)
            x = -reach
            while x < reach:
                bays = 2 * int(rng.integers(2, 5))
                width = scenery.BAY * bays
                if rng.random() < 0.78 and not self._on_crossing(x, x + width, 3.5):
                    house_depth = scenery.BAY * 2 * int(rng.integers(2, 4))
                    mesh = scenery.building(rng, width, house_depth, int(rng.integers(2, 6)))
                    props.append(
                        (
                            mesh,
                            np.array([x + width / 2, side * (front + house_depth / 2 + rng.uniform(0, 2)), 0.0, 0.0]),
                        )
                    )
                elif not self._on_crossing(x, x + width, 3.5):
                    for _ in range(4):
                        spot = np.array(
                            [x + rng.uniform(0, width), side * (front + rng.uniform(1, 9)), 0.0, rng.uniform(0, 6.3)]
                        )
                        props.append((scenery.tree(rng), spot))
                x += width + rng.choice([0.4, rng.uniform(2.0, 6.0)])
            x = -reach + rng.uniform(0, 8)
            while x < reach:
                y = side * (ground.pavement + rng.uniform(0.6, 1.4 if verge else 5.0))
                if not self._on_crossing(x, x, 4.0):
                    kind = rng.random()
                    if kind < 0.45:
                        self._stand(props, scenery.tree(rng), x, y, rng.uniform(0, 6.3), 0.8)
                    elif kind < 0.70:
                        self._stand(props, scenery.bush(rng), x, y, 0.0, 1.4)
                    else:
                        self._stand(props, scenery.lamp(rng), x, side * (ground.road + 0.6), -side * np.pi / 2, 0.5)
                x += rng.uniform(6.0, 13.0)
        return props

    def _stand(
        self, props: list[tuple[Mesh, np.ndarray]], mesh: Mesh, x: float, y: float, yaw: float, width: float
    ) -> None:
        track = np.tile([x, y], (len(self.times), 1))
        if not self._collides(track, np.zeros(len(self.times)), (width, width, 2.0)):
            props.append((mesh, np.array([x, y, 0.0, yaw])))

    def _on_crossing(self, low: float, high: float, margin: float) -> bool:
        half = self.ground.crossing_half
        return half > 0 and low < self.ground.crossing + half + margin and high > self.ground.crossing - half - margin

    def _sample_size(self, name: str, rider: bool) -> Size:
        mean, spread = SIZES[name]
        scale = 1 + spread * np.clip(self.rng.normal(), -2, 2)
        own = scale * (1 + 0.03 * np.clip(self.rng.normal(size=3), -2, 2))
        if name in ("motorcycle", "bicycle"):
            height = self.rng.uniform(1.55, 1.75) if rider else (1.18 if name == "motorcycle" else 1.05) * own[2]
            own[2] = height / mean[2]
        width, length, height = (round(float(value), 3) for value in np.array(mean) * own)
        return width, length, height

    def _sample_motion(self, name: str, rider: bool) -> tuple[np.ndarray, float, float]:
        """Where an object of a class might be in the middle of the scene: (x, y), yaw and speed."""
        rng, g = self.rng, self.ground
        reach = REACH[name]
        middle = self.ego.position(rng.uniform(0.25, 0.75) * self.duration)
        x = middle[0] + rng.uniform(-reach, reach)
        side = float(rng.choice([-1, 1]))
        along = 0.0 if side < 0 else np.pi  # traffic keeps right
        verge = g.verge_left if side > 0 else g.verge_right
        parking = g.road > g.lanes * g.lane_width + 1.0
        walk = side * rng.uniform(g.road + 0.5, g.pavement - 0.3)
        beyond = side * (g.pavement + rng.uniform(1.5, 8.0))
        anyhow = float(rng.uniform(-np.pi, np.pi))

        def pose(y: float, yaw: float, speed: float, wobble: float = 0.03) -> tuple[np.ndarray, float, float]:
            return np.array([x, y]), yaw + float(rng.normal(0, wobble)), speed

        if name == "pedestrian":
            moving = rng.random() < 0.7
            y = float(rng.choice([walk, beyond, rng.uniform(-g.road, g.road)], p=[0.6, 0.25, 0.15]))
            yaw = float(rng.choice([0.0, np.pi, anyhow]))
            return pose(y, yaw, rng.uniform(0.8, 1.7) if moving else 0.0, 0.25)
        if name == "traffic_cone":
            edge = side * rng.choice([g.lanes * g.lane_width - 0.4, g.road - 0.4, g.road + 0.8, 0.0])
            return pose(float(edge + rng.normal(0, 0.3)), anyhow, 0.0)
        if name == "barrier":
            edge = side * rng.choice([g.lanes * g.lane_width - 0.2, g.road + 0.6, g.pavement])
            yaw = float(rng.choice([0.0, np.pi / 2, -np.pi / 2, anyhow], p=[0.2, 0.35, 0.35, 0.1]))
            return pose(float(edge + rng.normal(0, 0.4)), yaw, 0.0, 0.08)
        if name == "construction_vehicle":
            y = float(rng.choice([beyond, side * (g.road - 1.5), walk], p=[0.5, 0.3, 0.2]))
            return pose(y, anyhow, float(rng.choice([0.0, rng.uniform(0.5, 1.5)], p=[0.7, 0.3])))
        if name in ("motorcycle", "bicycle"):
            if not rider:
                return pose(float(rng.choice([walk, side * (g.road - 0.8), beyond], p=[0.5, 0.3, 0.2])), anyhow, 0.0)
            fast = rng.uniform(1.0, 9.0 if name == "motorcycle" else 6.0)
            if g.crossing_half > 0 and rng.random() < 0.25:
                return self._across(fast)
            return pose(
                side * (rng.uniform(0.3, g.lanes - 0.15) * g.lane_width), along, fast if rng.random() < 0.85 else 0.0
            )
        lane = side * (rng.integers(g.lanes) + 0.5) * g.lane_width
        # As wide as in a city's traffic: what an object looks like must not tell how fast it is.
        driving = float(rng.uniform(1.0, 9.0)) if rng.random() < 0.75 else 0.0
        kind = rng.random()
        if name == "trailer":
            driving = 0.0 if rng.random() < 0.6 else driving
        if g.crossing_half > 0 and kind < 0.2:
            return self._across(driving)
        if kind < 0.6:
            return pose(lane + float(rng.normal(0, 0.15)), along, driving)
        if parking and kind < 0.8:
            return pose(side * (g.road - 1.3), along, 0.0)
        if verge == 0 and rng.random() < 0.5:
            return pose(lane, along, driving)
        square = float(rng.choice([np.pi / 2, -np.pi / 2])) if rng.random() < 0.6 else anyhow
        return pose(side * (g.pavement + rng.uniform(2.5, 9.0)), square, 0.0, 0.05)

    def _across(self, speed: float) -> tuple[np.ndarray, float, float]:
        rng, g = self.rng, self.ground
        side = float(rng.choice([-1, 1]))
        x = g.crossing + side * g.lane_width / 2 + rng.normal(0, 0.15)
        return np.array([x, rng.uniform(-26, 26)]), side * np.pi / 2 + float(rng.normal(0, 0.03)), speed

    def _collides(self, track: np.ndarray, yaws: np.ndarray, size: Size) -> bool:
        """Whether a rectangle that moves along [T, 2] comes within 0.35 m of the ego vehicle or an actor."""
        centres, others = np.stack(self._centres), np.stack(self._yaws)  # [K, T, 2], [K, T]
        sizes = np.array(self._sizes)
        half = np.array([size[1], size[0]]) / 2 + 0.35
        other_half = np.stack([sizes[:, 1], sizes[:, 0]], 1) / 2
        apart = np.zeros(others.shape, bool)
        delta = centres - track
        for yaw in (np.broadcast_to(yaws, others.shape), others):
            for turn in (0.0, np.pi / 2):
                axis = np.stack([np.cos(yaw + turn), np.sin(yaw + turn)], -1)
                gap = np.abs((delta * axis).sum(-1))
                own = half[0] * np.abs(np.cos(yaw + turn - yaws)) + half[1] * np.abs(np.sin(yaw + turn - yaws))
                their = other_half[:, :1] * np.abs(np.cos(yaw + turn - others)) + other_half[:, 1:] * np.abs(
                    np.sin(yaw + turn - others)
                )
                apart |= gap > own + their
        return not bool(apart.all())

    def _looms(self, track: np.ndarray, yaws: np.ndarray, size: Size) -> bool:
        """Whether a rectangle fills more than 50 degrees of the ego vehicle's view at any time."""
        _, half, _ = _bearings((track - self.ego_track)[None], yaws[None], np.array([size]))
        return bool(half.max() > np.radians(25))

    def _hides(self, track: np.ndarray, yaws: np.ndarray, size: Size) -> float:
        """Largest share of the bearing of an actor (or of this one) that a nearer one covers, averaged over time."""
        if len(self._centres) == 1:
            return 0.0
        delta = np.stack(self._centres[1:]) - self.ego_track
        sizes = np.array(self._sizes[1:])
        bearing, half, distance = _bearings(delta, np.stack(self._yaws[1:]), sizes)
        own_bearing, own_half, own_distance = _bearings((track - self.ego_track)[None], yaws[None], np.array([size]))
        gap = np.abs((bearing - own_bearing + np.pi) % (2 * np.pi) - np.pi)
        overlap = np.clip(half + own_half - gap, 0, 2 * np.minimum(half, own_half))
        behind = own_distance > distance
        share = overlap / (2 * np.where(behind, own_half, half))
        taller = np.where(behind, sizes[:, 2:] / size[2], size[2] / sizes[:, 2:])
        return float((share * np.clip(taller, 0, 1)).mean(1).max())


def _bearings(delta: np.ndarray, yaws: np.ndarray, sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rectangles seen from the origin: bearing, half of the angle that they fill, distance; all [K, T].

    Args:
        delta: centres [K, T, 2].
        yaws: [K, T].
        sizes: width, length and height [K, 3].
    """
    distance = np.linalg.norm(delta, axis=-1)
    bearing = np.arctan2(delta[..., 1], delta[..., 0])
    across = (sizes[:, 1:2] * np.abs(np.sin(yaws - bearing)) + sizes[:, :1] * np.abs(np.cos(yaws - bearing))) / 2
    return bearing, np.arctan2(across, np.maximum(distance, 0.1)), distance
