"""What all pictures share: the objects they show, colours, fonts, labels, files."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ..files import written_aside

Color = tuple[int, int, int]

BACKGROUND: Color = (14, 17, 22)
PANEL: Color = (20, 24, 31)
INK: Color = (228, 232, 238)
FAINT: Color = (128, 138, 152)
WHITE: Color = (255, 255, 255)

# Bright enough for a photograph and for a dark ground; the order is that of NUSCENES_CLASSES.
PALETTE: tuple[Color, ...] = (
    (64, 196, 255),
    (255, 145, 77),
    (255, 82, 82),
    (186, 134, 255),
    (255, 213, 79),
    (105, 240, 120),
    (255, 92, 205),
    (29, 233, 182),
    (238, 255, 110),
    (222, 170, 125),
)

# Pillow's lines have hard edges: a picture is drawn this many times larger and averaged down.
OVERSAMPLING = 2


def class_color(label: int) -> Color:
    """The colour of a class: hand-picked for the first ten, golden-angle hues after them."""
    if label < len(PALETTE):
        return PALETTE[label]
    red, green, blue = colorsys.hsv_to_rgb(label * 0.6180339887 % 1, (0.55, 0.8)[label % 2], 1.0)
    return round(255 * red), round(255 * green), round(255 * blue)


@dataclass(frozen=True)
class Objects:
    """The objects that one picture shows in one style.

    Truth beside predictions is a `reference`: thin white dashes without names. Objects with `tracks` have one colour
    each, which they keep from frame to frame, instead of that of their class.
    """

    boxes: np.ndarray  # [n, 4] pixels or [n, 9] metres, lidar frame; float64
    labels: np.ndarray  # [n] int64
    scores: np.ndarray | None  # [n] in 0..1
    class_names: tuple[str, ...]
    reference: bool = False
    tracks: np.ndarray | None = None  # [n] int64
    trails: tuple[np.ndarray, ...] = ()  # n x [k, 9] earlier boxes, oldest first, in the present lidar frame

    @classmethod
    def checked(
        cls,
        boxes: Tensor | np.ndarray,  # [n, 4] or [n, 9]
        labels: Tensor | np.ndarray,  # [n]
        class_names: Sequence[str],
        scores: Tensor | np.ndarray | None = None,  # [n]
        reference: bool = False,
        what: str = "detections",
    ) -> Objects:
        """Objects from tensors on any device.

        Raises:
            ValueError: shapes that do not belong together, a box with a NaN or infinite number (velocity excepted),
                or a label without a name; `what` names the culprit.
        """
        boxes, labels = _array(boxes, np.float64), _array(labels, np.int64)
        scores = None if scores is None else _array(scores, np.float64)
        if boxes.ndim != 2 or boxes.shape[1] not in (4, 9):
            raise ValueError(f"{what}: boxes must be [n, 4] (2D) or [n, 9] (3D), got {list(boxes.shape)}")
        for name, values in (("labels", labels), ("scores", scores)):
            if values is not None and values.shape != boxes.shape[:1]:
                raise ValueError(f"{what}: {len(boxes)} boxes need {name} [{len(boxes)}], got {list(values.shape)}")
        broken = ~np.isfinite(boxes[:, :7]).all(1)
        if broken.any():
            index = int(broken.argmax())
            raise ValueError(f"{what}: box {index} is not finite: {boxes[index].tolist()}")
        unnamed = (labels < 0) | (labels >= len(class_names))
        if unnamed.any():
            index = int(unnamed.argmax())
            raise ValueError(
                f"{what}: box {index} has label {labels[index]}, but there are {len(class_names)} class names"
            )
        return cls(boxes, labels, scores, tuple(class_names), reference)

    def __len__(self) -> int:
        return len(self.boxes)

    def __getitem__(self, index: np.ndarray) -> Objects:
        """The subset, and its order, picked by a boolean mask or by indices [k]."""
        picked = np.arange(len(self))[index]
        return replace(
            self,
            boxes=self.boxes[picked],
            labels=self.labels[picked],
            scores=None if self.scores is None else self.scores[picked],
            tracks=None if self.tracks is None else self.tracks[picked],
            trails=tuple(self.trails[k] for k in picked) if self.trails else (),
        )

    def color(self, index: int) -> Color:
        if self.reference:
            return WHITE
        return class_color(int(self.labels[index] if self.tracks is None else self.tracks[index]))

    def caption(self, index: int) -> str:
        name = self.class_names[self.labels[index]].replace("_", " ")
        return name if self.scores is None else f"{name} {self.scores[index]:.2f}"


def _array(values: Tensor | np.ndarray, dtype: type) -> np.ndarray:
    return torch.as_tensor(values).detach().cpu().numpy().astype(dtype)


@lru_cache(maxsize=64)
def font(size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which matplotlib brings along on every system; `size` in pixels."""
    import matplotlib

    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(str(Path(matplotlib.get_data_path(), "fonts", "ttf", name)), max(size, 6))


