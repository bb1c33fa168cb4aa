"""Registration with torch: schemas, fake kernels, autograd, autocast, vmap, and the choice of the back end by device.

Every back end (`reference`, `cpu`, `cuda`) is a module with the same five functions, so nothing here knows which one
it calls. The public functions have checked shapes, devices and dtypes before; back ends check nothing again.

    unavailable() -> str | None
        None where the back end can run, otherwise one sentence saying why not and what to install. Cheap.

    forward(value, spatial_shapes, reference_points, sampling_offsets, attention_weights, visible,
            weight_activation, reduction) -> output
    backward(grad_output, value, spatial_shapes, reference_points, sampling_offsets, attention_weights, visible,
             weight_activation, reduction, deterministic, needs_grad) -> tuple of 4 (Tensor | None)

        value              [B, N, S, M, D]          float32, float64, float16 or bfloat16; any strides
        spatial_shapes     [H_0, W_0, H_1, W_1 ...] flat list of host integers
        reference_points   [B, N, Q, Lr, Z, 2 | 4]  Lr in {1, L}; a non-finite number hides camera n for query q
        sampling_offsets   [B, No, Q, Mo, Lo, P, 2] or None; No in {1, N}, Mo in {1, M}, Lo in {1, L}
        attention_weights  [B, Nw, Q, Mw, L, P]     Nw in {1, N}, Mw in {1, M}
        visible            [B, N, Q] bool or None
        weight_activation  "none" | "sigmoid" | "softmax" (over L * P)
        reduction          "sum" | "mean" | "mean_visible"
        output             [B, Q, M * D]            contiguous, dtype of value; accumulated in the coordinates' dtype
        grad_output        [B, Q, M * D]            dtype of value; any strides (often expanded, all zero)
        deterministic      bool: the same bits in every run
        needs_grad         [value, reference_points, sampling_offsets, attention_weights] bools

        Coordinates, offsets and weights are float32, and float64 exactly where value is float64. With 2 reference
        numbers pixel = reference * (W, H) + offset - 0.5; with 4, location = xy + offset * (wh * 0.5 / P) and
        pixel = location * (W, H) - 0.5. A sample outside -1 < x < W, -1 < y < H (or not a number) reads zero and
        gets no gradient. A hidden camera's value, offsets and weights are never looked at (they may be NaN), and
        their gradients are zero. Gradients have the shape and dtype of their input (size-1 axes are summed), and
        are None where needs_grad is False.

    deform_conv2d_forward(input, offset, mask, weight, stride, padding, dilation) -> output
    deform_conv2d_backward(grad_output, input, offset, mask, weight, stride, padding, dilation,
                           deterministic, needs_grad) -> tuple of 4 (Tensor | None)

        input   [B, C, H, W]             float32, float64, float16 or bfloat16; any strides
        offset  [B, 2 * G * K, Ho, Wo]   G offset groups, K = kh * kw taps row by row, then (dy, dx) in pixels
        mask    [B, G * K, Ho, Wo] or None
        weight  [O, C / groups, kh, kw]  dtype of input; groups = C / weight.shape[1], G = offset.shape[1] / (2 * K)
        stride, padding, dilation        lists (vertical, horizontal)
        output  [B, O, Ho, Wo]           dtype of input, without bias
        needs_grad                       [input, offset, mask, weight] bools
        offset and mask are float32 (float64 where input is float64). Same border rule as above.
"""

import contextlib
import functools
import importlib
import warnings
from collections.abc import Iterator
from types import ModuleType

import torch
from torch import Tensor

from bevdet_ops import reference

LIBRARY = torch.library.Library("bevdet_ops", "DEF")

LIBRARY.define(
    "multi_camera_deformable_attention(Tensor value, SymInt[] spatial_shapes, Tensor reference_points, "
    "Tensor? sampling_offsets, Tensor attention_weights, Tensor? visible, str weight_activation, str reduction, "
    "bool deterministic) -> Tensor",
    tags=(torch.Tag.pt2_compliant_tag,),
)
# Gradients that were not asked for come back with zero elements: an operator cannot return an optional tensor.
LIBRARY.define(
    "multi_camera_deformable_attention_backward(Tensor grad_output, Tensor value, SymInt[] spatial_shapes, "
    "Tensor reference_points, Tensor? sampling_offsets, Tensor attention_weights, Tensor? visible, "
    "str weight_activation, str reduction, bool deterministic, bool[] needs_grad) -> (Tensor, Tensor, Tensor, Tensor)",
    tags=(torch.Tag.pt2_compliant_tag,),
)
LIBRARY.define(
    "deform_conv2d(Tensor input, Tensor offset, Tensor? mask, Tensor weight, SymInt[] stride, SymInt[] padding, "
    "SymInt[] dilation, bool deterministic) -> Tensor",
    tags=(torch.Tag.pt2_compliant_tag,),
)
LIBRARY.define(
    "deform_conv2d_backward(Tensor grad_output, Tensor input, Tensor offset, Tensor? mask, Tensor weight, "
    "SymInt[] stride, SymInt[] padding, SymInt[] dilation, bool deterministic, bool[] needs_grad) "
    "-> (Tensor, Tensor, Tensor, Tensor)",
    tags=(torch.Tag.pt2_compliant_tag,),
)

