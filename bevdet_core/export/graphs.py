"""Detectors from tensors to tensors: what an exported graph takes and gives, by kind of detector."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from .. import boxes3d
from ..boxes import cxcywh_to_xyxy
from ..config import BevFormerConfig, CocoConfig, NuScenesConfig
from ..detector import Detector
from ..geometry import pose, yaw_to_quaternion
from ..models.bevformer import PastView
from ..models.ego_motion import SIGNALS, EgoMotion, FramePose, motion_between, stack_motions
from ..structures import CameraRig, ImageBatch

SCORES = "0 to 1; a query may name several classes"


@dataclass(frozen=True)
class Port:
    """An input or an output of a graph."""

    dtype: str
    shape: tuple[int | str, ...]  # a name where the size is free, or no number that matters
    meaning: str


class Graph(nn.Module):
    """A detector from tensors to tensors, for images of one size and any number of samples.

    Args:
        detector: the detector; its model is moved to the CPU and put into evaluation mode.
        size: (height, width) of the padded images.
    """

    def __init__(self, detector: Detector, size: tuple[int, int]) -> None:
        super().__init__()
        self.model: Any = detector.model.cpu()
        self.config, self.size = detector.config, size
        self.eval()

    @property
    def inputs(self) -> dict[str, Port]:
        """The inputs in the order of `forward`."""
        raise NotImplementedError

    @property
    def outputs(self) -> dict[str, Port]:
        """The outputs in the order of `forward`."""
        raise NotImplementedError

    @property
    def facts(self) -> dict[str, Any]:
        """What else a user has to know, for the JSON file."""
        return {}

    @property
    def ranked(self) -> bool:
        """Whether queries start at places that are chosen by rank, so that their order hangs on the last digit."""
        return any(getattr(self.config.model, name, 0) for name in ("two_stage", "num_proposals", "num_bev_proposals"))

    def examples(self, batch_size: int) -> dict[str, Tensor]:
        """Random input, the same for the same batch size."""
        raise NotImplementedError

    def difference(self, name: str, ours: Tensor, theirs: Tensor) -> Tensor:
        """How far two values of an output are apart, relative where a number is larger than 1."""
        return (ours - theirs).abs() / ours.abs().clamp(min=1)


class ImageGraph(Graph):
    """A 2D detector."""

    def forward(
        self,
        images: Tensor,  # [B, 3, H, W] normalised, 0 under padding
        sizes: Tensor,  # [B, 2] int64, (height, width) without padding
    ) -> tuple[Tensor, Tensor]:
        """Scores [B, Q, C] and boxes [B, Q, 4], (x0, y0, x1, y1) as fractions of the image without padding."""
        predictions = self.model(ImageBatch(images[:, None], sizes[:, None]))
        return self.model.scores(predictions.logits[-1]), cxcywh_to_xyxy(predictions.boxes[-1])

    @property
    def inputs(self) -> dict[str, Port]:
        shape = ("batch", 3, *self.size)
        return {
            "images": Port("float32", shape, "normalised, 0 under padding at the right and below"),
            "sizes": Port("int64", ("batch", 2), "(height, width) of each image without padding, in pixels"),
        }

    @property
    def outputs(self) -> dict[str, Port]:
        boxes = "(x0, y0, x1, y1) as fractions of the image without padding"
        return {
            "scores": Port("float32", ("batch", "query", "class"), SCORES),
            "boxes": Port("float32", ("batch", "query", 4), boxes),
        }

    def examples(self, batch_size: int) -> dict[str, Tensor]:
        """Noise, in images of several sizes."""
        generator = torch.Generator().manual_seed(batch_size)
        fraction = 1 - 0.4 * torch.rand(batch_size, 2, generator=generator)
        sizes = (fraction * torch.tensor(self.size)).long().clamp(min=1)
        batch = ImageBatch(torch.randn(batch_size, 1, 3, *self.size, generator=generator), sizes[:, None])
        return {"images": batch.images.masked_fill(batch.mask[:, :, None], 0)[:, 0], "sizes": sizes}


class RigGraph(Graph):
    """A 3D detector that looks at each frame alone."""

    def forward(
        self,
        images: Tensor,  # [B, N, 3, H, W] normalised, 0 under padding
        lidar2img: Tensor,  # [B, N, 4, 4] float32, see Camera.lidar2img
        hidden: Tensor,  # [B, N] bool, cameras that gave no image
    ) -> tuple[Tensor, Tensor]:
        """Scores [B, Q, C] and boxes [B, Q, 9] in the lidar frame, as in `Targets`."""
        predictions = self.model(self.batch(images, lidar2img, hidden))
        return predictions.logits[-1].sigmoid(), boxes3d.decode(predictions.boxes[-1])

    @staticmethod
    def batch(images: Tensor, lidar2img: Tensor, hidden: Tensor) -> ImageBatch:
        """The batch that images and calibration are."""
        sizes = torch.tensor(images.shape[-2:]).expand(*images.shape[:2], 2)
        rig = CameraRig(lidar2img)
        rig.hidden = hidden  # after the rig was made: a graph has one size, so all images go through the backbone
        return ImageBatch(images, sizes, rig)

    @property
    def cameras(self) -> tuple[str, ...]:
        """Their names, in order."""
        assert isinstance(self.config.data, NuScenesConfig)
        return self.config.data.cameras

    @property
    def inputs(self) -> dict[str, Port]:
        cameras = self.cameras
        place = "takes (x, y, z, 1) in metres of the lidar frame to (u d, v d, d, 1), u and v in pixels of `images`"
        return {
            "images": Port("float32", ("batch", len(cameras), 3, *self.size), f"of {', '.join(cameras)}"),
            "lidar2img": Port("float32", ("batch", len(cameras), 4, 4), place),
            "hidden": Port("bool", ("batch", len(cameras)), "true where a camera gave no image: nothing of it is read"),
        }

    @property
    def outputs(self) -> dict[str, Port]:
        boxes = "(x, y, z, w, l, h, yaw, vx, vy) in the lidar frame: metres, radians from the x axis, m/s"
        return {
            "scores": Port("float32", ("batch", "query", "class"), SCORES),
            "boxes": Port("float32", ("batch", "query", 9), boxes),
        }

    def examples(self, batch_size: int) -> dict[str, Tensor]:
        """Blurs, in rings of cameras that look around from 1.5 m above the lidar's origin; one of them failed.

        In noise every pixel differs from the next, and a decoder that looks where the layer before it has pointed makes
        another place of the last digit.
        """
        generator = torch.Generator().manual_seed(batch_size)
        cameras = len(self.cameras)
        rings = [ring(cameras, self.size, 0.1 * b) for b in range(batch_size)]
        spots = torch.randn(batch_size * cameras, 3, 3, 5, generator=generator)
        images = functional.interpolate(spots, self.size, mode="bicubic").unflatten(0, (batch_size, cameras))
        hidden = torch.zeros(batch_size, cameras, dtype=torch.bool)
        hidden[-1, -1] = True
        return {"images": images, "lidar2img": torch.stack(rings), "hidden": hidden}

    def difference(self, name: str, ours: Tensor, theirs: Tensor) -> Tensor:
        """See `Graph`; headings are compared the short way round."""
        gap = super().difference(name, ours, theirs)
        if name == "boxes":
            turn = (ours[..., 6] - theirs[..., 6]).abs()
            gap[..., 6] = torch.minimum(turn, 2 * math.pi - turn)
        return gap


class BevGraph(RigGraph):
    """BEVFormer without history."""

    def forward(  # type: ignore[override]
        self,
        images: Tensor,  # as in `RigGraph`
        lidar2img: Tensor,
        hidden: Tensor,
        signals: Tensor,  # [B, 18] float32, see models.ego_motion
    ) -> tuple[Tensor, ...]:
        """Scores and boxes as in `RigGraph`."""
        return self.answer(self.batch(images, lidar2img, hidden), signals)[:2]

    def answer(self, batch: ImageBatch, signals: Tensor, past: Sequence[PastView] = ()) -> tuple[Tensor, ...]:
        """Scores, boxes and the view."""
        predictions, bev = self.model.step(batch, signals, past)
        return predictions.logits[-1].sigmoid(), boxes3d.decode(predictions.boxes[-1]), bev

    @property
    def inputs(self) -> dict[str, Port]:
        meaning = "motion as in bevdet_core.models.ego_motion, position and degrees as differences to the last frame"
        return {**super().inputs, "signals": Port("float32", ("batch", SIGNALS), meaning)}

    def examples(self, batch_size: int) -> dict[str, Tensor]:
        """Those of `RigGraph`, and the first moment of a drive."""
        return {**super().examples(batch_size), "signals": drive(batch_size, 0).signals}


class StreamGraph(BevGraph):
    """BEVFormer with history: the view that it gives goes into the calls for frames that follow."""

    def forward(  # type: ignore[override]
        self,
        images: Tensor,  # as in `BevGraph`
        lidar2img: Tensor,
        hidden: Tensor,
        signals: Tensor,
        shift: Tensor,  # [B, K, 2], see `EgoMotion`, since each of the K earlier frames
        turn: Tensor,  # [B, K], likewise
        previous: Tensor,  # [B, K, rows * columns, D] the views of those frames
        known: Tensor,  # [B, K] bool, whether there are such frames
    ) -> tuple[Tensor, ...]:
        """Scores and boxes as in `RigGraph`, and the view [B, rows * columns, D]."""
        columns = (t.unbind(1) for t in (previous, shift, turn, known))
        past = [PastView(*view) for view in zip(*columns, strict=True)]
        return self.answer(self.batch(images, lidar2img, hidden), signals, past)

    @property
    def steps(self) -> tuple[int, ...]:
        """Which earlier frames it looks back at."""
        return self.model.history

    @property
    def facts(self) -> dict[str, Any]:
        """See `Graph.facts`."""
        return {"history_steps": list(self.steps)}

    @property
    def views(self) -> tuple[int, int, int]:
        """The (earlier frames, cells, channels) of what it looks back at."""
        rows, columns = self.model.head.grid.shape
        return len(self.steps), rows * columns, self.model.head.bev_embed.embedding_dim

    @property
    def inputs(self) -> dict[str, Port]:
        K = len(self.steps)
        frames = "the last frame" if K == 1 else f"the frames {', '.join(map(str, self.steps))} before this one"
        return {
            **super().inputs,
            "shift": Port("float32", ("batch", K, 2), f"metres along x and y since {frames}, in axes as turned now"),
            "turn": Port("float32", ("batch", K), f"radians about z since {frames}"),
            "previous": Port("float32", ("batch", *self.views), f"the outputs `bev` of {frames}"),
            "known": Port(
                "bool", ("batch", K), "false for frames from before a drive began, where `previous` may hold anything"
            ),
        }

    @property
    def outputs(self) -> dict[str, Port]:
        return {**super().outputs, "bev": Port("float32", ("batch", *self.views[1:]), "`previous` of later frames")}

    def examples(self, batch_size: int) -> dict[str, Tensor]:
        """Those of `RigGraph` in the middle of a drive, where every second sample begins one."""
        motions = [drive(batch_size, step) for step in self.steps]
        generator = torch.Generator().manual_seed(batch_size)
        return {
            **super().examples(batch_size),
            "signals": motions[0].signals,
            "shift": torch.stack([motion.shift for motion in motions], 1),
            "turn": torch.stack([motion.turn for motion in motions], 1),
            "previous": torch.randn(batch_size, *self.views, generator=generator),
            "known": (torch.arange(batch_size) % 2 == 0)[:, None].repeat(1, len(motions)),
        }


def graph_of(detector: Detector, size: tuple[int, int]) -> Graph:
    """The graph of a detector for padded images of (height, width)."""
    if isinstance(detector.config.data, CocoConfig):
        return ImageGraph(detector, size)
    model = detector.config.model
    if isinstance(model, BevFormerConfig):
        return StreamGraph(detector, size) if model.queue_length > 1 else BevGraph(detector, size)
    return RigGraph(detector, size)


def ring(cameras: int, size: tuple[int, int], start: float) -> Tensor:
    """lidar2img [N, 4, 4] of cameras that look around, the first one `start` radians from the x axis."""
    height, width = size
    intrinsic = np.array([[0.7 * width, 0, width / 2, 0], [0, 0.7 * width, height / 2, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    out = []
    for azimuth in start + 2 * np.pi * np.arange(cameras) / cameras:
        c, s = np.cos(azimuth), np.sin(azimuth)
        lidar2camera = np.array([[s, -c, 0, 0.01], [0, 0, -1, 1.5], [c, s, 0, 0.02], [0, 0, 0, 1]])
        out.append(intrinsic @ lidar2camera)
    return torch.from_numpy(np.array(out, np.float32))


def drive(batch_size: int, step: int) -> EgoMotion:
    """The motion of cars since so many frames before, at two frames a second; 0: at the beginning."""
    motions = []
    for b in range(batch_size):
        before, now = (
            FramePose("", pose(yaw_to_quaternion(0.4 * b + 0.1 * i), [100 + 4 * i, 7 * b + i, 1]), timestamp=i / 2)
            for i in (0, max(step, 1))
        )
        motions.append(motion_between(now, before if step else None))
    return stack_motions(motions, torch.device("cpu"))
