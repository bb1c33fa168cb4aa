"""What all 3D detectors do with their cameras: one feature extractor for every image of a rig."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..structures import CameraRig, ImageBatch


def calibration(batch: ImageBatch, detector: str) -> CameraRig:
    """The rig of a batch.

    Raises:
        ValueError: the batch has no calibration; the message names the detector.
    """
    if batch.rig is None:
        raise ValueError(f"{detector} needs calibrated cameras: the batch has no rig")
    return batch.rig


def camera_features(backbone: nn.Module, neck: nn.Module, batch: ImageBatch, shown: Tensor | None) -> list[Tensor]:
    """The feature maps of all cameras, L x [B, N, D, H_l, W_l].

    Hidden cameras get features of 0 without a pass through the network: blank images would cost time and spoil the
    statistics of norms that learn them. Where all of a batch are hidden, the network sees the blank images.

    Args:
        backbone: images [K, 3, H, W] -> feature maps.
        neck: feature maps -> levels.
        batch: B rig frames of N cameras.
        shown: [K] int64, see `CameraRig.shown`; None: all.
    """
    images = batch.images.flatten(0, 1)
    if shown is not None:
        images = images[shown]
    # One pass for all cameras; channels last is what CPU and tensor-core convolutions want.
    features = neck(backbone(images.contiguous(memory_format=torch.channels_last)))
    B, N = batch.images.shape[:2]
    if shown is not None:
        features = [f.new_zeros(B * N, *f.shape[1:]).index_copy(0, shown, f) for f in features]
    return [f.unflatten(0, (B, N)) for f in features]


def check_features(features: Sequence[Tensor], num_cameras: int, num_levels: int) -> None:
    """Check that a head can read feature maps L x [B, N, D, H_l, W_l].

    Args:
        features: of all cameras, fine to coarse.
        num_cameras: that the head has weights for; a rig may have fewer.
        num_levels: that it reads.

    Raises:
        ValueError: more cameras, or another number of levels.
    """
    cameras = features[0].shape[1]
    if cameras > num_cameras or len(features) != num_levels:
        raise ValueError(
            f"this head reads up to {num_cameras} cameras at {num_levels} levels, "
            f"got {cameras} cameras at {len(features)} levels"
        )
