"""Perspective supervision: every cell of a camera's feature map also says what stands there.

Queries touch a feature map at few places and give its network little to learn from; published 3D detectors therefore
start from the weights of a monocular detector. A dense head on the features does the same within one training, and what
it finds is what queries may start from (BEVFormer v2, Yang et al., CVPR 2023). Its boxes have the code and the frame of
the queries' boxes, so the same losses apply.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..geometry import inverse_projection, project_points
from ..structures import CameraRig, ImageBatch, Targets
from .cells import Cells, nearest_cells
from .heads import set_class_prior

START_DEPTH = 15.0  # metres; what an untrained head answers


@dataclass
class PerspectiveCells(Cells):
    """What every cell of the cameras' feature maps says about the object whose centre it shows."""

    lidar2img: Tensor  # [B, N, 4, 4]
    stride: float  # pixels from cell to cell

    def owners(self, frame: int, targets: Targets) -> tuple[Tensor, Tensor]:
        """The four cells nearest to the centre of a target in each camera; the nearest target has a shared one."""
        pixels, depth = project_points(targets.boxes[None, :, :3], self.lidar2img[frame, None])
        shown = depth[0] > 0.5
        if self.hidden is not None:
            shown &= ~self.hidden[frame, :, None]
        H, W = self.logits.shape[2:4]
        return nearest_cells(pixels[0] / self.stride, shown, depth[0], (H, W))


class PerspectiveHead(nn.Module):
    """One box and its class from every cell of a feature map.

    Args:
        dim: channels of the feature map.
        num_classes: of the detector.
        num_proposals: queries that start where its best boxes stand.
    """

    def __init__(self, dim: int, num_classes: int, num_proposals: int = 0) -> None:
        super().__init__()
        self.num_proposals = num_proposals
        self.tower = nn.Conv2d(dim, dim, 3, padding=1)
        self.class_head = nn.Conv2d(dim, num_classes, 1)
        # x, y of the centre in cells; log depth; log w, l, h; sine and cosine of the heading and velocity, both as
        # seen along the ray: an image does not tell which way its camera looks.
        self.box_head = nn.Conv2d(dim, 10, 1)
        set_class_prior(self.class_head)

    def forward(
        self,
        features: Tensor,  # [B, N, D, H, W] of all cameras
        lidar2img: Tensor,  # [B, N, 4, 4]
        image_size: tuple[int, int],  # (height, width) of the padded images
        hidden: Tensor | None = None,  # [B, N] bool, cameras that gave no image; None: no such one
    ) -> PerspectiveCells:
        """What every cell says."""
        B, N, _, _, W = features.shape
        stride = image_size[1] / W
        x = self.tower(features.flatten(0, 1)).relu()
        logits = self.class_head(x).unflatten(0, (B, N)).permute(0, 1, 3, 4, 2)
        answers = self.box_head(x).unflatten(0, (B, N)).permute(0, 1, 3, 4, 2)
        with torch.autocast(features.device.type, enabled=False):
            codes = self._codes(answers.float(), lidar2img, stride)
        seen = x.unflatten(0, (B, N)).permute(0, 1, 3, 4, 2)
        return PerspectiveCells(logits, codes, seen, hidden, self.num_proposals, lidar2img, stride)

    def _codes(self, answers: Tensor, lidar2img: Tensor, stride: float) -> Tensor:
        """What the cells answer [B, N, H, W, 10], as box codes in the lidar frame."""
        H, W = answers.shape[2:4]
        rows = torch.arange(H, device=answers.device)[:, None] + 0.5
        columns = torch.arange(W, device=answers.device) + 0.5
        u, v = (columns + answers[..., 0]) * stride, (rows + answers[..., 1]) * stride
        depth = START_DEPTH * answers[..., 2].clamp(-4, 4).exp()
        rays, origin = (x.to(answers.dtype)[:, :, None, None] for x in inverse_projection(lidar2img))
        seen = torch.stack([u * depth, v * depth, depth], -1)
        centre = (rays * seen[..., None, :]).sum(-1) + origin  # [B, N, H, W, 3]
        cos, sin = F.normalize((centre - origin)[..., :2].detach(), dim=-1).unbind(-1)
        yaw_sin = answers[..., 6] * cos + answers[..., 7] * sin
        yaw_cos = answers[..., 7] * cos - answers[..., 6] * sin
        vx = answers[..., 8] * cos - answers[..., 9] * sin
        vy = answers[..., 8] * sin + answers[..., 9] * cos
        (x, y, z), (w, l, h) = centre.unbind(-1), answers[..., 3:6].unbind(-1)  # noqa: E741
        return torch.stack([x, y, w, l, z, h, yaw_sin, yaw_cos, vx, vy], -1)


def look(head: PerspectiveHead | None, features: Tensor, batch: ImageBatch, rig: CameraRig) -> PerspectiveCells | None:
    """What the cells of a feature map say, where somebody asks: while training, or for queries that start there."""
    if head is None or not (head.training or head.num_proposals):
        return None
    return head(features, rig.lidar2img, (batch.images.shape[-2], batch.images.shape[-1]), rig.hidden)
