"""The CUDA kernels of deformable convolution, run on the CPU under sanitizers, against the reference."""

from __future__ import annotations

import random
from pathlib import Path
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ops.shim import harness
from torch import Tensor

from bevdet_ops import cuda, cuda_deform_conv, reference
from bevdet_ops.cuda_kernels import C_TYPES, convolution_kernel

pytestmark = pytest.mark.skipif(harness.missing() is not None, reason=str(harness.missing()))

# Columns, products and gradients of columns are stored in the input's dtype.
TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}
KERNELS = [convolution_kernel(template, dtype) for template in ("gather", "scatter") for dtype in C_TYPES]


@pytest.fixture(scope="module", params=["asan", "races"])
def program(request: pytest.FixtureRequest) -> Path:
    return harness.build(KERNELS, request.param)


def check(program: Path, rng: random.Random, dtype: torch.dtype, columns: int = cuda_deform_conv.COLUMN_BYTES) -> None:
    generator = torch.Generator().manual_seed(rng.randrange(2**31))
    groups, offset_groups = rng.choice(((1, 1), (2, 1), (1, 2), (3, 2)))
    B, C, out_channels = rng.choice((0, 1, 2, 5)), 6 * rng.randint(1, 3), 6
    H, W = rng.randint(1, 9), rng.randint(1, 9)
    kernel = (rng.randint(1, 3), rng.randint(1, 3))
    stride, padding, dilation = ([rng.randint(low, 2), rng.randint(low, 2)] for low in (1, 0, 1))
    out = [
        max(1, (size + 2 * pad - step * (taps - 1) - 1) // jump + 1)
        for size, pad, step, taps, jump in zip((H, W), padding, dilation, kernel, stride, strict=True)
    ]
    K = kernel[0] * kernel[1]
    coordinates = torch.float64 if dtype == torch.float64 else torch.float32
    deterministic = rng.random() < 0.5

    def normal(*shape: int, as_type: torch.dtype = coordinates) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=coordinates).to(as_type)

    image = normal(B, C, H, W, as_type=dtype)
    if rng.random() < 0.3:
        image = image.contiguous(memory_format=torch.channels_last)
    offset = rng.choice((0.5, 3.0, 1e5)) * normal(B, 2 * offset_groups * K, *out)
    mask = rng.choice((None, normal(B, offset_groups * K, *out)))
    weight = normal(out_channels, C // groups, *kernel, as_type=dtype)
    needs = tuple(rng.random() < 0.8 for _ in range(4))
    grad = normal(B, out_channels, *out, as_type=dtype)
    options = (stride, padding, dilation)
    with harness.cuda_on_the_shim(program), mock.patch.object(cuda_deform_conv, "COLUMN_BYTES", columns):
        output = cuda.deform_conv2d_forward(image, offset, mask, weight, *options)
        grads = cuda.deform_conv2d_backward(grad, image, offset, mask, weight, *options, deterministic, needs)

    inputs = [None if tensor is None else tensor.double().requires_grad_() for tensor in (image, offset, mask, weight)]
    expected = reference.deform_conv2d_forward(*inputs, *options)
    wanted = [tensor for tensor in inputs if tensor is not None]
    found = iter(torch.autograd.grad(expected, wanted, grad.double()))
    expected_grads = [None if tensor is None else next(found) for tensor in inputs]
    originals = (image, offset, mask, weight)
    assert output.dtype == dtype
    for name, actual, exact in zip(
        ("output", "input", "offset", "mask", "weight"), (output, *grads), (expected, *expected_grads), strict=True
    ):
        index = ("output", "input", "offset", "mask", "weight").index(name) - 1
        if index >= 0 and (not needs[index] or originals[index] is None):
            assert actual is None, name
            continue
        assert actual.shape == exact.shape
        largest = exact.abs().max().item() if exact.numel() else 0.0
        torch.testing.assert_close(actual.double(), exact.detach(), rtol=0, atol=TOLERANCE[dtype] * largest, msg=name)


@settings(deadline=None, derandomize=True, database=None, max_examples=30)
@given(rng=st.integers(0, 2**32 - 1).map(random.Random), dtype=st.sampled_from(list(C_TYPES)))
def test_any_convolution(program: Path, rng: random.Random, dtype: torch.dtype) -> None:
    check(program, rng, dtype)


@pytest.mark.parametrize("seed", range(4))
def test_columns_in_pieces(program: Path, seed: int) -> None:
    check(program, random.Random(seed), torch.float32, columns=1)
