"""Modulated deformable convolution on the CPU: sampled columns by numba, their products by torch.

One image at a time, so that the columns of a batch never exist together. Channels go last: a tap then reads rows, with
the kernels of deformable attention.
"""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
from torch import Tensor

from bevdet_ops.cpu import flat
from bevdet_ops.cpu_compile import cached_njit
from bevdet_ops.cpu_kernels import dot, gather, scatter
from bevdet_ops.cpu_samples import corners, slopes
from bevdet_ops.cpu_threads import parallel_for

CHANNEL_BLOCK = 32
PIXEL_BLOCK = 16


def forward(
    input: Tensor,  # [B, C, H, W]
    offset: Tensor,  # [B, 2 * G * K, Ho, Wo]
    mask: Tensor | None,  # [B, G * K, Ho, Wo]
    weight: Tensor,  # [O, C / groups, kh, kw]
    stride: list[int],
    padding: list[int],
    dilation: list[int],
) -> Tensor:
    """The convolution, [B, O, Ho, Wo]."""
    geometry = _geometry(input, offset, weight, stride, padding, dilation)
    kernels = _kernels(weight.to(offset.dtype), input.shape[1])
    output = input.new_empty(input.shape[0], weight.shape[0], *offset.shape[-2:])
    for image, offsets, masks, out in zip(input, offset, _masks(mask, offset), output, strict=True):
        columns = _columns(image, offsets, masks, geometry, len(kernels))
        out.copy_((kernels @ columns.transpose(1, 2)).view(out.shape))
    return output


