"""Transforms: small objects that take a sample and a random generator to a new sample.

    transform(sample, rng) -> Sample

A transform draws all its randomness from `rng`, leaves the sample it got untouched, and moves everything that hangs on
what it changes: with an image its calibration and boxes.

Pixel coordinates are continuous and measured from the top left corner of the image: pixel (row i, column j) covers
[j, j + 1) x [i, i + 1) and has its centre at (j + 0.5, i + 0.5), as in `grid_sample(align_corners=False)`. Resizing by
s is therefore u' = s u, mirroring an image of width W is u' = W - u, and neither needs a half-pixel shift.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image

from ..structures import Sample

Transform = Callable[[Sample, np.random.Generator], Sample]

# Blanked pixels get the mean colour of ImageNet, which is close to 0 for the network once it is normalised.
MEAN_COLOUR = (124, 116, 104)


class Compose:
    """Transforms one after the other."""

    def __init__(self, transforms: Sequence[Transform]) -> None:
        self.transforms = list(transforms)

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        for transform in self.transforms:
            sample = transform(sample, rng)
        return sample


def over_frames(change: Callable[[Sample], Sample], sample: Sample) -> Sample:
    """One change of a sample and of every earlier frame that it carries."""
    return change(sample).replace(history=[change(frame) for frame in sample.history])


class EachFrame:
    """A transform of a sample and of its earlier frames, each with draws of its own.

    Args:
        transform: for a single frame.
    """

    def __init__(self, transform: Transform) -> None:
        self.transform = transform

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        return over_frames(lambda frame: self.transform(frame, rng), sample)


class DrawHistory:
    """Give a sample earlier frames of its scene.

    Args:
        earlier: (sample, steps) -> the frame so many steps before it, or None before the beginning of its scene.
        length: frames with the sample itself.
        drop: of the `length` frames before it, all but a random one, as BEVFormer does; otherwise those right before.
    """

    def __init__(self, earlier: Callable[[Sample, int], Sample | None], length: int, drop: bool = True) -> None:
        self.earlier = earlier
        self.length, self.drop = length, drop

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        if self.drop:
            steps = np.sort(1 + rng.permutation(self.length)[1:])[::-1]
        else:
            steps = np.arange(self.length - 1, 0, -1)
        frames = [self.earlier(sample, int(step)) for step in steps]
        return sample.replace(history=[frame for frame in frames if frame is not None])


class PhotometricDistortion:
    """Random brightness, contrast, saturation, hue and order of the channels, drawn for each image by itself.

    As in SSD (Liu et al. 2016) and mmdetection, with pixel values clipped to 0..255; contrast comes before or after the
    change of colour, at random.

    Args:
        probability: of each of the five changes.
        brightness: added to the values, up to this much, of 255.
        contrast: range of the factor on the values.
        saturation: range of the factor on the saturation.
        hue: turn of the hue, up to this many degrees.
    """

    def __init__(
        self,
        probability: float = 0.5,
        brightness: float = 32.0,
        contrast: tuple[float, float] = (0.5, 1.5),
        saturation: tuple[float, float] = (0.5, 1.5),
        hue: float = 18.0,
    ) -> None:
        self.probability = probability
        self.brightness = brightness
        self.contrast = contrast
        self.saturation = saturation
        self.hue = hue

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        return sample.replace(images=[self._distort(image, rng) for image in sample.images])

    def _distort(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        happens = rng.random(5) < self.probability
        shift = rng.uniform(-self.brightness, self.brightness) if happens[0] else 0.0
        factor = rng.uniform(*self.contrast) if happens[1] else 1.0
        saturation = rng.uniform(*self.saturation) if happens[2] else 1.0
        turn = rng.uniform(-self.hue, self.hue) if happens[3] else 0.0
        order = rng.permutation(3) if happens[4] else None
        contrast_first = rng.random() < 0.5

        values = np.arange(256, dtype=np.float32) + shift
        picture = Image.fromarray(image)
        if happens[0] or (happens[1] and contrast_first):
            picture = picture.point(_table(values * factor if contrast_first else values))
        if happens[2] or happens[3]:
            picture = _shift_colours(picture, saturation, turn)
        if happens[1] and not contrast_first:
            picture = picture.point(_table(np.arange(256) * factor))
        out = np.asarray(picture)
        return out if order is None else np.ascontiguousarray(out[..., order])


class GridMask:
    """Blank a grid of squares, the same grid in all images of a sample (Chen et al. 2020, mode 1, as in DETR3D).

    The period is drawn from 2 to the height of the first image. Of each period, the first `ratio` is kept as a bar
    across and as a bar down the image; the squares between the bars are blanked.

    Args:
        probability: of blanking anything.
        ratio: of the bars to the period.
    """

    def __init__(self, probability: float = 0.7, ratio: float = 0.5) -> None:
        self.probability = probability
        self.ratio = ratio

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        if rng.random() >= self.probability:
            return sample
        period = int(rng.integers(2, max(3, sample.images[0].shape[0])))
        bar = min(max(int(period * self.ratio + 0.5), 1), period - 1)
        first_row, first_column = rng.integers(period, size=2)
        images = []
        for image in sample.images:
            rows = (np.arange(image.shape[0]) - first_row) % period >= bar
            columns = (np.arange(image.shape[1]) - first_column) % period >= bar
            blanked = image.copy()
            blanked[np.ix_(rows, columns)] = MEAN_COLOUR
            images.append(blanked)
        return sample.replace(images=images)


def _table(values: np.ndarray) -> list[int]:
    """A look-up table for all three channels, from the new value of each old one [256]."""
    return values.round().clip(0, 255).astype(np.uint8).tolist() * 3


def _shift_colours(picture: Image.Image, saturation: float, turn: float) -> Image.Image:
    hue, chroma, value = picture.convert("HSV").split()
    steps = np.arange(256, dtype=np.float32)
    hue = hue.point(((steps + turn * 256 / 360).round() % 256).astype(np.uint8).tolist())
    chroma = chroma.point((steps * saturation).round().clip(0, 255).astype(np.uint8).tolist())
    return Image.merge("HSV", (hue, chroma, value)).convert("RGB")
