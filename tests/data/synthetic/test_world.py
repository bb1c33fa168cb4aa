"""Scenes: all classes, in range, nothing inside anything else, the same again from the same generator."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from bevdet_core.data.synthetic.rig import rotation_from_angles
from bevdet_core.data.synthetic.world import EGO_CENTRE, EGO_SIZE, SIZES, EgoMotion, sample_world

RANGES = {"pedestrian": 40, "motorcycle": 40, "bicycle": 40, "traffic_cone": 30, "barrier": 30}
SECONDS = 3.5


def test_all_ten_classes_stand_in_range_in_nearly_every_scene() -> None:
    missing = 0
    for seed in range(12):
        world = sample_world(np.random.default_rng(seed), SECONDS)
        ego = world.ego.position(SECONDS / 2)
        near = Counter(
            actor.name
            for actor in world.actors
            if np.linalg.norm(actor.position(SECONDS / 2) - ego) < RANGES.get(actor.name, 50)
        )
        missing += len(SIZES.keys() - near.keys())
        assert 18 <= sum(near.values()) <= 45
    assert missing <= 1


@pytest.mark.parametrize("seed", range(3))
def test_nothing_touches_anything_at_any_time(seed: int) -> None:
    world = sample_world(np.random.default_rng(seed), SECONDS)
    grid = np.stack(np.meshgrid(np.linspace(-0.5, 0.5, 21), np.linspace(-0.5, 0.5, 9)), -1).reshape(-1, 2)
    for time in np.linspace(0, SECONDS, 36):
        yaw = world.ego.angles(time)[2]
        ahead = EGO_CENTRE * np.array([np.cos(yaw), np.sin(yaw)])
        boxes = [(world.ego.position(time) + ahead, yaw, EGO_SIZE)]
        boxes += [(actor.position(time), actor.yaw, actor.size) for actor in world.actors]
        for i, (centre, angle, size) in enumerate(boxes):
            points = (grid * [size[1], size[0]]) @ rotation_from_angles(0, 0, angle)[:2, :2].T + centre
            for j, (other, other_angle, other_size) in enumerate(boxes):
                if i == j:
                    continue
                local = (points - other) @ rotation_from_angles(0, 0, other_angle)[:2, :2]
                assert not (np.abs(local) < np.array([other_size[1], other_size[0]]) / 2).all(1).any()


def test_sizes_spread_around_those_of_nuscenes() -> None:
    lengths = [
        actor.size[1]
        for seed in range(8)
        for actor in sample_world(np.random.default_rng(seed), SECONDS).actors
        if actor.name == "car"
    ]
    assert np.mean(lengths) == pytest.approx(SIZES["car"][0][1], rel=0.05)
    assert np.std(lengths) > 0.1


def test_the_same_generator_gives_the_same_scene() -> None:
    one, two, other = (sample_world(np.random.default_rng(seed), SECONDS) for seed in (4, 4, 5))
    assert np.array_equal(one.poses(1.0), two.poses(1.0))
    assert one.light == two.light
    assert one.ground == two.ground
    assert one.light != other.light


def test_a_long_drive_has_more_objects() -> None:
    def crowd(seconds: float) -> int:
        return sum(len(sample_world(np.random.default_rng(seed), seconds).actors) for seed in range(2))

    assert crowd(14.0) > 1.3 * crowd(3.5)


def test_ego_motion_is_a_circle_or_a_line() -> None:
    bend = EgoMotion(np.array([1.0, 2.0]), 0.3, 5.0, 0.1, 0.002)
    step = 1e-4
    for time in (0.0, 1.0, 3.0):
        velocity = (bend.position(time + step) - bend.position(time - step)) / (2 * step)
        yaw = bend.angles(time)[2]
        assert velocity == pytest.approx(5.0 * np.array([np.cos(yaw), np.sin(yaw)]), abs=1e-6)
    line = EgoMotion(np.zeros(2), np.pi / 2, 4.0, 0.0, 0.0)
    assert line.position(2.0) == pytest.approx([0.0, 8.0], abs=1e-12)
