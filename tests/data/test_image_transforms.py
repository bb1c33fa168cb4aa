import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bevdet_core.config import CocoConfig, ImageAugmentConfig, PixelConfig
from bevdet_core.data.image_transforms import (
    CropAndResize,
    FlipImage,
    ResizeShortSide,
    clipped,
    image_transform,
    resized,
)
from bevdet_core.structures import Camera, Sample, Targets, collate

BOX = (20, 40, 70, 100)  # x0, y0, x1, y1


def painted(height: int = 180, width: int = 240, box: tuple[int, int, int, int] = BOX) -> Sample:
    """A black image with one white rectangle, and the rectangle as its target."""
    image = np.zeros((height, width, 3), np.uint8)
    x0, y0, x1, y1 = box
    image[y0:y1, x0:x1] = 255
    return Sample([image], targets=Targets(torch.tensor([3]), torch.tensor([box], dtype=torch.float32)), token="7")


def white_area(image: np.ndarray) -> np.ndarray:
    """(x0, y0, x1, y1) of what is brighter than half."""
    rows, columns = np.nonzero(image[..., 0] > 127)
    return np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])


@pytest.mark.parametrize(
    ("size", "short", "long", "expected"),
    [
        ((480, 640), 800, 1333, (800, 1066)),
        ((640, 480), 800, 1333, (1066, 800)),
        ((427, 640), 800, 1333, (800, 1199)),
        ((300, 640), 800, 1333, (625, 1333)),
        ((640, 300), 800, 1333, (1333, 625)),
        ((500, 500), 480, 1333, (480, 480)),
        ((375, 500), 400, None, (400, 533)),
        ((1, 4000), 800, 1333, (1, 1333)),
    ],
)
def test_sizes_are_those_of_the_release(size, short, long, expected) -> None:
    assert resized(size, short, long) == expected


def test_mirroring_moves_the_box_with_the_pixels() -> None:
    sample = painted()
    out = FlipImage(1.0)(sample, np.random.default_rng(0))
    np.testing.assert_array_equal(out.images[0], sample.images[0][:, ::-1])
    np.testing.assert_array_equal(out.targets.boxes[0], white_area(out.images[0]))
    assert sample.targets.boxes[0].tolist() == list(BOX)  # the sample that went in is untouched
    assert FlipImage(0.0)(sample, np.random.default_rng(0)) is sample


def test_resizing_moves_the_box_with_the_pixels() -> None:
    out = ResizeShortSide((360,), 1333)(painted(), np.random.default_rng(0))
    assert out.images[0].shape == (360, 480, 3)
    np.testing.assert_allclose(out.targets.boxes[0], np.array(BOX) * 2)
    np.testing.assert_allclose(out.targets.boxes[0], white_area(out.images[0]), atol=1)
    assert out.original_sizes == [(180, 240)]
    same = painted()
    assert ResizeShortSide((180,))(same, np.random.default_rng(0)) is same


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), height=st.integers(90, 260), width=st.integers(90, 260))
def test_cropping_moves_clips_and_drops_boxes(seed: int, height: int, width: int) -> None:
    sample = painted(height, width, (20, 30, 60, 80))
    sides = (96, 128, 160)
    out = CropAndResize((80, 100), (64, 96), sides, 213)(sample, np.random.default_rng(seed))
    image, targets = out.images[0], out.targets
    assert min(image.shape[:2]) in sides or max(image.shape[:2]) in (212, 213)
    if len(targets):
        assert targets.labels.tolist() == [3]
        x0, y0, x1, y1 = targets.boxes[0].tolist()
        assert 0 <= x0 < x1 <= image.shape[1]
        assert 0 <= y0 < y1 <= image.shape[0]
        if x1 - x0 > 6 and y1 - y0 > 6:  # a sliver may drown in the interpolation
            np.testing.assert_allclose(targets.boxes[0], white_area(image), atol=2.5)
    else:
        assert (image > 127).sum() <= 3 * 3 * max(image.shape)


def test_the_window_is_drawn_as_published() -> None:
    """Its sides, seen in the image that the first of the three steps would give, cover 384 to 600."""
    rng = np.random.default_rng(0)
    ramp = np.zeros((480, 640, 3), np.uint8)
    boxes = torch.tensor([[0.0, 0.0, 640.0, 480.0]])
    crop = CropAndResize((500,), (384, 600), (800,), None)
    shapes = []
    for _ in range(200):
        out = crop(Sample([ramp], targets=Targets(torch.zeros(1, dtype=torch.int64), boxes)), rng)
        height, width = out.images[0].shape[:2]
        assert min(height, width) == 800
        assert out.targets.boxes[0].tolist() == [0, 0, width, height]
        shapes.append(width / height)
    assert 384 / 500 - 0.01 < min(shapes) < 0.85
    assert 1.4 < max(shapes) < 600 / 384 + 0.01


