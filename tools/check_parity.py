"""Compare this library with recorded outputs of official releases.

    python tools/check_parity.py RECORD...

For each record (an .npz file) the model that it describes is built, its weights are made by the `parity_weights.py`
that lies beside it and loaded through `bevdet_core.convert`, and every output is computed from the recorded inputs.
Each output gives one line

    NAME MAX_ABS_ERROR MAX_REL_ERROR ok|FAIL

MAX_REL_ERROR is the largest absolute error divided by the largest recorded magnitude. An output passes if its largest
absolute error is within the record's tolerance; one that was not computed, has another shape, or is not in the record
although it claims to be a gradient there, fails. The exit status is 1 on any FAIL.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import numpy as np
from parity import rounding

# source of a record -> module with `run(meta, inputs, state_dict) -> {output name: array}`
HANDLERS = {
    "msda-module": "parity.msda",
    "dcnv2-module": "parity.dcnv2",
    "detr3d": "parity.detr3d",
    "bevformer": "parity.bevformer",
    "deformable-detr": "parity.deformable_detr",
    "detr": "parity.detr",
    "hf-deformable-detr": "parity.hf",
    "hf-detr": "parity.hf",
}


@dataclass
class Line:
    """The comparison of one output."""

    name: str
    absolute: float
    relative: float
    ok: bool

    def __str__(self) -> str:
        return f"{self.name} {self.absolute:.3g} {self.relative:.3g} {'ok' if self.ok else 'FAIL'}"


def has_handler(source: str) -> bool:
    """Whether records of a source can be checked."""
    return source in HANDLERS and importlib.util.find_spec(HANDLERS[source]) is not None


def load_record(path: Path) -> tuple[dict, dict[str, np.ndarray], dict[str, np.ndarray], dict[str, np.ndarray]]:
    """(meta, inputs, outputs, state dict) of a record."""
    weights = _load_module(path.parent / "parity_weights.py")
    meta, inputs, outputs = weights.load_record(path)
    return meta, inputs, outputs, weights.seeded_state_dict(meta)


def check(path: Path) -> Iterator[Line]:
    """Compare all outputs of a record.

    Raises:
        ValueError: nothing here computes records of its source.
    """
    meta, inputs, recorded, state_dict = load_record(path)
    if not has_handler(meta["source"]):
        raise ValueError(f"{path}: nothing here computes records of source {meta['source']!r}")
    handler = importlib.import_module(HANDLERS[meta["source"]])
    with rounding.released_rounding():
        computed = handler.run(meta, inputs, state_dict)
    for name, wanted in recorded.items():
        yield compare(name, computed.get(name), wanted, meta["tolerance"][name])
    for name in computed:
        # Records list every parameter that has a gradient, so one that is not listed must be frozen.
        if name.startswith("grad_norm/") and name not in recorded:
            yield Line(name, np.nan, np.nan, False)


def compare(name: str, computed: np.ndarray | None, recorded: np.ndarray, tolerance: float) -> Line:
    """Judge one output."""
    if computed is None or np.shape(computed) != recorded.shape:
        return Line(name, np.nan, np.nan, False)
    if not recorded.size:
        return Line(name, 0.0, 0.0, True)
    difference = np.abs(np.asarray(computed, np.float64) - recorded.astype(np.float64))
    same = np.asarray(computed) == recorded  # infinities subtract to NaN
    absolute = float(np.where(same, 0.0, difference).max())
    scale = float(np.abs(recorded.astype(np.float64)).max())
    relative = absolute / scale if scale else absolute
    return Line(name, absolute, relative, absolute <= tolerance)


def _load_module(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None or not path.is_file():
        raise FileNotFoundError(f"{path}: the records' own weights generator is missing")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def main() -> int:
    """Print the lines of all records; the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, usage="%(prog)s RECORD..."
    )
    parser.add_argument("records", nargs="+", type=Path, metavar="RECORD")
    failed = 0
    for path in parser.parse_args().records:
        try:
            for line in check(path):
                print(line)
                failed += not line.ok
        except (ValueError, OSError) as error:
            print(f"{path}: {error} FAIL")
            failed += 1
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
