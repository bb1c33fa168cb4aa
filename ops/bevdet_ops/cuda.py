"""The CUDA back end of deformable attention: buffers, and which kernel gets them.

`library` describes the functions' arguments, `cuda_kernels` chooses the kernels, `cuda_runtime` launches them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bevdet_ops import cuda_runtime
from bevdet_ops.cuda_deform_conv import deform_conv2d_backward, deform_conv2d_forward
from bevdet_ops.cuda_fixed_point import fixed_point_format, from_fixed_point
from bevdet_ops.cuda_kernels import (
    ACTIVATIONS,
    PROBLEM,
    REDUCTIONS,
    attention_grid,
    attention_kernel,
    level_arrays,
)
from bevdet_ops.cuda_runtime import unavailable

__all__ = ["backward", "deform_conv2d_backward", "deform_conv2d_forward", "forward", "unavailable"]


def forward(
    value: Tensor,
    spatial_shapes: Sequence[int],
    reference_points: Tensor,
    sampling_offsets: Tensor | None,
    attention_weights: Tensor,
    visible: Tensor | None,
    weight_activation: str,
    reduction: str,
) -> Tensor:
    """Multi-camera deformable attention, [B, Q, M * D]."""
    value = _packed(value)
    inputs = _contiguous(reference_points, sampling_offsets, attention_weights, visible)
    problem = _problem(value, spatial_shapes, inputs, weight_activation, reduction)
    B, _, _, M, D = value.shape
    Q = reference_points.shape[2]
    L, P = attention_weights.shape[-2:]
    output = value.new_empty(B, Q, M * D)
    if output.numel() > 0:
        kernel = attention_kernel("forward", value.dtype, D, L, P, _aligned(value))
        cuda_runtime.launch(kernel, attention_grid(kernel, B, Q, M, D), [value, *inputs, output], problem, [output])
    return output


def backward(
    grad_output: Tensor,
    value: Tensor,
    spatial_shapes: Sequence[int],
    reference_points: Tensor,
    sampling_offsets: Tensor | None,
    attention_weights: Tensor,
    visible: Tensor | None,
    weight_activation: str,
    reduction: str,
    deterministic: bool,
    needs_grad: Sequence[bool],
) -> tuple[Tensor | None, ...]:
    """Gradients of value, reference points, offsets and weights; None where not needed."""
    value, grad_output = _packed(value), grad_output.contiguous()
    inputs = _contiguous(reference_points, sampling_offsets, attention_weights, visible)
    problem = _problem(value, spatial_shapes, inputs, weight_activation, reduction)
    B, N, S, M, D = value.shape
    Q = reference_points.shape[2]
    L, P = attention_weights.shape[-2:]
    needs_value, needs_reference, needs_offsets, needs_weights = needs_grad
    if B * Q == 0 or not any(needs_grad):
        tensors = (value, reference_points, sampling_offsets, attention_weights)
        return tuple(
            torch.zeros_like(tensor) if needed and tensor is not None else None
            for tensor, needed in zip(tensors, needs_grad, strict=True)
        )

    # The kernel writes one summand for every head and level that share an offset, a weight or a reference.
    new_empty = attention_weights.new_empty
    grad_value = fixed_point = grad_reference = grad_offsets = grad_weights = None
    if needs_value:
        terms = Q * P  # one value meets at most every point of every query on its level, with factors that sum to 1
        if deterministic:
            # Activated weights are at most 1.
            raw = [attention_weights] if weight_activation == "none" else []
            fixed_point = fixed_point_format([grad_output, *raw], terms)
        dtype = torch.int64 if deterministic else attention_weights.dtype
        grad_value = torch.zeros((B, N, S, M, D), dtype=dtype, device=value.device)
    if needs_reference:
        grad_reference = new_empty((B, N, Q, M, *reference_points.shape[3:]))
    if needs_offsets and sampling_offsets is not None:
        grad_offsets = new_empty((B, sampling_offsets.shape[1], Q, M, L, P, 2))
    if needs_weights:
        grad_weights = new_empty((B, attention_weights.shape[1], Q, M, L, P))

    kernel = attention_kernel("backward", value.dtype, D, L, P, _aligned(value) and _aligned(grad_output))
    point_grads = [grad_reference, grad_offsets, grad_weights]
    cuda_runtime.launch(
        kernel,
        attention_grid(kernel, B, Q, M, D),
        [value, *inputs, grad_output, fixed_point, grad_value, *point_grads],
        problem,
        [grad for grad in point_grads if grad is not None],
    )
    if grad_value is not None:
        grad_value = from_fixed_point(grad_value, fixed_point).to(value.dtype)
    if grad_reference is not None:
        grad_reference = grad_reference.sum(3)
    return (
        grad_value,
        grad_reference,
        None if grad_offsets is None else grad_offsets.sum_to_size(sampling_offsets.shape),  # type: ignore[union-attr]
        None if grad_weights is None else grad_weights.sum_to_size(attention_weights.shape),
    )


def _problem(
    value: Tensor,
    spatial_shapes: Sequence[int],
    inputs: Sequence[Any],  # reference points, offsets, weights, visible; contiguous
    weight_activation: str,
    reduction: str,
) -> np.ndarray:
    reference_points, sampling_offsets, attention_weights, _ = inputs
    problem = np.zeros((), PROBLEM)
    problem["value_stride_b"], problem["value_stride_n"], problem["value_stride_s"] = value.stride()[:3]
    problem["B"], problem["N"], problem["S"], problem["M"], problem["D"] = value.shape
    problem["Q"], problem["reference_levels"], problem["anchors"], problem["reference_numbers"] = (
        reference_points.shape[2:]
    )
    problem["L"], problem["P"] = attention_weights.shape[-2:]
    shared = [("weight", attention_weights, "bnqm")]
    if sampling_offsets is not None:
        shared.append(("offset", sampling_offsets, "bnqml"))
    for name, tensor, axes in shared:
        for axis, size, step in zip(axes, tensor.shape, tensor.stride(), strict=False):
            problem[f"{name}_stride_{axis}"] = 0 if size == 1 and axis != "q" else step
    problem["activation"] = ACTIVATIONS.index(weight_activation)
    problem["reduction"] = REDUCTIONS.index(reduction)
    level_arrays(problem, spatial_shapes)
    return problem


def _packed(value: Tensor) -> Tensor:
    """The value with heads and channels next to each other in memory; usually as it is."""
    M, D = value.shape[-2:]
    packed = (D == 1 or value.stride(4) == 1) and (M == 1 or value.stride(3) == D)
    return value if packed else value.contiguous()


def _aligned(tensor: Tensor) -> bool:
    """Whether rows of channels may be loaded 16 bytes at a time."""
    steps = [step for size, step in zip(tensor.shape[:-2], tensor.stride()[:-2], strict=True) if size > 1]
    return all(number % 16 == 0 for number in (tensor.data_ptr(), *(step * tensor.element_size() for step in steps)))


def _contiguous(*tensors: Tensor | None) -> list[Any]:
    return [None if tensor is None else tensor.contiguous() for tensor in tensors]
