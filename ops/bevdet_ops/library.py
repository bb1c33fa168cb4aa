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

import functools
import importlib
import warnings
from types import ModuleType

import torch
from torch import Tensor

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


@functools.cache
def backend(device_type: str) -> ModuleType:
    """The module that serves tensors on `device_type`; the reference, with one warning, where that one cannot run."""
    if device_type in ("cpu", "cuda"):
        module = importlib.import_module(f"bevdet_ops.{device_type}")
        reason = module.unavailable()
        if reason is None:
            return module
        warnings.warn(f"bevdet_ops falls back to its slow reference on {device_type}: {reason}", stacklevel=2)
    return importlib.import_module("bevdet_ops.reference")
