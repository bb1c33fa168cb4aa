"""Transforms of rig frames: what moves an image moves its intrinsics, what moves the scene its boxes and poses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from PIL import Image

from .. import boxes3d
from ..config import NuScenesConfig
from ..geometry import rotation_about_z
from ..structures import Camera, Sample
from .can_bus import mirrored_signals
from .rig import failed_camera, with_blanks
from .transforms import (
    MEAN_COLOUR,
    Compose,
    EachFrame,
    GridMask,
    PhotometricDistortion,
    Transform,
    over_frames,
)


def rig_transform(config: NuScenesConfig, training: bool) -> Transform:
    """How the frames of a data set are prepared for the network: augmented in training, resized alone otherwise.

    What changes images is drawn for each frame of a sample's history anew; what changes the scene is the same in all.
    """
    resize: list[Transform] = [] if config.input_size is None else [ResizeTo(config.input_size)]
    if not training:
        return EachFrame(Compose([CamerasByName(config.cameras), *resize]))
    augment = config.augment
    if augment.resize != (1.0, 1.0) or augment.flip or augment.crop:
        resize = [RandomResizeCropFlip(config.input_size, augment.resize, augment.crop, augment.flip, augment.same)]
    images = [*resize]
    if augment.photometric:
        images.append(PhotometricDistortion(augment.photometric))
    if augment.grid_mask:
        images.append(GridMask(augment.grid_mask))
    steps: list[Transform] = [EachFrame(Compose(images))]
    if augment.mirror:
        steps.append(MirrorScene(augment.mirror))
    if augment.rotation or augment.scale != (1.0, 1.0):
        steps.append(TurnAndScaleScene(augment.rotation, augment.scale))
    if config.object_range is not None:
        steps.append(KeepInRange(config.object_range))
    return Compose(steps)


class CamerasByName:
    """Put the cameras of a rig that go by the names a detector knows into its order; those that are not there failed.

    A rig whose cameras have other names stays as it is.

    Args:
        names: of the detector's cameras.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.names = tuple(names)

    def __call__(self, sample: Sample, rng: np.random.Generator | None = None) -> Sample:
        """Raises ValueError where only some names are known, or one comes twice."""
        found = [camera.name for camera in sample.cameras or ()]
        if sample.cameras is None or tuple(found) == self.names or not set(found) & set(self.names):
            return sample
        strange = [name for name in found if name not in self.names or found.count(name) > 1]
        if strange:
            raise ValueError(
                f"sample {sample.token!r}: camera {strange[0]!r} comes twice or is none of the detector's "
                f"({', '.join(self.names)}); a rig has these names for all of its cameras, or for none"
            )
        places = [found.index(name) if name in found else None for name in self.names]
        return sample.replace(
            images=with_blanks([None if i is None else sample.images[i] for i in places]),
            cameras=[
                failed_camera(name) if i is None else sample.cameras[i]
                for name, i in zip(self.names, places, strict=True)
            ],
            original_sizes=[(0, 0) if i is None else sample.original_sizes[i] for i in places],
        )


class ResizeTo:
    """Resize every image to a width, keep its aspect ratio, and cut off at the top what is higher than the height.

    An image that comes out lower stays lower; batching pads it.

    Args:
        size: (height, width) in pixels.
    """

    def __init__(self, size: tuple[int, int]) -> None:
        self.size = size

    def __call__(self, sample: Sample, rng: np.random.Generator | None = None) -> Sample:
        images, cameras = [], []
        for n, image in enumerate(sample.images):
            width = self.size[1]
            height = round(image.shape[0] * width / image.shape[1])
            window = (0, max(height - self.size[0], 0), width, min(height, self.size[0]))
            images.append(_resample(image, (height, width), window))
            if sample.cameras is not None:
                cameras.append(_moved(sample.cameras[n], _resize_matrix(image, (height, width), window)))
        return sample.replace(images=images, cameras=cameras if sample.cameras is not None else None)


