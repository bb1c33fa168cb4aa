"""Which kernel serves a call: template instantiation, source text, launch grid and the structs that the host fills.

Nothing here needs a GPU or CuPy: `cuda.py` launches what this module chooses, and the tests compile and run the same
choices on machines without one.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

CSRC = Path(__file__).parent / "csrc"
BLOCK = 128  # threads, scalar.cuh
MAX_LEVELS = 64  # problem.cuh
MAX_LEVEL_PIXELS = 2**28 - 1  # a sample packs its pixel into 28 bits, point.cuh
CHANNELS = 16  # per thread of the convolution's gather, deform_conv.cu
GENERAL_GROUP, GENERAL_TILES = 8, 2  # lanes per head and packs per lane where D is not compiled in

C_TYPES = {
    torch.float32: "float",
    torch.float64: "double",
    torch.float16: "Half",
    torch.bfloat16: "Bfloat16",
}

# (D, L, P) that published heads use get kernels of their own; (D, 0, 0) serves any L and P.
SPECIALISED = (
    (32, 4, 4),  # Deformable DETR and its family
    (32, 1, 4),  # BEVFormer: temporal self-attention, decoder
    (32, 1, 8),  # BEVFormer-tiny: spatial cross-attention
    (32, 4, 8),  # BEVFormer-base: spatial cross-attention
    (64, 4, 4),  # the same families at 512 channels
    (256, 4, 1),  # DETR3D
    (32, 0, 0),
)

_STRIDES = ("value_b", "value_n", "value_s", "offset_b", "offset_n", "offset_q", "weight_b", "weight_n", "weight_q")
# The layout of `Problem` in problem.cuh.
PROBLEM = np.dtype(
    [(name.replace("_", "_stride_"), np.int64) for name in _STRIDES]
    + [("level_start", np.int64, MAX_LEVELS)]
    + [(name, np.int32) for name in ("B", "N", "S", "Q", "M", "D", "L", "P")]
    + [(name, np.int32) for name in ("reference_levels", "anchors", "reference_numbers")]
    + [(name, np.int32) for name in ("offset_stride_m", "offset_stride_l", "weight_stride_m")]
    + [(name, np.int32) for name in ("activation", "reduction")]
    + [("height", np.int32, MAX_LEVELS), ("width", np.int32, MAX_LEVELS)],
    align=True,
)
# The layout of `ConvProblem` in deform_conv.cu.
CONV_PROBLEM = np.dtype(
    [(name, np.int64) for name in ("input_stride_b", "input_stride_c", "input_stride_h")]
    + [(name, np.int32) for name in ("B", "C", "H", "W", "out_height", "out_width")]
    + [(f"{name}_{axis}", np.int32) for name in ("kernel", "stride", "pad", "dilation") for axis in "hw"]
    + [("offset_groups", np.int32)],
    align=True,
)
ACTIVATIONS = ("none", "sigmoid", "softmax")
REDUCTIONS = ("sum", "mean", "mean_visible")


@dataclasses.dataclass(frozen=True)
class Kernel:
    """One template instantiation: INSTANTIATE_<TEMPLATE>(name, *arguments) at the end of `file`."""

    file: str
    template: str
    arguments: tuple[str | int, ...]

    @property
    def name(self) -> str:
        """The kernel's symbol, e.g. `forward_float_4_8_32_4_4`."""
        return "_".join(map(str, (self.template, *self.arguments)))

    @property
    def instantiation(self) -> str:
        """The line of C++ that brings the kernel into being."""
        return f"INSTANTIATE_{self.template.upper()}({', '.join(map(str, (self.name, *self.arguments)))})\n"

    @property
    def source(self) -> str:
        """A whole translation unit."""
        return source_text(self.file) + self.instantiation


