"""The CUDA kernels, run on the CPU under sanitizers, against the reference."""

from __future__ import annotations

from pathlib import Path
from unittest import mock

import ops.cuda_cases as cuda_cases
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from ops.cuda_cases import NEEDS_ALL, Case
from ops.shim import harness

from bevdet_ops import cuda
from bevdet_ops.cuda_kernels import C_TYPES, SPECIALISED, attention_grid, attention_kernel, every_kernel

pytestmark = pytest.mark.skipif(harness.missing() is not None, reason=str(harness.missing()))

CASES = st.builds(cuda_cases.random_case, st.randoms(use_true_random=False), st.just(tuple(C_TYPES)))
FUZZ = settings(
    deadline=None,
    derandomize=True,
    database=None,
    phases=(Phase.explicit, Phase.generate),  # a case says all there is to know; shrinking would take minutes
    suppress_health_check=[HealthCheck.too_slow],
)


@pytest.fixture(scope="module")
def races() -> Path:
    return harness.build(every_kernel(), "races")


@pytest.fixture(scope="module")
def asan() -> Path:
    return harness.build(every_kernel(), "asan")


def run(program: Path, case: Case) -> tuple[torch.Tensor, tuple]:
    arguments = cuda_cases.tensors(case)
    with harness.cuda_on_the_shim(program, case.seed):
        output = cuda.forward(*arguments)
        grads = cuda.backward(cuda_cases.grad_output(case), *arguments, case.deterministic, case.needs_grad)
    return output, grads


@settings(FUZZ, max_examples=80)
@given(case=CASES)
def test_any_call(asan: Path, case: Case) -> None:
    cuda_cases.assert_matches(case, *run(asan, case))


@settings(FUZZ, max_examples=25)
@given(case=CASES)
def test_any_call_without_races(races: Path, case: Case) -> None:
    cuda_cases.assert_matches(case, *run(races, case))


@pytest.mark.parametrize("dtype", C_TYPES, ids=str)
@pytest.mark.parametrize("sizes", SPECIALISED)
def test_specialised_kernels(asan: Path, dtype: torch.dtype, sizes: tuple[int, int, int]) -> None:
    D, L, P = sizes
    shapes = ((5, 4), (3, 3), (2, 2), (1, 1))[: L or 3]
    case = Case(
        dtype=dtype, N=3, Q=3, D=D, shapes=shapes, P=P or 3, visible="some", reduction="mean_visible", spread=2.0
    )
    cuda_cases.assert_matches(case, *run(asan, case))


@pytest.mark.parametrize("deterministic", [False, True])
def test_value_gradient_does_not_depend_on_the_order_of_threads(asan: Path, deterministic: bool) -> None:
    case = Case(Q=31, M=3, D=32, shapes=((2, 2), (1, 1)), deterministic=deterministic)
    arguments = cuda_cases.tensors(case)
    grads = []
    for seed in range(3):
        with harness.cuda_on_the_shim(asan, seed):
            grads.append(cuda.backward(cuda_cases.grad_output(case), *arguments, deterministic, NEEDS_ALL))
    for others in grads[1:]:
        for name, first, other in zip(("value", "references", "offsets", "weights"), grads[0], others, strict=True):
            # Floating-point sums over queries do depend on it: the shim must be able to show that.
            assert torch.equal(first, other) == (deterministic or name != "value"), name


def test_deterministic_gradients_show_an_overflow(asan: Path) -> None:
    case = Case(deterministic=True)
    grad_output = cuda_cases.grad_output(case)
    grad_output[0, 0, 0] = float("inf")
    with harness.cuda_on_the_shim(asan):
        grad_value, *_ = cuda.backward(grad_output, *cuda_cases.tensors(case), True, NEEDS_ALL)
    assert not grad_value.isfinite().any()