def test_the_window_may_lie_anywhere() -> None:
    """Half of 200 x 300 pixels is 100 x 150, of which 50 x 50 are cut out and enlarged 8 times: 4 times in all."""
    crop = CropAndResize((100,), (50, 50), (400,), None)
    corners = []
    for seed in range(300):
        sample = Sample([np.zeros((200, 300, 3), np.uint8)])
        boxes = torch.tensor([[x, y, x + 1.0, y + 1.0] for x in range(0, 300, 10) for y in range(0, 200, 10)])
        out = crop(sample.replace(targets=Targets(torch.arange(len(boxes)), boxes)), np.random.default_rng(seed))
        assert out.images[0].shape == (400, 400, 3)
        whole = (out.targets.boxes.frac() == 0).all(1) & (out.targets.boxes < 400).all(1)
        seen = out.targets[whole & (out.targets.boxes > 0).all(1)]
        assert 64 <= len(seen) <= 100
        assert torch.equal(seen.boxes[:, 2:] - seen.boxes[:, :2], torch.full((len(seen), 2), 4.0))
        corners.append((boxes[seen.labels] - seen.boxes / 4)[0, :2].numpy())
    np.testing.assert_array_equal(np.min(corners, 0), [0, 0])
    np.testing.assert_array_equal(np.max(corners, 0), [200, 100])


def test_clipping_drops_what_has_no_area() -> None:
    boxes = torch.tensor([[-5.0, -5, 5, 5], [10, 10, 30, 30], [20, 0, 25, 9], [3, 3, 3, 8], [6, 6, 2, 9], [1, 1, 2, 2]])
    out = clipped(Targets(torch.arange(6), boxes), (10, 20))
    assert out.labels.tolist() == [0, 5]
    assert out.boxes.tolist() == [[0, 0, 5, 5], [1, 1, 2, 2]]


def test_an_image_without_boxes_stays_one() -> None:
    empty = Targets(torch.zeros(0, dtype=torch.int64), torch.zeros(0, 4))
    transform = image_transform(CocoConfig(augment=ImageAugmentConfig(flip=1.0, crop=1.0)), training=True)
    out = transform(painted().replace(targets=empty), np.random.default_rng(0))
    assert out.targets.boxes.shape == (0, 4)
    assert out.targets.boxes.dtype == torch.float32
    assert transform(painted().replace(targets=None), np.random.default_rng(0)).targets is None


def test_evaluation_resizes_alone() -> None:
    transform = image_transform(CocoConfig(short_side=90, long_side=100), training=False)
    for seed in range(5):
        out = transform(painted(), np.random.default_rng(seed))
        assert out.images[0].shape[:2] == (75, 100)


def test_augmentation_depends_on_the_generator_alone() -> None:
    config = CocoConfig(augment=ImageAugmentConfig(short_sides=(90, 120), crop_short_sides=(100,), crop_size=(60, 90)))
    transform = image_transform(config, training=True)
    outs = [transform(painted(), np.random.default_rng(seed)) for seed in (*range(12), *range(12))]
    for first, second in zip(outs[:12], outs[12:], strict=True):
        np.testing.assert_array_equal(first.images[0], second.images[0])
        assert torch.equal(first.targets.boxes, second.targets.boxes)
    assert len({out.images[0].tobytes() for out in outs}) > 6


def test_settings_switch_the_steps_off() -> None:
    plain = CocoConfig(augment=ImageAugmentConfig(flip=0.0, crop=0.0, short_sides=(180,)))
    sample = painted()
    assert image_transform(plain, training=True)(sample, np.random.default_rng(0)) is sample


def test_targets_reach_the_network_as_fractions() -> None:
    sample = ResizeShortSide((360,))(painted(), np.random.default_rng(0))
    batch, targets = collate([sample], PixelConfig((0, 0, 0), (1, 1, 1)))
    assert batch.images.shape == (1, 1, 3, 384, 480)
    x0, y0, x1, y1 = BOX
    expected = [(x0 + x1) / 480, (y0 + y1) / 360, (x1 - x0) / 240, (y1 - y0) / 180]
    np.testing.assert_allclose(targets[0].boxes[0], expected, rtol=1e-6)


def test_a_rig_frame_is_refused() -> None:
    image = painted().images[0]
    rig = Sample([image], [Camera("front", np.eye(3), np.eye(4))], token="rig")
    with pytest.raises(ValueError, match="'rig' is a rig frame"):
        ResizeShortSide((90,))(rig, np.random.default_rng(0))
