"""Data sets, their transforms, and the loader that batches them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from ..config import CocoConfig, DataConfig, Queue

if TYPE_CHECKING:
    from ..structures import Sample
    from .coco import CocoDataset
    from .nuscenes import NuScenesDataset


def build_dataset(config: DataConfig, training: bool, queue: Queue | None = None) -> NuScenesDataset | CocoDataset:
    """The training split, augmented, or the validation split of a data set.

    Args:
        config: what to read.
        training: which of the two.
        queue: frames of a training sample, see `NuScenesDataset`; images have no history.
    """
    if isinstance(config, CocoConfig):
        from .coco import CocoDataset

        return CocoDataset(config, training)
    from .nuscenes import NuScenesDataset

    return NuScenesDataset(config, config.train_split if training else config.val_split, training, queue)


def class_names(config: DataConfig) -> tuple[str, ...]:
    """The classes of a data set, in the order of the labels; COCO-format data name their own."""
    if isinstance(config, CocoConfig):
        from . import coco

        return coco.class_names(config)
    return config.classes


def inference_transform(config: DataConfig) -> Callable[[Sample], Sample]:
    """How a sample is prepared for the network when nothing is random."""
    import numpy as np

    from .transforms import Transform

    transform: Transform
    if isinstance(config, CocoConfig):
        from .image_transforms import image_transform

        transform = image_transform(config, training=False)
    else:
        from .rig_transforms import rig_transform

        transform = rig_transform(config, training=False)
    unused = np.random.default_rng(0)
    return lambda sample: transform(sample, unused)
