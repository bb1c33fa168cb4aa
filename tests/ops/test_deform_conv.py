"""Deformable convolution through its public function."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from bevdet_ops import deform_conv2d, use_reference

# C, O, kernel, stride, padding, dilation, groups, offset groups
GEOMETRIES = [
    (4, 3, (3, 3), 1, 1, 1, 1, 1),
    (8, 6, (3, 3), 2, 2, 2, 2, 4),
    (6, 4, (1, 1), 1, 0, 1, 2, 3),
    (96, 5, (3, 2), (2, 1), (1, 0), (1, 2), 1, 1),
]
# Relative to the largest entry: rounding of what is stored, and of sums in float32.
ROUNDING = {torch.float64: 1e-12, torch.float32: 2e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}


def draw(geometry: tuple, dtype: torch.dtype = torch.float32, masked: bool = True, seed: int = 0) -> dict[str, Any]:
    """Arguments of a call on 2 images of 7 x 9 pixels."""
    C, O, (kh, kw), stride, padding, dilation, groups, G = geometry  # noqa: E741
    generator = torch.Generator().manual_seed(seed)
    image = torch.randn(2, C, 7, 9, generator=generator)
    weight = torch.randn(O, C // groups, kh, kw, generator=generator)
    Ho, Wo = F.conv2d(image, weight, None, stride, padding, dilation, groups).shape[-2:]
    offset = 2 * torch.randn(2, 2 * G * kh * kw, Ho, Wo, generator=generator)
    mask = torch.rand(2, G * kh * kw, Ho, Wo, generator=generator) if masked else None
    bias = torch.randn(O, generator=generator)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    return {
        "input": image.to(dtype),
        "offset": offset.to(wide),
        "weight": weight.to(dtype),
        "bias": bias.to(dtype),
        "stride": stride,
        "padding": padding,
        "dilation": dilation,
        "mask": None if mask is None else mask.to(wide),
    }


def differentiate(call: dict[str, Any]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    call = {
        name: item.clone().requires_grad_() if isinstance(item, torch.Tensor) else item for name, item in call.items()
    }
    output = deform_conv2d(**call)
    grad = torch.randn(output.shape, generator=torch.Generator().manual_seed(1)).to(output.dtype)
    output.backward(grad)
    return output.detach(), {name: item.grad for name, item in call.items() if isinstance(item, torch.Tensor)}


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("dtype", list(ROUNDING))
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_equals_the_reference_in_double(geometry: tuple, dtype: torch.dtype, masked: bool) -> None:
    call = draw(geometry, dtype, masked)
    output, grads = differentiate(call)
    with use_reference():
        exact = {name: item.double() if isinstance(item, torch.Tensor) else item for name, item in call.items()}
        wanted, wanted_grads = differentiate(exact)
    found = {"output": output, **grads}
    assert output.dtype == dtype
    for name, tensor in {"output": wanted, **wanted_grads}.items():
        error = (found[name].double() - tensor).abs().max() / tensor.abs().max()
        assert error <= ROUNDING[dtype], f"{name} is off by {error:.2g}"


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_without_offsets_it_is_a_convolution(geometry: tuple) -> None:
    call = draw(geometry, torch.float64, masked=False)
    call["offset"].zero_()
    arguments = [call[name] for name in ("input", "weight", "bias", "stride", "padding", "dilation")]
    torch.testing.assert_close(deform_conv2d(**call), F.conv2d(*arguments, groups=geometry[6]))


def test_whole_pixels_move_the_image() -> None:
    image = torch.randn(1, 2, 6, 6, dtype=torch.float64)
    offset = torch.tensor([1.0, -2.0], dtype=torch.float64).view(1, 2, 1, 1).expand(1, 2, 6, 6)  # dy, dx
    moved = deform_conv2d(image, offset, torch.eye(2, dtype=torch.float64).view(2, 2, 1, 1))
    torch.testing.assert_close(moved[..., :5, 2:], image[..., 1:, :4])
    assert torch.count_nonzero(moved[..., 5:, :]) == torch.count_nonzero(moved[..., :2]) == 0


@pytest.mark.parametrize("geometry", GEOMETRIES[:3])
def test_gradcheck(geometry: tuple) -> None:
    call = draw(geometry, torch.float64)
    tensors = ("input", "offset", "weight", "bias", "mask")
    rest = {name: item for name, item in call.items() if name not in tensors}

    def function(*inputs: torch.Tensor) -> torch.Tensor:
        return deform_conv2d(**dict(zip(tensors, inputs, strict=True)), **rest)

    assert torch.autograd.gradcheck(function, [call[name].requires_grad_() for name in tensors], fast_mode=True)


def test_offsets_that_are_not_finite_read_zero() -> None:
    call = draw(GEOMETRIES[0])
    call["offset"][:, 1::4] = float("nan")
    call["offset"][:, 3::4] = float("inf")
    output, grads = differentiate(call)
    torch.testing.assert_close(output, call["bias"].view(1, -1, 1, 1).expand_as(output))
    assert torch.count_nonzero(grads["input"]) == torch.count_nonzero(grads["offset"]) == 0


def test_no_images() -> None:
    call = {
        name: item[:0] if name in ("input", "offset", "mask") else item for name, item in draw(GEOMETRIES[0]).items()
    }
    output, grads = differentiate(call)
    assert output.shape == (0, 3, 7, 9)
    assert torch.count_nonzero(grads["weight"]) == 0


def test_any_strides() -> None:
    call = draw(GEOMETRIES[1])
    views = dict(call)
    views["input"] = call["input"].to(memory_format=torch.channels_last)
    views["offset"] = call["offset"].transpose(2, 3).contiguous().transpose(2, 3)
    views["mask"] = call["mask"].repeat_interleave(2, 1)[:, ::2]
    torch.testing.assert_close(differentiate(views), differentiate(call))


def test_autocast() -> None:
    call = draw(GEOMETRIES[0])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = deform_conv2d(**call)
    assert output.dtype == torch.bfloat16
    torch.testing.assert_close(output.float(), deform_conv2d(**call), rtol=0.05, atol=0.2)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"input": torch.zeros(4, 7, 9)}, ValueError, r"input must have shape \[B, C, H, W\].*\[4, 7, 9\]"),
        ({"input": torch.zeros(2, 4, 7, 9).int()}, TypeError, "input must be a float32.*torch.int32"),
        ({"weight": torch.zeros(3, 3, 3, 3)}, ValueError, "weight .* I a divisor of the input's 4 channels"),
        ({"weight": torch.zeros(3, 2, 3, 3)}, ValueError, "there are 2 groups"),
        ({"weight": torch.zeros(3, 4, 3, 3).double()}, TypeError, "weight must have the input's dtype"),
        ({"offset": torch.zeros(2, 18, 7, 8)}, ValueError, "offset must have shape .*Ho=7, Wo=9"),
        ({"offset": torch.zeros(2, 17, 7, 9)}, ValueError, r"a multiple of 2 \* kh \* kw = 18"),
        ({"offset": torch.zeros(2, 54, 7, 9)}, ValueError, "3 groups .* do not divide the input's 4 channels"),
        ({"mask": torch.zeros(2, 18, 7, 9)}, ValueError, r"mask must have shape .*G \* kh \* kw = 9"),
        ({"bias": torch.zeros(4)}, ValueError, r"bias must have shape \[O=3\]"),
        ({"stride": 0}, ValueError, "stride must be one or two integers of at least 1, but is 0"),
        ({"padding": (1, 1, 1)}, ValueError, "padding must be"),
        ({"dilation": 9}, ValueError, "smaller than the kernel"),
        ({"mask": torch.zeros(2, 9, 7, 9, device="meta")}, ValueError, "mask is on meta, but input is on cpu"),
    ],
)
def test_refusals(changes: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        deform_conv2d(**(draw(GEOMETRIES[0]) | changes))
