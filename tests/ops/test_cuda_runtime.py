"""How kernels are compiled and launched, without a GPU: NVRTC needs none, and CuPy's place is taken by a recorder."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from bevdet_ops import cuda_runtime
from bevdet_ops.cuda_kernels import BLOCK, CONV_PROBLEM, CSRC, PROBLEM, Kernel, attention_kernel, every_kernel

ROOT = Path(__file__).parents[2]
ARCHITECTURES = ("sm_70", "sm_80", "sm_90", "sm_100")
KERNEL = attention_kernel("forward", torch.float32, 32, 4, 4, aligned=True)


def test_every_kernel_compiles_for_every_architecture(tmp_path: Path) -> None:
    for package in ("cupy", "nvidia.cuda_nvrtc"):
        if importlib.util.find_spec(package.split(".")[0]) is None or importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed")
    report = tmp_path / "report.json"
    command = [sys.executable, str(ROOT / "tools" / "check_kernels.py"), "--json", str(report)]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    results = json.loads(report.read_text())
    names = [kernel.name for kernel in every_kernel()]
    assert [(r["kernel"], r["architecture"]) for r in results] == [(n, a) for n in names for a in ARCHITECTURES]
    for result in results:
        assert result["warnings"] == [], result
        # A few spilled values are the compiler's choice; an array of the kernel's on the stack would be far larger.
        assert result["stack"] <= 64, result
        # Four blocks of 128 threads on a multiprocessor, and more of the forward pass.
        assert result["registers"] <= (128 if "forward" in result["kernel"] else 168), result


def test_kernels_ask_for_wide_loads_and_vector_reductions() -> None:
    """PTX of the encoder's kernels: 16-byte loads of values, and from sm_90 on four additions at a time."""
    pytest.importorskip("cupy")
    cuda_runtime.load_nvrtc()
    from cupy.cuda import nvrtc

    for template, architecture, expected in (
        ("forward", "compute_70", "ld.global.nc.v4.u32"),
        ("backward", "compute_70", "ld.global.nc.v4.u32"),
        ("backward", "compute_90", "red.global.add.v4.f32"),
    ):
        kernel = attention_kernel(template, torch.float32, 32, 4, 4, aligned=True)
        program = nvrtc.createProgram(kernel.source, "kernel.cu", [], [])
        nvrtc.compileProgram(program, [f"-arch={architecture}", *cuda_runtime.COMPILE_OPTIONS])
        assert expected in nvrtc.getPTX(program).decode(), (template, architecture)


def test_sources_are_one_text() -> None:
    """CuPy's disk cache sees a change in any file, and NVRTC needs no include path."""
    for kernel in every_kernel():
        assert "#include" not in kernel.source
    for name in ("intrinsics.cuh", "scalar.cuh", "point.cuh", "forward.cu"):
        assert KERNEL.source.count(f'#line 1 "{name}"') == 1
    assert KERNEL.source.endswith(f"INSTANTIATE_FORWARD({KERNEL.name}, float, 4, 8, 32, 4, 4)\n")


@pytest.mark.parametrize(
    ("file", "struct", "layout"),
    [("problem.cuh", "struct Problem {", PROBLEM), ("deform_conv.cu", "struct ConvProblem {", CONV_PROBLEM)],
)
def test_structs_of_host_and_device_agree(file: str, struct: str, layout: np.dtype) -> None:
    body = (CSRC / file).read_text().split(struct)[1].split("\n};")[0]
    fields = []
    for line in body.splitlines():
        declaration = line.split("//")[0].strip().rstrip(";")
        if declaration:
            c_type, names = declaration.split(" ", 1)
            fields += [(name.strip().split("[")[0], 8 if c_type == "int64" else 4) for name in names.split(",")]
    assert fields == [(name, layout[name].base.itemsize) for name in layout.names]


@pytest.fixture(params=[13, 14])
def cupy_recorder(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple]]:
    """In CuPy's and torch.cuda's place: writes down what it is asked."""
    calls: list[tuple] = []

    def function(grid: tuple, block: tuple, arguments: tuple) -> None:
        calls.append(("launch", grid, block, arguments))

    class RawModule:
        def __init__(self, code: str, options: tuple) -> None:
            calls.append(("compile", code, options))

        def get_function(self, name: str):
            calls.append(("get", name))
            return function

    @contextlib.contextmanager
    def entered(*what):
        calls.append(what)
        yield

    cuda = SimpleNamespace(Device=lambda index: entered("cupy device", index), Stream=SimpleNamespace())
    if request.param == 13:
        cuda.ExternalStream = lambda pointer: entered("cupy stream", pointer)
    else:
        cuda.Stream.from_external = lambda stream: entered("cupy stream", stream.__cuda_stream__()[1])
    monkeypatch.setattr(cuda_runtime, "_import_cupy", lambda: SimpleNamespace(RawModule=RawModule, cuda=cuda))
    monkeypatch.setattr(torch.cuda, "device", lambda device: entered("torch device", device))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: SimpleNamespace(cuda_stream=4242))
    cuda_runtime._function.cache_clear()
    yield calls
    cuda_runtime._function.cache_clear()


def test_launch_on_the_current_stream_of_the_tensors_device(cupy_recorder: list[tuple]) -> None:
    device = torch.device("cuda:1")
    tensors = [SimpleNamespace(device=device, data_ptr=lambda: 4096), None, SimpleNamespace(data_ptr=lambda: 8192)]
    problem = np.zeros((), PROBLEM)
    for _ in range(2):
        cuda_runtime.launch(KERNEL, (7, 1, 2), tensors, problem)
    entered = [("torch device", device), ("cupy device", 1), ("cupy stream", 4242)]
    compiled = [("compile", KERNEL.source, ("--std=c++17",)), ("get", KERNEL.name)]
    assert cupy_recorder[:5] == entered + compiled
    assert [call[0] for call in cupy_recorder[5:]] == ["launch", *(call[0] for call in entered), "launch"]
    _, grid, block, (pointers, passed) = cupy_recorder[-1]
    assert (grid, block) == ((7, 1, 2), (BLOCK, 1, 1))
    # CuPy passes arrays of one element by value.
    assert pointers.size == passed.size == 1
    assert pointers.view(np.uint64).tolist() == [4096, 0, 8192]


@pytest.mark.parametrize(("toolkit", "package"), [("12.8", "cupy-cuda12x"), ("13.0", "cupy-cuda13x")])
def test_missing_cupy_is_explained(monkeypatch: pytest.MonkeyPatch, toolkit: str, package: str) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.version, "cuda", toolkit)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert cuda_runtime.unavailable.__wrapped__() == f"CuPy is not installed: pip install {package}"


def test_broken_cupy_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise ImportError("libcuda.so.1: cannot open shared object file")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(cuda_runtime, "_import_cupy", broken)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: SimpleNamespace())
    assert "CuPy does not work (libcuda.so.1: cannot open" in cuda_runtime.unavailable.__wrapped__()


def test_no_gpu_is_explained() -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    assert "torch finds no CUDA device" in cuda_runtime.unavailable()


def test_kernel_names_are_unique() -> None:
    kernels = every_kernel()
    assert len({kernel.name for kernel in kernels}) == len(kernels)
    assert all(isinstance(kernel, Kernel) for kernel in kernels)
