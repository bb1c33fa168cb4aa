"""Data sets, their transforms, and the loader that batches them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from ..config import NuScenesConfig
from ..structures import Sample

if TYPE_CHECKING:
    from .nuscenes import NuScenesDataset


def build_dataset(config: NuScenesConfig, training: bool) -> NuScenesDataset:
    """The training split, augmented, or the validation split of a data set."""
    from .nuscenes import NuScenesDataset

    return NuScenesDataset(config, config.train_split if training else config.val_split, training)


def inference_transform(config: NuScenesConfig) -> Callable[[Sample], Sample]:
    """How a sample is prepared for the network when nothing is random."""
    import numpy as np

    from .rig_transforms import rig_transform

    transform, unused = rig_transform(config, training=False), np.random.default_rng(0)
    return lambda sample: transform(sample, unused)