_reference_forced = False


@contextlib.contextmanager
def use_reference() -> Iterator[None]:
    """Inside this context the public functions run in plain PyTorch, as ONNX export and comparisons need."""
    global _reference_forced
    before, _reference_forced = _reference_forced, True
    try:
        yield
    finally:
        _reference_forced = before


@functools.cache
def backend(device_type: str) -> ModuleType:
    """The module that serves tensors on `device_type`: the reference, with one warning, where its own cannot run."""
    if device_type in ("cpu", "cuda"):
        module = importlib.import_module(f"bevdet_ops.{device_type}")
        reason = module.unavailable()
        if reason is None:
            return module
        warnings.warn(f"bevdet_ops uses its slow reference on {device_type}: {reason}", RuntimeWarning, stacklevel=2)
    return reference


def multi_camera_deformable_attention(
    value: Tensor,
    spatial_shapes: list[int],
    reference_points: Tensor,
    sampling_offsets: Tensor | None,
    attention_weights: Tensor,
    visible: Tensor | None,
    weight_activation: str,
    reduction: str,
    deterministic: bool,
) -> Tensor:
    """The operator for checked arguments: the registered one, or plain PyTorch inside `use_reference`."""
    if _reference_forced:
        return reference.forward(
            value,
            spatial_shapes,
            reference_points,
            sampling_offsets,
            attention_weights,
            visible,
            weight_activation,
            reduction,
        )
    return torch.ops.bevdet_ops.multi_camera_deformable_attention(
        value,
        spatial_shapes,
        reference_points,
        sampling_offsets,
        attention_weights,
        visible,
        weight_activation,
        reduction,
        deterministic,
    )


def deform_conv2d(
    input: Tensor,
    offset: Tensor,
    mask: Tensor | None,
    weight: Tensor,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    deterministic: bool,
) -> Tensor:
    """Deformable convolution for checked arguments: the registered one, or plain PyTorch inside `use_reference`."""
    if _reference_forced:
        return reference.deform_conv2d_forward(input, offset, mask, weight, stride, padding, dilation)
    return torch.ops.bevdet_ops.deform_conv2d(input, offset, mask, weight, stride, padding, dilation, deterministic)


# Kernels, for real tensors on any device.


def _attention_kernel(value, *arguments):
    *inputs, _deterministic = arguments
    return backend(value.device.type).forward(value, *inputs)


def _attention_backward_kernel(grad_output, value, *arguments):
    grads = backend(value.device.type).backward(grad_output, value, *arguments)
    return tuple(value.new_empty(0) if grad is None else grad for grad in grads)


def _deform_conv2d_kernel(input, *arguments):
    *inputs, _deterministic = arguments
    return backend(input.device.type).deform_conv2d_forward(input, *inputs)


def _deform_conv2d_backward_kernel(grad_output, input, *arguments):
    grads = backend(input.device.type).deform_conv2d_backward(grad_output, input, *arguments)
    return tuple(input.new_empty(0) if grad is None else grad for grad in grads)


for _name, _kernel in (
    ("multi_camera_deformable_attention", _attention_kernel),
    ("multi_camera_deformable_attention_backward", _attention_backward_kernel),
    ("deform_conv2d", _deform_conv2d_kernel),
    ("deform_conv2d_backward", _deform_conv2d_backward_kernel),
):
    LIBRARY.impl(_name, _kernel, "CompositeExplicitAutograd")


# Fake kernels: shapes and dtypes, for torch.compile, torch.export and meta tensors.


@torch.library.register_fake("bevdet_ops::multi_camera_deformable_attention", lib=LIBRARY)
def _attention_fake(value, spatial_shapes, reference_points, *_):
    B, _, _, M, D = value.shape
    return value.new_empty(B, reference_points.shape[2], M * D)


@torch.library.register_fake("bevdet_ops::multi_camera_deformable_attention_backward", lib=LIBRARY)
def _attention_backward_fake(
    grad_output, value, spatial_shapes, reference_points, sampling_offsets, attention_weights, *arguments
):
    inputs = (value, reference_points, sampling_offsets, attention_weights)
    return _fake_grads(inputs, arguments[-1])


@torch.library.register_fake("bevdet_ops::deform_conv2d", lib=LIBRARY)
def _deform_conv2d_fake(input, offset, mask, weight, *_):
    return input.new_empty(input.shape[0], weight.shape[0], *offset.shape[-2:])


