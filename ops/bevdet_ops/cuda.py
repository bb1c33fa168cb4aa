"""The CUDA back end: raw kernels, compiled by NVRTC through CuPy at first use for the card at hand, cached on disk.

`library` describes the functions' arguments, `cuda_kernels` chooses the kernels, `csrc/` holds them. Kernels run on
torch's current stream of the tensors' device and nothing waits for them: a call can be captured into a CUDA graph once
a call before has compiled its kernels.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bevdet_ops.cuda_kernels import (
    ACTIVATIONS,
    BLOCK,
    CONV_PROBLEM,
    PROBLEM,
    REDUCTIONS,
    Kernel,
    attention_grid,
    attention_kernel,
    convolution_grid,
    convolution_kernel,
    level_arrays,
)

COMPILE_OPTIONS = ("--std=c++17",)
COLUMN_BYTES = 2**28  # of unfolded input that a convolution holds at a time


@functools.cache
def unavailable() -> str | None:
    """None where CUDA kernels can run, otherwise why not and what to install."""
    if not torch.cuda.is_available():
        return "torch finds no CUDA device (torch.cuda.is_available() is False)"
    toolkit = (torch.version.cuda or "12").split(".")[0]
    if importlib.util.find_spec("cupy") is None:
        return f"CuPy is not installed: pip install cupy-cuda{toolkit}x"
    try:
        _import_cupy().cuda.nvrtc.getVersion()
    except Exception as error:  # CuPy raises ImportError, RuntimeError or its own, by what is missing
        return f"CuPy does not work ({error}): pip install cupy-cuda{toolkit}x nvidia-cuda-nvrtc-cu{toolkit}"
    return None


def _import_cupy() -> Any:
    load_nvrtc()
    import cupy

    return cupy


@functools.cache
def load_nvrtc() -> None:
    """Load NVRTC from NVIDIA's wheels if they are installed: CuPy 13 looks for it in toolkits only."""
    spec = importlib.util.find_spec("nvidia")
    for folder in [] if spec is None else spec.submodule_search_locations or ():
        for library in sorted(Path(folder).glob("*/lib/libnvrtc.so.*")):
            ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)


@functools.cache
def _function(kernel: Kernel) -> Any:
    """A compiled kernel; CuPy keeps one binary per device behind it."""
    module = _import_cupy().RawModule(code=kernel.source, options=COMPILE_OPTIONS)
    return module.get_function(kernel.name)


def launch(
    kernel: Kernel,
    grid: tuple[int, int, int],
    tensors: Sequence[Tensor | None],  # the kernel's first struct, pointer by pointer
    problem: np.ndarray,  # its second, a PROBLEM or CONV_PROBLEM
    outputs: Sequence[Tensor] = (),  # those of `tensors` that hold nothing yet
) -> None:
    """Queue `kernel` on torch's current stream of the device of the first tensor."""
    cupy = _import_cupy()
    device = tensors[0].device  # type: ignore[union-attr]
    pointers = np.array([0 if tensor is None else tensor.data_ptr() for tensor in tensors], dtype=np.uint64)
    stream = torch.cuda.current_stream(device)
    with torch.cuda.device(device), cupy.cuda.Device(device.index), cupy.cuda.ExternalStream(stream.cuda_stream):
        # Structs go by value: CuPy takes arrays with one element.
        _function(kernel)(grid, (BLOCK, 1, 1), (pointers.view(f"V{pointers.nbytes}"), problem))


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
    problem = _problem(value, spatial_shapes, *inputs[:3], weight_activation, reduction)
    B, _, _, M, D = value.shape
    Q = reference_points.shape[2]
    output = value.new_empty(B, Q, M * D)
    if output.numel() > 0:
        kernel = attention_kernel("forward", value.dtype, D, *attention_weights.shape[-2:], _aligned(value))
        launch(kernel, attention_grid(kernel, B, Q, M, D), [value, *inputs, output], problem, [output])
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
    problem = _problem(value, spatial_shapes, *inputs[:3], weight_activation, reduction)
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
            fixed_point = _fixed_point([grad_output, *raw], terms)
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
    launch(
        kernel,
        attention_grid(kernel, B, Q, M, D),
        [value, *inputs, grad_output, fixed_point, grad_value, *point_grads],
        problem,
        [grad for grad in point_grads if grad is not None],
    )
    if grad_value is not None:
        grad_value = _from_fixed_point(grad_value, fixed_point).to(value.dtype)
    if grad_reference is not None:
        grad_reference = grad_reference.sum(3)
    return (
        grad_value,
        grad_reference,
        None if grad_offsets is None else grad_offsets.sum_to_size(sampling_offsets.shape),  # type: ignore[union-attr]
        None if grad_weights is None else grad_weights.sum_to_size(attention_weights.shape),
    )


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
    input, offset, mask = _pixels_contiguous(input), *_contiguous(offset, mask)
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
    input, offset, mask = _pixels_contiguous(input), *_contiguous(offset, mask)
    needs_input, needs_offset, needs_mask, needs_weight = needs_grad
    needs_mask = needs_mask and mask is not None
    grad_input = torch.empty(input.shape, dtype=input.dtype, device=input.device) if needs_input else None
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
    launch(kernel, grid, [input, offset, mask, columns], problem, [columns])
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
            fixed_point = _fixed_point([grad_columns, *([] if mask is None else [mask])], terms)
        total = torch.zeros(input.shape, dtype=torch.int64 if deterministic else offset.dtype, device=input.device)
    kernel = convolution_kernel("scatter", input.dtype)
    tensors = [input, offset, mask, grad_columns, fixed_point, total, grad_offset, grad_mask]
    outputs = [grad for grad in (grad_offset, grad_mask) if grad is not None]
    launch(kernel, convolution_grid(kernel, offset.numel() // 2, 1), tensors, problem, outputs)
    if grad_input is not None:
        grad_input.copy_(_from_fixed_point(total, fixed_point))


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


def _problem(
    value: Tensor,
    spatial_shapes: Sequence[int],
    reference_points: Tensor,
    sampling_offsets: Tensor | None,
    attention_weights: Tensor,
    weight_activation: str,
    reduction: str,
) -> np.ndarray:
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


def _pixels_contiguous(input: Tensor) -> Tensor:
    return input if input.stride(3) == 1 else input.contiguous()


def _contiguous(*tensors: Tensor | None) -> list[Any]:
    return [None if tensor is None else tensor.contiguous() for tensor in tensors]


def _aligned(tensor: Tensor) -> bool:
    """Whether rows of channels may be loaded 16 bytes at a time."""
    steps = [step for size, step in zip(tensor.shape[:-2], tensor.stride()[:-2], strict=True) if size > 1]
    return all(number % 16 == 0 for number in (tensor.data_ptr(), *(step * tensor.element_size() for step in steps)))


def _fixed_point(factors: Sequence[Tensor], terms: int) -> Tensor:
    """Scale and poison (accumulate.cuh) for sums of `terms` products of one number of each of `factors`."""
    bound = torch.full((), float(terms), dtype=torch.float64, device=factors[0].device)
    for factor in factors:
        bound = bound * torch.where(factor.isfinite(), factor.abs(), 0).amax()
    return torch.stack((2.0**62 / bound.clamp(min=1e-200), torch.zeros_like(bound)))


def _from_fixed_point(total: Tensor, fixed_point: Tensor | None) -> Tensor:
    return total if fixed_point is None else total.double() / fixed_point[0] + fixed_point[1]
