"""The CPU back end: numba kernels, run by as many threads as torch would use."""

from __future__ import annotations

import importlib.util
import math
import os
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bevdet_ops.cpu_threads import parallel_for

BITS = {torch.float16: torch.int16, torch.bfloat16: torch.uint16}  # how the kernels tell the 16-bit types


def unavailable() -> str | None:
    """None where numba can be imported and compiles, otherwise why not."""
    if importlib.util.find_spec("numba") is None:
        return "numba is not installed (pip install numba)"
    if os.environ.get("NUMBA_DISABLE_JIT", "0") != "0":
        return "NUMBA_DISABLE_JIT is set"
    return None


def forward(
    value: Tensor,  # [B, N, S, M, D]
    spatial_shapes: list[int],
    reference_points: Tensor,  # [B, N, Q, Lr, Z, 2 or 4]
    sampling_offsets: Tensor | None,  # [B, No, Q, Mo, Lo, P, 2]
    attention_weights: Tensor,  # [B, Nw, Q, Mw, L, P]
    visible: Tensor | None,  # [B, N, Q]
    weight_activation: str,
    reduction: str,
) -> Tensor:
    """Multi-camera deformable attention, [B, Q, M * D]; `library` describes the arguments."""
    from bevdet_ops.cpu_kernels import attend
    from bevdet_ops.cpu_samples import ACTIVATIONS

    B, N, _, M, D = value.shape
    _, _, Q, _, L, P = attention_weights.shape
    seen = _seen(reference_points, visible)
    out = attention_weights.new_empty(B, Q, M * D)  # the kernel writes all of it
    if out.numel() == 0:
        return out.to(value.dtype)
    kernel = partial(
        attend,
        *flat(_with_rows(value)),
        *_samples(reference_points, sampling_offsets, attention_weights, seen),
        # In the kernel, for an activated copy takes longer to write and read than to compute.
        ACTIVATIONS[weight_activation],
        np.tile(np.repeat(_levels(spatial_shapes), P, axis=1), M),
        (N, Q, M, D, L, P, reference_points.shape[4]),
        flat(out)[0],
    )
    parallel_for(kernel, B * Q, nanoseconds=0.2 * B * N * Q * M * L * P * D)
    scale = _camera_scale(seen, reduction)
    if scale is not None:
        out *= scale.to(out.dtype)
    return out.to(value.dtype)


