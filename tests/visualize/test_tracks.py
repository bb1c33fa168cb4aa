"""Objects followed from frame to frame, and their past in the present frame."""

import numpy as np
import pytest
import torch

from bevdet_core.detections import Detections
from bevdet_core.geometry import rotation_about_z
from bevdet_core.structures import Sample, Targets
from bevdet_core.visualize import Objects, draw_birds_eye, follow
from bevdet_core.visualize.tracks import MAX_GAP, Tracker, Trails

CAR, PEDESTRIAN = 0, 1
NAMES = ("car", "pedestrian")


def box(x, y, vx=0.0, vy=0.0, w=2.0, l=4.0):  # noqa: E741
    return [x, y, 0.5, w, l, 1.5, 0.3, vx, vy]


def array(*boxes) -> np.ndarray:
    return np.array(boxes, float).reshape(-1, 9)


def update(tracker: Tracker, time: float, *boxes, labels=None) -> list[int]:
    labels = [CAR] * len(boxes) if labels is None else labels
    return tracker.update(array(*boxes), np.array(labels, int), time).tolist()


def pose(yaw: float, x: float, y: float) -> np.ndarray:
    matrix = np.eye(4)
    matrix[:3, :3] = rotation_about_z(yaw)
    matrix[:3, 3] = (x, y, 0.3)
    return matrix


class TestTracker:
    def test_objects_keep_their_tracks_in_any_order(self):
        tracker = Tracker()
        first = update(tracker, 0.0, box(0, 0), box(20, 0), box(0, 20))
        assert len(set(first)) == 3
        assert update(tracker, 0.5, box(0.5, 20), box(0, 0.5), box(20, 0.5)) == [first[2], first[0], first[1]]

    def test_velocity_tells_crossing_objects_apart(self):
        tracker = Tracker()
        right, left = update(tracker, 0.0, box(-5, 0, vx=20), box(5, 0, vx=-20))
        assert update(tracker, 0.5, box(-5, 0, vx=-20), box(5, 0, vx=20)) == [left, right]

    def test_without_velocity_an_object_is_expected_where_it_was(self):
        tracker = Tracker()
        (known,) = update(tracker, 0.0, box(0, 0, np.nan, np.nan))
        assert update(tracker, 0.5, box(3, 0, np.nan, np.nan)) == [known]

    def test_the_nearest_pair_is_joined_first(self):
        tracker = Tracker()
        (known,) = update(tracker, 0.0, box(0, 0))
        far, near = update(tracker, 0.5, box(3, 0), box(1, 0))
        assert near == known != far

    def test_classes_and_distant_objects_are_not_mixed_up(self):
        tracker = Tracker()
        first = update(tracker, 0.0, box(0, 0), box(20, 0, w=0.6, l=0.6), labels=[CAR, PEDESTRIAN])
        second = update(tracker, 0.5, box(0, 0), box(23, 0, w=0.6, l=0.6), labels=[PEDESTRIAN, PEDESTRIAN])
        assert not set(first) & set(second)

    def test_a_track_outlives_a_missed_frame_but_not_a_long_gap(self):
        tracker = Tracker()
        (known,) = update(tracker, 0.0, box(0, 0, vx=10))
        assert update(tracker, 0.5) == []
        assert update(tracker, 1.0, box(10, 0, vx=10)) == [known]
        assert update(tracker, 1.0 + MAX_GAP + 0.1, box(23, 0, vx=10)) != [known]