@pytest.mark.parametrize("activation", ["none", "sigmoid", "softmax"])
@pytest.mark.parametrize("points", [4, 3], ids=["specialised", "general"])
def test_nothing_that_belongs_to_a_hidden_camera_matters(asan: Path, activation: str, points: int) -> None:
    case = Case(
        N=3, Q=7, P=points, offsets=(True, True, True), weights=(True, True), visible="some", activation=activation
    )
    value, shapes, references, offsets, weights, visible, *modes = cuda_cases.tensors(case)
    visible[:, 1] = False
    hidden = ~visible[..., None, None, None]
    garbage = (
        value.index_fill(1, torch.tensor([1]), float("nan")),
        shapes,
        references.masked_fill(hidden, float("inf")),
        offsets.masked_fill(hidden.unsqueeze(-1), float("nan")),
        weights.masked_fill(hidden, float("nan")),
    )
    results = []
    with harness.cuda_on_the_shim(asan):
        for inputs in ((value, shapes, references, offsets, weights), garbage):
            output = cuda.forward(*inputs, visible, *modes)
            grads = cuda.backward(torch.ones_like(output), *inputs, visible, *modes, True, NEEDS_ALL)
            results.append((output, *grads))
    for clean, dirty in zip(*results, strict=True):
        assert torch.equal(clean, dirty)
    assert not results[1][1][:, 1].any()


def test_more_cameras_than_bits_in_a_word(asan: Path) -> None:
    for offsets, weights in (((True, True, True), (True, True)), ((False, True, True), (False, True))):
        case = Case(
            N=67, Q=3, offsets=offsets, weights=weights, visible="some", reduction="mean_visible", shapes=((2, 3),)
        )
        cuda_cases.assert_matches(case, *run(asan, case))


def test_batches_beyond_the_grid(asan: Path) -> None:
    case = Case(B=5, Q=3, visible="some")
    with mock.patch.object(cuda, "attention_grid", lambda *sizes: (*attention_grid(*sizes)[:2], 2)):
        cuda_cases.assert_matches(case, *run(asan, case))


@pytest.mark.parametrize("start", [1, 4], ids=["4 bytes off", "16 bytes off"])
def test_values_that_do_not_start_on_16_bytes(asan: Path, start: int) -> None:
    case = Case()
    value, *others = cuda_cases.tensors(case)
    storage = torch.empty(value.numel() + start)
    shifted = storage[start:].view_as(value).copy_(value)
    with harness.cuda_on_the_shim(asan):
        output = cuda.forward(shifted, *others)
        grads = cuda.backward(cuda_cases.grad_output(case), shifted, *others, False, NEEDS_ALL)
    cuda_cases.assert_matches(case, output, grads)


def test_locations_on_the_border(asan: Path) -> None:
    """Pixels -1 and W are outside, everything between counts, on maps of one pixel too."""
    value = torch.arange(1.0, 7.0).view(1, 1, 6, 1, 1)
    pixels = torch.tensor([-1.0, -0.5, 0.0, 1.5, 2.0, 2.5, 3.0])
    for shapes, y, expected in (
        ([2, 3], 0.0, [0, 0.5, 1, 2.5, 3, 1.5, 0]),
        ([2, 3], 1.5, [0, 1, 2, 2.75, 3, 1.5, 0]),
        ([1, 6], -0.5, [0, 0.25, 0.5, 1.25, 1.5, 1.75, 2]),
    ):
        H, W = shapes
        references = torch.stack(((pixels + 0.5) / W, torch.full_like(pixels, (y + 0.5) / H)), dim=-1)
        with harness.cuda_on_the_shim(asan):
            output = cuda.forward(
                value,
                shapes,
                references.view(1, 1, -1, 1, 1, 2),
                None,
                torch.ones(1, 1, 7, 1, 1, 1),
                None,
                "none",
                "sum",
            )
        torch.testing.assert_close(output.flatten(), torch.tensor(expected))


