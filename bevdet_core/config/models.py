"""The detectors by name, and what a training sample of each is."""

from __future__ import annotations

from typing import Literal, NamedTuple

from .image_models import DeformableDetrConfig, DetrConfig
from .rig_models import BevFormerConfig, Detr3dConfig, PetrConfig

RigModelConfig = Detr3dConfig | PetrConfig | BevFormerConfig  # detectors of rig frames
ModelConfig = RigModelConfig | DetrConfig | DeformableDetrConfig
MODELS = {
    "detr3d": Detr3dConfig,
    "petr": PetrConfig,
    "bevformer": BevFormerConfig,
    "detr": DetrConfig,
    "deformable_detr": DeformableDetrConfig,
}


class Queue(NamedTuple):
    """The frames of a training sample; see `BevFormerConfig`."""

    length: int
    drop: bool = True
    learn: Literal["last", "all"] = "last"


def queue_of(model: ModelConfig) -> Queue | None:
    """What a detector is to be trained on; None for those that look at single frames, or at one after the other."""
    if not isinstance(model, BevFormerConfig) or not model.history or model.queue_learn == "stream":
        return None
    return Queue(model.queue_length, model.queue_drop, model.queue_learn)


def streams(model: ModelConfig) -> bool:
    """Whether a detector is to be trained on the frames of a scene one after the other."""
    return isinstance(model, BevFormerConfig) and bool(model.history) and model.queue_learn == "stream"
