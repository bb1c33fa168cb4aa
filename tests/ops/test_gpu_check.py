"""tools/gpu_check.py, as far as a machine without a GPU can run it: its checks, with the kernels on the CPU harness."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from unittest import mock

import pytest
import torch
from ops.shim import harness

from bevdet_ops import cuda, use_reference
from bevdet_ops.cuda_kernels import every_kernel

TOOL = Path(__file__).parents[2] / "tools" / "gpu_check.py"


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("gpu_check", TOOL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def shim() -> Iterator[None]:
    if harness.missing() is not None:
        pytest.skip(str(harness.missing()))
    with harness.cuda_on_the_shim(harness.build(every_kernel(), "asan")):
        yield


def test_says_that_there_is_no_gpu() -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    # -I: bare Python, nothing of this repository installed or on the path but by the tool itself.
    finished = subprocess.run([sys.executable, "-I", str(TOOL)], capture_output=True, text=True, check=False)
    assert finished.returncode == 2
    assert finished.stderr == "gpu_check needs a GPU: torch finds no CUDA device (torch.cuda.is_available() is False)\n"


def test_checks_pass_on_the_harness(tool: ModuleType, shim: None) -> None:
    assert tool.check_random("cpu", count=8) == "8 cases"
    assert tool.check_convolution("cpu") == "4 dtypes"


def test_gradcheck_of_the_public_function(tool: ModuleType) -> None:
    with use_reference():
        assert tool.check_gradcheck("cpu") == "D = 3, 30, 32, 71"


def test_a_wrong_result_fails_the_check(tool: ModuleType, shim: None, capsys: pytest.CaptureFixture[str]) -> None:
    wrong = mock.patch.object(cuda, "forward", side_effect=lambda *arguments: _twice(*arguments))
    original = cuda.forward

    def _twice(*arguments):
        return 2 * original(*arguments)

    with wrong:
        entry = tool._checked("random calls", lambda: tool.check_random("cpu", count=20))
    assert entry["result"] == "FAIL"
    assert "output is off by" in entry["detail"]
    assert "FAIL" in capsys.readouterr().out


def test_a_check_that_cannot_run_is_not_a_failure(tool: ModuleType) -> None:
    with mock.patch.object(torch.cuda, "device_count", return_value=1):
        entry = tool._checked("cuda:1", lambda: tool.check_second_device("cpu"))
    assert (entry["result"], entry["detail"]) == ("not run", "one GPU only")
