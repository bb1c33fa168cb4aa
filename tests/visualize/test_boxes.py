"""Pictures of detections and of samples: what is drawn, where, and what is refused."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from bevdet_core import boxes3d
from bevdet_core.detections import Detections
from bevdet_core.geometry import project_points
from bevdet_core.structures import Camera, Sample, Targets
from bevdet_core.visualize import Objects, class_color, draw_birds_eye, draw_camera, draw_detections, draw_sample
from bevdet_core.visualize.cameras import clip_segments

NAMES = ("car", "pedestrian")
GREY = (90, 90, 90)


def looking(azimuth: float, name: str = "CAM", width: int = 160, height: int = 90) -> Camera:
    """A camera at the origin of the lidar frame; azimuth in degrees from straight ahead, positive to the left."""
    a = np.radians(azimuth)
    pose = np.eye(4)
    pose[:3, :3] = np.array(
        [[np.cos(a), np.sin(a), 0], [0, 0, -1], [-np.sin(a), np.cos(a), 0]]  # right, down, forward
    ).T
    return Camera(name, np.array([[width / 2, 0, width / 2], [0, width / 2, height / 2], [0, 0, 1.0]]), pose)


def flat(color, width: int = 160, height: int = 90) -> np.ndarray:
    return np.full((height, width, 3), color, np.uint8)


def box(x, y, z=0.0, w=2.0, l=4.0, h=1.5, yaw=np.pi / 2, vx=0.0, vy=0.0):  # noqa: E741
    return [x, y, z, w, l, h, yaw, vx, vy]


def objects(*boxes, labels=None, scores=None, **kwargs) -> Objects:
    labels = [0] * len(boxes) if labels is None else labels
    array = np.array(boxes, float).reshape(-1, 9)
    return Objects.checked(array, np.array(labels, int), NAMES, scores, **kwargs)


def detections(boxes, labels, scores, sample, names=NAMES) -> Detections:
    width = 9 if sample is None or sample.cameras else 4
    return Detections(
        torch.tensor(scores, dtype=torch.float32),
        torch.tensor(labels, dtype=torch.int64),
        torch.tensor(boxes, dtype=torch.float32).reshape(-1, width),
        names,
        sample,
    )


def rig(*azimuths: float) -> Sample:
    cameras = [looking(azimuth, f"CAM_{k}") for k, azimuth in enumerate(azimuths)]
    return Sample([flat(GREY) for _ in cameras], cameras, token="frame")


def near_color(picture, color, tolerance=40) -> np.ndarray:
    """Which pixels [H, W] have about this colour."""
    return np.abs(np.asarray(picture).astype(int) - color).max(-1) <= tolerance


def plain(image, camera):
    return np.asarray(draw_camera(image, camera, [], title=False))


class TestCamera:
    def draw(self, *boxes, image=None, camera=None, **kwargs):
        image, camera = flat(GREY, 320, 180) if image is None else image, camera or looking(0, "CAM", 320, 180)
        return np.asarray(draw_camera(image, camera, [objects(*boxes, **kwargs)], title=False))

    def test_nothing_is_drawn_where_there_is_no_image(self):
        seen = replace(objects(box(0, 12)), trails=(np.array([box(0, 8), box(0, 10)]),))
        for hidden, drawn in ((False, True), (True, False)):
            camera = replace(looking(0), hidden=hidden)
            bare, full = (np.asarray(draw_camera(flat(GREY), camera, layers)) for layers in ([], [seen]))
            assert (bare != full).any() == drawn

    def test_corners_and_edges_sit_where_they_project(self):
        camera = looking(10, "CAM", 640, 360)
        boxes = np.array([box(-1, 12, yaw=0.7)])
        picture = self.draw(*boxes, image=flat(GREY, 640, 360), camera=camera)
        ends = boxes3d.corners(torch.from_numpy(boxes))[0][torch.tensor(boxes3d.EDGES)]  # [12, 2, 3]
        points = torch.cat([ends[:, 0], ends[:, 1], ends.mean(1)])
        pixels, depth = project_points(points[None], torch.from_numpy(camera.lidar2img)[None, None])
        assert (depth > 0).all()
        colored = near_color(picture, class_color(0))
        for u, v in pixels[0, 0].numpy():
            assert colored[int(v) - 1 : int(v) + 2, int(u) - 1 : int(u) + 2].any(), (u, v)

    def test_photograph_is_kept_where_nothing_is_drawn(self):
        image = np.random.default_rng(0).integers(0, 255, (180, 320, 3), dtype=np.uint8)
        picture = self.draw(box(4, 12), image=image)
        untouched = (slice(None), slice(0, 100))
        np.testing.assert_array_equal(picture[untouched], plain(image, looking(0, "CAM", 320, 180))[untouched])

    @pytest.mark.parametrize("boxed", [box(0, -12), box(3, -0.9, l=1), box(60, 5), box(0, 12, z=40)])
    def test_box_that_is_out_of_sight_draws_nothing(self, boxed):
        np.testing.assert_array_equal(self.draw(boxed), flat(GREY, 320, 180))

    def test_box_that_passes_the_camera_stays_on_its_side(self):
        picture = self.draw(box(2, 0, l=20))  # from 10 m behind to 10 m ahead, on the right
        colored = (picture != GREY).any(-1)
        assert colored[:, 200:].any()
        assert not colored[:, :160].any()

    def test_camera_inside_a_box_sees_only_the_face_ahead_and_the_edges_to_it(self):
        picture = self.draw(box(0, 0, w=4, l=20, h=3))
        colored = near_color(picture, class_color(0))
        assert colored[:, 160].sum() <= 8  # the upper and the lower edge of the far face cross the middle column
        assert colored.any()

    def test_front_face_is_filled(self):
        toward, away = self.draw(box(0, 8, yaw=-np.pi / 2)), self.draw(box(0, 8))
        both = [picture[90 + dv, 160].astype(int) for picture, dv in ((toward, 8), (away, 8))]
        tinted = 0.3 * np.array(class_color(0)) + 0.7 * np.array(GREY)
        for pixel in both:
            assert np.abs(pixel - tinted).max() < 12
        fill = [near_color(picture, tinted, 12).sum() for picture in (toward, away)]
        assert fill[0] > 1.5 * fill[1]  # 6 m away against 10 m

    def test_nearer_box_covers_the_farther_one(self):
        far, near = box(0, 20, w=2, h=2), box(0, 10, w=1, h=1)
        a = self.draw(far, near, labels=[0, 1])
        b = self.draw(near, far, labels=[1, 0])
        np.testing.assert_array_equal(a, b)

    def test_reference_is_white_dashes(self):
        picture = self.draw(box(0, 8), reference=True)
        white = near_color(picture, (255, 255, 255), 90)
        assert white.any()
        assert not near_color(picture, class_color(0)).any()
        row = np.flatnonzero(white.any(1))[0]
        ends = np.flatnonzero(np.diff(white[row : row + 2].any(0).astype(int)))
        assert len(ends) > 4, "the upper edge has gaps"

    def test_size_of_the_result_moves_the_boxes_with_the_image(self):
        image, camera = flat(GREY, 320, 180), looking(0, "CAM", 320, 180)
        layer = [objects(box(1, 8))]
        whole = near_color(draw_camera(image, camera, layer, title=False), class_color(0))
        half = near_color(draw_camera(image, camera, layer, (160, 90), title=False), class_color(0))
        assert half.shape == (90, 160)
        lower = [np.argwhere(mask[len(mask) // 2 :]) for mask in (whole, half)]  # the name tag is above
        for extreme in (np.max, np.min):
            np.testing.assert_allclose(extreme(lower[0], 0) / 2, extreme(lower[1], 0), atol=1)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.lists(st.floats(-30, 30), min_size=6, max_size=6))
def test_clipped_segment_is_what_dense_sampling_sees(numbers):
    width, height = 160, 90
    ends = np.array(numbers).reshape(2, 3) @ np.array([[80, 0, 0], [0, 80, 0], [80, 45, 1.0]])
    found = clip_segments(ends[None], (width, height))
    points = ends[0] + np.linspace(0, 1, 4001)[:, None] * (ends[1] - ends[0])
    points = points[points[:, 2] > 0.1 + 1e-9]
    pixels = points[:, :2] / points[:, 2:]
    pixels = pixels[((pixels > 1e-6) & (pixels < np.array([width, height]) - 1e-6)).all(1)]
    if not len(found):
        assert not len(pixels)
        return
    assert (found >= -1e-6).all()
    assert (found <= np.array([width, height]) + 1e-6).all()
    low, high = found[0].min(0) - 1e-6, found[0].max(0) + 1e-6
    assert ((pixels >= low) & (pixels <= high)).all()


class TestBirdsEye:
    SIZE = (400, 400)

    def draw(self, *boxes, **kwargs):
        return np.asarray(draw_birds_eye([objects(*boxes, **kwargs)], self.SIZE))

    def centre(self, *boxes) -> np.ndarray:
        """(to the right, ahead) of what has the colour of a car, in pixels from the middle."""
        rows, columns = np.nonzero(near_color(self.draw(*boxes), class_color(0), 60))
        return np.array([columns.mean() - 199.5, 199.5 - rows.mean()])

    def test_ahead_is_up_right_is_right_and_distances_are_true(self):
        ahead, right, far = self.centre(box(0, 20)), self.centre(box(20, 0)), self.centre(box(0, 40))
        scale = far[1] - ahead[1]  # 20 m
        assert 60 < scale < 80  # 100 m fill 400 pixels but for a margin
        np.testing.assert_allclose(right - (0, right[1]), [scale, 0], atol=2)
        np.testing.assert_allclose(ahead, [0, scale], atol=3)

    def test_heading_line_leads_to_the_nose(self):
        picture = near_color(self.draw(box(0, 20, w=6, l=12)), class_color(0), 60)
        rows = np.flatnonzero(picture.any(1))
        inner = picture[rows[0] + 4 : rows[-1] - 3, 195:205].any(1)
        half = len(inner) // 2
        assert inner[: half - 2].all()
        assert not inner[half + 2 :].any()

    def test_velocity_arrow_ends_where_the_object_is_in_a_second(self):
        still, moving = (self.draw(box(0, 10, vx=v)) for v in (0.0, 15.0))
        new = np.flatnonzero((still != moving).any((0, 2)))
        metre = 400 / 2.05 / 50
        assert new[-1] == pytest.approx(200 + 15 * metre, abs=2)

    def test_unknown_velocity_draws_no_arrow(self):
        unknown = self.draw(box(0, 10, vx=np.nan, vy=np.nan))
        np.testing.assert_array_equal(unknown, self.draw(box(0, 10)))

    def test_points_show_where_they_are(self):
        points = np.array([[30.0, 20.0, 1.0], [-30.0, -20.0, 2.0], [np.nan, 0, 0], [1e6, 0, 0]])
        changed = (np.asarray(draw_birds_eye([], self.SIZE, points=points)) != self.draw()).any(-1)
        metre = 400 / 2.05 / 50
        expected = {(round(200 - y * metre), round(200 + x * metre)) for x, y in ((30, 20), (-30, -20))}
        rows, columns = np.nonzero(changed)
        assert len(rows) > 0
        for row, column in zip(rows, columns, strict=True):
            assert min(max(abs(row - r), abs(column - c)) for r, c in expected) <= 1

    def test_absurdly_far_and_large_boxes_do_not_break_the_picture(self):
        picture = self.draw(box(1e30, 0), box(0, 1e12, vx=1e20, vy=1.0), box(0, 0, w=1e9, l=1e9))
        assert picture.shape == (400, 400, 3)


class TestFrame:
    @pytest.mark.parametrize("azimuths", [(0,), (0, 120, -120), (0, 45, -45, 99, -99, 153, -153), tuple(range(11))])
    def test_any_rig_shows_every_camera_once(self, azimuths):
        sizes = [(160 - 10 * (k % 3), 90 + 7 * (k % 4)) for k in range(len(azimuths))]
        colors = [(250 - 20 * k, 20 * k, 255 * (k % 2)) for k in range(len(azimuths))]
        sample = Sample(
            [flat(color, *size) for color, size in zip(colors, sizes, strict=True)],
            [
                looking(azimuth, f"CAM_{k}", *size)
                for k, (azimuth, size) in enumerate(zip(azimuths, sizes, strict=True))
            ],
        )
        picture = draw_detections(detections([], [], [], sample), width=960)
        assert picture.width == 960
        for color, (width, height) in zip(colors, sizes, strict=True):
            rows, columns = np.nonzero(near_color(picture, color, 0))
            shown = np.ptp(columns) + 1, np.ptp(rows) + 1
            assert shown[0] / shown[1] == pytest.approx(width / height, rel=0.05)
            assert len(rows) > 0.7 * shown[0] * shown[1]  # one rectangle, but for the name

    def test_front_row_over_back_row_from_left_to_right(self):
        order = {"FRONT": 0, "FRONT_RIGHT": -55, "FRONT_LEFT": 55, "BACK": 180, "BACK_LEFT": 110, "BACK_RIGHT": -110}
        colors = {name: (40 * k, 250 - 40 * k, 90) for k, name in enumerate(order)}
        sample = Sample([flat(colors[n]) for n in order], [looking(a, f"CAM_{n}") for n, a in order.items()])
        picture = np.asarray(draw_detections(detections([], [], [], sample), width=960))
        places = {n: np.argwhere(near_color(picture, c, 0)).mean(0) for n, c in colors.items()}
        for row in (("FRONT_LEFT", "FRONT", "FRONT_RIGHT"), ("BACK_LEFT", "BACK", "BACK_RIGHT")):
            assert places[row[0]][1] < 320 < places[row[1]][1] < 640 < places[row[2]][1]
        assert places["FRONT"][0] < 180 < places["BACK"][0] < 400

    def test_threshold_and_truth(self):
        sample = rig(0)
        found = detections([box(0, 10), box(5, 10)], [0, 1], [0.9, 0.2], sample)
        picture = draw_detections(found, threshold=0.3)
        assert near_color(picture, class_color(0)).any()
        assert not near_color(picture, class_color(1)).any()
        everything = draw_detections(found, threshold=0.1)
        assert near_color(everything, class_color(1)).any()
        truth = Targets(torch.tensor([0]), torch.tensor([box(0, 15, vx=np.nan, vy=np.nan)]))
        changed = np.asarray(draw_detections(found, truth=truth)) != np.asarray(picture)
        cameras = slice(0, 600)
        assert changed[cameras].any()
        assert near_color(draw_detections(found, truth=truth), (255, 255, 255), 60)[cameras].any()

    def test_sample_is_drawn_in_class_colours_and_written(self, tmp_path):
        sample = rig(0, 180).replace(targets=Targets(torch.tensor([0, 1]), torch.tensor([box(0, 9), box(1, -9)])))
        picture = draw_sample(sample, NAMES, tmp_path / "new" / "a.png", width=640)
        assert near_color(picture, class_color(0)).any()
        assert near_color(picture, class_color(1)).any()
        with Image.open(tmp_path / "new" / "a.png") as written:
            np.testing.assert_array_equal(np.asarray(written), np.asarray(picture))

    def test_threads_draw_the_same_picture(self):
        found = detections([box(0, 10, vx=3), box(5, 20)], [0, 1], [0.9, 0.8], rig(0, 120, -120))
        with ThreadPoolExecutor(4) as pool:
            pictures = list(pool.map(lambda _: np.asarray(draw_detections(found, width=640)), range(8)))
        for picture in pictures[1:]:
            np.testing.assert_array_equal(picture, pictures[0])

    def test_detections_draw_themselves(self):
        found = detections([box(0, 10)], [0], [0.9], rig(0))
        np.testing.assert_array_equal(np.asarray(found.draw()), np.asarray(draw_detections(found)))


class TestPlainImage:
    def sample(self):
        return Sample([flat(GREY, 200, 120)], token="image.jpg")

    def test_outline_and_tint_are_at_the_box(self):
        picture = np.asarray(draw_detections(detections([[50, 40, 149, 99]], [1], [0.8], self.sample())))
        assert picture.shape == (120, 200, 3)
        for row, column in ((70, 50), (70, 149), (99, 100)):
            assert tuple(picture[row, column]) == class_color(1)
        assert tuple(picture[70, 100]) != GREY
        np.testing.assert_array_equal(picture[:, :45], flat(GREY, 45, 120))

    def test_box_outside_of_the_image_and_no_box_at_all(self):
        picture = draw_detections(detections([], [], [], self.sample()))
        np.testing.assert_array_equal(np.asarray(picture), flat(GREY, 200, 120))
        picture = draw_detections(detections([[-500, -500, 900, 900]], [0], [0.8], self.sample()))
        assert picture.size == (200, 120)

    def test_names_do_not_cover_each_other(self):
        boxes = [[50, 40, 149, 99]]
        once = draw_detections(detections(boxes, [1], [0.8], self.sample()))
        twice = draw_detections(detections(boxes * 2, [1, 0], [0.8, 0.4], self.sample()))
        tag = (slice(26, 36), slice(52, 110))
        np.testing.assert_array_equal(np.asarray(once)[tag], np.asarray(twice)[tag])

    def test_truth(self):
        sample = self.sample().replace(targets=Targets(torch.tensor([0]), torch.tensor([[20.0, 20, 80, 80]])))
        assert near_color(draw_sample(sample, NAMES), class_color(0), 0).any()
        found = detections([[100, 40, 149, 99]], [1], [0.8], sample)
        assert near_color(draw_detections(found, truth=sample.targets), (255, 255, 255), 20)[20, 20:80].any()


class TestWrongInput:
    def check(self, message, found, **options):
        with pytest.raises(ValueError, match=message):
            draw_detections(found, **options)

    def test_no_sample(self):
        self.check("detections.sample is None", detections([box(0, 9)], [0], [0.9], None))

    def test_no_calibration(self):
        found = detections([box(0, 9)], [0], [0.9], rig(0))
        found.sample = Sample([flat(GREY)], token="abc")
        self.check("'abc' has no calibrated camera", found)

    def test_2d_boxes_of_several_images(self):
        found = detections([[0, 0, 9, 9]], [0], [0.9], Sample([flat(GREY)] * 2, token="abc"))
        self.check("'abc': 2D boxes belong to one image, got 2", found)

    def test_truth_of_another_kind(self):
        truth = Targets(torch.tensor([0]), torch.tensor([[0.0, 0, 9, 9]]))
        self.check(r"one kind, got boxes of \[4, 9\]", detections([box(0, 9)], [0], [0.9], rig(0)), truth=truth)

    def test_box_that_is_not_finite(self):
        self.check("box 1 is not finite", detections([box(0, 9), box(np.nan, 9)], [0, 0], [0.9, 0.9], rig(0)))

    def test_label_without_a_name(self):
        self.check("box 0 has label 7, but there are 2", detections([box(0, 9)], [7], [0.9], rig(0)))
        truth = Targets(torch.tensor([-1]), torch.tensor([box(0, 9)]))
        self.check("ground truth: box 0", detections([box(0, 9)], [0], [0.9], rig(0)), truth=truth)

    def test_labels_of_another_number(self):
        truth = Targets(torch.tensor([0, 1]), torch.tensor([box(0, 9)]))
        self.check(r"1 boxes need labels \[1\], got \[2\]", detections([box(0, 9)], [0], [0.9], rig(0)), truth=truth)

    def test_boxes_of_no_kind(self):
        truth = Targets(torch.tensor([0]), torch.zeros(1, 7))
        with pytest.raises(ValueError, match=r"ground truth: boxes must be \[n, 4\].* or \[n, 9\].*, got \[1, 7\]"):
            draw_sample(rig(0).replace(targets=truth), NAMES)

    def test_sample_without_targets(self):
        with pytest.raises(ValueError, match="'frame' has no targets"):
            draw_sample(rig(0), NAMES)

    @pytest.mark.parametrize("name", ["a.xyz", "a"])
    def test_suffix_of_no_picture(self, tmp_path, name):
        self.check("is no picture format", detections([], [], [], rig(0)), path=tmp_path / name)
        assert not list(tmp_path.iterdir())
