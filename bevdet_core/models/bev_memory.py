"""What BEVFormer remembers between frames, and in which order frames of a batch may be looked at."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass

from torch import Tensor

from .ego_motion import FramePose


@dataclass
class SeenFrame:
    """A frame that was looked at."""

    pose: FramePose
    bev: Tensor  # [H W, D]


class BevMemory:
    """The last frame of each lane. A lane is a sequence of frames in time: a scene, a stream, the past of a sample.

    Args:
        max_gap: a frame that came more than this many seconds before is no history.
    """

    def __init__(self, max_gap: float) -> None:
        self.max_gap = max_gap
        self._last: dict[Hashable, SeenFrame] = {}

    def recall(self, lane: Hashable, pose: FramePose) -> SeenFrame | None:
        """The frame before one; None where a lane begins or was interrupted.

        Raises:
            ValueError: the frame is no later than the one before.
        """
        last = self._last.get(lane)
        if last is None or pose.timestamp is None or last.pose.timestamp is None:
            return last
        seconds = pose.timestamp - last.pose.timestamp
        if seconds <= 0:
            raise ValueError(
                f"frame {pose.name!r} (at {pose.timestamp:.3f} s) does not come after frame {last.pose.name!r} (at "
                f"{last.pose.timestamp:.3f} s): the frames of a scene must come in the order of time"
            )
        return last if seconds <= self.max_gap else None

    def keep(self, lane: Hashable, frame: SeenFrame) -> None:
        """Remember a frame as the last of its lane."""
        self._last[lane] = frame

    def forget_others(self, lanes: Iterable[Hashable]) -> None:
        """Keep these lanes alone: frames come scene after scene, so one that is over does not come back."""
        kept = set(lanes)
        self._last = {lane: frame for lane, frame in self._last.items() if lane in kept}


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
