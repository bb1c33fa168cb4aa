"""What flows through the library: samples, batches of them, targets and predictions.

    files -> Sample -> transforms -> Sample -> collate -> ImageBatch + list[Targets] -> model -> Predictions

A 2D image is a sample with one camera and no calibration, so both detector families share this road.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace

import numpy as np
import torch
from torch import Tensor

from .config import PixelConfig


@dataclass
class Targets:
    """The objects of one image (2D) or of one rig frame (3D).

    In 3D a box is (x, y, z, w, l, h, yaw, vx, vy) in the lidar frame: centre of gravity and size in metres, yaw in
    radians about z from the x axis, velocity in m/s; a velocity that nobody knows is NaN. In 2D a box is
    (x0, y0, x1, y1) in pixels until `collate` turns it into (cx, cy, w, h) as fractions of the image without padding.
    """

    labels: Tensor  # [n] int64
    boxes: Tensor  # [n, 4] or [n, 9] float32

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: Tensor) -> Targets:
        """The subset picked by a boolean mask or by indices [k]."""
        return Targets(self.labels[index], self.boxes[index])

    def to(self, device: torch.device | str) -> Targets:
        return Targets(self.labels.to(device, non_blocking=True), self.boxes.to(device, non_blocking=True))


@dataclass
class Camera:
    """A calibrated pinhole camera at the moment of its exposure.

    `camera2lidar` takes points of the camera frame (x right, y down, z forward) to the lidar frame of the sample's
    time stamp: it carries the ego motion between the two exposures, and is therefore no constant of the rig.
    """

    name: str
    intrinsic: np.ndarray  # [3, 3] float64, pixels of the image as it is now
    camera2lidar: np.ndarray  # [4, 4] float64, metres
    hidden: bool = False  # it gave no image: the picture is blank, the calibration may be anything, and nobody looks

    @property
    def lidar2img(self) -> np.ndarray:
        """[4, 4] float64: takes (x, y, z, 1) in metres to (u d, v d, d, 1), with d the depth in metres."""
        projection = np.eye(4)
        projection[:3, :3] = self.intrinsic
        return projection @ np.linalg.inv(self.camera2lidar)


@dataclass
class Sample:
    """One image, or what all cameras of a rig saw at one moment, with its objects where they are known."""

    images: list[np.ndarray]  # N x [H, W, 3] uint8 RGB; cameras may differ in size
    cameras: list[Camera] | None = None  # N, or None: a plain image
    targets: Targets | None = None
    token: str = ""  # names the sample in errors, results and submissions
    lidar2global: np.ndarray | None = None  # [4, 4] float64, metres
    timestamp: float | None = None  # seconds
    scene: str | None = None  # samples of one scene follow each other in time
    lidar2ego: np.ndarray | None = None  # [4, 4] float64, metres: how the lidar is mounted
    can_bus: np.ndarray | None = None  # [18] float64, see models.ego_motion; never required
    history: list[Sample] = field(default_factory=list)  # earlier frames of the scene, oldest first
    original_sizes: list[tuple[int, int]] = field(default_factory=list)  # N x (height, width) before any transform

    def __post_init__(self) -> None:
        if not self.original_sizes:
            self.original_sizes = [(image.shape[0], image.shape[1]) for image in self.images]
        if self.cameras is not None and len(self.cameras) != len(self.images):
            raise ValueError(f"sample {self.token!r}: {len(self.images)} images but {len(self.cameras)} cameras")

    def replace(self, **changes) -> Sample:
        """A copy with some fields changed; what is not named is shared with the original."""
        return replace(self, **changes)


@dataclass
class CameraRig:
    """The calibration of a batch of rig frames, in the geometry of the padded images."""

    lidar2img: Tensor  # [B, N, 4, 4] float32; see Camera.lidar2img
    lidar2global: Tensor | None = None  # [B, 4, 4] float64
    timestamps: Tensor | None = None  # [B] float64, seconds
    hidden: Tensor | None = None  # [B, N] bool, True where a camera gave no image, or is none; None: nowhere
    lidar2ego: Tensor | None = None  # [B, 4, 4] float64
    can_bus: Tensor | None = None  # [B, 18] float64, NaN where a sample has none
    shown: Tensor | None = None  # [K] int64, positions in B * N that the network looks at; follows from `hidden`

    def __post_init__(self) -> None:
        # Here, where a batch is made: within the network it would wait for the GPU, and end a compiled graph.
        if self.hidden is not None and self.shown is None:
            shown = self.visible.flatten().nonzero()[:, 0]
            # Where all are hidden, the network sees the blank images.
            self.shown = shown if len(shown) else torch.arange(self.hidden.numel(), device=self.hidden.device)

    @property
    def visible(self) -> Tensor:
        """[B, N] bool: the cameras that gave an image."""
        if self.hidden is None:
            return torch.ones(self.lidar2img.shape[:2], dtype=torch.bool, device=self.lidar2img.device)
        return ~self.hidden

    def to(self, device: torch.device | str) -> CameraRig:
        moved = (getattr(self, f.name) for f in fields(self))
        return CameraRig(*(None if t is None else t.to(device, non_blocking=True) for t in moved))  # type: ignore[arg-type]


@dataclass
class ImageBatch:
    """Normalised images, padded at the right and at the bottom to one size. 2D: N = 1 and no rig.

    Rigs with fewer cameras than others of the batch are filled up with hidden ones of size 0.
    """

    images: Tensor  # [B, N, 3, H, W] float32, 0 under padding and where a camera is hidden
    sizes: Tensor  # [B, N, 2] int64, (height, width) without padding
    rig: CameraRig | None = None
    tokens: Sequence[str] = ()  # [B], names of the samples for error messages
    scenes: Sequence[str | None] = ()  # [B]
    original_sizes: Tensor | None = None  # [B, N, 2] int64, (height, width) of the files
    targets: Sequence[Targets] | None = None  # [B], while training: denoising queries and the like are made from them
    history: ImageBatch | None = None  # the earlier frames of all samples, one sample's after the other's, oldest first
    owners: Sequence[int] = ()  # which frames follow each other: the sample that each is of, in a history that of [B]

    @property
    def mask(self) -> Tensor:
        """[B, N, H, W] bool, True under padding."""
        height, width = self.images.shape[-2:]
        rows = torch.arange(height, device=self.sizes.device)[:, None] >= self.sizes[..., 0, None, None]
        columns = torch.arange(width, device=self.sizes.device) >= self.sizes[..., 1, None, None]
        return rows | columns

    def to(self, device: torch.device | str) -> ImageBatch:
        return replace(
            self,
            images=self.images.to(device, non_blocking=True),
            sizes=self.sizes.to(device, non_blocking=True),
            rig=None if self.rig is None else self.rig.to(device),
            original_sizes=None if self.original_sizes is None else self.original_sizes.to(device, non_blocking=True),
            targets=None if self.targets is None else [target.to(device) for target in self.targets],
            history=None if self.history is None else self.history.to(device),
        )


@dataclass
class PairedQueries:
    """Queries, of all images together, whose targets are known without matching; only training has them.

    Query `queries[p]` should say target p, and every other query nothing.
    """

    logits: Tensor  # [L, K, C]
    boxes: Tensor  # [L, K, 4 or 10]
    targets: Targets  # P
    queries: Tensor  # [P] int64


@dataclass
class Predictions:
    """What a detector says about a batch: the same queries after each of L decoder layers, the final one last.

    A 2D box is (cx, cy, w, h) as fractions of the image without padding. A 3D box is the code
    (cx, cy, log w, log l, cz, log h, sin yaw, cos yaw, vx, vy): metres, m/s, lidar frame, centre of gravity.
    """

    logits: Tensor  # [L, B, Q, C]
    boxes: Tensor  # [L, B, Q, 4 or 10]
    proposals: Predictions | None = None  # two-stage: one layer over all encoder positions, supervised class-agnostic
    hidden: Tensor | None = None  # [L, B, Q, D] output of each decoder layer
    references: Tensor | None = None  # [L + 1, B, Q, 2 to 4] reference points before the first and after each layer
    paired: Mapping[str, PairedQueries] = field(default_factory=dict)  # "denoising", "perspective"


def collate(samples: Sequence[Sample], pixels: PixelConfig) -> tuple[ImageBatch, list[Targets] | None]:
    """Normalise, pad and stack samples.

    Args:
        samples: B images, or B rig frames of any numbers of cameras.
        pixels: order and normalisation of the channels, padding.

    Returns:
        The batch, with the samples' history, and the targets of its samples (None where a sample has none).

    Raises:
        ValueError: some samples with and some without calibration, or without and with different numbers of images.
    """
    counts = {len(sample.images) for sample in samples}
    if len({sample.cameras is None for sample in samples}) != 1:
        raise ValueError("a batch cannot mix samples with and without camera calibration")
    if len(counts) != 1 and samples[0].cameras is None:
        raise ValueError(f"samples of one batch must have the same number of images, got {sorted(counts)}")
    cameras = max(counts)
    sizes = _filled([[image.shape[:2] for image in sample.images] for sample in samples], cameras)  # [B, N, 2]
    height, width = (-(-int(edge) // pixels.size_divisor) * pixels.size_divisor for edge in sizes.amax((0, 1)))
    images = torch.zeros(len(samples), cameras, 3, height, width)
    shift, scale = torch.tensor(pixels.mean)[:, None, None], torch.tensor(pixels.std)[:, None, None]
    for b, sample in enumerate(samples):
        for n, image in enumerate(sample.images):
            if sample.cameras is not None and sample.cameras[n].hidden:
                continue
            channels = torch.from_numpy(np.array(image[..., ::-1] if pixels.bgr else image, order="C")).permute(2, 0, 1)
            place = images[b, n, :, : image.shape[0], : image.shape[1]]
            place.copy_(channels).sub_(shift).div_(scale)  # in place: a whole order faster than through a copy
    batch = ImageBatch(
        images,
        sizes,
        _stack_rigs(samples, cameras),
        [sample.token for sample in samples],
        [sample.scene for sample in samples],
        _filled([sample.original_sizes for sample in samples], cameras),
    )
    earlier = [frame for sample in samples for frame in sample.history]
    if earlier:
        batch.history, _ = collate(earlier, pixels)
        batch.history.owners = [b for b, sample in enumerate(samples) for _ in sample.history]
    targets = [sample.targets for sample in samples if sample.targets is not None]
    if len(targets) < len(samples):
        return batch, None
    if batch.rig is None:
        targets = [_fractions(t, *s.images[0].shape[:2]) for t, s in zip(targets, samples, strict=True)]
    return batch, targets


def _filled(sizes: Sequence[Sequence[tuple[int, ...]]], cameras: int) -> Tensor:
    """Sizes of up to `cameras` images of each sample as [B, cameras, 2], 0 where there is none."""
    return torch.tensor([[*rig, *[(0, 0)] * (cameras - len(rig))] for rig in sizes])


def _stack_rigs(samples: Sequence[Sample], count: int) -> CameraRig | None:
    """The calibration of all samples, each with `count` cameras."""
    rigs = [sample.cameras for sample in samples if sample.cameras is not None]
    if not rigs:
        return None
    lidar2img = np.tile(np.eye(4, dtype=np.float32), (len(rigs), count, 1, 1))
    hidden = np.ones((len(rigs), count), bool)
    for b, rig in enumerate(rigs):
        lidar2img[b, : len(rig)] = [camera.lidar2img for camera in rig]
        hidden[b, : len(rig)] = [camera.hidden for camera in rig]
    return CameraRig(
        torch.from_numpy(lidar2img),
        _stack_known([sample.lidar2global for sample in samples]),
        _stack_known([sample.timestamp for sample in samples]),
        torch.from_numpy(hidden) if hidden.any() else None,
        _stack_known([sample.lidar2ego for sample in samples]),
        _stack_signals([sample.can_bus for sample in samples]),
    )


def _stack_known(values: Sequence[np.ndarray | float | None]) -> Tensor | None:
    """[B, ...] float64, or None where a sample has none."""
    return None if any(value is None for value in values) else torch.from_numpy(np.array(values, np.float64))


def _stack_signals(values: Sequence[np.ndarray | None]) -> Tensor | None:
    """[B, 18] float64, NaN where a sample has none; None where all have none."""
    shown = next((value for value in values if value is not None), None)
    return None if shown is None else _stack_known([np.full_like(shown, np.nan) if v is None else v for v in values])


def _fractions(targets: Targets, height: int, width: int) -> Targets:
    """(x0, y0, x1, y1) in pixels -> (cx, cy, w, h) in fractions of the image."""
    low, high = targets.boxes[:, :2], targets.boxes[:, 2:]
    scale = torch.tensor([width, height], dtype=torch.float32)
    return Targets(targets.labels, torch.cat([(low + high) / 2 / scale, (high - low) / scale], 1))