def backward(
    grad_output: Tensor,  # [B, Q, M * D]
    value: Tensor,  # [B, N, S, M, D]
    spatial_shapes: list[int],
    reference_points: Tensor,  # [B, N, Q, Lr, Z, 2 or 4]
    sampling_offsets: Tensor | None,  # [B, No, Q, Mo, Lo, P, 2]
    attention_weights: Tensor,  # [B, Nw, Q, Mw, L, P]
    visible: Tensor | None,  # [B, N, Q]
    weight_activation: str,
    reduction: str,
    deterministic: bool,
    needs_grad: list[bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of value, references, offsets and weights: the same bits in every run, `deterministic` or not."""
    from bevdet_ops.cpu_kernels import CHANNEL_BLOCK, differentiate_samples, differentiate_value

    B, N, S, M, D = value.shape
    _, _, Q, _, L, P = attention_weights.shape
    Z = reference_points.shape[4]
    levels = _levels(spatial_shapes)
    weights = _activate(attention_weights, weight_activation)
    seen = _seen(reference_points, visible)
    scale = _camera_scale(seen, reduction)
    grad_output = grad_output.to(weights.dtype)
    grad_output = (grad_output if scale is None else grad_output * scale.to(weights.dtype)).contiguous()
    samples = _samples(reference_points, sampling_offsets, weights, seen)
    nanoseconds = 0.4 * B * N * Q * M * L * P * D

    grad_reference, grad_offsets, grad_weights = (
        torch.zeros(tensor.shape, dtype=weights.dtype) if tensor is not None and needed else None
        for tensor, needed in zip((reference_points, sampling_offsets, weights), needs_grad[1:], strict=True)
    )
    needs = tuple(grad is not None for grad in (grad_reference, grad_offsets, grad_weights))
    if any(needs) and grad_output.numel():
        kernel = partial(
            differentiate_samples,
            *flat(_with_rows(value)),
            *samples,
            np.tile(np.repeat(levels, P, axis=1), M),
            (N, Q, M, D, L, P, Z),
            flat(grad_output)[0],
            *(flat(grad_reference) if grad_reference is not None else _nothing(weights, 6)),
            *(flat(grad_offsets) if grad_offsets is not None else _nothing(weights, 7)),
            *(flat(grad_weights) if grad_weights is not None else _nothing(weights, 6)),
            needs,
        )
        parallel_for(kernel, B * Q, nanoseconds)
    grad_value = None
    if needs_grad[0]:
        sparse = 4 * M * L * P * D * int(seen.sum()) < value.numel()  # of large maps, few samples reach little
        grad_value = (_lazy_zeros if sparse else torch.zeros)(value.shape, dtype=weights.dtype)
        if grad_output.numel():
            kernel = partial(
                differentiate_value,
                *samples,
                levels,
                (N, Q, M, D, L, P, Z, S),
                flat(grad_output)[0],
                flat(grad_value)[0],
            )
            # Threads that meet new pages interrupt each other for longer than the few samples take.
            parallel_for(kernel, B * N * M * L * -(-D // CHANNEL_BLOCK), 0.0 if sparse else nanoseconds)
    return (
        None if grad_value is None else grad_value.to(value.dtype),
        grad_reference,
        grad_offsets,
        None if grad_weights is None else _activation_gradient(weights, grad_weights, weight_activation, seen),
    )


def deform_conv2d_forward(*arguments: Any) -> Tensor:
    """Modulated deformable convolution without bias, [B, O, Ho, Wo]; `library` describes the arguments."""
    from bevdet_ops import cpu_deform_conv

    return cpu_deform_conv.forward(*arguments)


def deform_conv2d_backward(*arguments: Any) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of input, offset, mask and weight: the same bits in every run."""
    from bevdet_ops import cpu_deform_conv

    return cpu_deform_conv.backward(*arguments)


def flat(tensor: Tensor) -> tuple[np.ndarray, tuple[int, ...]]:
    """A tensor's elements in memory order, from its first to its last, and its strides, 0 for axes of size 1."""
    if tensor.numel() == 0:
        return tensor.detach().reshape(0).numpy(), (0,) * tensor.ndim
    strides = tuple(0 if size == 1 else stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    extent = 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, strides, strict=True))
    memory = tensor.detach().as_strided((extent,), (1,))
    return memory.view(BITS.get(tensor.dtype, tensor.dtype)).numpy(), strides


def _lazy_zeros(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Zeros at the start of a cache line; pages come at the first touch, so that unused ones cost nothing."""
    size, line = math.prod(shape), 64
    element = torch.finfo(dtype).bits // 8
    memory = np.zeros(size + line // element, {4: np.float32, 8: np.float64}[element])
    first = -memory.ctypes.data % line // element
    return torch.from_numpy(memory[first : first + size]).view(shape)


def _with_rows(tensor: Tensor) -> Tensor:
    """The tensor with its channels side by side in memory."""
    return tensor if tensor.stride(-1) == 1 or tensor.shape[-1] == 1 else tensor.contiguous()


def _nothing(like: Tensor, axes: int) -> tuple[np.ndarray, tuple[int, ...]]:
    """A zero that stands for a missing tensor of so many axes."""
    return flat(like.new_zeros((1,) * axes))


def _samples(
    reference_points: Tensor, sampling_offsets: Tensor | None, weights: Tensor, seen: Tensor
) -> tuple[Any, ...]:
    """The arguments by which every kernel finds its samples."""
    offsets = _nothing(weights, 7) if sampling_offsets is None else flat(sampling_offsets)
    return (*flat(reference_points), reference_points.shape[-1] == 4, *offsets, *flat(weights), flat(seen)[0])


def _levels(spatial_shapes: list[int]) -> np.ndarray:
    """Heights, widths and first positions, [3, L]."""
    heights, widths = np.array(spatial_shapes, np.int32).reshape(-1, 2).T
    starts = np.cumsum(heights * widths, dtype=np.int32) - heights * widths
    return np.stack((heights, widths, starts)).astype(np.int32)


def _seen(reference_points: Tensor, visible: Tensor | None) -> Tensor:
    """Which camera counts for which query, [B, N, Q]."""
    seen = reference_points.isfinite().flatten(3).all(-1)
    return (seen if visible is None else seen & visible).contiguous()


def _camera_scale(seen: Tensor, reduction: str) -> Tensor | None:
    """What turns a sum over cameras into the reduction, [B, Q, 1]; None where that is 1."""
    B, N, Q = seen.shape
    if reduction == "sum" or N == 1:  # where the one camera does not see a query, the sum is zero
        return None
    if reduction == "mean":
        return torch.full((B, Q, 1), 1.0 / N, dtype=torch.float64)
    return seen.sum(1, dtype=torch.float64).clamp(min=1).reciprocal().unsqueeze(-1)


def _activate(weights: Tensor, activation: str) -> Tensor:
    if activation == "none":
        return weights
    if activation == "sigmoid":
        return weights.sigmoid()
    rows = weights.flatten(-2)
    if rows.shape[-1] >= 16:
        return rows.softmax(-1).view(weights.shape)
    # torch's softmax is five times slower than this where a row is shorter than a vector of the processor.
    rows = (rows - rows.amax(-1, keepdim=True)).exp_()
    return rows.div_(rows.sum(-1, keepdim=True)).view(weights.shape)


def _activation_gradient(weights: Tensor, grad: Tensor, activation: str, seen: Tensor) -> Tensor:
    """The gradient of raw weights from that of activated ones, in whose place; zero where no camera looked at them."""
    if activation == "none":
        return grad
    if activation == "softmax":
        grad.sub_((weights * grad).sum((-2, -1), keepdim=True)).mul_(weights)
    else:
        grad.mul_(weights).mul_(1 - weights)
    looked_at = seen if weights.shape[1] > 1 else seen.any(1, keepdim=True)
    return grad if looked_at.all() else grad.where(looked_at[..., None, None, None], 0)
