"""Calls of the operator, drawn at random: for every back end, for the CUDA kernels on the CPU harness, and on a GPU.

Plain Python over torch, so that `tools/gpu_check.py` needs nothing else.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence

import torch
from torch import Tensor

from bevdet_ops import reference

NEEDS_ALL = (True, True, True, True)
# Half a unit in the last place of what is stored, plus rounding of the arithmetic, relative to the largest entry.
STORED = {torch.float64: 0.0, torch.float32: 0.0, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}
ARITHMETIC = {torch.float64: 1e-12, torch.float32: 2e-5, torch.float16: 2e-5, torch.bfloat16: 2e-5}


@dataclasses.dataclass(frozen=True)
class Case:
    """Sizes and modes of one call; `tensors` fills it."""

    dtype: torch.dtype = torch.float32
    B: int = 1
    N: int = 1
    Q: int = 5
    M: int = 2
    D: int = 32
    shapes: tuple[tuple[int, int], ...] = ((5, 4), (3, 3))
    P: int = 4
    numbers: int = 2  # of a reference: 2 or 4
    anchors: int = 1
    reference_per_level: bool = False
    offsets: tuple[bool, bool, bool] | None = (False, True, True)  # own per camera, head, level
    weights: tuple[bool, bool] = (False, True)  # own per camera, head
    visible: str = "all"  # "all", "some", "none"
    broken_references: bool = False  # some are NaN or infinite
    spread: float = 1.0  # of offsets, in pixels
    activation: str = "softmax"
    reduction: str = "sum"
    deterministic: bool = False
    needs_grad: tuple[bool, ...] = NEEDS_ALL
    strided: bool = False  # value is a view of something else
    seed: int = 0


def random_case(rng: random.Random, dtypes: Sequence[torch.dtype]) -> Case:
    """Any call that the contract allows, small."""
    per_axis = [rng.random() < 0.5 for _ in range(6)]
    return Case(
        dtype=rng.choice(list(dtypes)),
        B=rng.choice((0, 1, 1, 2)),
        N=rng.choice((1, 1, 2, 3, 6, 7)),
        Q=rng.choice((0, 1, 5, 7, 7, 13)),
        M=rng.choice((1, 2, 3, 8)),
        D=rng.choice((1, 3, 16, 30, 32, 32, 32, 64, 71, 256)),
        shapes=tuple((rng.randint(1, 7), rng.randint(1, 7)) for _ in range(rng.choice((1, 2, 3, 4, 4, 8)))),
        P=rng.choice((1, 2, 3, 4, 4, 8)),
        numbers=rng.choice((2, 4)),
        anchors=rng.choice((1, 2, 3, 4)),
        reference_per_level=per_axis[0],
        offsets=rng.choice((None, (per_axis[1], per_axis[2], per_axis[3]), (per_axis[1], per_axis[2], per_axis[3]))),
        weights=(per_axis[4], per_axis[5]),
        visible=rng.choice(("all", "some", "some", "none")),
        broken_references=rng.random() < 0.3,
        spread=rng.choice((0.3, 2.0, 2.0, 1e6)),
        activation=rng.choice(reference_names("activation")),
        reduction=rng.choice(reference_names("reduction")),
        deterministic=rng.random() < 0.3,
        needs_grad=rng.choice((NEEDS_ALL, tuple(rng.random() < 0.5 for _ in range(4)))),
        strided=rng.random() < 0.3,
        seed=rng.randrange(2**31),
    )


def reference_names(option: str) -> tuple[str, ...]:
    """The names that `weight_activation` or `reduction` takes."""
    return {"activation": ("none", "sigmoid", "softmax"), "reduction": ("sum", "mean", "mean_visible")}[option]


def tensors(case: Case, device: torch.device | str = "cpu") -> tuple:
    """The arguments of a back end's `forward`, drawn from the case's seed."""
    generator = torch.Generator().manual_seed(case.seed)
    coordinates = torch.float64 if case.dtype == torch.float64 else torch.float32
    B, N, Q, M, D, P, L = case.B, case.N, case.Q, case.M, case.D, case.P, len(case.shapes)
    S = sum(height * width for height, width in case.shapes)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=coordinates)

    if case.strided:  # one time step of two, transposed, off by one channel where D leaves room
        value = normal(S, N, B, 2, M, D + 1).to(case.dtype)[..., 1, :, 1:].permute(2, 1, 0, 3, 4)
    else:
        value = normal(B, N, S, M, D).to(case.dtype)
    levels = L if case.reference_per_level else 1
    shape = (B, N, Q, levels, case.anchors, case.numbers)
    points = 1.4 * torch.rand(shape, generator=generator, dtype=coordinates) - 0.2
    if case.broken_references and points.numel() > 0:
        flat = points.view(-1)
        for broken in (float("nan"), float("inf"), -float("inf")):
            flat[torch.randint(len(flat), (1 + len(flat) // 50,), generator=generator)] = broken
    offsets = None
    if case.offsets is not None:
        own_n, own_m, own_l = case.offsets
        offsets = case.spread * normal(B, N if own_n else 1, Q, M if own_m else 1, L if own_l else 1, P, 2)
    own_n, own_m = case.weights
    weights = normal(B, N if own_n else 1, Q, M if own_m else 1, L, P)
    visible = None
    if case.visible != "all":
        visible = torch.rand((B, N, Q), generator=generator) < (0.6 if case.visible == "some" else -1.0)
    flat_shapes = [side for shape in case.shapes for side in shape]
    moved = [None if tensor is None else tensor.to(device) for tensor in (value, points, offsets, weights, visible)]
    return moved[0], flat_shapes, *moved[1:], case.activation, case.reduction


def grad_output(case: Case, device: torch.device | str = "cpu") -> Tensor:
    """What flows back into the output, drawn from the case's seed."""
    generator = torch.Generator().manual_seed(case.seed + 1)
    return torch.randn((case.B, case.Q, case.M * case.D), generator=generator).to(case.dtype).to(device)


