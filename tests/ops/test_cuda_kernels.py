"""The CUDA kernels, run on the CPU under sanitizers, against the reference."""

from __future__ import annotations

from pathlib import Path
from unittest import mock

import pytest
import torch
from bevdet_ops import cuda
from bevdet_ops.cuda_kernels import C_TYPES, SPECIALISED, attention_grid, attention_kernel, every_kernel
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from ops import cuda_cases
from ops.cuda_cases import NEEDS_ALL, Case
from ops.shim import harness

pytestmark = pytest.mark.skipif(harness.missing() is not None, reason=str(harness.missing()))

CASES = st.builds(cuda_cases.random_case, st.randoms(use_true_random=False), st.just(tuple(C_TYPES)))
FUZZ = settings(
    deadline=None,
    derandomize=True,
    database=None,
    phases=(Phase.explicit, Phase.generate),  # a case says all there is to know; shrinking would take minutes
    suppress_health_check=[HealthCheck.too_slow],
)


@pytest.fixture(scope="module", params=["asan", "races"])
def program(request: pytest.FixtureRequest) -> Path:
    return harness.build(every_kernel(), request.param)


@pytest.fixture(scope="module")
def asan() -> Path:
    return harness.build(every_kernel(), "asan")


def run(program: Path, case: Case) -> tuple[torch.Tensor, tuple]:
    arguments = cuda_cases.tensors(case)
    with harness.cuda_on_the_shim(program, case.seed):
        output = cuda.forward(*arguments)
        grads = cuda.backward(cuda_cases.grad_output(case), *arguments, case.deterministic, case.needs_grad)
    return output, grads


@settings(FUZZ, max_examples=40)
@given(case=CASES)
def test_any_call(program: Path, case: Case) -> None:
    cuda_cases.assert_matches(case, *run(program, case))


@pytest.mark.parametrize("dtype", C_TYPES, ids=str)
@pytest.mark.parametrize("sizes", SPECIALISED)
def test_specialised_kernels(asan: Path, dtype: torch.dtype, sizes: tuple[int, int, int]) -> None:
    D, L, P = sizes
    shapes = ((5, 4), (3, 3), (2, 2), (1, 1))[: L or 3]
    case = Case(dtype=dtype, N=3, Q=3, D=D, shapes=shapes, P=P or 3, visible="some", reduction="mean_visible", spread=2.0)
    cuda_cases.assert_matches(case, *run(asan, case))
