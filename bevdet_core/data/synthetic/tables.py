"""The nuScenes tables that are the same in every synthetic set, and the tokens that link all of them."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

from .rig import CAMERA_CHANNELS

if TYPE_CHECKING:
    from .world import Actor

Row = dict[str, Any]

CATEGORIES: dict[str, str] = {
    "car": "vehicle.car",
    "truck": "vehicle.truck",
    "bus": "vehicle.bus.rigid",
    "trailer": "vehicle.trailer",
    "construction_vehicle": "vehicle.construction",
    "pedestrian": "human.pedestrian.adult",
    "motorcycle": "vehicle.motorcycle",
    "bicycle": "vehicle.bicycle",
    "traffic_cone": "movable_object.trafficcone",
    "barrier": "movable_object.barrier",
}
"""The nuScenes category that stands for each detection class."""

ATTRIBUTES: tuple[str, ...] = (
    "vehicle.moving",
    "vehicle.stopped",
    "vehicle.parked",
    "cycle.with_rider",
    "cycle.without_rider",
    "pedestrian.sitting_lying_down",
    "pedestrian.standing",
    "pedestrian.moving",
)

_OTHER_CATEGORIES: tuple[str, ...] = (
    "human.pedestrian.child",
    "human.pedestrian.wheelchair",
    "human.pedestrian.stroller",
    "human.pedestrian.personal_mobility",
    "human.pedestrian.police_officer",
    "human.pedestrian.construction_worker",
    "animal",
    "vehicle.bus.bendy",
    "vehicle.emergency.ambulance",
    "vehicle.emergency.police",
    "movable_object.pushable_pullable",
    "movable_object.debris",
    "static_object.bicycle_rack",
)

TABLES: tuple[str, ...] = (
    "category",
    "attribute",
    "visibility",
    "instance",
    "sensor",
    "calibrated_sensor",
    "ego_pose",
    "log",
    "scene",
    "sample",
    "sample_data",
    "sample_annotation",
    "map",
)


def token(*parts: object) -> str:
    """32 hexadecimal digits that depend on the parts alone."""
    return hashlib.md5("/".join(str(part) for part in parts).encode(), usedforsecurity=False).hexdigest()


def fixed_tables() -> dict[str, list[Row]]:
    """`category`, `attribute`, `visibility` and `sensor`: the names of nuScenes."""
    names = (*CATEGORIES.values(), *_OTHER_CATEGORIES)
    levels = (("1", 0, 40), ("2", 40, 60), ("3", 60, 80), ("4", 80, 100))
    sensors = [*((channel, "camera") for channel in CAMERA_CHANNELS), ("LIDAR_TOP", "lidar")]
    return {
        "category": [{"token": token("category", name), "name": name, "description": ""} for name in names],
        "attribute": [{"token": token("attribute", name), "name": name, "description": ""} for name in ATTRIBUTES],
        "visibility": [
            {
                "token": level,
                "level": f"v{low}-{high}",
                "description": f"visibility of whole object is between {low} and {high}%",
            }
            for level, low, high in levels
        ],
        "sensor": [
            {"token": token("sensor", channel), "channel": channel, "modality": kind} for channel, kind in sensors
        ],
    }


def attribute(actor: Actor) -> str | None:
    """The nuScenes attribute of an object; None for barriers and cones."""
    moving = actor.speed > 0.2
    if actor.name in ("barrier", "traffic_cone"):
        return None
    if actor.name == "pedestrian":
        return "pedestrian.moving" if moving else "pedestrian.standing"
    if actor.name in ("motorcycle", "bicycle"):
        return "cycle.with_rider" if actor.rider else "cycle.without_rider"
    return "vehicle.moving" if moving else ("vehicle.parked" if actor.parked else "vehicle.stopped")


def visibility(visible: int, covered: int) -> str:
    """Token of the visibility level: pixels that are seen against pixels that would be if nothing stood in front."""
    share = visible / covered if covered else 0.0
    return "4" if share >= 0.8 else "3" if share >= 0.6 else "2" if share >= 0.4 else "1"