def expected(case: Case) -> tuple[Tensor, tuple[Tensor | None, ...]]:
    """Output and gradients by the reference, in double precision from the same numbers."""
    value, shapes, points, offsets, weights, visible, *modes = tensors(case)
    inputs = [
        None if tensor is None else tensor.double().requires_grad_() for tensor in (value, points, offsets, weights)
    ]
    output = reference.forward(inputs[0], shapes, *inputs[1:], visible, *modes)
    wanted = [tensor for tensor in inputs if tensor is not None]
    found = iter(torch.autograd.grad(output, wanted, grad_output(case).double(), allow_unused=True))
    grads = [None if tensor is None else next(found) for tensor in inputs]
    zeros = [None if tensor is None else torch.zeros_like(tensor) for tensor in inputs]
    return output.detach(), tuple(zero if grad is None else grad for grad, zero in zip(grads, zeros, strict=True))


def assert_matches(case: Case, output: Tensor, grads: Sequence[Tensor | None]) -> None:
    """Raise an AssertionError that names what differs from the reference by more than rounding explains."""
    expected_output, expected_grads = expected(case)
    value, _, points, offsets, weights, *_ = tensors(case)
    assert_close("output", output, expected_output, case.dtype, case.dtype)
    names = ("value", "reference_points", "sampling_offsets", "attention_weights")
    inputs = (value, points, offsets, weights)
    for name, tensor, grad, reference_grad, needed in zip(
        names, inputs, grads, expected_grads, case.needs_grad, strict=True
    ):
        if not needed or tensor is None:
            assert grad is None, f"the gradient of {name} was not asked for"
            continue
        assert grad is not None, f"no gradient of {name}"
        assert grad.shape == tensor.shape, f"the gradient of {name} has shape {list(grad.shape)}"
        # Samples at one place make the terms of the softmax's gradient cancel: each is a product over D channels.
        terms = case.D**0.5 if name == "attention_weights" and case.activation == "softmax" else 0.0
        assert_close(f"gradient of {name}", grad, reference_grad, tensor.dtype, case.dtype, terms)


def assert_close(
    name: str, found: Tensor, wanted: Tensor, stored: torch.dtype, dtype: torch.dtype, terms: float = 0.0
) -> None:
    """`stored`: the dtype that `found` should have; `dtype`: that of the value; `terms`: size of what is summed."""
    assert found.dtype == stored, f"{name} is {found.dtype}"
    found = found.detach().cpu().double()
    if wanted.numel() == 0:
        assert found.shape == wanted.shape
        return
    allowed = STORED[stored] * wanted.abs() + ARITHMETIC[dtype] * wanted.abs().max().clamp(min=terms) + 1e-30
    excess = ((found - wanted).abs() / allowed).nan_to_num(nan=torch.inf).max().item()
    assert excess <= 1, f"{name} is off by {excess:.3g} times what rounding explains"
