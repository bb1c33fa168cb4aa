"""Data sets that the project renders itself, in the formats of nuScenes and COCO."""

from .coco import synthesize_coco
from .nuscenes import synthesize_nuscenes
from .staging import settings_of

__all__ = ["settings_of", "synthesize_coco", "synthesize_nuscenes"]