class TestTrails:
    def test_past_boxes_stay_where_they_were_while_the_vehicle_moves_and_turns(self):
        trails, here = Trails(), array(box(10, 5), box(-8, 3))  # parked, global frame
        poses = [pose(0.4 * k, 3.0 * k, k) for k in range(4)]
        for k, lidar2global in enumerate(poses):
            in_lidar = seen_from(here, lidar2global)
            objects = Objects.checked(in_lidar, [0, 0], NAMES)
            followed, path = trails.follow(objects, lidar2global, 0.5 * k)
            for index, past in enumerate(followed.trails):
                assert past.shape == (k, 9)
                np.testing.assert_allclose(past, np.repeat(in_lidar[index : index + 1], k, 0), atol=1e-9)
            assert path.shape == (k, 3)
            for place, earlier in zip(path, poses, strict=False):
                np.testing.assert_allclose(
                    lidar2global[:3, :3] @ place + lidar2global[:3, 3], earlier[:3, 3], atol=1e-9
                )

    def test_only_the_last_seconds_are_kept(self):
        trails = Trails(seconds=1.0)
        for k in range(6):
            objects, path = trails.follow(Objects.checked(array(box(k, 0)), [0], NAMES), np.eye(4), 0.5 * k)
        np.testing.assert_allclose(objects.trails[0][:, 0], [3, 4])
        assert len(path) == 2

    def test_a_subset_keeps_what_belongs_to_it(self):
        objects = Objects(array(box(0, 0), box(9, 0)), np.array([0, 1]), None, NAMES)
        objects, _ = Trails().follow(objects, np.eye(4), 0.0)
        for index in (np.array([False, True]), np.array([1])):
            assert objects[index].tracks.tolist() == [1]
            assert len(objects[index].trails) == 1
            assert objects[index].color(0) == objects.color(1)

    def test_the_trail_is_drawn_behind_the_object(self):
        still = Objects.checked(array(box(20, 0)), [0], NAMES)
        trails = Trails()
        trails.follow(Objects.checked(array(box(5, 0, vx=30)), [0], NAMES), np.eye(4), 0.0)
        moving, _ = trails.follow(still, np.eye(4), 0.5)
        before, after = (np.asarray(draw_birds_eye([o], (400, 400))) for o in (still, moving))
        columns = np.flatnonzero((before != after).any((0, 2)))
        metre = 400 / 2.05 / 50
        assert columns[0] == pytest.approx(200 + 3 * metre, abs=4)  # the rear of the earlier box
        assert columns[-1] <= 200 + 20 * metre + 1  # nothing ahead of the centre


def seen_from(boxes: np.ndarray, lidar2global: np.ndarray) -> np.ndarray:
    """Boxes of the global frame in a lidar frame, worked out without the library."""
    out = boxes.copy()
    rotation = lidar2global[:3, :3]
    out[:, :3] = (boxes[:, :3] - lidar2global[:3, 3]) @ rotation
    yaw = boxes[:, 6] - np.arctan2(rotation[1, 0], rotation[0, 0])
    out[:, 6] = np.arctan2(np.sin(yaw), np.cos(yaw))
    out[:, 7:9] = boxes[:, 7:9] @ rotation[:2, :2]
    return out


class TestFollow:
    def sample(self, **changes) -> Sample:
        truth = Targets(torch.tensor([0]), torch.tensor([box(0, 10)]))
        return Sample([], [], truth, "frame", np.eye(4), 1.0).replace(**changes)

    def test_truth_alone_is_followed_and_beside_detections_it_is_the_reference(self):
        (alone,) = follow([(self.sample(), None)], NAMES)
        assert [layer.reference for layer in alone.layers] == [False]
        assert alone.layers[0].tracks is not None
        found = Detections(torch.tensor([0.9, 0.1]), torch.tensor([0, 0]), torch.tensor([box(0, 10)] * 2), NAMES)
        (beside,) = follow([(self.sample(), found)], NAMES, threshold=0.3)
        assert [(len(layer), layer.reference) for layer in beside.layers] == [(1, False), (1, True)]
        assert beside.layers[0].tracks is not None
        assert beside.layers[1].tracks is None

    @pytest.mark.parametrize(
        ("changes", "told"),
        [({"lidar2global": None}, "no pose"), ({"timestamp": None}, "no time"), ({"targets": None}, "neither")],
    )
    def test_a_sample_that_cannot_be_followed_is_named(self, changes, told):
        with pytest.raises(ValueError, match=f"'frame'.*{told}"):
            list(follow([(self.sample(**changes), None)], NAMES))
