"""The classes of nuScenes in the order of the labels of released 3D detectors, which is not that of the data set."""

from __future__ import annotations

RELEASE_CLASSES = (
    "car", "truck", "construction_vehicle", "bus", "trailer", "barrier", "motorcycle", "bicycle", "pedestrian",
    "traffic_cone",
)  # fmt: skip
