"""Every setting of the library, as frozen dataclasses with the defaults of the published recipes.

A YAML file names what it changes; dotted overrides on the command line change more. `load_config` checks all names
and types, and tells the nearest valid name of a typo.
"""

from .data import (
    DATA,
    NUSCENES_CAMERAS,
    NUSCENES_CLASSES,
    CocoConfig,
    DataConfig,
    ImageAugmentConfig,
    NuScenesConfig,
    RigAugmentConfig,
)
from .errors import ConfigError
from .loading import Config, load_config, settings_parser
from .models import (
    MODELS,
    BackboneConfig,
    BevFormerConfig,
    DeformableDetrConfig,
    DeformableDetrLossConfig,
    DenoisingConfig,
    Detr3dConfig,
    Detr3dLossConfig,
    DetrConfig,
    DetrLossConfig,
    ModelConfig,
    PetrConfig,
    PixelConfig,
    Queue,
    Range3d,
    RigModelConfig,
    queue_of,
)
from .training import Precision, TrainConfig

__all__ = [
    "DATA",
    "MODELS",
    "NUSCENES_CAMERAS",
    "NUSCENES_CLASSES",
    "BackboneConfig",
    "BevFormerConfig",
    "CocoConfig",
    "Config",
    "ConfigError",
    "DataConfig",
    "DeformableDetrConfig",
    "DeformableDetrLossConfig",
    "DenoisingConfig",
    "Detr3dConfig",
    "Detr3dLossConfig",
    "DetrConfig",
    "DetrLossConfig",
    "ImageAugmentConfig",
    "ModelConfig",
    "NuScenesConfig",
    "PetrConfig",
    "PixelConfig",
    "Precision",
    "Queue",
    "Range3d",
    "RigAugmentConfig",
    "RigModelConfig",
    "TrainConfig",
    "load_config",
    "queue_of",
    "settings_parser",
]
