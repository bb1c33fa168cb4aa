"""The CUDA back end of modulated deformable convolution: unfold the input at its taps, multiply, and back."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from bevdet_ops import cuda_runtime
from bevdet_ops.cuda_fixed_point import fixed_point_format, from_fixed_point
from bevdet_ops.cuda_kernels import CONV_PROBLEM, convolution_grid, convolution_kernel

COLUMN_BYTES = 2**28  # of unfolded input that is held at a time


def deform_conv2d_forward(
    input: Tensor,
    offset: Tensor,
    mask: Tensor | None,
    weight: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> Tensor:
    """Modulated deformable convolution without bias, [B, O, Ho, Wo]."""
    input, offset = _pixels_contiguous(input), offset.contiguous()
    mask = None if mask is None else mask.contiguous()
    output = input.new_empty(input.shape[0], weight.shape[0], *offset.shape[-2:])
    for images in _image_slices(input, offset, weight):
        part = (input[images], offset[images], None if mask is None else mask[images])
        problem = _conv_problem(*part[:2], weight, stride, padding, dilation)
        output[images] = (_kernel_rows(input, weight) @ _gather(*part, weight, problem)).view_as(output[images])
    return output


def deform_conv2d_backward(
    grad_output: Tensor,
    input: Tensor,
    offset: Tensor,
    mask: Tensor | None,
    weight: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    deterministic: bool,
    needs_grad: Sequence[bool],
) -> tuple[Tensor | None, ...]:
    """Gradients of input, offset, mask and weight; None where not needed."""
    input, offset = _pixels_contiguous(input), offset.contiguous()
    mask = None if mask is None else mask.contiguous()
    needs_input, needs_offset, needs_mask, needs_weight = needs_grad
    needs_mask = needs_mask and mask is not None
    grad_input = torch.zeros(input.shape, dtype=input.dtype, device=input.device) if needs_input else None
    grad_offset = torch.empty_like(offset) if needs_offset else None
    grad_mask = torch.empty_like(mask) if mask is not None and needs_mask else None
    kernels = _kernel_rows(input, weight)  # [groups, O / groups, C / groups * K]
    grad_kernels = torch.zeros(kernels.shape, dtype=offset.dtype, device=input.device)
    for images in _image_slices(input, offset, weight):
        part = (input[images], offset[images], None if mask is None else mask[images])
        problem = _conv_problem(*part[:2], weight, stride, padding, dilation)
        rows = grad_output[images].reshape(-1, kernels.shape[0], kernels.shape[1], offset[0, 0].numel())
        if needs_weight:
            columns = _gather(*part, weight, problem)
            grad_kernels += (rows @ columns.transpose(2, 3)).sum(0, dtype=grad_kernels.dtype)
        if needs_input or needs_offset or needs_mask:
            grads = [None if grad is None else grad[images] for grad in (grad_input, grad_offset, grad_mask)]
            _scatter(*part, kernels.transpose(1, 2) @ rows, problem, deterministic, *grads)
    grad_weight = grad_kernels.view(weight.shape).to(weight.dtype) if needs_weight else None
    return grad_input, grad_offset, grad_mask, grad_weight


def _gather(input: Tensor, offset: Tensor, mask: Tensor | None, weight: Tensor, problem: np.ndarray) -> Tensor:
    """Unfolded input, [B, groups, C / groups * K, Ho * Wo]."""
    B, C = input.shape[:2]
    K, pixels = weight[0, 0].numel(), offset[0, 0].numel()
    columns = torch.empty(
        (B, C // weight.shape[1], weight.shape[1] * K, pixels), dtype=input.dtype, device=input.device
    )
    kernel = convolution_kernel("gather", input.dtype)
    grid = convolution_grid(kernel, offset.numel() // 2, C // int(problem["offset_groups"]))
    cuda_runtime.launch(kernel, grid, [input, offset, mask, columns], problem, [columns])
    return columns


def _scatter(
    input: Tensor,
    offset: Tensor,
    mask: Tensor | None,
    grad_columns: Tensor,  # [B, groups, C / groups * K, Ho * Wo]
    problem: np.ndarray,
    deterministic: bool,
    grad_input: Tensor | None,  # written, like the next two
    grad_offset: Tensor | None,
    grad_mask: Tensor | None,
) -> None:
    total = fixed_point = None
    if grad_input is not None:
        if deterministic:
            terms = offset[0].numel() // (2 * int(problem["offset_groups"]))  # taps that may meet in a pixel
            fixed_point = fixed_point_format([grad_columns, *([] if mask is None else [mask])], terms)
        total = torch.zeros(input.shape, dtype=torch.int64 if deterministic else offset.dtype, device=input.device)
    kernel = convolution_kernel("scatter", input.dtype)
    tensors = [input, offset, mask, grad_columns, fixed_point, total, grad_offset, grad_mask]
    outputs = [grad for grad in (grad_offset, grad_mask) if grad is not None]
    cuda_runtime.launch(kernel, convolution_grid(kernel, offset.numel() // 2, 1), tensors, problem, outputs)
    if grad_input is not None and total is not None:
        grad_input.copy_(from_fixed_point(total, fixed_point))


def _kernel_rows(input: Tensor, weight: Tensor) -> Tensor:
    groups = input.shape[1] // weight.shape[1]
    return weight.reshape(groups, weight.shape[0] // groups, -1)


def _image_slices(input: Tensor, offset: Tensor, weight: Tensor) -> list[slice]:
    """The batch in pieces whose columns take COLUMN_BYTES at most, or one image where that takes more."""
    if offset.numel() == 0:
        return []
    columns = input.shape[1] * weight[0, 0].numel() * offset[0, 0].numel() * input.element_size()
    step = max(1, COLUMN_BYTES // columns)
    return [slice(start, start + step) for start in range(0, input.shape[0], step)]


def _conv_problem(
    input: Tensor,
    offset: Tensor,
    weight: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> np.ndarray:
    problem = np.zeros((), CONV_PROBLEM)
    problem["input_stride_b"], problem["input_stride_c"], problem["input_stride_h"] = input.stride()[:3]
    problem["B"], problem["C"], problem["H"], problem["W"] = input.shape
    problem["out_height"], problem["out_width"] = offset.shape[-2:]
    pairs = (("kernel", weight.shape[-2:]), ("stride", stride), ("pad", padding), ("dilation", dilation))
    for name, (vertical, horizontal) in pairs:
        problem[f"{name}_h"], problem[f"{name}_w"] = vertical, horizontal
    problem["offset_groups"] = offset.shape[1] // (2 * weight[0, 0].numel())
    return problem


def _pixels_contiguous(input: Tensor) -> Tensor:
    return input if input.stride(3) == 1 else input.contiguous()
