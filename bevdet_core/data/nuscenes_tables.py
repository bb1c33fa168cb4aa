"""The JSON tables of a nuScenes data set, turned into the arrays of the index.

The tables are read record by record rather than through the devkit's `NuScenes` class, which takes a minute and many
gigabytes for v1.0-trainval and stops at the first dangling token without a word about where it is. What a category,
a split or a velocity is follows the devkit.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..documents import (
    LARGE,
    DocumentError,
    is_integer,
    is_number,
    is_text,
    parse_json,
    read_text,
    shown,
    unique_keys,
)
from ..extras import require
from ..geometry import pose
from .file_names import leaves_folder
from .images import SampleError
from .index_file import text_column, text_of

Record = dict[str, Any]

Check = Callable[[Any], bool]

MAX_SENSORS = 100
LARGEST = 1e9  # metres and the like; beyond it nothing is, and products may overflow


def _name(value: Any) -> bool:
    return is_text(value) and len(value) <= 512


def _names(value: Any) -> bool:
    return isinstance(value, list) and all(map(_name, value))


def _whole(value: Any) -> bool:
    return is_integer(value) and -(2**31) <= value < 2**31


def _flag(value: Any) -> bool:
    return isinstance(value, bool)


def _numbers(value: Any) -> bool:
    return isinstance(value, list) and all(map(is_number, value))


def _rows(value: Any) -> bool:
    return isinstance(value, list) and all(map(_numbers, value))


FIELDS: dict[str, dict[str, Check]] = {  # the tables that are read, the fields that records must have, and their kinds
    "attribute": {"token": _name, "name": _name},
    "calibrated_sensor": {
        **{"token": _name, "sensor_token": _name},
        **{"translation": _numbers, "rotation": _numbers, "camera_intrinsic": _rows},
    },
    "category": {"token": _name, "name": _name},
    "ego_pose": {"token": _name, "translation": _numbers, "rotation": _numbers},
    "instance": {"token": _name, "category_token": _name},
    "sample": {"token": _name, "timestamp": is_integer, "scene_token": _name},
    "sample_annotation": {
        **{"token": _name, "sample_token": _name, "instance_token": _name, "attribute_tokens": _names},
        **{"translation": _numbers, "size": _numbers, "rotation": _numbers},
        **{"prev": _name, "next": _name, "num_lidar_pts": _whole, "num_radar_pts": _whole},
    },
    "sample_data": {
        **{"token": _name, "sample_token": _name, "ego_pose_token": _name, "calibrated_sensor_token": _name},
        **{"is_key_frame": _flag, "filename": _name, "height": _whole, "width": _whole},
    },
    "scene": {"token": _name, "name": _name},
    "sensor": {"token": _name, "channel": _name, "modality": _name},
}
REFERENCE_SENSOR = "LIDAR_TOP"
MAX_VELOCITY_GAP = 1.5  # seconds between the two annotations of a velocity; twice that for a central difference

_SEPARATOR = re.compile(r"[\s,]*")


@dataclass(frozen=True)
class Fault:
    """A record that the index leaves out, and why."""

    table: str
    token: str
    problem: str

    def __str__(self) -> str:
        return f"table {self.table}, token {self.token!r}: {self.problem}"


@dataclass
class Arrays:
    """The content of an index: arrays by name, and what JSON can hold."""

    arrays: dict[str, np.ndarray]
    info: dict[str, Any]


def read_table(folder: Path, name: str) -> Iterator[Record]:
    """The records of one table, one at a time.

    Raises:
        SampleError: the file is missing or is no JSON list of records, or a record lacks a field.
    """
    path = folder / f"{name}.json"
    try:
        text = read_text(path, LARGE)
    except FileNotFoundError:
        raise SampleError(f"table {path} does not exist") from None
    except DocumentError as error:
        raise SampleError(f"table {path} is damaged: {error}") from None
    decode = json.JSONDecoder(object_pairs_hook=unique_keys).raw_decode
    position = _SEPARATOR.match(text).end()  # type: ignore[union-attr]
    if text[position : position + 1] != "[":
        raise SampleError(f"table {path} must be a JSON list of records, it starts with {text[:20]!r}")
    position = _SEPARATOR.match(text, position + 1).end()  # type: ignore[union-attr]
    while text[position : position + 1] != "]":
        try:
            record, position = decode(text, position)
        except json.JSONDecodeError as error:
            raise SampleError(f"table {path} is damaged or cut off at character {position}: {error.msg}") from None
        except (RecursionError, ValueError) as error:
            raise SampleError(f"table {path} is damaged at character {position}: {error}") from None
        if problem := _record_problem(record, FIELDS[name]):
            raise SampleError(f"table {path}, {problem}")
        yield record
        position = _SEPARATOR.match(text, position).end()  # type: ignore[union-attr]


def _record_problem(record: Any, fields: Mapping[str, Check]) -> str | None:
    if not isinstance(record, dict):
        return f"a record must be a JSON object, got {shown(record)}"
    if missing := sorted(fields.keys() - record.keys()):
        return f"token {shown(record.get('token'))}: the record has no {', '.join(missing)}"
    for name, fits in fields.items():
        if not fits(record[name]):
            return f"token {shown(record['token'])}: {name} cannot be {shown(record[name])}"
    return None


def read_tables(folder: Path) -> Arrays:
    """Read all tables of a version into arrays; see `nuscenes_index.NuScenesIndex` for what they are.

    A record that points to a missing one, is incomplete or holds a number that is not finite is left out and noted in
    `info["faults"]`; what depends on it is left out as well.

    Raises:
        SampleError: a table is missing or damaged.
        ImportError: the devkit is not installed, which knows categories and splits.
    """
    require("nuscenes", "indexing the tables of nuScenes", "nuscenes")
    faults: list[Fault] = []
    samples = _read_samples(folder, faults)
    frames = _read_frames(folder, samples, faults)
    boxes = _read_annotations(folder, samples, faults)
    return Arrays(
        {**samples.arrays, **frames.arrays, **boxes.arrays},
        {
            **samples.info,
            **frames.info,
            **boxes.info,
            "splits": _splits(folder, samples.info["scenes"]),
            "faults": [asdict(fault) for fault in faults],
        },
    )


def _read_samples(folder: Path, faults: list[Fault]) -> Arrays:
    """Samples in the order of the scenes, and of time within a scene."""
    scenes = list(read_table(folder, "scene"))
    scene_rows = {record["token"]: i for i, record in enumerate(scenes)}
    found = []
    tokens: set[str] = set()
    for record in read_table(folder, "sample"):
        if record["token"] in tokens:
            faults.append(Fault("sample", record["token"], "its token occurs more than once"))
            continue
        tokens.add(record["token"])
        if record["scene_token"] not in scene_rows:
            problem = f"its scene {record['scene_token']!r} is not in table scene"
            faults.append(Fault("sample", record["token"], problem))
            continue
        found.append((scene_rows[record["scene_token"]], record["timestamp"], record["token"]))
    found.sort()
    return Arrays(
        {
            "sample_token": text_column([token for _, _, token in found]),
            "sample_scene": np.array([scene for scene, _, _ in found], np.int32),
            "timestamp": np.array([time for _, time, _ in found], np.int64),
        },
        {"scenes": [record["name"] for record in scenes]},
    )


def _read_frames(folder: Path, samples: Arrays, faults: list[Fault]) -> Arrays:
    """The reference pose and the cameras of every sample.

    A sample without a complete reference record keeps NaN poses; a camera without one keeps an empty file name.
    """
    sensors = {record["token"]: record for record in read_table(folder, "sensor")}
    if len(sensors) > MAX_SENSORS:
        raise SampleError(f"table {folder / 'sensor.json'} has {len(sensors)} sensors, more than {MAX_SENSORS}")
    cameras = sorted(record["channel"] for record in sensors.values() if record["modality"] == "camera")
    columns = {channel: i for i, channel in enumerate([*cameras, REFERENCE_SENSOR])}
    calibrations = {record["token"]: record for record in read_table(folder, "calibrated_sensor")}
    rows = {token: i for i, token in enumerate(_strings(samples.arrays["sample_token"]))}

    kept: dict[tuple[int, int], Record] = {}
    for record in read_table(folder, "sample_data"):
        if not record["is_key_frame"]:
            continue
        calibration = calibrations.get(record["calibrated_sensor_token"])
        sensor = calibration and sensors.get(calibration["sensor_token"])
        problem = None
        if calibration is None:
            problem = f"its calibration {record['calibrated_sensor_token']!r} is not in table calibrated_sensor"
        elif sensor is None:
            problem = f"the sensor {calibration['sensor_token']!r} of its calibration is not in table sensor"
        elif sensor["channel"] not in columns:
            continue
        elif record["sample_token"] not in rows:
            problem = f"its sample {record['sample_token']!r} is not in table sample"
        elif sensor["modality"] == "camera" and [*map(len, calibration["camera_intrinsic"])] != [3, 3, 3]:
            problem = f"its calibration {calibration['token']!r} has no 3 x 3 camera_intrinsic"
        elif sensor["modality"] == "camera" and not all(map(_bounded, calibration["camera_intrinsic"])):
            problem = f"the camera_intrinsic of its calibration {calibration['token']!r} is not finite"
        elif leaves_folder(record["filename"]):
            problem = f"its filename {record['filename']!r} leads out of the root of the data set"
        if problem:
            faults.append(Fault("sample_data", record["token"], problem))
            continue
        kept[rows[record["sample_token"]], columns[sensor["channel"]]] = record  # type: ignore[index]

    wanted = {record["ego_pose_token"] for record in kept.values()}
    ego_poses = {r["token"]: r for r in read_table(folder, "ego_pose") if r["token"] in wanted}
    count, width = len(rows), len(columns)
    sensor2ego, ego2global = np.full((2, count, width, 4, 4), np.nan)
    intrinsic = np.full((count, width, 3, 3), np.nan)
    size = np.zeros((count, width, 2), np.int32)
    files = [[""] * width for _ in range(count)]
    for (row, column), record in kept.items():
        calibration = calibrations[record["calibrated_sensor_token"]]
        ego_pose = ego_poses.get(record["ego_pose_token"])
        if ego_pose is None:
            problem = f"its pose {record['ego_pose_token']!r} is not in table ego_pose"
            faults.append(Fault("sample_data", record["token"], problem))
            continue
        try:
            sensor2ego[row, column] = _finite_pose("calibrated_sensor", calibration)
            ego2global[row, column] = _finite_pose("ego_pose", ego_pose)
        except SampleError as error:
            faults.append(Fault("sample_data", record["token"], str(error)))
            continue
        if column < len(cameras):
            intrinsic[row, column] = calibration["camera_intrinsic"]
        size[row, column] = record["height"], record["width"]
        files[row][column] = record["filename"]

    sensor2global = ego2global @ sensor2ego
    complete = np.isfinite(sensor2global[:, -1]).all((1, 2))
    for row in np.flatnonzero(~complete):
        problem = f"it has no complete {REFERENCE_SENSOR} key frame in table sample_data"
        faults.append(Fault("sample", _strings(samples.arrays["sample_token"][[row]])[0], problem))
    lidar2global = sensor2global[:, -1]
    global2lidar = np.full_like(lidar2global, np.nan)
    global2lidar[complete] = np.linalg.inv(lidar2global[complete])
    return Arrays(
        {
            "lidar2global": lidar2global,
            "ego2global": np.ascontiguousarray(ego2global[:, -1]),
            "camera2lidar": global2lidar[:, None] @ sensor2global[:, :-1],
            "camera_intrinsic": np.ascontiguousarray(intrinsic[:, :-1]),
            "camera_size": np.ascontiguousarray(size[:, :-1]),
            "camera_file": text_column([file for row in files for file in row[:-1]]).reshape(count, len(cameras), -1),
        },
        {"cameras": cameras},
    )


def _read_annotations(folder: Path, samples: Arrays, faults: list[Fault]) -> Arrays:
    """Boxes in the global frame, exactly as the tables have them, grouped by sample."""
    categories = {record["token"]: record["name"] for record in read_table(folder, "category")}
    category_rows = {name: i for i, name in enumerate(sorted(set(categories.values())))}
    known = _known_categories()
    attributes = {record["token"]: record["name"] for record in read_table(folder, "attribute")}
    attribute_rows = {name: i for i, name in enumerate(sorted(set(attributes.values())))}
    instances = {record["token"]: record["category_token"] for record in read_table(folder, "instance")}
    sample_rows = {token: i for i, token in enumerate(_strings(samples.arrays["sample_token"]))}

    tokens: list[str] = []
    links: list[tuple[str, str]] = []
    numbers: list[list[float]] = []  # translation 3, size 3, rotation 4
    integers: list[tuple[int, int, int, int, int]] = []  # sample, category, attribute, lidar points, radar points
    for record in read_table(folder, "sample_annotation"):
        category = categories.get(instances.get(record["instance_token"], ""))
        values = [*record["translation"], *record["size"], *record["rotation"]]
        problem = None
        if record["sample_token"] not in sample_rows:
            problem = f"its sample {record['sample_token']!r} is not in table sample"
        elif record["instance_token"] not in instances:
            problem = f"its instance {record['instance_token']!r} is not in table instance"
        elif category is None:
            problem = f"the category {instances[record['instance_token']]!r} of its instance is not in table category"
        elif category not in known:
            problem = f"its category {category!r} is no nuScenes category"
        elif missing := [token for token in record["attribute_tokens"] if token not in attributes]:
            problem = f"its attribute {missing[0]!r} is not in table attribute"
        elif len(record["attribute_tokens"]) > 1 and known[category]:
            problem = f"it has {len(record['attribute_tokens'])} attributes, a detection class has at most one"
        else:
            problem = _box_problem(record, values)
        if problem:
            faults.append(Fault("sample_annotation", record["token"], problem))
            continue
        attribute = attribute_rows[attributes[record["attribute_tokens"][0]]] if record["attribute_tokens"] else -1
        tokens.append(record["token"])
        links.append((record["prev"], record["next"]))
        numbers.append(values)
        integers.append(
            (
                sample_rows[record["sample_token"]],
                category_rows[category],
                attribute,
                record["num_lidar_pts"],
                record["num_radar_pts"],
            )
        )

    values_of = np.array(numbers, np.float64).reshape(-1, 10)
    codes = np.array(integers, np.int64).reshape(-1, 5)
    velocity = _velocities(tokens, links, values_of[:, :3], samples.arrays["timestamp"][codes[:, 0]], faults)
    order = np.argsort(codes[:, 0], kind="stable")
    codes, values_of = codes[order], values_of[order]
    return Arrays(
        {
            "box_start": np.searchsorted(codes[:, 0], np.arange(len(sample_rows) + 1)),
            "box_token": text_column(tokens)[order],
            "box_translation": values_of[:, :3].copy(),
            "box_size": values_of[:, 3:6].copy(),
            "box_rotation": values_of[:, 6:].copy(),
            "box_velocity": velocity[order],
            "box_category": codes[:, 1].astype(np.int16),
            "box_attribute": codes[:, 2].astype(np.int16),
            "box_lidar_points": codes[:, 3].astype(np.int32),
            "box_radar_points": codes[:, 4].astype(np.int32),
        },
        {
            "categories": list(category_rows),
            "detection_names": [known.get(name) for name in category_rows],
            "attributes": list(attribute_rows),
            "annotated": bool(sample_rows) and not folder.name.endswith("test"),
        },
    )


def _velocities(
    tokens: Sequence[str],
    links: Sequence[tuple[str, str]],
    translation: np.ndarray,  # [A, 3] metres, global
    timestamp: np.ndarray,  # [A] microseconds
    faults: list[Fault],
) -> np.ndarray:
    """Velocities [A, 2] in m/s, global frame, as `NuScenes.box_velocity` estimates them; NaN where it cannot.

    A neighbour that is left out itself counts as none.
    """
    left_out = {fault.token for fault in faults if fault.table == "sample_annotation"}
    rows = {token: i for i, token in enumerate(tokens)}
    ends = np.tile(np.arange(len(tokens)), (2, 1))  # [previous or self, next or self]
    for i, pair in enumerate(links):
        for side, token in enumerate(pair):
            if not token:
                continue
            if token in rows:
                ends[side, i] = rows[token]
            elif token not in left_out:
                problem = f"its {('previous', 'next')[side]} annotation {token!r} is not in table sample_annotation"
                faults.append(Fault("sample_annotation", tokens[i], problem))
    first, last = ends
    own = np.arange(len(tokens))
    seconds = 1e-6 * timestamp[last] - 1e-6 * timestamp[first]
    limit = np.where((first != own) & (last != own), 2 * MAX_VELOCITY_GAP, MAX_VELOCITY_GAP)
    known = (first != last) & (seconds > 0) & (seconds <= limit)
    velocity = np.full((len(tokens), 2), np.nan)
    velocity[known] = (translation[last] - translation[first])[known, :2] / seconds[known, None]
    return velocity


def _box_problem(record: Record, values: list[float]) -> str | None:
    if [len(record[name]) for name in ("translation", "size", "rotation")] != [3, 3, 4]:
        return f"a box has 3 + 3 + 4 numbers for translation, size and rotation, this one has {len(values)}"
    for name in ("translation", "size", "rotation"):
        if not _bounded(record[name]):
            return f"its {name} {record[name]} is not finite"
    if min(record["size"]) <= 0:
        return f"its size {record['size']} must be positive"
    if np.linalg.norm(record["rotation"]) < 1e-9:
        return "its rotation is the zero quaternion"
    return None


def _finite_pose(table: str, record: Record) -> np.ndarray:
    for name, count in (("translation", 3), ("rotation", 4)):
        if len(record[name]) != count or not _bounded(record[name]):
            problem = f"its {name} {shown(record[name])} is not finite, or not {count} numbers"
            raise SampleError(f"{table} {record['token']!r}: {problem}")
    try:
        return pose(record["rotation"], record["translation"])
    except ValueError as error:
        raise SampleError(f"{table} {record['token']!r}: {error}") from None


def _bounded(values: Sequence[float]) -> bool:
    return all(abs(value) < LARGEST for value in values)


def official_splits() -> dict[str, list[str]]:
    """The names of the scenes of every split of nuScenes."""
    require("nuscenes", "the splits of nuScenes", "nuscenes")
    from nuscenes.utils.splits import create_splits_scenes

    return create_splits_scenes()


def _known_categories() -> dict[str, str | None]:
    """Every nuScenes category, with its detection class or None."""
    from nuscenes.eval.detection.utils import category_to_detection_name
    from nuscenes.utils.color_map import get_colormap

    return {name: category_to_detection_name(name) for name in get_colormap()}


def _splits(folder: Path, scenes: Sequence[str]) -> dict[str, list[int]]:
    """The scene rows of every official split and of those in the data set's own `splits.json`."""
    splits = official_splits()
    if (folder / "splits.json").is_file():
        splits |= _own_splits(folder / "splits.json")
    rows = {name: i for i, name in enumerate(scenes)}
    return {split: sorted(rows[name] for name in names if name in rows) for split, names in splits.items()}


def _own_splits(path: Path) -> dict[str, list[str]]:
    try:
        splits = parse_json(read_text(path, LARGE))
    except DocumentError as error:
        raise SampleError(f"{path} is damaged: {error}") from None
    if not isinstance(splits, dict) or not all(map(_names, splits.values())):
        raise SampleError(f"{path} must map names of splits to lists of scene names")
    return splits


def _strings(column: np.ndarray) -> list[str]:
    """The strings of a text column."""
    return [item.decode() for item in text_of(column)]
