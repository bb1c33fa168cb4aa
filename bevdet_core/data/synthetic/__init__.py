"""Data sets that the project renders itself, in the formats of nuScenes and COCO."""

from .coco import synthesize_coco
from .nuscenes import synthesize_nuscenes

__all__ = ["synthesize_coco", "synthesize_nuscenes"]
