import colorsys

import numpy as np
import pytest

from bevdet_core.data.transforms import MEAN_COLOUR, Compose, GridMask, PhotometricDistortion
from bevdet_core.structures import Sample


@pytest.fixture
def sample() -> Sample:
    rng = np.random.default_rng(0)
    return Sample([rng.integers(0, 256, (64, 96, 3), np.uint8), rng.integers(0, 256, (48, 80, 3), np.uint8)])


def test_distortion_of_probability_zero_changes_nothing(sample: Sample) -> None:
    out = PhotometricDistortion(0.0)(sample, np.random.default_rng(0))
    for image, before in zip(out.images, sample.images, strict=True):
        np.testing.assert_array_equal(image, before)


def test_distortion_is_drawn_for_each_image_and_repeats_with_its_seed(sample: Sample) -> None:
    twins = Sample([sample.images[0], sample.images[0]])
    out = PhotometricDistortion()(twins, np.random.default_rng(4))
    assert (out.images[0] != out.images[1]).any()
    again = PhotometricDistortion()(twins, np.random.default_rng(4))
    for image, other in zip(out.images, again.images, strict=True):
        np.testing.assert_array_equal(image, other)


def test_brightness_and_contrast_stay_in_their_ranges() -> None:
    grey = Sample([np.full((4, 4, 3), 100, np.uint8)])
    only_brightness = PhotometricDistortion(1.0, contrast=(1, 1), saturation=(1, 1), hue=0)
    only_contrast = PhotometricDistortion(1.0, brightness=0, saturation=(1, 1), hue=0)
    bright = [only_brightness(grey, np.random.default_rng(i)).images[0][0, 0, 0] for i in range(200)]
    contrast = [only_contrast(grey, np.random.default_rng(i)).images[0][0, 0, 0] for i in range(200)]
    assert 68 <= min(bright) < 75
    assert 125 < max(bright) <= 132
    assert 50 <= min(contrast) < 55
    assert 145 < max(contrast) <= 150


@pytest.mark.parametrize("colour", [(180, 90, 60), (40, 160, 200)])
def test_hue_and_saturation_change_as_in_hsv(colour: tuple[int, int, int]) -> None:
    hue, chroma, value = colorsys.rgb_to_hsv(*(c / 255 for c in colour))
    sample = Sample([np.full((2, 2, 3), colour, np.uint8)])
    turn = PhotometricDistortion(1.0, brightness=0, contrast=(1, 1), saturation=(0.6, 0.6), hue=18)
    seen = []
    for i in range(60):
        out = turn(sample, np.random.default_rng(i)).images[0][0, 0]
        candidates = [
            (h, c, v)
            for order in ([0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0])
            for h, c, v in [colorsys.rgb_to_hsv(*(float(out[k]) / 255 for k in order))]
        ]
        h, c, v = min(candidates, key=lambda hsv: abs(hsv[0] - hue))  # the channels may have changed places
        assert v == pytest.approx(value, abs=0.01)
        assert c == pytest.approx(chroma * 0.6, abs=0.02)
        seen.append((h - hue) * 360)
    assert max(map(abs, seen)) < 20
    assert max(seen) > 8
    assert min(seen) < -8


def test_grid_mask_blanks_squares_of_the_same_grid_in_all_images(sample: Sample) -> None:
    white = Sample([np.full((64, 96, 3), 255, np.uint8), np.full((64, 96, 3), 255, np.uint8)])
    shares = []
    for seed in range(40):
        out = GridMask(1.0)(white, np.random.default_rng(seed))
        blank = (out.images[0] == MEAN_COLOUR).all(-1)
        assert ((out.images[0] == 255).all(-1) | blank).all()
        np.testing.assert_array_equal(out.images[0], out.images[1])
        rows, columns = blank.any(1), blank.any(0)
        np.testing.assert_array_equal(blank, rows[:, None] & columns)
        shares.append(blank.mean())
    assert 0.15 < np.mean(shares) < 0.35  # a quarter: half of the rows and half of the columns
    assert (white.images[0] == 255).all()


def test_grid_mask_happens_as_often_as_asked(sample: Sample) -> None:
    mask = GridMask(0.7)
    hits = sum(mask(sample, np.random.default_rng(seed)) is not sample for seed in range(300))
    assert 0.6 < hits / 300 < 0.8
    assert GridMask(0.0)(sample, np.random.default_rng(0)) is sample


def test_compose_applies_in_order() -> None:
    add = lambda sample, rng: sample.replace(token=sample.token + "a")  # noqa: E731
    double = lambda sample, rng: sample.replace(token=sample.token * 2)  # noqa: E731
    out = Compose([add, double])(Sample([], token="x"), np.random.default_rng(0))
    assert out.token == "xaxa"