def stroke_width(wanted: float) -> int:
    """The width in pixels of the large picture that is at least one pixel when averaged down."""
    return max(OVERSAMPLING, round(wanted))


def fading(count: int) -> np.ndarray:
    """How strongly the steps of a past are drawn, oldest first: [count] in 0..1."""
    return np.linspace(0.2, 1.0, count) if count > 1 else np.ones(count)


class Captions:
    """Name tags that never cover each other: who asks first is written, who finds no room is left out."""

    def __init__(self, draw: ImageDraw.ImageDraw, size: int) -> None:
        self._draw, self._font, self._pad = draw, font(size), max(2, size // 4)
        self._taken: list[tuple[float, float, float, float]] = []

    def reserve(self, area: tuple[float, float, float, float]) -> None:
        """Keep (left, top, right, bottom) free of tags."""
        self._taken.append(area)

    def write(self, text: str, left: float, bottom: float, color: Color) -> None:
        """Write black on `color` with the tag's lower left corner at (left, bottom) pixels, moved into the image."""
        pad = self._pad
        ascent, descent = self._font.getmetrics()
        width, height = self._draw.textlength(text, self._font) + 2 * pad, ascent + descent
        image_width, image_height = self._draw.im.size
        left = min(max(left, 0), max(image_width - width, 0))
        top = min(max(bottom - height, 0), max(image_height - height, 0))
        tag = (left, top, left + width, top + height)
        if any(tag[0] < b[2] and b[0] < tag[2] and tag[1] < b[3] and b[1] < tag[3] for b in self._taken):
            return
        self.reserve(tag)
        self._draw.rounded_rectangle(tag, radius=pad, fill=color)
        self._draw.text((left + pad, top), text, (10, 12, 16), self._font)


def dashed(
    draw: ImageDraw.ImageDraw,
    start: Sequence[float] | np.ndarray,  # (u, v) pixels
    end: Sequence[float] | np.ndarray,
    fill: tuple[int, ...],
    width: int,
    dash: float,
) -> None:
    """A straight line of dashes and gaps, each about `dash` pixels long."""
    a, b = np.asarray(start, float), np.asarray(end, float)
    count = max(1, round(np.linalg.norm(b - a) / dash / 2 + 0.5)) * 2 - 1
    for k in range(0, count, 2):
        p, q = a + (b - a) * (k / count), a + (b - a) * ((k + 1) / count)
        draw.line([tuple(p), tuple(q)], fill, width)


def save(picture: Image.Image, path: str | Path) -> None:
    """Write a picture in the format of the file's suffix, complete or not at all; missing folders are made.

    Raises:
        ValueError: a suffix that names no picture format.
    """
    path = Path(path)
    if path.suffix.lower() not in Image.registered_extensions():
        raise ValueError(f"{path}: {path.suffix or 'no suffix'!r} is no picture format; use .png or .jpg")
    with written_aside(path) as aside:
        # A photograph hardly shrinks further at PNG's higher levels, which take several times as long.
        picture.save(aside, Image.registered_extensions()[path.suffix.lower()], compress_level=3, quality=92)
