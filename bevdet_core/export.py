"""Detectors for other runtimes: ONNX and torch.export, through the operator's reference, checked on the spot."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bevdet_ops import use_reference

from . import boxes3d
from .boxes import cxcywh_to_xyxy
from .config import CocoConfig, Config
from .detector import Detector
from .files import write_text, written_aside
from .structures import CameraRig, ImageBatch

TOLERANCE = 1e-3
CHECKED_BATCH_SIZES = (1, 3)  # neither is the size that is traced
TRACED_BATCH_SIZE = 2
OPSET = 20


class ExportError(ValueError):
    """A graph that cannot be made, or computes something else than the detector; the message says which."""


@dataclass(frozen=True)
class Exported:
    """A graph that was written and checked.

    Attributes:
        path: of the graph.
        description: of its inputs and outputs; the same as in the JSON file beside it.
        difference: by output, the largest difference to the detector, relative where a number is larger than 1.
    """

    path: Path
    description: dict[str, Any]
    difference: dict[str, float]


def export(detector: Detector, out: str | Path, image_size: tuple[int, int] | None = None) -> Exported:
    """Write a detector as a graph of fixed image size and any batch size, and compare the two on random input.

    The graph takes `images`, normalised and padded as `collate` does, with `sizes` (2D) or `lidar2img` (3D), and gives
    `scores` of every query and class, and `boxes` of every query. What they mean, the class names and the pixel
    normalisation are in a JSON file beside the graph, and in the metadata of an ONNX file. Choosing the best is left to
    the user: a threshold is a line in any language.

    Args:
        detector: the detector; it is moved to the CPU.
        out: an .onnx or a .pt2 file (torch.export); complete or absent at any moment.
        image_size: (height, width) of the padded images; default: that of the configuration. Rounded up to what
            the model needs.

    Raises:
        ValueError: another suffix.
        ImportError: packages of the extra `export` are missing.
        ExportError: the graph differs from the detector by more than `TOLERANCE`.
    """
    out = Path(out)
    if out.suffix not in WRITERS:
        raise ValueError(f"{out}: a detector is exported to an .onnx or a .pt2 file (torch.export)")
    if out.suffix == ".onnx":
        _require_onnx()
    config = detector.config
    height, width = image_size or _image_size(config)
    divisor = config.model.pixels.size_divisor
    size = (-(-height // divisor) * divisor, -(-width // divisor) * divisor)
    graph = graph_of(detector)
    description = describe(detector, size)
    with written_aside(out) as aside, torch.no_grad():
        with use_reference():
            run = WRITERS[out.suffix](graph, example_inputs(config, size, TRACED_BATCH_SIZE), aside, description)
        difference = _check(graph, run, config, size)
    write_text(out.with_suffix(".json"), json.dumps(description, indent=1))
    return Exported(out, description, difference)


def graph_of(detector: Detector) -> ImageGraph | RigGraph:
    """The detector from tensors to tensors, on the CPU."""
    kind = ImageGraph if isinstance(detector.config.data, CocoConfig) else RigGraph
    return kind(detector.model.cpu()).eval()


class ImageGraph(nn.Module):
    """A 2D detector from tensors to tensors."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(
        self,
        images: Tensor,  # [B, 3, H, W] normalised, 0 under padding
        sizes: Tensor,  # [B, 2] int64, (height, width) without padding
    ) -> tuple[Tensor, Tensor]:
        """Scores [B, Q, C] and boxes [B, Q, 4], (x0, y0, x1, y1) as fractions of the image without padding."""
        predictions = self.model(ImageBatch(images[:, None], sizes[:, None]))
        return self.model.scores(predictions.logits[-1]), cxcywh_to_xyxy(predictions.boxes[-1])  # type: ignore[operator]