def backward(
    grad_output: Tensor,  # [B, O, Ho, Wo]
    input: Tensor,  # [B, C, H, W]
    offset: Tensor,  # [B, 2 * G * K, Ho, Wo]
    mask: Tensor | None,  # [B, G * K, Ho, Wo]
    weight: Tensor,  # [O, C / groups, kh, kw]
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    deterministic: bool,
    needs_grad: list[bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of input, offset, mask and weight."""
    needs_input, needs_offset, needs_mask, needs_weight = needs_grad
    needs_mask = needs_mask and mask is not None
    C = input.shape[1]
    geometry = _geometry(input, offset, weight, stride, padding, dilation)
    kernels = _kernels(weight.to(offset.dtype), C)
    groups = len(kernels)
    masks = _masks(mask, offset)
    grad_input = torch.empty_like(input, memory_format=torch.contiguous_format) if needs_input else None
    grad_offset = torch.zeros(offset.shape, dtype=offset.dtype)
    grad_mask = torch.zeros(masks.shape, dtype=offset.dtype)
    grad_kernels = torch.zeros_like(kernels)
    for b in range(input.shape[0]):
        grad_image = grad_output[b].to(offset.dtype).reshape(groups, -1, offset.shape[-2] * offset.shape[-1])
        if needs_weight:
            grad_kernels += grad_image @ _columns(input[b], offset[b], masks[b], geometry, groups)
        if not (needs_input or needs_offset or needs_mask):
            continue
        grad_columns = grad_image.transpose(1, 2) @ kernels  # [groups, Ho * Wo, K * C / groups]
        grad_columns = (
            grad_columns.view(groups, grad_columns.shape[1], -1, C // groups).permute(1, 2, 0, 3).contiguous()
        )
        taps = (*flat(offset[b]), *flat(masks[b]), geometry, flat(grad_columns)[0])
        work = 0.5 * grad_columns.numel()
        if needs_offset or needs_mask:
            rows = flat(_rows(input[b]))[0]
            targets = flat(grad_offset[b])[0], flat(grad_mask[b])[0]
            parallel_for(partial(differentiate_taps, rows, *taps, *targets), grad_columns.shape[0], work)
        if grad_input is not None:
            grad_rows = torch.zeros(*input.shape[-2:], C, dtype=offset.dtype)
            group_blocks = -(-(C // geometry[5]) // CHANNEL_BLOCK)
            parallel_for(partial(differentiate_rows, *taps, flat(grad_rows)[0]), geometry[5] * group_blocks, work)
            grad_input[b] = grad_rows.permute(2, 0, 1)
    grad_weight = None
    if needs_weight:
        grad_weight = grad_kernels.view(weight.shape[0], *weight.shape[2:], weight.shape[1]).permute(0, 3, 1, 2)
        grad_weight = grad_weight.to(weight.dtype, memory_format=torch.contiguous_format)
    return grad_input, grad_offset if needs_offset else None, grad_mask if needs_mask else None, grad_weight


def _geometry(
    input: Tensor, offset: Tensor, weight: Tensor, stride: list[int], padding: list[int], dilation: list[int]
) -> tuple[int, ...]:
    """Input height, width, channels, kernel height, width, offset groups, output width, then the six strides."""
    _, C, H, W = input.shape
    kh, kw = weight.shape[-2:]
    return H, W, C, kh, kw, offset.shape[1] // (2 * kh * kw), offset.shape[-1], *stride, *padding, *dilation


def _kernels(weight: Tensor, channels: int) -> Tensor:
    """The kernels as matrices [groups, O / groups, K * C / groups]."""
    groups = channels // weight.shape[1]
    return weight.permute(0, 2, 3, 1).reshape(groups, weight.shape[0] // groups, -1)


def _masks(mask: Tensor | None, offset: Tensor) -> Tensor:
    B, channels, Ho, Wo = offset.shape
    return offset.new_ones(1).expand(B, channels // 2, Ho, Wo) if mask is None else mask


def _rows(image: Tensor) -> Tensor:
    """An image [C, H, W] as [H, W, C]."""
    return image.permute(1, 2, 0).contiguous()


def _columns(image: Tensor, offset: Tensor, mask: Tensor, geometry: tuple[int, ...], groups: int) -> Tensor:
    """What the kernel taps read, times the mask: [groups, Ho * Wo, K * C / groups]."""
    _, _, C, kh, kw, *_ = geometry
    pixels = offset.shape[-2] * offset.shape[-1]
    columns = torch.zeros(pixels, kh * kw, C, dtype=offset.dtype)
    kernel = partial(sample_taps, flat(_rows(image))[0], *flat(offset), *flat(mask), geometry, flat(columns)[0])
    parallel_for(kernel, pixels, 0.5 * columns.numel())
    columns = columns.view(pixels, kh * kw, groups, C // groups)
    return columns.permute(2, 0, 1, 3).reshape(groups, pixels, -1)


@cached_njit
def place_taps(offset, offset_strides, mask, mask_strides, geometry, pixel, first_group, groups, at, x, y, weight):
    """Write positions and masks of an output pixel's taps to the scratch arrays, from sample `at` on."""
    _, _, _, kh, kw, _, Wo, stride_y, stride_x, padding_y, padding_x, dilation_y, dilation_x = geometry
    row = pixel // Wo
    column = pixel - row * Wo
    o = row * offset_strides[1] + column * offset_strides[2]
    w = row * mask_strides[1] + column * mask_strides[2]
    s = at
    tap = first_group * kh * kw
    for _ in range(groups):
        for ky in range(kh):
            for kx in range(kw):
                dy = offset[o + 2 * tap * offset_strides[0]]
                dx = offset[o + (2 * tap + 1) * offset_strides[0]]
                y[s] = x.dtype.type(row * stride_y - padding_y + ky * dilation_y) + dy
                x[s] = x.dtype.type(column * stride_x - padding_x + kx * dilation_x) + dx
                weight[s] = mask[w + tap * mask_strides[0]]
                tap += 1
                s += 1


@cached_njit
def map_tables(count, H, W):
    """Heights, widths and first rows of samples that all lie in one map."""
    tables = np.zeros((3, count), np.int32)
    tables[0] = H
    tables[1] = W
    return tables


@cached_njit
def sample_taps(rows, offset, offset_strides, mask, mask_strides, geometry, columns, begin, end):
    """The columns [K, C] of output pixels begin..end; `columns` starts as zeros."""
    H, W, C, kh, kw, G, _, _, _, _, _, _, _ = geometry
    K = kh * kw
    count = G * K
    channels = C // G
    tables = map_tables(count, H, W)
    index = np.empty((4, count), np.int32)
    factor = np.empty((4, count), columns.dtype)
    x = np.empty(count, columns.dtype)
    y = np.empty(count, columns.dtype)
    weight = np.empty(count, columns.dtype)
    inside = np.empty(count, np.int32)
    everything = np.arange(count, dtype=np.int32)
    for pixel in range(begin, end):
        place_taps(offset, offset_strides, mask, mask_strides, geometry, pixel, 0, G, 0, x, y, weight)
        corners(count, x, y, weight, tables[0], tables[1], tables[2], index, factor, inside)
        for g in range(G):
            for k in range(K):
                s = g * K + k
                if inside[s]:
                    position = (pixel * K + k) * C + g * channels
                    gather(channels, rows, g * channels, C, index, factor, everything, s, s + 1, columns, position)


@cached_njit
def differentiate_taps(rows, offset, offset_strides, mask, mask_strides, geometry, grad_columns, grad_offset, grad_mask,
                       begin, end):  # fmt: skip
    """Gradients of the offsets and masks of output pixels begin..end, of one image, contiguous."""
    H, W, C, kh, kw, G, _, _, _, _, _, _, _ = geometry
    K = kh * kw
    count = G * K
    channels = C // G
    dtype = grad_columns.dtype
    pixels = grad_mask.size // count
    tables = map_tables(count, H, W)
    index = np.empty((4, count), np.int32)
    factor = np.empty((4, count), dtype)
    x = np.empty(count, dtype)
    y = np.empty(count, dtype)
    weight = np.empty(count, dtype)
    inside = np.empty(count, np.int32)
    dots = np.empty((4, count), dtype)
    grad_weight = np.empty(count, dtype)
    grad_x = np.empty(count, dtype)
    grad_y = np.empty(count, dtype)
    for pixel in range(begin, end):
        place_taps(offset, offset_strides, mask, mask_strides, geometry, pixel, 0, G, 0, x, y, weight)
        corners(count, x, y, weight, tables[0], tables[1], tables[2], index, factor, inside)
        dots[:] = 0
        for g in range(G):
            for k in range(K):
                s = g * K + k
                position = (pixel * K + k) * C + g * channels
                dot(channels, rows, g * channels, C, index, s, s + 1, grad_columns, position, dots)
        slopes(count, x, y, weight, tables[0], tables[1], dots, grad_weight, grad_x, grad_y)
        for s in range(count):
            grad_offset[2 * s * pixels + pixel] = grad_y[s]
            grad_offset[(2 * s + 1) * pixels + pixel] = grad_x[s]
            grad_mask[s * pixels + pixel] = grad_weight[s]


@cached_njit
def differentiate_rows(offset, offset_strides, mask, mask_strides, geometry, grad_columns, grad_rows, begin, end):
    """Add to the image's gradient [H, W, C]; each item owns a block of channels and walks through all pixels."""
    H, W, C, kh, kw, G, _, _, _, _, _, _, _ = geometry
    K = kh * kw
    group_channels = C // G
    blocks = (group_channels + CHANNEL_BLOCK - 1) // CHANNEL_BLOCK
    count = PIXEL_BLOCK * K
    dtype = grad_columns.dtype
    pixels = grad_columns.size // (K * C)
    tables = map_tables(count, H, W)
    index = np.empty((4, count), np.int32)
    factor = np.empty((4, count), dtype)
    x = np.empty(count, dtype)
    y = np.empty(count, dtype)
    weight = np.empty(count, dtype)
    inside = np.empty(count, np.int32)
    everything = np.arange(count, dtype=np.int32)
    for item in range(begin, end):
        g, block = divmod(item, blocks)
        channel = g * group_channels + block * CHANNEL_BLOCK
        channels = min(CHANNEL_BLOCK, group_channels - block * CHANNEL_BLOCK)
        for first in range(0, pixels, PIXEL_BLOCK):
            last = min(first + PIXEL_BLOCK, pixels)
            for pixel in range(first, last):
                at = (pixel - first) * K
                place_taps(offset, offset_strides, mask, mask_strides, geometry, pixel, g, 1, at, x, y, weight)
            total = (last - first) * K
            corners(total, x, y, weight, tables[0], tables[1], tables[2], index, factor, inside)
            for s in range(total):
                if inside[s]:
                    position = (first * K + s) * C + channel
                    scatter(channels, grad_rows, channel, C, index, factor, everything, s, s + 1, grad_columns,
                            position)  # fmt: skip