class RandomResizeCropFlip:
    """Resize every image by a random factor, crop it to one size, mirror it or not.

    A window that reaches beyond a small image shows the mean colour there.

    Args:
        size: (height, width) of the outcome; a factor of 1 resizes to this width. None: that of each image.
        factor: range of the factor.
        crop: the window lies at a random place along x (True), or in the middle (False); always at the bottom.
        flip: probability of mirroring left to right.
        same: draw once for all images, instead of once for each.
    """

    def __init__(
        self, size: tuple[int, int] | None, factor: tuple[float, float], crop: bool, flip: float, same: bool = False
    ) -> None:
        self.size = size
        self.factor = factor
        self.crop = crop
        self.flip = flip
        self.same = same

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        images, cameras = [], []
        draws = rng.random((len(sample.images), 3))  # for the factor, the place and the mirroring of each image
        if self.same:
            draws[:] = draws[0]
        for n, (image, draw) in enumerate(zip(sample.images, draws, strict=True)):
            size = self.size or image.shape[:2]
            low, high = self.factor
            scale = (low + draw[0] * (high - low)) * size[1] / image.shape[1]
            scaled = (round(image.shape[0] * scale), round(image.shape[1] * scale))
            spare = scaled[1] - size[1]
            left = round(max(spare, 0) * draw[1]) if self.crop else round(spare / 2)
            window = (left, scaled[0] - size[0], size[1], size[0])
            out = _resample(image, scaled, window)
            matrix = _resize_matrix(image, scaled, window)
            if draw[2] < self.flip:
                out = np.ascontiguousarray(out[:, ::-1])
                matrix = np.array([[-1.0, 0, size[1]], [0, 1, 0], [0, 0, 1]]) @ matrix
            images.append(out)
            if sample.cameras is not None:
                cameras.append(_moved(sample.cameras[n], matrix))
        return sample.replace(images=images, cameras=cameras if sample.cameras is not None else None)


class MirrorScene:
    """Mirror the world left to right: the pictures, where cameras look, and the objects.

    Cameras called LEFT and RIGHT change places, so that each slot of the rig still looks where it did.

    Args:
        probability: of mirroring.
    """

    def __init__(self, probability: float) -> None:
        self.probability = probability

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        return over_frames(self._mirrored, sample) if rng.random() < self.probability else sample

    def _mirrored(self, sample: Sample) -> Sample:
        across = np.diag([-1.0, 1, 1, 1])  # mirrors x, of the lidar frame and of a camera alike
        images = [np.ascontiguousarray(image[:, ::-1]) for image in sample.images]
        cameras, targets, lidar2global = sample.cameras, sample.targets, sample.lidar2global
        if cameras is not None:
            cameras = [
                replace(
                    camera,
                    intrinsic=np.array([[-1.0, 0, image.shape[1]], [0, 1, 0], [0, 0, 1]])
                    @ camera.intrinsic
                    @ across[:3, :3],
                    camera2lidar=across @ camera.camera2lidar @ across,
                )
                for camera, image in zip(cameras, images, strict=True)
            ]
            slots = _opposite_slots([camera.name for camera in cameras])
            images = [images[slot] for slot in slots]
            cameras = [replace(cameras[slot], name=cameras[n].name) for n, slot in enumerate(slots)]
        if targets is not None:
            x, rest, yaw, vx, vy = targets.boxes.split([1, 5, 1, 1, 1], 1)
            targets = replace(targets, boxes=torch.cat([-x, rest, torch.pi - yaw, -vx, vy], 1))
        if lidar2global is not None:
            lidar2global = lidar2global @ across
        lidar2ego, can_bus = sample.lidar2ego, sample.can_bus
        if lidar2ego is not None:
            lidar2ego = np.diag([1.0, -1, 1, 1]) @ lidar2ego @ across  # the ego's y points to the left
        if can_bus is not None:
            can_bus = mirrored_signals(can_bus)
        return sample.replace(
            images=images,
            cameras=cameras,
            targets=targets,
            lidar2global=lidar2global,
            lidar2ego=lidar2ego,
            can_bus=can_bus,
        )


