"""What BEVFormer remembers between frames, and in which order frames of a batch may be looked at."""

from __future__ import annotations

import json
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..documents import is_number, is_text, parse_json, shown
from .ego_motion import SIGNALS, FramePose

POSE_ARRAYS = {"lidar2global": (4, 4), "lidar2ego": (4, 4), "can_bus": (SIGNALS,)}  # of a `FramePose`


@dataclass
class SeenFrame:
    """A frame that was looked at."""

    pose: FramePose
    bev: Tensor  # [H W, D]


class BevMemory:
    """The last frames of each lane. A lane is a sequence of frames in time: a scene, a stream, the past of a sample.

    Args:
        max_gap: a frame that came more than this many seconds before the next one is no history.
        steps: which frames are asked for, in frames before the present one.
        spare_lanes: lanes that are remembered beside those of the last batch.
        strict: a frame that does not come after the one before is an error; otherwise its lane begins anew.
    """

    def __init__(self, max_gap: float, steps: Sequence[int] = (1,), spare_lanes: int = 0, strict: bool = True) -> None:
        self.max_gap, self.steps, self.spare_lanes, self.strict = max_gap, tuple(steps), spare_lanes, strict
        self._lanes: dict[Hashable, list[SeenFrame]] = {}  # newest frame first; the lane that was used last at the end

    def recall(self, lane: Hashable, pose: FramePose) -> list[SeenFrame | None]:
        """The frames before one, `steps` before it; None for those from before its lane began or was interrupted.

        Raises:
            ValueError: the frame is no later than the one before.
        """
        frames = self._unbroken(lane, pose)
        return [frames[step - 1] if step <= len(frames) else None for step in self.steps]

    def keep(self, lane: Hashable, frame: SeenFrame) -> None:
        """Remember a frame as the last of its lane."""
        frames = [frame, *self._unbroken(lane, frame.pose)]
        self._lanes.pop(lane, None)
        self._lanes[lane] = frames[: max(self.steps)]

    def forget_others(self, lanes: Iterable[Hashable]) -> None:
        """Keep these lanes, and the spare ones that were used last: a scene that is over does not come back."""
        others = [lane for lane in self._lanes if lane not in set(lanes)]
        for lane in others[: max(len(others) - self.spare_lanes, 0)]:
            del self._lanes[lane]

    def forget(self) -> None:
        """Remember nothing."""
        self._lanes.clear()

    def tensors(self) -> dict[str, Tensor]:
        """All that is remembered, for a checkpoint; lanes must have texts for names."""
        names = [[lane, [[f.pose.name, f.pose.timestamp] for f in frames]] for lane, frames in self._lanes.items()]
        out = {"names": torch.frombuffer(bytearray(json.dumps(names).encode()), dtype=torch.uint8)}
        for i, frames in enumerate(self._lanes.values()):
            for k, seen in enumerate(frames):
                out[f"{i}/{k}/bev"] = seen.bev
                poses = {name: getattr(seen.pose, name) for name in POSE_ARRAYS}
                out |= {f"{i}/{k}/{name}": torch.from_numpy(x) for name, x in poses.items() if x is not None}
        return out

    def restore(self, tensors: Mapping[str, Tensor], device: torch.device) -> None:
        """Remember what `tensors` gave.

        Raises:
            ValueError: it is damaged.
            KeyError: something of it is missing.
        """
        self.forget()
        for i, (lane, frames) in enumerate(parse_json(bytes(tensors["names"].tolist()))):
            self._lanes[lane] = []
            for k, (name, timestamp) in enumerate(frames):
                arrays = {x: tensors[f"{i}/{k}/{x}"] for x in POSE_ARRAYS if f"{i}/{k}/{x}" in tensors}
                if not (_fit(arrays) and is_text(name) and (timestamp is None or is_number(timestamp))):
                    raise ValueError(f"what is remembered of frame {shown(name)} is no pose and time")
                poses: dict[str, Any] = {x: array.numpy() for x, array in arrays.items()}
                pose = FramePose(name, timestamp=timestamp, **poses)
                if not pose.known:
                    raise ValueError(f"of frame {shown(name)} no pose is remembered")
                self._lanes[lane].append(SeenFrame(pose, tensors[f"{i}/{k}/bev"].to(device)))

    def _unbroken(self, lane: Hashable, pose: FramePose) -> list[SeenFrame]:
        """The frames of a lane that lead up to one, newest first."""
        frames = self._lanes.get(lane, [])
        last = frames[0].pose if frames else pose
        if not frames or pose.timestamp is None or last.timestamp is None:
            return frames
        seconds = pose.timestamp - last.timestamp
        if seconds <= 0 and self.strict:
            raise ValueError(
                f"frame {pose.name!r} (at {pose.timestamp:.3f} s) does not come after frame {last.name!r} (at "
                f"{last.timestamp:.3f} s): the frames of a scene must come in the order of time"
            )
        return frames if 0 < seconds <= self.max_gap else []


def rounds(lanes: Sequence[Hashable]) -> list[list[int]]:
    """Positions of a batch in the order in which they can be looked at: first the first of every lane, and so on."""
    counts: dict[Hashable, int] = {}
    out: list[list[int]] = []
    for position, lane in enumerate(lanes):
        turn = counts[lane] = counts.get(lane, -1) + 1
        if turn == len(out):
            out.append([])
        out[turn].append(position)
    return out


def _fit(arrays: Mapping[str, Tensor]) -> bool:
    """Whether arrays of a pose are what they are called."""
    return all(
        array.shape == POSE_ARRAYS[name] and array.dtype == torch.float64 and bool(array.isfinite().all())
        for name, array in arrays.items()
    )
