"""Camera perception on one deformable attention operator.

Example:
    >>> from bevdet_core import Detector                                     # doctest: +SKIP
    >>> detections = Detector.load("runs/detr3d").predict("frame.json")      # doctest: +SKIP
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .detections import Detections
    from .detector import Detector
    from .structures import Camera, ImageBatch, Sample, Targets

__version__ = "0.1.0"
__all__ = ["Camera", "Detections", "Detector", "ImageBatch", "Sample", "Targets"]

_HOMES = {
    "Camera": "structures",
    "Detections": "detections",
    "Detector": "detector",
    "ImageBatch": "structures",
    "Sample": "structures",
    "Targets": "structures",
}


def __getattr__(name: str):
    # Public names load on first use: `import bevdet_core` alone costs nothing.
    if name not in _HOMES:
        raise AttributeError(f"module 'bevdet_core' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f".{_HOMES[name]}", __name__), name)