@pytest.fixture
def sparse(tmp_path: Path):
    """Tensors of many gigabytes in files with holes: only what is touched takes memory."""
    files: dict[int, Path] = {}

    def allocate(elements: int) -> torch.Tensor:
        path = tmp_path / f"sparse{len(files)}"
        with path.open("wb") as file:
            file.truncate(elements * 4)
        tensor = torch.from_file(str(path), shared=True, size=elements)
        files[tensor.data_ptr()] = path
        return tensor

    return allocate, files


def test_more_than_2_to_the_31_elements(asan: Path, sparse) -> None:
    """The second batch, the second camera and the end of the second level lie beyond 2^31 elements."""
    allocate, files = sparse
    case = Case(B=2, N=2, M=1, shapes=((2, 3), (3, 2)), offsets=(True, True, True), weights=(True, True))
    value, *others = cuda_cases.tensors(case)
    D = case.D
    steps = (2**33, 2**32, 2**28, D, 1)
    far = allocate(sum((size - 1) * step for size, step in zip(value.shape, steps, strict=True)) + 1)
    far = far.as_strided(value.shape, steps)
    far.copy_(value)
    with harness.cuda_on_the_shim(asan, mapped=files):
        output = cuda.forward(far, *others)
        grads = cuda.backward(cuda_cases.grad_output(case), far, *others, False, NEEDS_ALL)
    cuda_cases.assert_matches(case, output, grads)


def test_gradients_of_more_than_2_to_the_31_elements(asan: Path, sparse) -> None:
    allocate, files = sparse
    side, D = 8200, 32  # 2.15e9 elements in one level
    value, grad_value = (allocate(side * side * D).view(1, 1, -1, 1, D) for _ in range(2))
    corner = torch.randn(2, 2, D, generator=torch.Generator().manual_seed(0))
    value.view(side, side, D)[-2:, -2:] = corner
    pixel = torch.tensor([side - 1.75, side - 1.5], dtype=torch.float32)
    arguments = (value, [side, side], torch.zeros(1, 1, 1, 1, 1, 2), pixel.add(0.5).view(1, 1, 1, 1, 1, 1, 2),
                 torch.ones(1, 1, 1, 1, 1, 1), None, "none", "sum")  # fmt: skip
    with harness.cuda_on_the_shim(asan, mapped=files):
        output = cuda.forward(*arguments)
        with mock.patch.object(cuda.torch, "zeros", return_value=grad_value):
            grads = cuda.backward(torch.ones_like(output), *arguments, False, NEEDS_ALL)
    factors = torch.tensor([[0.375, 0.125], [0.375, 0.125]])  # y between the last rows, x a quarter past the column
    torch.testing.assert_close(output[0, 0], (corner * factors[..., None]).sum((0, 1)))
    last = grads[0].view(side, side, D)[-2:, -2:]
    torch.testing.assert_close(last, factors[..., None].expand(2, 2, D))
    assert not grads[0].view(side, side, D)[-4:-2].any()


def test_sizes_that_the_kernels_cannot_take() -> None:
    arguments = (torch.zeros(1, 1, 1, 1, 1, 2), None, torch.ones(1, 1, 1, 1, 1, 1), None, "none", "sum")
    with pytest.raises(ValueError, match=r"level of 300000000 pixels; .* less than 2\*\*28"):
        cuda.forward(torch.zeros(()).expand(1, 1, 300_000_000, 1, 1), [30_000, 10_000], *arguments)
    with pytest.raises(ValueError, match="65 levels; the CUDA kernels take at most 64"):
        cuda.forward(torch.zeros(1, 1, 65, 1, 1), [1] * 130, *arguments)


@pytest.mark.parametrize("dtype", C_TYPES, ids=str)
def test_every_choice_is_a_kernel_that_the_checks_compile(dtype: torch.dtype) -> None:
    checked = set(every_kernel())
    for template in ("forward", "backward"):
        for D in (1, 8, 16, 30, 32, 64, 71, 256, 1025):
            for L, P in ((1, 1), (4, 4), (4, 1), (1, 8), (5, 3)):
                for aligned in (True, False):
                    assert attention_kernel(template, dtype, D, L, P, aligned) in checked
