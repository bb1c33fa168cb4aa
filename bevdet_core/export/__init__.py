"""Detectors for other runtimes: ONNX and torch.export, through the operator's reference, checked on the spot."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.export import Dim, ExportedProgram

from bevdet_ops import use_reference

from ..config import CocoConfig, Config
from ..detector import Detector
from ..extras import require
from ..files import write_text, written_aside
from .graphs import Graph, Port, graph_of
from .writers import WRITERS, Run

__all__ = [
    "TOLERANCE",
    "WRITERS",
    "ExportError",
    "Exported",
    "Graph",
    "answers",
    "check",
    "describe",
    "export",
    "graph_of",
    "in_our_order",
    "require_format",
    "trace",
]

TOLERANCE = 1e-3
ROUNDINGS = 4  # a graph may be off by so many times what rounding makes, where that is more
CHECKED_BATCH_SIZES = (1, 3)  # neither is the size that is traced
TRACED_BATCH_SIZE = 2


class ExportError(ValueError):
    """A graph that cannot be made, or computes something else than the detector; the message says which."""


@dataclass(frozen=True)
class Exported:
    """A graph that was written and checked.

    Attributes:
        path: of the graph.
        description: of its inputs and outputs; the same as in the JSON file beside it.
        difference: by output, the largest difference to the detector, relative where a number is larger than 1.
        rounding: what rounding makes in the detector itself, for the outputs that differ by more than `TOLERANCE`.
    """

    path: Path
    description: dict[str, Any]
    difference: dict[str, float]
    rounding: dict[str, float]


def export(detector: Detector, out: str | Path, image_size: tuple[int, int] | None = None) -> Exported:
    """Write a detector as a graph of fixed image size and any batch size, and compare the two on random input.

    The graph takes `images`, normalised and padded as `collate` does, with `sizes` (2D) or `lidar2img` and `hidden`
    (3D), and gives `scores` of every query and class, and `boxes` of every query. BEVFormer takes the motion since the
    last frame too and, where it has a history, the last view, and gives the new one. What they mean, the class names
    and the pixel normalisation are in a JSON file beside the graph, and in the metadata of an ONNX file. Choosing the
    best is left to the user: a threshold is a line in any language.

    Args:
        detector: the detector; it is moved to the CPU.
        out: an .onnx or a .pt2 file (torch.export); complete or absent at any moment.
        image_size: (height, width) of the padded images; default: that of the configuration. Rounded up to what
            the model needs.

    Raises:
        ValueError: another suffix; images that are too small for the detector.
        ImportError: packages of the extra `export` are missing.
        ExportError: the graph differs from the detector by more than `TOLERANCE`, and by more than rounding explains.
    """
    out = Path(out)
    require_format(out)
    height, width = image_size or _image_size(detector.config)
    divisor = detector.config.model.pixels.size_divisor
    graph = graph_of(detector, (-(-height // divisor) * divisor, -(-width // divisor) * divisor))
    description = describe(detector, graph)
    with torch.no_grad():
        # First, so that a size that the detector cannot read is told by the detector, not by the tracer.
        expected = {size: answers(graph, graph.examples(size)) for size in CHECKED_BATCH_SIZES}
        with written_aside(out) as aside:
            run = WRITERS[out.suffix](trace(graph), aside, description)
            difference, rounding = check(graph, run, expected)
    write_text(out.with_suffix(".json"), json.dumps(description, indent=1))
    return Exported(out, description, difference, rounding)


def require_format(out: Path) -> None:
    """Check that a graph can be written to a file of this name.

    Raises:
        ValueError: another suffix than .onnx or .pt2.
        ImportError: packages of the extra `export` are missing.
    """
    if out.suffix not in WRITERS:
        raise ValueError(f"{out}: a detector is exported to an .onnx or a .pt2 file (torch.export)")
    if out.suffix == ".onnx":
        require("export", "ONNX export", "onnx", "onnxruntime", "onnxscript")


def trace(graph: Graph) -> ExportedProgram:
    """The graph for any batch size, with the operator in plain PyTorch."""
    batch = Dim("batch", min=1)
    with torch.no_grad(), use_reference():
        inputs = graph.examples(TRACED_BATCH_SIZE)
        return torch.export.export(graph, (), inputs, dynamic_shapes={name: {0: batch} for name in inputs})


def describe(detector: Detector, graph: Graph) -> dict[str, Any]:
    """What a user of the graph has to know, for the JSON file."""
    config, pixels = detector.config, detector.config.model.pixels
    height, width = graph.size
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
        "inputs": {name: _entry(port) for name, port in graph.inputs.items()},
        "outputs": {name: _entry(port) for name, port in graph.outputs.items()},
        **graph.facts,
    }


def check(
    graph: Graph, run: Run, expected: Mapping[int, Mapping[str, Tensor]]
) -> tuple[dict[str, float], dict[str, float]]:
    """The largest difference of each output to what is expected, by batch size; and see `Exported.rounding`.

    Raises:
        ExportError: see `export`; also where the difference is not a number.
    """
    difference: dict[str, float] = dict.fromkeys(graph.outputs, 0.0)
    rounding: dict[str, float] = {}
    for batch_size, ours in expected.items():
        inputs = graph.examples(batch_size)
        gaps = _gaps(graph, ours, run(inputs))
        difference = {name: max(difference[name], gap) for name, gap in gaps.items()}
        if all(gap <= TOLERANCE for gap in gaps.values()):
            continue
        # Norms and projections may enlarge the last digit; how much is told by the same sums in another order.
        with use_reference(), _without_onednn():
            own = _gaps(graph, ours, answers(graph, inputs))
        for name, gap in gaps.items():
            allowed = max(TOLERANCE, ROUNDINGS * own[name])
            if not gap <= allowed:
                raise ExportError(
                    f"the exported graph differs from the detector by {gap:.2g} in {name} at batch size {batch_size}; "
                    f"{allowed:.2g} is allowed, so it is not kept"
                )
            if gap > TOLERANCE:
                rounding[name] = max(own[name], rounding.get(name, 0.0))
    return difference, rounding


def _gaps(graph: Graph, ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> dict[str, float]:
    """The largest difference of each output."""
    if graph.ranked:
        theirs = in_our_order(ours, theirs)
    return {name: float(graph.difference(name, ours[name], theirs[name]).max()) for name in graph.outputs}


@contextmanager
def _without_onednn() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # the switch speaks of GPUs of another maker
        with torch.backends.mkldnn.flags(enabled=False):
            yield


def answers(graph: Graph, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The outputs of the detector by name."""
    return dict(zip(graph.outputs, graph(**inputs), strict=True))


def in_our_order(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Scores and boxes of the other side with each query beside the most similar of ours.

    Two places that score the same to the last digit but one may change their order between runtimes, and the queries
    that start there with them.
    """
    out = dict(theirs)
    rows = [torch.cat([side["scores"], side["boxes"]], -1) for side in (ours, theirs)]
    order = [linear_sum_assignment(torch.cdist(*pair))[1] for pair in zip(*rows, strict=True)]
    for name in ("scores", "boxes"):
        out[name] = torch.stack([x[torch.from_numpy(o)] for x, o in zip(theirs[name], order, strict=True)])
    return out


def _entry(port: Port) -> dict[str, Any]:
    return {**asdict(port), "shape": list(port.shape)}


def _image_size(config: Config) -> tuple[int, int]:
    if isinstance(config.data, CocoConfig):
        return config.data.short_side, config.data.long_side
    return config.data.input_size or (900, 1600)
