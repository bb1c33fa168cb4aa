"""The formats that a traced graph is written in, and read back from to be checked."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram

OPSET = 20

Run = Callable[[Mapping[str, Tensor]], dict[str, Tensor]]  # inputs of a graph -> outputs


def write_onnx(program: ExportedProgram, path: Path, description: Mapping[str, Any]) -> Run:
    """Write an ONNX file with the description as metadata; run it with onnxruntime."""
    import onnxruntime

    outputs = list(description["outputs"])
    with _quiet():
        graph = torch.onnx.export(
            program,
            input_names=list(description["inputs"]),
            output_names=outputs,
            opset_version=OPSET,
            custom_translation_table={torch.ops.aten.sort.stable: _stable_sort},
            dynamo=True,
            verbose=False,
        )
    assert graph is not None
    for name, value in description.items():
        graph.model.metadata_props[name] = value if isinstance(value, str) else json.dumps(value)
    graph.save(str(path))
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

    def run(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        found = session.run(outputs, {name: tensor.numpy() for name, tensor in inputs.items()})
        return {name: torch.from_numpy(value) for name, value in zip(outputs, found, strict=True)}

    return run


def write_pt2(program: ExportedProgram, path: Path, description: Mapping[str, Any]) -> Run:
    """Write an archive of torch.export with the description inside; run it with torch."""
    with path.open("wb") as file:
        torch.export.save(program, file, extra_files={"description.json": json.dumps(description)})
    with path.open("rb") as file:
        loaded = torch.export.load(file).module()
    return lambda inputs: dict(zip(description["outputs"], loaded(**inputs), strict=True))


WRITERS: dict[str, Callable[[ExportedProgram, Path, Mapping[str, Any]], Run]] = {
    ".onnx": write_onnx,
    ".pt2": write_pt2,
}


def _stable_sort(values, stable=None, dim: int = -1, descending: bool = False):
    """aten::sort.stable, which the exporter lacks; TopK of ONNX puts the first of two equals first."""
    from onnxscript import opset20 as op

    count = op.Gather(op.Shape(values), op.Constant(value_ints=[dim]))  # type: ignore[type-var]
    return op.TopK(values, count, axis=dim, largest=int(descending), sorted=1)


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