class RigGraph(nn.Module):
    """A 3D detector from tensors to tensors."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(
        self,
        images: Tensor,  # [B, N, 3, H, W] normalised, 0 under padding
        lidar2img: Tensor,  # [B, N, 4, 4] float32, see Camera.lidar2img
    ) -> tuple[Tensor, Tensor]:
        """Scores [B, Q, C] and boxes [B, Q, 9] in the lidar frame, as in `Targets`."""
        predictions = self.model(self.batch(images, lidar2img))
        return predictions.logits[-1].sigmoid(), boxes3d.decode(predictions.boxes[-1])

    @staticmethod
    def batch(images: Tensor, lidar2img: Tensor) -> ImageBatch:
        """The batch that the inputs of the graph are."""
        sizes = torch.tensor(images.shape[-2:]).expand(*images.shape[:2], 2)
        return ImageBatch(images, sizes, CameraRig(lidar2img))


def describe(detector: Detector, size: tuple[int, int]) -> dict[str, Any]:
    """What a user of the graph has to know, for the JSON file; `size` is the (height, width) of the padded images."""
    config, pixels = detector.config, detector.config.model.pixels
    height, width = size
    if isinstance(config.data, CocoConfig):
        inputs = {
            "images": ["float32", ["batch", 3, height, width], "normalised, 0 under padding at the right and below"],
            "sizes": ["int64", ["batch", 2], "(height, width) of each image without padding, in pixels"],
        }
        boxes = ["float32", ["batch", "query", 4], "(x0, y0, x1, y1) as fractions of the image without padding"]
    else:
        cameras = len(config.data.cameras)
        inputs = {
            "images": ["float32", ["batch", cameras, 3, height, width], f"of {', '.join(config.data.cameras)}"],
            "lidar2img": [
                "float32",
                ["batch", cameras, 4, 4],
                "takes (x, y, z, 1) in metres of the lidar frame to (u d, v d, d, 1), u and v in pixels of `images`",
            ],
        }
        boxes = [
            "float32",
            ["batch", "query", 9],
            "(x, y, z, w, l, h, yaw, vx, vy) in the lidar frame: metres, radians from the x axis, m/s",
        ]
    scores = ["float32", ["batch", "query", "class"], "0 to 1; a query may name several classes"]
    entry = lambda facts: dict(zip(("dtype", "shape", "meaning"), facts, strict=True))  # noqa: E731
    return {
        "format": 1,
        "model": config.model.name,
        "classes": list(detector.class_names),
        "input_size": {"height": height, "width": width},
        "pixels": {
            "order": "BGR" if pixels.bgr else "RGB",
            "mean": list(pixels.mean),
            "std": list(pixels.std),
            "meaning": "(value - mean) / std of each channel, values from 0 to 255, channels in this order",
        },
        "inputs": {name: entry(facts) for name, facts in inputs.items()},
        "outputs": {"scores": entry(scores), "boxes": entry(boxes)},
    }


def example_inputs(config: Config, size: tuple[int, int], batch_size: int) -> dict[str, Tensor]:
    """Random input of a graph: noise; images of several sizes (2D), or a ring of cameras (3D)."""
    generator = torch.Generator().manual_seed(batch_size)
    height, width = size
    if isinstance(config.data, CocoConfig):
        fraction = 1 - 0.4 * torch.rand(batch_size, 2, generator=generator)
        sizes = (fraction * torch.tensor(size)).long().clamp(min=1)
        batch = ImageBatch(torch.randn(batch_size, 1, 3, height, width, generator=generator), sizes[:, None])
        return {"images": batch.images.masked_fill(batch.mask[:, :, None], 0)[:, 0], "sizes": sizes}
    cameras = len(config.data.cameras)
    images = torch.randn(batch_size, cameras, 3, height, width, generator=generator)
    return {"images": images, "lidar2img": _ring(cameras, size).expand(batch_size, -1, -1, -1).contiguous()}


def _ring(cameras: int, size: tuple[int, int]) -> Tensor:
    """lidar2img [N, 4, 4] of cameras that look around from 1.5 m above the lidar's origin."""
    height, width = size
    intrinsic = np.array([[0.7 * width, 0, width / 2, 0], [0, 0.7 * width, height / 2, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    out = []
    for azimuth in 2 * np.pi * np.arange(cameras) / cameras:
        c, s = np.cos(azimuth), np.sin(azimuth)
        lidar2camera = np.array([[c, s, 0, 0.01], [0, 0, -1, 1.5], [-s, c, 0, 0.02], [0, 0, 0, 1]])
        out.append(intrinsic @ lidar2camera)
    return torch.from_numpy(np.array(out, np.float32))


def _image_size(config: Config) -> tuple[int, int]:
    if isinstance(config.data, CocoConfig):
        return config.data.short_side, config.data.long_side
    return config.data.input_size or (900, 1600)


Run = Callable[[Mapping[str, Tensor]], tuple[Tensor, Tensor]]


def _write_onnx(graph: nn.Module, inputs: dict[str, Tensor], path: Path, description: dict[str, Any]) -> Run:
    import onnx
    import onnxruntime

    with _quiet():
        program = torch.onnx.export(
            graph,
            kwargs=inputs,
            input_names=list(description["inputs"]),
            output_names=list(description["outputs"]),
            dynamic_shapes=_dynamic(inputs),
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    program.save(str(path))
    model = onnx.load(path)
    for name, value in description.items():
        model.metadata_props.add(key=name, value=value if isinstance(value, str) else json.dumps(value))
    onnx.save(model, path)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

    def run(inputs: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        scores, boxes = session.run(None, {name: tensor.numpy() for name, tensor in inputs.items()})
        return torch.from_numpy(scores), torch.from_numpy(boxes)

    return run


def _write_pt2(graph: nn.Module, inputs: dict[str, Tensor], path: Path, description: dict[str, Any]) -> Run:
    program = torch.export.export(graph, (), inputs, dynamic_shapes=_dynamic(inputs))
    with path.open("wb") as file:
        torch.export.save(program, file, extra_files={"description.json": json.dumps(description)})
    with path.open("rb") as file:
        loaded = torch.export.load(file).module()
    return lambda inputs: loaded(**inputs)


WRITERS: dict[str, Callable[..., Run]] = {".onnx": _write_onnx, ".pt2": _write_pt2}


def _dynamic(inputs: Mapping[str, Tensor]) -> dict[str, dict[int, Any]]:
    batch = torch.export.Dim("batch", min=1)
    return {name: {0: batch} for name in inputs}


def _check(graph: nn.Module, run: Run, config: Config, size: tuple[int, int]) -> dict[str, float]:
    """The largest difference of each output over several batch sizes."""
    difference = {"scores": 0.0, "boxes": 0.0}
    for batch_size in CHECKED_BATCH_SIZES:
        inputs = example_inputs(config, size, batch_size)
        for name, ours, theirs in zip(difference, graph(**inputs), run(inputs), strict=True):
            gap = float(((ours - theirs).abs() / ours.abs().clamp(min=1)).max())
            difference[name] = max(difference[name], gap)
            if not gap <= TOLERANCE:
                raise ExportError(
                    f"the exported graph differs from the detector by {gap:.2g} in {name} at batch size {batch_size}; "
                    f"{TOLERANCE:g} is allowed, so it is not kept"
                )
    return difference


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what the exporter says about itself: a missing torchvision, its own deprecations."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _require_onnx() -> None:
    from importlib.util import find_spec

    missing = [name for name in ("onnx", "onnxruntime", "onnxscript") if find_spec(name) is None]
    if missing:
        raise ImportError(f"ONNX export needs {', '.join(missing)}: pip install 'bevdet-core[export]'")
