"""Compile the CUDA kernels with g++ and launch them on the CPU, under sanitizers.

Two builds of the same sources: `asan` (AddressSanitizer and UndefinedBehaviorSanitizer) and `races` (a detector of data
races and of reads of memory that nothing has written). Each launch is a process of its own: what goes wrong arrives as
a `ShimError` with the sanitizer's report.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import hashlib
import importlib.util
import os
import shutil
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from torch import Tensor

from bevdet_ops import cuda_kernels, cuda_runtime
from bevdet_ops.cuda_kernels import BLOCK, Kernel

SHIM = Path(__file__).parent
BUILD = SHIM.parents[2] / "build" / "cuda-shim"
COMPILE = ("g++", "-std=c++17", "-g1", "-O1", "-Wall", "-Wno-unknown-pragmas", "-Werror", "-fno-strict-aliasing")
BUILDS = {
    # sanitizer of the kernels, sanitizer of the runtime, sources beside fibers.cpp, launch.cpp and half_types.cpp
    "asan": (
        ("-fsanitize=address,undefined", "-fno-sanitize-recover=all"),
        ("-fsanitize=address",),
        "no_races.cpp",
    ),
    "races": (("-fsanitize=thread",), (), "races.cpp"),
}


class ShimError(AssertionError):
    """A launch failed: the report of the sanitizer, of the race detector, or of the scheduler."""


def missing() -> str | None:
    """Why the shim cannot be built here, or None."""
    if not sys.platform.startswith("linux"):
        return "the harness needs Linux"
    if shutil.which("g++") is None:
        return "g++ is not installed"
    if _cuda_headers() is None:
        return "the CUDA headers are missing: pip install nvidia-cuda-runtime-cu12"
    return None


def _cuda_headers() -> Path | None:
    spec = importlib.util.find_spec("nvidia")
    folders = (
        [] if spec is None else [Path(p) / "cuda_runtime" / "include" for p in spec.submodule_search_locations or ()]
    )
    return next((folder for folder in folders if (folder / "cuda_fp16.h").exists()), None)


def build(kernels: Sequence[Kernel], mode: str, edits: Mapping[str, str] | None = None) -> Path:
    """The program with these kernels. `edits` replaces pieces of their source text: bugs, planted to be found."""
    kernel_flags, runtime_flags, extra = BUILDS[mode]
    units: dict[tuple[str, str | int], str] = {}
    for kernel in kernels:
        unit = (kernel.file, kernel.arguments[0])
        if unit not in units:
            units[unit] = cuda_kernels.source_text(kernel.file, (("intrinsics.cuh", str(SHIM / "intrinsics.cuh")),))
            for old, new in (edits or {}).items():
                if old not in units[unit]:
                    raise ValueError(f"{kernel.file} has no {old!r}")
                units[unit] = units[unit].replace(old, new)
        units[unit] += kernel.instantiation + f"SHIM_REGISTER({kernel.name})\n"
    jobs = [(text, "kernels.cpp", kernel_flags) for text in units.values()]
    for name in ("fibers.cpp", "launch.cpp", "half_types.cpp", extra):
        jobs.append(((SHIM / name).read_text(), name, runtime_flags))
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(lambda job: _compile(*job), jobs))
    program = BUILD / f"launch-{mode}-{_digest(*map(str, objects))}"
    if not program.exists():
        _run("g++", *runtime_flags, *(("-fsanitize=undefined",) if mode == "asan" else ()), *objects, output=program)
    return program


def _compile(text: str, name: str, flags: tuple[str, ...]) -> Path:
    headers = "".join((SHIM / header).read_text() for header in ("cuda_shim.h", "fibers.h"))
    target = BUILD / f"{_digest(text, headers, *COMPILE, *flags)}.o"
    if not target.exists():
        BUILD.mkdir(parents=True, exist_ok=True)
        source = target.with_suffix(f".{os.getpid()}.cpp")
        source.write_text(f'#line 1 "{name}"\n{text}')
        _run(*COMPILE, *flags, f"-I{SHIM}", f"-isystem{_cuda_headers()}", "-c", source, output=target)
        source.unlink()
    return target


def _run(*command: str | Path, output: Path) -> None:
    partial = output.with_suffix(f"{output.suffix}.{os.getpid()}")
    result = subprocess.run([*map(str, command), "-o", str(partial)], capture_output=True, text=True, check=False)
    if result.returncode != 0:
        raise RuntimeError(f"g++ failed:\n{result.stderr[:8000]}")
    partial.replace(output)


def _digest(*texts: str) -> str:
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:24]


def launch(
    program: Path,
    kernel: Kernel,
    grid: tuple[int, int, int],
    tensors: Sequence[Tensor | None],
    problem: np.ndarray,
    seed: int = 0,
    outputs: Sequence[Tensor] = (),
    mapped: Mapping[int, Path] | None = None,
) -> None:
    """Run one launch and write what it changed back into `tensors`.

    `outputs` are expected to hold nothing yet: reading them before writing is an error of the `races` build. Tensors
    whose address is in `mapped` are not copied: their storage is that file, from its start.
    """
    untouched = {tensor.data_ptr() for tensor in outputs}
    parts = [struct.pack("<5q", seed, *grid, BLOCK), _text(kernel.name), struct.pack("<q", len(tensors))]
    for tensor in tensors:
        if tensor is None:
            parts.append(struct.pack("<4q", -1, 0, 0, 0))
            continue
        path = (mapped or {}).get(tensor.data_ptr())
        size = _span(tensor)
        header = struct.pack("<3q", size, tensor.data_ptr() % 16, tensor.data_ptr() not in untouched)
        parts += [header, _text("" if path is None else str(path))]
        if path is None:
            parts.append(_bytes(tensor).numpy().tobytes())
    parts.append(_text(problem.tobytes()))
    with tempfile.TemporaryDirectory() as folder:
        request, reply = Path(folder, "request"), Path(folder, "reply")
        request.write_bytes(b"".join(parts))
        environment = {**os.environ, "ASAN_OPTIONS": "detect_stack_use_after_return=0:abort_on_error=0"}
        try:
            result = subprocess.run(
                [program, request, reply], capture_output=True, text=True, check=False, env=environment, timeout=120
            )
        except subprocess.TimeoutExpired:
            raise ShimError(f"{kernel.name} does not end: 120 s") from None
        if result.returncode != 0:
            raise ShimError(f"{kernel.name} failed with code {result.returncode}:\n{result.stderr[:8000]}")
        data = bytearray(reply.read_bytes())
    start = 0
    for tensor in tensors:
        if tensor is not None and tensor.data_ptr() not in (mapped or {}):
            size = _span(tensor)
            if size > 0:
                _bytes(tensor).copy_(torch.frombuffer(data, dtype=torch.uint8, count=size, offset=start))
            start += size


def _span(tensor: Tensor) -> int:
    """Bytes from a tensor's first to its last element."""
    if tensor.numel() == 0:
        return 0
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return (last + 1) * tensor.element_size()


def _bytes(tensor: Tensor) -> Tensor:
    flat = torch.empty(0, dtype=torch.uint8)
    offset = tensor.data_ptr() - tensor.untyped_storage().data_ptr()
    return flat.set_(tensor.untyped_storage(), offset, (_span(tensor),), (1,))


def _text(text: str | bytes) -> bytes:
    data = text.encode() if isinstance(text, str) else text
    return struct.pack("<q", len(data)) + data


@contextlib.contextmanager
def cuda_on_the_shim(program: Path, seed: int = 0, mapped: Mapping[int, Path] | None = None) -> Iterator[None]:
    """Let `bevdet_ops.cuda` take CPU tensors and launch on the shim: everything but CuPy itself is what a GPU gets."""

    def launch_here(kernel, grid, tensors, problem, outputs=()):
        launch(program, kernel, grid, tensors, problem, seed, outputs, mapped)

    with mock.patch.object(cuda_runtime, "launch", launch_here):
        yield
