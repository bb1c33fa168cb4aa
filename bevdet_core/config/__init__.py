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
from .image_models import (
    DeformableDetrConfig,
    DeformableDetrLossConfig,
    DenoisingConfig,
    DetrConfig,
    DetrLossConfig,
)
from .listing import Setting, all_kinds, all_settings, differences, nearest, settings_help, settings_of
from .loading import Config, kinds_of, load_config, read_settings
from .models import MODELS, ModelConfig, Queue, RigModelConfig, queue_of, streams
from .network import BackboneConfig, PixelConfig
from .rig_models import BevFormerConfig, Detr3dConfig, Detr3dLossConfig, PetrConfig, Range3d
from .training import Precision, TrainConfig
from .values import choices

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
    "Setting",
    "TrainConfig",
    "all_kinds",
    "all_settings",
    "choices",
    "differences",
    "kinds_of",
    "load_config",
    "nearest",
    "queue_of",
    "read_settings",
    "settings_help",
    "settings_of",
    "streams",
]