class TurnAndScaleScene:
    """Turn the lidar frame about z and scale it, with all boxes and poses, so that images and projections stay true.

    Args:
        rotation: up to this many radians either way.
        scale: range of the factor.
    """

    def __init__(self, rotation: float, scale: tuple[float, float] = (1.0, 1.0)) -> None:
        self.rotation = rotation
        self.scale = scale

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        old2new = np.eye(4)
        old2new[:3, :3] = rotation_about_z(rng.uniform(-self.rotation, self.rotation)) * rng.uniform(*self.scale)
        return over_frames(lambda frame: self._moved(frame, old2new), sample)

    def _moved(self, sample: Sample, old2new: np.ndarray) -> Sample:
        cameras, targets, lidar2global = sample.cameras, sample.targets, sample.lidar2global
        if cameras is not None:
            cameras = [replace(camera, camera2lidar=old2new @ camera.camera2lidar) for camera in cameras]
        if targets is not None:
            targets = replace(targets, boxes=boxes3d.transform(targets.boxes, old2new))
        if lidar2global is not None:
            lidar2global = lidar2global @ np.linalg.inv(old2new)
        return sample.replace(cameras=cameras, targets=targets, lidar2global=lidar2global)


class KeepInRange:
    """Leave out the objects whose centre lies outside an area of the lidar frame.

    Args:
        area: (x0, y0, x1, y1) in metres.
    """

    def __init__(self, area: Sequence[float]) -> None:
        self.low, self.high = torch.tensor(area).view(2, 2)

    def __call__(self, sample: Sample, rng: np.random.Generator | None = None) -> Sample:
        return over_frames(self._kept, sample)

    def _kept(self, sample: Sample) -> Sample:
        if sample.targets is None:
            return sample
        centre = sample.targets.boxes[:, :2]
        return sample.replace(targets=sample.targets[((centre > self.low) & (centre < self.high)).all(1)])


def _opposite_slots(names: Sequence[str]) -> list[int]:
    """For each camera the one on the other side; all stay where they are if one has no opposite."""
    swap = {"LEFT": "RIGHT", "RIGHT": "LEFT"}
    opposite = ["_".join(swap.get(word, word) for word in name.split("_")) for name in names]
    return [names.index(name) for name in opposite] if set(opposite) == set(names) else list(range(len(names)))


def _resample(
    image: np.ndarray,
    scaled: tuple[int, int],  # (height, width) of the whole image after resizing
    window: tuple[int, int, int, int],  # (left, top, width, height) of the part to compute, in the resized image
) -> np.ndarray:
    left, top, width, height = window
    if scaled == image.shape[:2] and window == (0, 0, scaled[1], scaled[0]):
        return image
    # The part of the window that shows the image, in the resized image.
    x0, y0, x1, y1 = max(left, 0), max(top, 0), min(left + width, scaled[1]), min(top + height, scaled[0])
    scale_y, scale_x = image.shape[0] / scaled[0], image.shape[1] / scaled[1]
    source = (x0 * scale_x, y0 * scale_y, min(x1 * scale_x, image.shape[1]), min(y1 * scale_y, image.shape[0]))
    part = Image.fromarray(image).resize((x1 - x0, y1 - y0), Image.Resampling.BILINEAR, box=source)
    if (x1 - x0, y1 - y0) == (width, height):
        return np.asarray(part)
    out = np.empty((height, width, 3), np.uint8)
    out[:] = MEAN_COLOUR
    out[y0 - top : y1 - top, x0 - left : x1 - left] = part
    return out


def _resize_matrix(image: np.ndarray, scaled: tuple[int, int], window: tuple[int, int, int, int]) -> np.ndarray:
    """Takes (u, v, 1) of the image to the window of the resized image; [3, 3]."""
    return np.array(
        [[scaled[1] / image.shape[1], 0, -window[0]], [0, scaled[0] / image.shape[0], -window[1]], [0, 0, 1.0]]
    )


def _moved(camera: Camera, matrix: np.ndarray) -> Camera:
    return replace(camera, intrinsic=matrix @ camera.intrinsic)
