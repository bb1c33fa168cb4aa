"""One semantics: the same random calls through every back end that this machine has, against double precision."""

from __future__ import annotations

import importlib
import random

import pytest
import torch

from ops import cuda_cases

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


@pytest.fixture(params=["reference", "cpu", "cuda"])
def backend(request: pytest.FixtureRequest):
    module = importlib.import_module(f"bevdet_ops.{request.param}")
    if module.unavailable() is not None:
        pytest.skip(module.unavailable())
    return module


@pytest.mark.parametrize("seed", range(8))
def test_random_calls(backend, seed: int) -> None:
    device = "cuda" if backend.__name__.endswith("cuda") else "cpu"
    rng = random.Random(seed)
    for _ in range(12):
        case = cuda_cases.random_case(rng, DTYPES)
        arguments = cuda_cases.tensors(case, device)
        output = backend.forward(*arguments)
        grad_output = cuda_cases.grad_output(case, device)
        grads = backend.backward(grad_output, *arguments, case.deterministic, case.needs_grad)
        cuda_cases.assert_matches(case, output, grads)


@pytest.mark.parametrize("D", [1, 30, 32, 64, 71, 256, 1025])
def test_channels(backend, D: int) -> None:
    device = "cuda" if backend.__name__.endswith("cuda") else "cpu"
    case = cuda_cases.Case(D=D, N=2, visible="some", reduction="mean_visible", spread=2.0)
    arguments = cuda_cases.tensors(case, device)
    grads = backend.backward(cuda_cases.grad_output(case, device), *arguments, False, case.needs_grad)
    cuda_cases.assert_matches(case, backend.forward(*arguments), grads)


@pytest.mark.parametrize("strides", ["expanded", "permuted", "sliced"])
def test_any_strides(backend, strides: str) -> None:
    device = "cuda" if backend.__name__.endswith("cuda") else "cpu"
    case = cuda_cases.Case(B=2, N=2, D=8, offsets=(True, True, True), weights=(True, True))
    value, shapes, points, offsets, weights, _, *modes = cuda_cases.tensors(case, device)
    if strides == "expanded":
        points = points[:1].expand(2, -1, -1, -1, -1, -1)
        offsets = offsets[:, :, :1].expand_as(offsets)
        value = value[..., :1].expand_as(value)
    elif strides == "permuted":
        value = value.transpose(-1, -2).contiguous().transpose(-1, -2)
        weights = weights.transpose(1, -1).contiguous().transpose(1, -1)
    else:
        offsets = offsets.repeat_interleave(2, -2)[..., ::2, :]
        weights = weights.repeat_interleave(2, -1)[..., ::2]
    visible = torch.ones(1, device=device, dtype=torch.bool).expand(2, 2, case.Q)
    grad_output = torch.ones(1, device=device).expand(2, case.Q, case.M * case.D)
    views = (value, shapes, points, offsets, weights, visible, *modes)
    copies = tuple(item.contiguous() if isinstance(item, torch.Tensor) else item for item in views)
    torch.testing.assert_close(backend.forward(*views), backend.forward(*copies))
    grads = backend.backward(grad_output, *views, True, case.needs_grad)
    expected = backend.backward(grad_output.contiguous(), *copies, True, case.needs_grad)
    torch.testing.assert_close(grads, expected, rtol=1e-5, atol=1e-5)


def test_what_hidden_cameras_hold_does_not_matter(backend) -> None:
    device = "cuda" if backend.__name__.endswith("cuda") else "cpu"
    case = cuda_cases.Case(
        B=1, N=3, D=8, numbers=4, offsets=(True, True, True), weights=(True, True), reduction="mean_visible"
    )
    value, shapes, points, offsets, weights, _, *modes = cuda_cases.tensors(case, device)
    visible = torch.ones(1, 3, case.Q, dtype=torch.bool, device=device)
    visible[:, 1] = False
    outcomes = []
    for junk in (0.0, float("nan"), float("inf")):
        for tensor in (value, points, offsets, weights):
            tensor[:, 1] = junk
        arguments = (value, shapes, points, offsets, weights, visible, *modes)
        grad_output = cuda_cases.grad_output(case, device)
        grads = backend.backward(grad_output, *arguments, True, case.needs_grad)
        outcomes.append((backend.forward(*arguments), *grads))
        assert all(torch.count_nonzero(grad[:, 1]) == 0 for grad in grads)
    for outcome in outcomes[1:]:
        assert all(torch.equal(tensor, wanted) for tensor, wanted in zip(outcome, outcomes[0], strict=True))
    assert outcomes[0][0].isfinite().all()


@pytest.mark.parametrize("activation", ["sigmoid", "softmax"])
def test_weights_of_any_size(backend, activation: str) -> None:
    """Among them masked samples (-inf), and numbers whose exponentials no float holds."""
    device = "cuda" if backend.__name__.endswith("cuda") else "cpu"
    case = cuda_cases.Case(D=8, P=4, activation=activation)
    value, shapes, points, offsets, weights, *rest = cuda_cases.tensors(case, device)
    weights[..., 1:] *= torch.tensor([30.0, 300.0, 3000.0], device=device)
    weights[:, :, ::2, :, :, 0] = -float("inf")
    found = backend.forward(value, shapes, points, offsets, weights, *rest)
    rows = weights.double()
    activated = rows.sigmoid() if activation == "sigmoid" else rows.flatten(-2).softmax(-1).view_as(rows)
    visible, _, reduction = rest
    wanted = backend.forward(value, shapes, points, offsets, activated.float(), visible, "none", reduction)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


def test_samples_without_a_place_read_zero(backend) -> None:
    device = "cuda" if backend.__name__.endswith("cuda") else "cpu"
    case = cuda_cases.Case(D=8, numbers=4, P=4)
    value, shapes, points, offsets, weights, *rest = cuda_cases.tensors(case, device)
    for p, junk in enumerate((float("nan"), float("inf"), -float("inf"), 3e38)):
        offsets[..., p, 0] = junk
    arguments = (value, shapes, points, offsets, weights, *rest)
    assert torch.count_nonzero(backend.forward(*arguments)) == 0
    grads = backend.backward(cuda_cases.grad_output(case, device), *arguments, True, case.needs_grad)
    assert all(torch.count_nonzero(grad) == 0 for grad in grads)
