"""The checks that stand in for a GPU find what they are there to find: bugs planted in kernels, one at a time."""

from __future__ import annotations

import numpy as np
import ops.cuda_cases as cuda_cases
import pytest
import torch
from ops.cuda_cases import NEEDS_ALL, Case
from ops.shim import harness
from ops.shim.harness import ShimError

from bevdet_ops import cuda
from bevdet_ops.cuda_kernels import BLOCK, Kernel, attention_kernel, convolution_kernel

pytestmark = pytest.mark.skipif(harness.missing() is not None, reason=str(harness.missing()))

SELFTEST = Kernel(str(harness.SHIM / "selftest.cu"), "selftest", ("float",))
FORWARD = attention_kernel("forward", torch.float32, 32, 4, 4, aligned=True)
BACKWARD = attention_kernel("backward", torch.float32, 32, 4, 4, aligned=True)
BACKWARD_ANY = attention_kernel("backward", torch.float32, 32, 2, 3, aligned=True)


def run_selftest(mode: str, edits: dict[str, str] | None = None, seed: int = 0) -> None:
    program = harness.build([SELFTEST], mode, edits)
    numbers = torch.arange(3.0 * BLOCK)
    output, total = torch.full_like(numbers, float("nan")), torch.zeros(1)
    problem = np.zeros((), [("count", np.int64)])
    harness.launch(program, SELFTEST, (3, 1, 1), [numbers, output, total], problem, seed, [output])
    blocks = numbers.view(3, BLOCK)
    assert torch.equal(output.view(3, BLOCK), blocks.flip(1) + blocks.sum(1, keepdim=True))
    assert total == numbers.sum()


def run_operator(mode: str, kernel: Kernel, edits: dict[str, str] | None = None) -> None:
    shapes = ((5, 4), (3, 3), (2, 2), (1, 1)) if kernel.arguments[-1] == 4 else ((3, 3), (2, 2))
    case = Case(N=2, Q=13, shapes=shapes, P=4 if len(shapes) == 4 else 3, spread=2.0, weights=(True, True))
    program = harness.build([kernel], mode, edits)
    arguments = cuda_cases.tensors(case)
    with harness.cuda_on_the_shim(program):
        if kernel is FORWARD:
            cuda_cases.assert_close(
                "output", cuda.forward(*arguments), cuda_cases.expected(case)[0], torch.float32, torch.float32
            )
        else:
            cuda.backward(cuda_cases.grad_output(case), *arguments, False, NEEDS_ALL)


@pytest.mark.parametrize("mode", ["asan", "races"])
def test_correct_kernels_pass(mode: str) -> None:
    for seed in range(3):
        run_selftest(mode, seed=seed)
    for kernel in (FORWARD, BACKWARD, BACKWARD_ANY):
        run_operator(mode, kernel)


@pytest.mark.parametrize(
    ("mode", "edits", "report"),
    [
        pytest.param("races", {"    __syncthreads();\n": ""}, "no barrier between|nothing has written",
                     id="missing barrier"),
        pytest.param("races", {"__syncthreads();": "__syncwarp();"}, "no barrier between|nothing has written",
                     id="weak barrier"),
        pytest.param("races", {"if (lane == 0) sums": "if (lane < 2) sums"}, "race on shared memory", id="two writers"),
        pytest.param("races", {"    numbers[thread] = load": "    if (thread != 5) numbers[thread] = load"},
                     "shared memory, byte .* that nothing has written", id="uninitialised shared memory"),
        pytest.param("races", {"w < WARPS; ++w) all += sums[w]": "w <= WARPS; ++w) all += sums[w]"},
                     "nothing has written|past the end", id="shared memory, out of bounds"),
        pytest.param("races", {"atomicAdd(tensors.total, all)": "*tensors.total += all"}, "race on tensor 2",
                     id="lost atomic across blocks"),
        pytest.param("asan", {"load(tensors.input + start + thread)": "load(tensors.input + start + thread + 1)"},
                     "heap-buffer-overflow", id="read out of bounds"),
        pytest.param("asan", {"tensors.output[start + thread] =": "tensors.output[start + thread + (thread == 127)] ="},
                     "heap-buffer-overflow", id="write out of bounds"),
        pytest.param("asan", {"    numbers[thread] = load": "    if (thread == 5) return;\n    numbers[thread] = load"},
                     "names a lane that has exited", id="exited lane"),
        pytest.param("asan", {"__shfl_xor_sync(FULL_WARP, sum": "__shfl_xor_sync(0xffffu, sum"},
                     "mask does not name the calling lane", id="wrong mask"),
        pytest.param("asan", {"if (lane == 0)": "if (lane < 9) sum += __shfl_sync(FULL_WARP, sum, 0);\nif (!lane)"},
                     "deadlock|has exited", id="divergent shuffle"),
        pytest.param("asan", {"if (lane == 0) sums": "if (warp + 2147483647 > lane) sums"}, "signed integer overflow",
                     id="undefined arithmetic"),
    ],
)  # fmt: skip
def test_planted_bug(mode: str, edits: dict[str, str], report: str) -> None:
    with pytest.raises(ShimError, match=report):
        run_selftest(mode, edits)


@pytest.mark.parametrize(
    ("mode", "kernel", "edits", "report"),
    [
        pytest.param("races", BACKWARD, {"atomicAdd(address + i++, term)": "address[i++] += term"}, "race on tensor 7",
                     id="lost atomic"),
        pytest.param("races", BACKWARD, {"if (active && lane == anchor % GROUP) *grad": "if (active) *grad"},
                     "race on tensor 8", id="every lane writes"),
        pytest.param("races", BACKWARD_ANY, {"*grad = first ? total : *grad + total": "*grad += total"},
                     "tensor 8, byte .* that nothing has written", id="sum onto nothing"),
        pytest.param("asan", FORWARD, {"x0 + 1 < width ? 2u": "x0 < width ? 2u"}, "AddressSanitizer|off by",
                     id="right border"),
        pytest.param("races", FORWARD, {"if (!head.active || channel": "if (channel"}, "race on tensor 5",
                     id="spare groups write"),
        pytest.param("asan", BACKWARD, {"y0 >= 0 ? in_x": "true ? in_x"}, "AddressSanitizer", id="upper border"),
    ],
)  # fmt: skip
def test_bug_planted_in_the_operator(mode: str, kernel: Kernel, edits: dict[str, str], report: str) -> None:
    with pytest.raises(AssertionError, match=report):
        run_operator(mode, kernel, edits)


def test_convolution_race_is_found() -> None:
    kernels = [convolution_kernel(template, torch.float32) for template in ("gather", "scatter")]
    edits = {"atomicAdd(address + i, terms[i] * factor)": "address[i] += terms[i] * factor"}
    program = harness.build(kernels, "races", edits)
    image, offset, weight = torch.randn(1, 2, 5, 5), torch.zeros(1, 18, 5, 5), torch.randn(3, 2, 3, 3)
    with harness.cuda_on_the_shim(program), pytest.raises(ShimError, match="race on tensor 5"):
        cuda.deform_conv2d_backward(
            torch.randn(1, 3, 5, 5), image, offset, None, weight, [1, 1], [1, 1], [1, 1], False, NEEDS_ALL
        )
