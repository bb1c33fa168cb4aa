"""Deformable convolution (DCNv1 without mask, DCNv2 with): the checked public function."""

from __future__ import annotations

import torch
from torch import Tensor

from bevdet_ops import library
from bevdet_ops.functional import VALUE_DTYPES, check_float, kind, shape_error


def deform_conv2d(
    input: Tensor,  # [B, C, H, W]
    offset: Tensor,  # [B, 2 * G * K, Ho, Wo]
    weight: Tensor,  # [O, C / groups, kh, kw]
    bias: Tensor | None = None,  # [O]
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] = 0,
    dilation: int | tuple[int, int] = 1,
    mask: Tensor | None = None,  # [B, G * K, Ho, Wo]
    deterministic: bool | None = None,
) -> Tensor:
    """Convolve with kernel taps that are moved by learned offsets and scaled by a learned mask.

    The signature is torchvision's ("Deformable ConvNets v2", https://arxiv.org/abs/1811.11168). The number of groups
    is C / weight.shape[1], the number of offset groups G is offset.shape[1] / (2 * K) with K = kh * kw taps.

    Args:
        input: Feature maps; float32, float16, bfloat16 or float64.
        offset: Displacement of each tap in pixels, channels ordered [group, tap, (dy, dx)], taps row by row.
        weight: Kernels, with the dtype of `input`.
        bias: Added to the result, with the dtype of `input`.
        stride: Of the output grid, one number or (vertical, horizontal).
        padding: Zeros around the input, one number or (vertical, horizontal).
        dilation: Distance of the taps, one number or (vertical, horizontal).
        mask: Factor of each tap, channels ordered [group, tap], as it is (apply the sigmoid before); None is all ones.
        deterministic: The same bits in every run, also of the gradients. None follows
            ``torch.are_deterministic_algorithms_enabled()``.

    Returns:
        [B, O, Ho, Wo] with the dtype of `input`. Offsets and mask are used in float32 (float64 where `input` is
        float64). Under autocast `input` and `weight` go to autocast's dtype.

    Raises:
        TypeError: An argument has the wrong type or dtype.
        ValueError: An argument has the wrong shape or device; the message says which and what it should be.
    """
    if not isinstance(input, Tensor) or input.dtype not in VALUE_DTYPES:
        raise TypeError(f"input must be a float32, float16, bfloat16 or float64 tensor, but is {kind(input)}")
    if input.ndim != 4:
        raise shape_error("input", input, "[B, C, H, W]")
    B, C, H, W = input.shape
    device = input.device

    check_float("weight", weight, device, "input")
    if weight.ndim != 4 or weight.shape[1] == 0 or C % weight.shape[1] != 0:
        raise shape_error("weight", weight, f"[O, I, kh, kw] with I a divisor of the input's {C} channels")
    C_out, C_group, kh, kw = weight.shape
    groups, K = C // C_group, kh * kw
    if groups == 0 or C_out == 0 or K == 0 or C_out % groups != 0:
        raise ValueError(
            f"weight's {C_out} kernels of {C_group} channels do not fit the input's {C} channels: "
            f"there are {groups} groups, and each needs the same number of kernels"
        )

    strides, paddings = _pair("stride", stride, 1), _pair("padding", padding, 0)
    dilations = _pair("dilation", dilation, 1)
    Ho = (H + 2 * paddings[0] - dilations[0] * (kh - 1) - 1) // strides[0] + 1
    Wo = (W + 2 * paddings[1] - dilations[1] * (kw - 1) - 1) // strides[1] + 1
    if Ho < 1 or Wo < 1:
        raise ValueError(f"input of {H} x {W} pixels is smaller than the kernel: the output would be {Ho} x {Wo}")

    check_float("offset", offset, device, "input")
    size = offset.shape
    if len(size) != 4 or size[1] == 0 or size[1] % (2 * K) != 0 or size != (B, size[1], Ho, Wo):
        raise shape_error("offset", offset, f"[B={B}, a multiple of 2 * kh * kw = {2 * K}, Ho={Ho}, Wo={Wo}]")
    G = size[1] // (2 * K)
    if C % G != 0:
        raise ValueError(f"offset has {G} groups (shape {list(size)}), which do not divide the input's {C} channels")
    if mask is not None:
        check_float("mask", mask, device, "input")
        if mask.shape != (B, G * K, Ho, Wo):
            raise shape_error("mask", mask, f"[B={B}, G * kh * kw = {G * K}, Ho={Ho}, Wo={Wo}] to go with offset")
    if bias is not None:
        check_float("bias", bias, device, "input")
        if bias.shape != (C_out,):
            raise shape_error("bias", bias, f"[O={C_out}]")
    for name, parameter in (("weight", weight), ("bias", bias)):
        differs = parameter is not None and parameter.dtype != input.dtype
        if differs and not torch.is_autocast_enabled(device.type):
            raise TypeError(f"{name} must have the input's dtype {input.dtype}, but is {kind(parameter)}")
    if deterministic is None:
        deterministic = torch.are_deterministic_algorithms_enabled()

    coordinates = torch.float64 if input.dtype == torch.float64 else torch.float32
    output = library.deform_conv2d(
        input,
        offset.to(coordinates),
        None if mask is None else mask.to(coordinates),
        weight,
        strides,
        paddings,
        dilations,
        deterministic,
    )
    return output if bias is None else output + bias.to(output.dtype).view(1, C_out, 1, 1)


def _pair(name: str, number: int | tuple[int, int], least: int) -> list[int]:
    pair = [number, number] if isinstance(number, int) else list(number)
    if len(pair) != 2 or any(not isinstance(side, int) or side < least for side in pair):
        raise ValueError(f"{name} must be one or two integers of at least {least}, but is {number!r}")
    return pair
