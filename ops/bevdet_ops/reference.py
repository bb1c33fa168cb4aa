"""The readable oracle: both operators in plain differentiable PyTorch, on any device and in any floating dtype.

Every other back end is tested against this file, and export to ONNX traces it.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor


def unavailable() -> str | None:
    """None: it runs wherever torch does."""
    return None


def forward(
    value: Tensor,  # [B, N, S, M, D]
    spatial_shapes: list[int],  # H_0, W_0, H_1, W_1, ...
    reference_points: Tensor,  # [B, N, Q, Lr, Z, 2 or 4]
    sampling_offsets: Tensor | None,  # [B, No, Q, Mo, Lo, P, 2]
    attention_weights: Tensor,  # [B, Nw, Q, Mw, L, P]
    visible: Tensor | None,  # [B, N, Q]
    weight_activation: str,
    reduction: str,
) -> Tensor:
    """Multi-camera deformable attention, [B, Q, M * D]; `library` describes the arguments."""
    B, N, _, M, D = value.shape
    Q, P = reference_points.shape[2], attention_weights.shape[-1]
    dtype = attention_weights.dtype
    seen = reference_points.isfinite().flatten(3).all(-1)  # [B, N, Q]
    if visible is not None:
        seen = seen & visible
    # What a hidden camera holds may be NaN, and zero times NaN would reach the gradients.
    reference_points = reference_points.where(seen[..., None, None, None], 0)
    weighed = seen if attention_weights.shape[1] > 1 else seen.any(1, keepdim=True)
    weights = _activate(attention_weights.where(weighed[..., None, None, None], 0), weight_activation)
    anchors = torch.arange(P, device=value.device) % reference_points.shape[4]

    output = torch.zeros(B, N, M, D, Q, dtype=dtype, device=value.device)
    start = 0
    for level, (H, W) in enumerate(zip(spatial_shapes[::2], spatial_shapes[1::2], strict=True)):
        points = reference_points[:, :, :, _at(level, reference_points.shape[3]), None][..., anchors, :]
        if sampling_offsets is None:
            offsets = points.new_zeros(1, 1, 1, 1, P, 2)
        else:
            offsets = sampling_offsets[:, :, :, :, _at(level, sampling_offsets.shape[4])]
        size = points.new_tensor((W, H))
        pixels = _locations(points, offsets, size).detach() * size - 0.5
        inside = (((pixels > -1) & (pixels < size)).all(-1) & seen[..., None, None]).unsqueeze(-1)
        # Samples outside are moved to one place outside, so that grid_sample sees no NaN and passes no gradient on.
        locations = _locations(points, offsets.where(inside, 0), size).where(inside, -1)  # [B, N, Q, Mo, P, 2]
        grid = (2 * locations - 1).expand(B, N, Q, M, P, 2).transpose(2, 3).reshape(B * N * M, Q, P, 2)
        maps = value[:, :, start : start + H * W].permute(0, 1, 3, 4, 2).reshape(B * N * M, D, H, W)
        start += H * W
        sampled = F.grid_sample(maps.to(dtype), grid, mode="bilinear", padding_mode="zeros", align_corners=False)
        weight = weights[:, :, :, :, level].transpose(2, 3).unsqueeze(3)  # [B, Nw, Mw, 1, Q, P]
        output = output + (sampled.reshape(B, N, M, D, Q, P) * weight).sum(-1)

    output = output.sum(1)  # [B, M, D, Q]
    if reduction == "mean":
        output = output / N
    elif reduction == "mean_visible":
        output = output / seen.sum(1).clamp(min=1)[:, None, None]
    return output.permute(0, 3, 1, 2).reshape(B, Q, M * D).to(value.dtype)


def backward(
    grad_output: Tensor,
    value: Tensor,
    spatial_shapes: list[int],
    reference_points: Tensor,
    sampling_offsets: Tensor | None,
    attention_weights: Tensor,
    visible: Tensor | None,
    weight_activation: str,
    reduction: str,
    deterministic: bool,
    needs_grad: list[bool],
) -> tuple[Tensor | None, ...]:
    """Gradients of value, references, offsets and weights, by autograd."""

    def output(value, reference_points, sampling_offsets, attention_weights):
        return forward(
            value,
            spatial_shapes,
            reference_points,
            sampling_offsets,
            attention_weights,
            visible,
            weight_activation,
            reduction,
        )

    return _gradients(output, (value, reference_points, sampling_offsets, attention_weights), needs_grad, grad_output)


def deform_conv2d_forward(
    input: Tensor,  # [B, C, H, W]
    offset: Tensor,  # [B, 2 * G * K, Ho, Wo]
    mask: Tensor | None,  # [B, G * K, Ho, Wo]
    weight: Tensor,  # [O, C / groups, kh, kw]
    stride: list[int],
    padding: list[int],
    dilation: list[int],
) -> Tensor:
    """Modulated deformable convolution without bias, [B, O, Ho, Wo]; `library` describes the arguments."""
    B, C, H, W = input.shape
    C_out, C_group, kh, kw = weight.shape
    K = kh * kw
    Ho, Wo = offset.shape[-2:]
    G = offset.shape[1] // (2 * K)
    device, dtype = offset.device, offset.dtype

    dy, dx = offset.reshape(B, G, K, 2, Ho, Wo).unbind(3)
    tap_y = torch.arange(kh, device=device).repeat_interleave(kw).view(K, 1, 1) * dilation[0]
    tap_x = torch.arange(kw, device=device).repeat(kh).view(K, 1, 1) * dilation[1]
    row = torch.arange(Ho, device=device).view(Ho, 1) * stride[0] - padding[0]
    column = torch.arange(Wo, device=device) * stride[1] - padding[1]
    y = dy + (tap_y + row)  # [B, G, K, Ho, Wo]
    x = dx + (tap_x + column)
    inside = (y > -1) & (y < H) & (x > -1) & (x < W)
    grid = torch.stack(((2 * x + 1) / W - 1, (2 * y + 1) / H - 1), dim=-1).where(inside.unsqueeze(-1), -3.0)

    maps = input.reshape(B * G, C // G, H, W).to(dtype)
    grid = grid.reshape(B * G, K, Ho * Wo, 2)
    columns = F.grid_sample(maps, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    columns = columns.reshape(B, G, C // G, K, Ho * Wo)
    if mask is not None:
        columns = columns * mask.reshape(B, G, 1, K, Ho * Wo)
    groups = C // C_group
    columns = columns.reshape(B, groups, C_group * K, Ho * Wo)
    kernels = weight.to(dtype).reshape(groups, C_out // groups, C_group * K)
    return (kernels @ columns).reshape(B, C_out, Ho, Wo).to(input.dtype)


def deform_conv2d_backward(
    grad_output: Tensor,
    input: Tensor,
    offset: Tensor,
    mask: Tensor | None,
    weight: Tensor,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    deterministic: bool,
    needs_grad: list[bool],
) -> tuple[Tensor | None, ...]:
    """Gradients of input, offset, mask and weight, by autograd."""

    def output(input, offset, mask, weight):
        return deform_conv2d_forward(input, offset, mask, weight, stride, padding, dilation)

    return _gradients(output, (input, offset, mask, weight), needs_grad, grad_output)


def _gradients(
    function: Callable[..., Tensor], inputs: tuple[Tensor | None, ...], needs_grad: list[bool], grad_output: Tensor
) -> tuple[Tensor | None, ...]:
    """The gradients of `function` that are needed; torch.func works below the dispatcher's autograd, too."""
    wanted = [i for i, tensor in enumerate(inputs) if needs_grad[i] and tensor is not None]

    def of_wanted(*tensors):
        arguments = list(inputs)
        for i, tensor in zip(wanted, tensors, strict=True):
            arguments[i] = tensor
        return function(*arguments)

    pullback = torch.func.vjp(of_wanted, *(inputs[i] for i in wanted))[1]
    grads: list[Tensor | None] = [None] * len(inputs)
    for i, grad in zip(wanted, pullback(grad_output), strict=True):
        grads[i] = grad.contiguous()
    return tuple(grads)


def _at(level: int, levels: int) -> int:
    return level if levels > 1 else 0


def _activate(weights: Tensor, activation: str) -> Tensor:
    if activation == "softmax":
        return weights.flatten(-2).softmax(-1).view_as(weights)
    return weights.sigmoid() if activation == "sigmoid" else weights


def _locations(points: Tensor, offsets: Tensor, size: Tensor) -> Tensor:
    """Locations in [0, 1] of the image from points [B, N, Q, 1, P, 2 or 4] and offsets [B, No, Q, Mo, P, 2]."""
    if points.shape[-1] == 2:
        return points + offsets / size
    return points[..., :2] + offsets * (points[..., 2:] * 0.5 / points.shape[-2])
