"""The CAN bus expansion of nuScenes: what the car itself measured, a download of its own that nothing requires.

`scene-0001_pose.json` is a list of messages, 50 in a second: `utime` in microseconds, `pos` (metres) and `orientation`
(quaternion w, x, y, z) in the global frame, and `accel` (m/s2, gravity included), `rotation_rate` (rad/s) and `vel`
(m/s) in the ego's. BEVFormer can read them; see `models.ego_motion`, which also tells how it does without.
"""

from __future__ import annotations

import math
from functools import lru_cache
from pathlib import Path

import numpy as np

from ..documents import LARGE, DocumentError, is_integer, is_number, parse_json, read_text, shown
from ..geometry import quaternion_to_matrix, yaw_of
from .file_names import leaves_folder
from .images import SampleError

FIELDS = {"pos": 3, "orientation": 4, "accel": 3, "rotation_rate": 3, "vel": 3}  # in the order of the 18 numbers
MAX_GAP = 500_000  # microseconds; farther than this from any message, nobody knows
LARGEST = 1e9  # metres and the like; beyond it nothing is

# Scenes for which nuScenes has no CAN bus.
WITHOUT = frozenset({*range(161, 169), *range(170, 177), *range(309, 315)})


class CanBus:
    """The messages of a data set's scenes.

    Args:
        folder: with a file `SCENE_pose.json` for each scene.

    Raises:
        FileNotFoundError: there is no such folder.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise FileNotFoundError(
                f"{self.folder} is no folder: data.can_bus names the one with the files scene-0001_pose.json, ... of "
                "nuScenes' CAN bus expansion; without data.can_bus the same follows from the poses"
            )

    def has(self, scene: str) -> bool:
        """Whether there are messages of a scene; nuScenes has none of a few."""
        number = scene.removeprefix("scene-")
        return not (number.isdecimal() and int(number) in WITHOUT) or self._path(scene).is_file()

    def signals(self, scene: str, time: int) -> np.ndarray:
        """The 18 numbers [18] float64 at a time in microseconds, from the messages alone; see `models.ego_motion`.

        Position and orientation are interpolated. The rest is what the first message after that moment says, or the
        last message, as in the release of BEVFormer.

        Raises:
            SampleError: the scene has no file, a damaged one, or none of its messages comes within half a second.
        """
        path = self._path(scene)
        times, values = _read(path)
        after = int(np.searchsorted(times, time, side="right"))
        before, after = max(after - 1, 0), min(after, len(times) - 1)
        nearest = min(abs(int(times[before]) - time), abs(int(times[after]) - time))
        if nearest > MAX_GAP:
            raise SampleError(
                f"{path}: the nearest message to time {time} comes {1e-6 * nearest:.2f} s apart; the messages go from "
                f"{times[0]} to {times[-1]} (microseconds)"
            )
        span = int(times[after]) - int(times[before])
        share = min(max((time - int(times[before])) / span, 0.0), 1.0) if span else 0.0
        out = np.zeros(18)
        out[:16] = values[after]
        out[:3] = (1 - share) * values[before, :3] + share * values[after, :3]
        out[3:7] = _between(values[before, 3:7], values[after, 3:7], share)
        heading = float(yaw_of(quaternion_to_matrix(out[3:7]))) % (2 * math.pi)
        out[16], out[17] = heading, math.degrees(heading)
        return out

    def _path(self, scene: str) -> Path:
        if leaves_folder(f"{scene}_pose.json"):
            raise SampleError(f"the name of scene {scene!r} leads out of {self.folder}")
        return self.folder / f"{scene}_pose.json"


def mirrored_signals(signals: np.ndarray) -> np.ndarray:
    """The 18 numbers [18] of a car in a world that is mirrored left to right: y points the other way everywhere."""
    along, about = (1, -1, 1), (-1, 1, -1)  # axes of things that point somewhere, and of turns
    out = signals * np.array([*along, 1, *about, *along, *about, *along, -1, -1])
    out[16], out[17] = out[16] % (2 * math.pi), out[17] % 360
    return out


@lru_cache(maxsize=64)
def _read(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """The messages of a file in the order of time: microseconds [n] int64, and `FIELDS` [n, 16] float64."""
    try:
        messages = parse_json(read_text(path, LARGE))
    except FileNotFoundError:
        raise SampleError(
            f"{path} does not exist: the CAN bus expansion has a file for each scene but {len(WITHOUT)}; leave "
            "data.can_bus out to do without"
        ) from None
    except DocumentError as error:
        raise SampleError(f"{path} is damaged: {error}") from None
    if not isinstance(messages, list) or not messages:
        raise SampleError(f"{path} must be a JSON list of messages, and hold some")
    for number, message in enumerate(messages):
        if problem := _problem(message):
            raise SampleError(f"{path}, message {number}: {problem}")
    times = np.array([message["utime"] for message in messages], np.int64)
    order = np.argsort(times, kind="stable")
    values = np.array([[x for name in FIELDS for x in message[name]] for message in messages], np.float64)
    return times[order], values[order]


def _problem(message: object) -> str | None:
    """What is wrong with a message."""
    if not isinstance(message, dict):
        return f"it must be a JSON object, got {shown(message)}"
    if missing := sorted({"utime", *FIELDS} - message.keys()):
        return f"it has no {', '.join(missing)}"
    if not is_integer(message["utime"]):
        return f"utime must be an integer, got {shown(message['utime'])}"
    for name, count in FIELDS.items():
        value = message[name]
        numbers = isinstance(value, list) and len(value) == count and all(map(is_number, value))
        if not numbers or not all(abs(x) < LARGEST for x in value):
            return f"{name} must be {count} finite numbers, got {shown(value)}"
    if not any(message["orientation"]):
        return "its orientation is the zero quaternion"
    return None


def _between(first: np.ndarray, second: np.ndarray, share: float) -> np.ndarray:
    """The unit quaternion [4], w >= 0, between two that are near each other."""
    first, second = first / np.linalg.norm(first), second / np.linalg.norm(second)
    if first @ second < 0:
        second = -second
    mixed = (1 - share) * first + share * second
    return mixed / (np.linalg.norm(mixed) * (-1.0 if mixed[0] < 0 else 1.0))
