"""What torch does with the operators: checks, differentiation, compilation, export, autocast, vmap."""

from __future__ import annotations

import pytest
import torch
from ops.cuda_cases import Case
from torch import Tensor, nn

import bevdet_ops
from bevdet_ops import deform_conv2d, multi_camera_deformable_attention, use_reference
from ops import cuda_cases

ATTENTION = torch.ops.bevdet_ops.multi_camera_deformable_attention.default
ATTENTION_BACKWARD = torch.ops.bevdet_ops.multi_camera_deformable_attention_backward.default
CONVOLUTION = torch.ops.bevdet_ops.deform_conv2d.default
CONVOLUTION_BACKWARD = torch.ops.bevdet_ops.deform_conv2d_backward.default

CASE = Case(B=2, N=3, D=8, visible="some", reduction="mean_visible")


def leaves(*tensors: Tensor) -> list[Tensor]:
    return [tensor.clone().requires_grad_() for tensor in tensors]


class Attention(nn.Module):
    """The operator with everything fixed that is not a float tensor."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.shapes = case.shapes
        _, _, _, _, _, self.visible, self.activation, self.reduction = cuda_cases.tensors(case)

    def forward(self, value: Tensor, points: Tensor, offsets: Tensor | None, weights: Tensor) -> Tensor:
        return multi_camera_deformable_attention(
            value, self.shapes, points, offsets, weights, self.visible, self.activation, self.reduction
        )


def floats(case: Case) -> list[Tensor]:
    value, _, points, offsets, weights, *_ = cuda_cases.tensors(case)
    return [value, points, offsets, weights]


@pytest.mark.parametrize("offsets", [None, (False, True, True)])
def test_opcheck_attention(offsets) -> None:
    case = Case(B=2, N=3, D=8, visible="some", reduction="mean_visible", offsets=offsets)
    value, shapes, points, offset, weights, *rest = cuda_cases.tensors(case)
    for tensor in (value, points, weights):
        tensor.requires_grad_()
    torch.library.opcheck(ATTENTION, (value, shapes, points, offset, weights, *rest, False))


def test_opcheck_attention_backward() -> None:
    needs_grad = [True, False, True, True]
    arguments = (cuda_cases.grad_output(CASE), *cuda_cases.tensors(CASE), False, needs_grad)
    torch.library.opcheck(ATTENTION_BACKWARD, arguments)


@pytest.mark.parametrize("masked", [False, True])
def test_opcheck_convolution(masked: bool) -> None:
    torch.manual_seed(0)
    image, offset, mask = torch.randn(2, 4, 6, 7), torch.randn(2, 18, 6, 7), torch.rand(2, 9, 6, 7) if masked else None
    weight = torch.randn(3, 4, 3, 3)
    sizes = ([1, 1], [1, 1], [1, 1], False)
    torch.library.opcheck(CONVOLUTION, (image.clone().requires_grad_(), offset, mask, weight, *sizes))
    grads = (torch.randn(2, 3, 6, 7), image, offset, mask, weight, *sizes, [True, True, masked, True])
    torch.library.opcheck(CONVOLUTION_BACKWARD, grads)


@pytest.mark.parametrize("D", [30, 32, 64, 71, 1025])
def test_gradcheck_attention(D: int) -> None:
    case = Case(
        dtype=torch.float64, N=2, Q=2, M=1, D=D, shapes=((2, 3), (1, 2)), P=2, numbers=4, visible="some", seed=3
    )
    assert torch.autograd.gradcheck(Attention(case), leaves(*floats(case)), fast_mode=D > 32)


@pytest.mark.parametrize(("numbers", "activation", "reduction"), [(2, "sigmoid", "mean"), (2, "none", "sum")])
def test_gradcheck_modes(numbers: int, activation: str, reduction: str) -> None:
    case = Case(
        dtype=torch.float64,
        N=2,
        Q=3,
        D=3,
        shapes=((4, 3), (2, 2)),
        P=4,
        numbers=numbers,
        anchors=2,
        offsets=(True, False, False),
        weights=(True, False),
        activation=activation,
        reduction=reduction,
        visible="some",
    )
    assert torch.autograd.gradcheck(Attention(case), leaves(*floats(case)))


def test_no_second_derivatives_but_by_the_reference() -> None:
    case = Case(dtype=torch.float64, Q=1, M=1, D=2, shapes=((3, 3),), P=1)
    inputs = leaves(*floats(case))
    grads = torch.autograd.grad(Attention(case)(*inputs).sum(), inputs, create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivatives"):
        grads[1].sum().backward()
    with use_reference():
        assert torch.autograd.gradgradcheck(Attention(case), inputs)


def test_compile_fullgraph() -> None:
    compiled = torch.compile(Attention(CASE), fullgraph=True, backend="aot_eager")
    found, wanted = leaves(*floats(CASE)), leaves(*floats(CASE))
    compiled(*found).square().sum().backward()
    Attention(CASE)(*wanted).square().sum().backward()
    assert all(torch.equal(a.grad, b.grad) for a, b in zip(found, wanted, strict=True))


def test_compile_dynamic_sizes() -> None:
    def attend(image: Tensor, points: Tensor, weights: Tensor) -> Tensor:
        B, C, H, W = image.shape
        value = image.flatten(2).transpose(1, 2).reshape(B, 1, H * W, 1, C)
        return multi_camera_deformable_attention(value, ((H, W),), points, None, weights)

    compiled = torch.compile(attend, fullgraph=True, dynamic=True, backend="aot_eager")
    for H, W in ((3, 4), (5, 2), (6, 6)):
        inputs = torch.randn(2, 8, H, W), torch.rand(2, 1, H + 1, 1, 2, 2), torch.randn(2, 1, H + 1, 1, 1, 2)
        assert torch.equal(compiled(*inputs), attend(*inputs))


def test_compile_modules_under_autocast() -> None:
    torch.manual_seed(0)
    attention = bevdet_ops.MSDeformAttn(16, 2, 2, 2)
    inputs = torch.randn(1, 3, 16), torch.rand(1, 3, 2, 2), torch.randn(1, 8, 16), ((2, 2), (2, 2))
    convolution = bevdet_ops.ModulatedDeformConv2d(4, 6, 3, padding=1)
    image = torch.randn(1, 4, 5, 6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for module, arguments in ((attention, inputs), (convolution, (image,))):
            compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
            assert torch.equal(compiled(*arguments), module(*arguments))


def test_export() -> None:
    inputs = tuple(floats(CASE))
    program = torch.export.export(Attention(CASE), inputs)
    assert any(node.target is ATTENTION for node in program.graph.nodes)
    assert torch.equal(program.module()(*inputs), Attention(CASE)(*inputs))


def test_export_of_the_reference_holds_plain_operators() -> None:
    inputs = tuple(floats(CASE))
    with use_reference():
        program = torch.export.export(Attention(CASE), inputs)
    assert not any("bevdet_ops" in str(node.target) for node in program.graph.nodes)
    torch.testing.assert_close(program.module()(*inputs), Attention(CASE)(*inputs))


def test_meta_tensors() -> None:
    value, points, offsets, weights = (tensor.to("meta") for tensor in floats(CASE))
    value = value.half()
    output = multi_camera_deformable_attention(value, CASE.shapes, points, offsets, weights)
    assert (output.shape, output.dtype, output.device.type) == ((2, 5, 16), torch.float16, "meta")
    image = torch.empty(2, 4, 6, 7, device="meta", requires_grad=True)
    offset = torch.empty(2, 18, 3, 4, device="meta")
    output = deform_conv2d(image, offset, torch.empty(6, 2, 3, 3, device="meta"), stride=2, padding=1)
    assert output.shape == (2, 6, 3, 4)
    output.sum().backward()
    assert image.grad.shape == image.shape


def test_autocast_narrows_values_only() -> None:
    value, points, offsets, weights = leaves(*floats(CASE))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = Attention(CASE)(value, points, offsets, weights)
    assert output.dtype == torch.bfloat16
    assert torch.equal(output, Attention(CASE)(value.bfloat16(), points, offsets, weights))
    output.float().sum().backward()
    for tensor in (value, points, offsets, weights):
        assert tensor.grad.dtype == torch.float32
        assert tensor.grad.isfinite().all()


def test_autocast_leaves_double_alone() -> None:
    case = Case(dtype=torch.float64, D=8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert Attention(case)(*floats(case)).dtype == torch.float64


def test_coordinates_of_16_bits_are_widened() -> None:
    value, points, offsets, weights = floats(CASE)
    narrow = points.bfloat16(), offsets.bfloat16(), weights.bfloat16()
    wide = tuple(tensor.float() for tensor in narrow)
    assert torch.equal(Attention(CASE)(value, *narrow), Attention(CASE)(value, *wide))


def test_vmap() -> None:
    value, points, offsets, weights = floats(CASE)
    values = torch.stack([value, value + 1, value * 2])
    many_weights = torch.stack([weights, weights.flip(-1), weights * 2], dim=2)
    found = torch.vmap(Attention(CASE), in_dims=(0, None, None, 2))(values, points, offsets, many_weights)
    wanted = [Attention(CASE)(values[i], points, offsets, many_weights[:, :, i]) for i in range(3)]
    torch.testing.assert_close(found, torch.stack(wanted))


def test_only_the_gradients_asked_for() -> None:
    for wanted in range(4):
        inputs = floats(CASE)
        inputs[wanted].requires_grad_()
        Attention(CASE)(*inputs).sum().backward()
        assert [tensor.grad is not None for tensor in inputs] == [i == wanted for i in range(4)]


def test_deterministic_follows_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    from bevdet_ops import library

    seen = []
    monkeypatch.setattr(library, "multi_camera_deformable_attention", lambda *arguments: seen.append(arguments[-1]))
    for enabled in (False, True):
        before = torch.are_deterministic_algorithms_enabled()
        torch.use_deterministic_algorithms(enabled)
        try:
            Attention(CASE)(*floats(CASE))
        finally:
            torch.use_deterministic_algorithms(before)
    value, points, offsets, weights = floats(CASE)
    multi_camera_deformable_attention(value, CASE.shapes, points, offsets, weights, deterministic=True)
    assert seen == [False, True, True]


def test_falls_back_to_the_reference_with_one_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    from bevdet_ops import cpu, library

    monkeypatch.setattr(cpu, "unavailable", lambda: "numba is not installed (pip install numba)")
    library.backend.cache_clear()
    wanted, found = leaves(*floats(CASE)), leaves(*floats(CASE))
    with use_reference():
        Attention(CASE)(*wanted).sum().backward()
    try:
        with pytest.warns(RuntimeWarning, match="numba is not installed"):
            Attention(CASE)(*found)
        Attention(CASE)(*found).sum().backward()  # warnings are errors here: there is no second one
        assert bevdet_ops.backend_status()["cpu"].startswith("numba is not installed")
    finally:
        library.backend.cache_clear()
    torch.testing.assert_close([tensor.grad for tensor in found], [tensor.grad for tensor in wanted])
