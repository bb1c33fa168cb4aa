"""Data sets that the project renders itself, in the formats of nuScenes and COCO."""

from .nuscenes import synthesize_nuscenes

__all__ = ["synthesize_nuscenes"]