@torch.library.register_fake("bevdet_ops::deform_conv2d_backward", lib=LIBRARY)
def _deform_conv2d_backward_fake(grad_output, input, offset, mask, weight, *arguments):
    return _fake_grads((input, offset, mask, weight), arguments[-1])


def _fake_grads(inputs, needs_grad):
    return tuple(
        tensor.new_empty(tensor.shape) if needed else inputs[0].new_empty(0)
        for tensor, needed in zip(inputs, needs_grad, strict=True)
    )


# Autograd.


def _attention_setup(ctx, inputs, output):
    value, ctx.spatial_shapes, reference_points, sampling_offsets, attention_weights, visible, *ctx.options = inputs
    ctx.save_for_backward(value, reference_points, sampling_offsets, attention_weights, visible)


def _attention_autograd(ctx, grad_output):
    value, reference_points, sampling_offsets, attention_weights, visible = ctx.saved_tensors
    needs_value, _, *needs_others = ctx.needs_input_grad[:5]
    needs_grad = [needs_value, *needs_others]
    grads = torch.ops.bevdet_ops.multi_camera_deformable_attention_backward(
        grad_output,
        value,
        ctx.spatial_shapes,
        reference_points,
        sampling_offsets,
        attention_weights,
        visible,
        *ctx.options,
        needs_grad,
    )
    value_grad, *others = (grad if needed else None for grad, needed in zip(grads, needs_grad, strict=True))
    return value_grad, None, *others, None, None, None, None


def _deform_conv2d_setup(ctx, inputs, output):
    *tensors, ctx.stride, ctx.padding, ctx.dilation, ctx.deterministic = inputs
    ctx.save_for_backward(*tensors)


def _deform_conv2d_autograd(ctx, grad_output):
    needs_grad = list(ctx.needs_input_grad[:4])
    grads = torch.ops.bevdet_ops.deform_conv2d_backward(
        grad_output, *ctx.saved_tensors, ctx.stride, ctx.padding, ctx.dilation, ctx.deterministic, needs_grad
    )
    return *(grad if needed else None for grad, needed in zip(grads, needs_grad, strict=True)), None, None, None, None


def _no_double_backward(ctx, *grads):
    raise RuntimeError(
        "bevdet_ops has no second derivatives; run inside bevdet_ops.use_reference() to differentiate plain PyTorch"
    )


torch.library.register_autograd(
    "bevdet_ops::multi_camera_deformable_attention", _attention_autograd, setup_context=_attention_setup, lib=LIBRARY
)
torch.library.register_autograd(
    "bevdet_ops::deform_conv2d", _deform_conv2d_autograd, setup_context=_deform_conv2d_setup, lib=LIBRARY
)
for _name in ("multi_camera_deformable_attention_backward", "deform_conv2d_backward"):
    torch.library.register_autograd(f"bevdet_ops::{_name}", _no_double_backward, lib=LIBRARY)


# Autocast: values and kernels go to autocast's dtype, as in a convolution; coordinates and weights stay as they are.


def _autocast_attention(value, *arguments):
    device_type = value.device.type
    with torch.autocast(device_type, enabled=False):
        value = _autocast(value, device_type)
        return torch.ops.bevdet_ops.multi_camera_deformable_attention(value, *arguments)


def _autocast_deform_conv2d(input, offset, mask, weight, *arguments):
    device_type = input.device.type
    with torch.autocast(device_type, enabled=False):
        input, weight = _autocast(input, device_type), _autocast(weight, device_type)
        return torch.ops.bevdet_ops.deform_conv2d(input, offset, mask, weight, *arguments)


def _autocast(tensor, device_type):
    return tensor if tensor.dtype == torch.float64 else tensor.to(torch.get_autocast_dtype(device_type))


for _key in ("AutocastCPU", "AutocastCUDA"):
    LIBRARY.impl("multi_camera_deformable_attention", _autocast_attention, _key)
    LIBRARY.impl("deform_conv2d", _autocast_deform_conv2d, _key)


# vmap: one more batch axis, folded into B. A convolution, whose kernels may be batched too, is left to torch's loop.


@torch.library.register_vmap("bevdet_ops::multi_camera_deformable_attention", lib=LIBRARY)
def _attention_vmap(info, in_dims, value, spatial_shapes, *arguments):
    def fold(tensor, dim):
        if not isinstance(tensor, Tensor):
            return tensor
        tensor = tensor.expand(info.batch_size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)
        return tensor.flatten(0, 1)

    value = fold(value, in_dims[0])
    folded = (fold(argument, dim) for argument, dim in zip(arguments, in_dims[2:], strict=True))
    output = torch.ops.bevdet_ops.multi_camera_deformable_attention(value, spatial_shapes, *folded)
    return output.unflatten(0, (info.batch_size, value.shape[0] // info.batch_size)), 0
