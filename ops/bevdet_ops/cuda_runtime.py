"""CUDA kernels through CuPy: compiled by NVRTC at first use for the card at hand, cached on disk, launched.

Kernels run on torch's current stream of the tensors' device and nothing waits for them: a call can be captured into a
CUDA graph once a call before has compiled its kernels.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bevdet_ops.cuda_kernels import BLOCK, Kernel

COMPILE_OPTIONS = ("--std=c++17",)


@functools.cache
def unavailable() -> str | None:
    """None where CUDA kernels can run, otherwise why not and what to install."""
    if not torch.cuda.is_available():
        return "torch finds no CUDA device (torch.cuda.is_available() is False)"
    toolkit = (torch.version.cuda or "12").split(".")[0]
    if importlib.util.find_spec("cupy") is None:
        return f"CuPy is not installed: pip install cupy-cuda{toolkit}x"
    try:
        _import_cupy().cuda.nvrtc.getVersion()
    except Exception as error:  # CuPy raises ImportError, RuntimeError or its own, by what is missing
        return f"CuPy does not work ({error}): pip install cupy-cuda{toolkit}x nvidia-cuda-nvrtc-cu{toolkit}"
    return None


def _import_cupy() -> Any:
    load_nvrtc()
    import cupy

    return cupy


@functools.cache
def load_nvrtc() -> None:
    """Load NVRTC from NVIDIA's wheels if they are installed: CuPy 13 looks for it in toolkits only."""
    spec = importlib.util.find_spec("nvidia")
    for folder in [] if spec is None else spec.submodule_search_locations or ():
        for library in sorted(Path(folder).glob("*/lib/libnvrtc.so.*")):
            ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)


class _CurrentStream:
    """torch's current stream of a device, in the words of the CUDA stream protocol."""

    def __init__(self, device: torch.device) -> None:
        self.pointer = torch.cuda.current_stream(device).cuda_stream

    def __cuda_stream__(self) -> tuple[int, int]:
        return 0, self.pointer

    def for_cupy(self, cupy: Any) -> Any:
        """CuPy's stream object; CuPy 14 deprecates the only way that CuPy 13 has."""
        if hasattr(cupy.cuda.Stream, "from_external"):
            return cupy.cuda.Stream.from_external(self)
        return cupy.cuda.ExternalStream(self.pointer)


@functools.cache
def _function(kernel: Kernel) -> Any:
    """A compiled kernel; CuPy keeps one binary per device behind it."""
    module = _import_cupy().RawModule(code=kernel.source, options=COMPILE_OPTIONS)
    return module.get_function(kernel.name)


def launch(
    kernel: Kernel,
    grid: tuple[int, int, int],
    tensors: Sequence[Tensor | None],  # the kernel's first struct, pointer by pointer
    problem: np.ndarray,  # its second, a PROBLEM or CONV_PROBLEM
    outputs: Sequence[Tensor] = (),  # those of `tensors` that hold nothing yet
) -> None:
    """Queue `kernel` on torch's current stream of the device of the first tensor."""
    cupy = _import_cupy()
    device = tensors[0].device  # type: ignore[union-attr]
    pointers = np.array([0 if tensor is None else tensor.data_ptr() for tensor in tensors], dtype=np.uint64)
    with torch.cuda.device(device), cupy.cuda.Device(device.index), _CurrentStream(device).for_cupy(cupy):
        # Structs go by value: CuPy takes arrays with one element.
        _function(kernel)(grid, (BLOCK, 1, 1), (pointers.view(f"V{pointers.nbytes}"), problem))
