"""Transforms of plain images with 2D boxes: what moves the pixels moves the boxes, clips them and drops the empty ones.

The published augmentation of DETR and Deformable DETR mirrors an image and resizes either all of it or a random part.
See `transforms` for what a transform is and where pixels lie.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image

from ..config import CocoConfig
from ..structures import Sample, Targets
from .transforms import Compose, Transform

Size = tuple[int, int]  # (height, width) in pixels


def image_transform(config: CocoConfig, training: bool) -> Transform:
    """How the images of a data set are prepared for the network: augmented in training, resized alone otherwise."""
    if not training:
        return ResizeShortSide((config.short_side,), config.long_side)
    augment = config.augment
    resize: Transform = ResizeShortSide(augment.short_sides, config.long_side)
    if augment.crop:
        crop = CropAndResize(augment.crop_short_sides, augment.crop_size, augment.short_sides, config.long_side)
        resize = Either(crop, resize, augment.crop)
    return Compose([FlipImage(augment.flip), resize] if augment.flip else [resize])


class FlipImage:
    """Mirror an image left to right.

    Args:
        probability: of doing so.
    """

    def __init__(self, probability: float = 0.5) -> None:
        self.probability = probability

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        if rng.random() >= self.probability:
            return sample
        image = _only_image(sample)
        targets = sample.targets
        if targets is not None:
            x0, y0, x1, y1 = targets.boxes.unbind(1)
            targets = Targets(targets.labels, torch.stack([image.shape[1] - x1, y0, image.shape[1] - x0, y1], 1))
        mirrored = Image.fromarray(image).transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return sample.replace(images=[np.asarray(mirrored)], targets=targets)


class ResizeShortSide:
    """Resize an image to a short side and keep its aspect ratio; an image that would come out too long, to a long side.

    Args:
        short_sides: in pixels; one is drawn.
        long_side: the longest that is allowed, in pixels.
    """

    def __init__(self, short_sides: Sequence[int], long_side: int | None = 1333) -> None:
        self.short_sides = tuple(short_sides)
        self.long_side = long_side

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        height, width = _only_image(sample).shape[:2]
        size = resized((height, width), int(rng.choice(self.short_sides)), self.long_side)
        return _cut(sample, (0, 0, width, height), size)


class CropAndResize:
    """Resize an image to a short side, cut out a window, and resize that as `ResizeShortSide` does.

    The outcome is computed from the original pixels at once: what lies where is the same as after the three steps, but
    the image is blurred by one interpolation instead of two.

    Args:
        crop_short_sides: short sides before the cut, in pixels; one is drawn.
        crop_size: (smallest, largest) side of the window, in pixels; width and height are drawn each by itself, and are
            never larger than the resized image.
        short_sides: short sides of the outcome; one is drawn.
        long_side: the longest that is allowed of the outcome.
    """

    def __init__(
        self,
        crop_short_sides: Sequence[int],
        crop_size: tuple[int, int],
        short_sides: Sequence[int],
        long_side: int | None = 1333,
    ) -> None:
        self.crop_short_sides = tuple(crop_short_sides)
        self.crop_size = crop_size
        self.short_sides = tuple(short_sides)
        self.long_side = long_side

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        height, width = _only_image(sample).shape[:2]
        between = resized((height, width), int(rng.choice(self.crop_short_sides)), None)
        smallest, largest = self.crop_size
        window = tuple(int(rng.integers(min(smallest, s), min(largest, s), endpoint=True)) for s in reversed(between))
        left, top = (int(rng.integers(b - w, endpoint=True)) for b, w in zip(reversed(between), window, strict=True))
        size = resized((window[1], window[0]), int(rng.choice(self.short_sides)), self.long_side)
        scale_x, scale_y = width / between[1], height / between[0]
        right, bottom = min((left + window[0]) * scale_x, width), min((top + window[1]) * scale_y, height)
        return _cut(sample, (left * scale_x, top * scale_y, right, bottom), size)


class Either:
    """One of two transforms, drawn for each sample.

    Args:
        first: the one.
        second: the other.
        probability: of the first.
    """

    def __init__(self, first: Transform, second: Transform, probability: float) -> None:
        self.first = first
        self.second = second
        self.probability = probability

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        chosen = self.first if rng.random() < self.probability else self.second
        return chosen(sample, rng)


def resized(size: Size, short_side: int, long_side: int | None) -> Size:
    """The size of an image after resizing to a short side, or to the long side where it would come out longer.

    Rounds as the DETR release does: a shortened short side to the nearest, the other side down.
    """
    short, long = min(size), max(size)
    if long_side is not None and long / short * short_side > long_side:
        short_side = round(long_side * short / long)
        if short_side == 0:  # an image that is as good as a line
            return (1, long_side) if size[0] <= size[1] else (long_side, 1)
    other = int(short_side * long / short)
    return (short_side, other) if size[0] <= size[1] else (other, short_side)


def clipped(targets: Targets, size: Size) -> Targets:
    """Boxes (x0, y0, x1, y1) cut off at the border of an image; those without an area are left out."""
    limit = torch.tensor([size[1], size[0], size[1], size[0]], dtype=targets.boxes.dtype)
    boxes = torch.minimum(targets.boxes.clamp(min=0), limit)
    return Targets(targets.labels, boxes)[(boxes[:, 2:] > boxes[:, :2]).all(1)]


def _cut(sample: Sample, window: tuple[float, float, float, float], size: Size) -> Sample:
    """The part (x0, y0, x1, y1) of an image in pixels, resized, and its boxes."""
    image = _only_image(sample)
    if window == (0, 0, image.shape[1], image.shape[0]) and size == image.shape[:2]:
        return sample
    x0, y0, x1, y1 = window
    part = Image.fromarray(image).resize((size[1], size[0]), Image.Resampling.BILINEAR, box=window)
    targets = sample.targets
    if targets is not None:
        scale = torch.tensor([size[1] / (x1 - x0), size[0] / (y1 - y0)], dtype=torch.float64).repeat(2)
        moved = (targets.boxes - torch.tensor([x0, y0, x0, y0], dtype=torch.float64)) * scale
        targets = clipped(Targets(targets.labels, moved.float()), size)
    return sample.replace(images=[np.asarray(part)], targets=targets)


def _only_image(sample: Sample) -> np.ndarray:
    if len(sample.images) != 1 or sample.cameras is not None:
        raise ValueError(f"sample {sample.token!r} is a rig frame, not a plain image")
    return sample.images[0]