@functools.cache
def source_text(file: str, replaced: tuple[tuple[str, str], ...] = ()) -> str:
    """`csrc/file` with its includes pasted in; `replaced` maps names of includes to other paths.

    One text, because CuPy's disk cache is keyed by the text it is handed and would miss a change in an included file.
    """
    paths: Mapping[str, str] = dict(replaced)
    seen: set[str] = set()

    def paste(name: str) -> str:
        if name in seen:
            return ""
        seen.add(name)
        path = Path(paths.get(name, CSRC / name))
        lines = []
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            include = re.fullmatch(r'#include "(.+)"', line)
            if include:
                lines.append(f'{paste(include.group(1))}#line {number + 1} "{path.name}"')
            else:
                lines.append("" if line == "#pragma once" else line)
        return f'#line 1 "{path.name}"\n' + "\n".join(lines) + "\n"

    return paste(file)


def attention_kernel(
    template: str,  # "forward" or "backward"
    dtype: torch.dtype,
    D: int,
    L: int,
    P: int,
    aligned: bool,  # every head's channels start on 16 bytes
) -> Kernel:
    """The instantiation (type, VEC, GROUP, DIM, LEVELS, POINTS) that serves heads of D channels and L * P points."""
    pack = 1 if dtype == torch.float64 else 16 // dtype.itemsize  # float64 is for checks, not for speed
    vector = pack if aligned and D % pack == 0 else 1
    fits = [sizes for sizes in ((D, L, P), (D, 0, 0)) if sizes in SPECIALISED]
    if fits and vector > 1:
        group, sizes = min(32, D // vector), fits[0]
    else:
        group, sizes = GENERAL_GROUP, (0, 0, 0)
    return Kernel(f"{template}.cu", template, (C_TYPES[dtype], vector, group, *sizes))


def attention_grid(kernel: Kernel, B: int, Q: int, M: int, D: int) -> tuple[int, int, int]:
    """Blocks over heads of queries, over channels that one group cannot hold (general forward only), over the batch."""
    _, vector, group, dim, _, _ = kernel.arguments
    slabs = _blocks(D, int(vector) * int(group) * GENERAL_TILES) if kernel.template == "forward" and dim == 0 else 1
    return _blocks(Q * M, BLOCK // int(group)), slabs, min(B, 65535)


def convolution_kernel(template: str, dtype: torch.dtype) -> Kernel:
    """`template` is "gather" or "scatter"."""
    return Kernel("deform_conv.cu", template, (C_TYPES[dtype],))


def convolution_grid(kernel: Kernel, taps: int, channels: int) -> tuple[int, int, int]:
    """Taps: B * G * K * Ho * Wo; channels: of one offset group."""
    return _blocks(taps, BLOCK), _blocks(channels, CHANNELS) if kernel.template == "gather" else 1, 1


def every_kernel() -> list[Kernel]:
    """All that the functions above can choose."""
    general = [(sizes, aligned) for sizes in SPECIALISED for aligned in (True, False)]
    chosen = {
        attention_kernel(template, dtype, *sizes, aligned): None
        for template in ("forward", "backward")
        for dtype in C_TYPES
        for sizes, aligned in [*general, ((16, 3, 3), True)]
    }
    return [*chosen, *(convolution_kernel(template, dtype) for template in ("gather", "scatter") for dtype in C_TYPES)]


def level_arrays(problem: np.ndarray, spatial_shapes: Sequence[int]) -> None:
    """Write the pyramid [H_0, W_0, H_1, W_1, ...] into a PROBLEM."""
    sizes = np.asarray(spatial_shapes, dtype=np.int64).reshape(-1, 2)
    pixels = sizes[:, 0] * sizes[:, 1]
    if len(sizes) > MAX_LEVELS:
        raise ValueError(f"spatial_shapes has {len(sizes)} levels; the CUDA kernels take at most {MAX_LEVELS}")
    if len(sizes) and (pixels + sizes[:, 1] + 1).max() > MAX_LEVEL_PIXELS:
        raise ValueError(f"spatial_shapes has a level of {pixels.max()} pixels; the CUDA kernels take less than 2**28")
    problem["height"][: len(sizes)] = sizes[:, 0]
    problem["width"][: len(sizes)] = sizes[:, 1]
    problem["level_start"][: len(sizes)] = np.cumsum(pixels) - pixels


def _blocks(items: int, per_block: int) -> int:
    return -(-items // per_block)
