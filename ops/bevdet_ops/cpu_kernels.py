"""Numba kernels of multi-camera deformable attention on the CPU.

Every tensor comes as a flat array and its strides, so that no view is copied and one compilation serves all. A kernel
handles a range of independent items and leaves the others' results alone.
"""

# mypy: disable-error-code="call-arg"
# (an intrinsic's first argument is numba's, not the caller's)

import numpy as np

from bevdet_ops.cpu_compile import cached_njit
from bevdet_ops.cpu_samples import activate, corners, find_inside, place, slopes
from bevdet_ops.cpu_vector import dot_rows, gather_rows, scatter_rows


@cached_njit
def gather(D, rows, start, stride, index, factor, chosen, first, last, out, position):
    """`gather_rows` for any number of channels."""
    d = 0
    while d + 64 <= D:
        gather_rows(64, rows, start + d, stride, index, factor, chosen, first, last, out, position + d)
        d += 64
    while d + 32 <= D:
        gather_rows(32, rows, start + d, stride, index, factor, chosen, first, last, out, position + d)
        d += 32
    while d + 8 <= D:
        gather_rows(8, rows, start + d, stride, index, factor, chosen, first, last, out, position + d)
        d += 8
    while d < D:
        gather_rows(1, rows, start + d, stride, index, factor, chosen, first, last, out, position + d)
        d += 1


@cached_njit
def dot(D, rows, start, stride, index, first, last, other, position, dots):
    """`dot_rows` for any number of channels."""
    d = 0
    while d + 64 <= D:
        dot_rows(64, rows, start + d, stride, index, first, last, other, position + d, dots)
        d += 64
    while d + 32 <= D:
        dot_rows(32, rows, start + d, stride, index, first, last, other, position + d, dots)
        d += 32
    while d + 8 <= D:
        dot_rows(8, rows, start + d, stride, index, first, last, other, position + d, dots)
        d += 8
    while d < D:
        dot_rows(1, rows, start + d, stride, index, first, last, other, position + d, dots)
        d += 1


@cached_njit
def scatter(D, rows, start, stride, index, factor, chosen, first, last, other, position):
    """`scatter_rows` for any number of channels."""
    d = 0
    while d + 64 <= D:
        scatter_rows(64, rows, start + d, stride, index, factor, chosen, first, last, other, position + d)
        d += 64
    while d + 32 <= D:
        scatter_rows(32, rows, start + d, stride, index, factor, chosen, first, last, other, position + d)
        d += 32
    while d + 8 <= D:
        scatter_rows(8, rows, start + d, stride, index, factor, chosen, first, last, other, position + d)
        d += 8
    while d < D:
        scatter_rows(1, rows, start + d, stride, index, factor, chosen, first, last, other, position + d)
        d += 1


@cached_njit
def attend(value, value_strides, reference, reference_strides, box, offsets, offset_strides, weights, weight_strides,
           seen, activation, tables, sizes, out, begin, end):  # fmt: skip
    """The output rows [M * D] of items b * Q + q in begin..end, summed over cameras; the weights are raw ones."""
    N, Q, M, D, L, P, Z = sizes
    count = M * L * P
    index = np.empty((4, count), np.int32)
    factor = np.empty((4, count), out.dtype)
    base = np.empty((4, L * P), out.dtype)
    query = np.empty(1, np.int64)
    x = np.empty(count, out.dtype)
    y = np.empty(count, out.dtype)
    weight = np.empty(count, out.dtype)
    inside = np.empty(count, np.int32)
    everything = np.arange(count, dtype=np.int32)
    found = np.empty(count, np.int32)
    for item in range(begin, end):
        b = item // Q
        q = item - b * Q
        out[item * M * D : (item + 1) * M * D] = 0
        for n in range(N):
            if not seen[(b * N + n) * Q + q]:
                continue
            query[0] = q
            place(query, 1, (b, n, 0, 0), reference, reference_strides, box, offsets, offset_strides, weights,
                  weight_strides, tables, (M, L, P, Z), base, x, y, weight)  # fmt: skip
            activate(activation, M, L * P, weight)
            kept = corners(count, x, y, weight, tables[0], tables[1], tables[2], index, factor, inside)
            chosen = everything if kept == count else found
            for m in range(M):
                first = m * L * P
                last = first + L * P
                if kept < count:
                    last = find_inside(first, last, inside, found)
                start = b * value_strides[0] + n * value_strides[1] + m * value_strides[3]
                gather(D, value, start, value_strides[2], index, factor, chosen, first, last, out, (item * M + m) * D)


@cached_njit
def differentiate_samples(value, value_strides, reference, reference_strides, box, offsets, offset_strides, weights,
                          weight_strides, seen, tables, sizes, grad_output, grad_reference, grad_reference_strides,
                          grad_offsets, grad_offset_strides, grad_weights, grad_weight_strides, needs,
                          begin, end):  # fmt: skip
    """Add the gradients of references, offsets and activated weights of items b * Q + q in begin..end.

    Gradients have stride 0 along the axes that are shared: one query's samples are summed by one thread, in order.
    """
    N, Q, M, D, L, P, Z = sizes
    needs_reference, needs_offsets, needs_weights = needs
    count = M * L * P
    dtype = grad_output.dtype
    index = np.empty((4, count), np.int32)
    factor = np.empty((4, count), dtype)
    base = np.empty((4, L * P), dtype)
    query = np.empty(1, np.int64)
    x = np.empty(count, dtype)
    y = np.empty(count, dtype)
    weight = np.empty(count, dtype)
    inside = np.empty(count, np.int32)
    dots = np.empty((4, count), dtype)
    grad_weight = np.empty(count, dtype)
    grad_x = np.empty(count, dtype)
    grad_y = np.empty(count, dtype)
    half = dtype.type(0.5)
    for item in range(begin, end):
        b = item // Q
        q = item - b * Q
        for n in range(N):
            if not seen[(b * N + n) * Q + q]:
                continue
            query[0] = q
            place(query, 1, (b, n, 0, 0), reference, reference_strides, box, offsets, offset_strides, weights,
                  weight_strides, tables, (M, L, P, Z), base, x, y, weight)  # fmt: skip
            corners(count, x, y, weight, tables[0], tables[1], tables[2], index, factor, inside)
            dots[:] = 0
            for m in range(M):
                start = b * value_strides[0] + n * value_strides[1] + m * value_strides[3]
                dot(D, value, start, value_strides[2], index, m * L * P, (m + 1) * L * P, grad_output,
                    (item * M + m) * D, dots)  # fmt: skip
            slopes(count, x, y, weight, tables[0], tables[1], dots, grad_weight, grad_x, grad_y)

            if needs_weights:
                gw = b * grad_weight_strides[0] + n * grad_weight_strides[1] + q * grad_weight_strides[2]
                s = 0
                for m in range(M):
                    for level in range(L):
                        target = gw + m * grad_weight_strides[3] + level * grad_weight_strides[4]
                        for p in range(P):
                            grad_weights[target + p * grad_weight_strides[5]] += grad_weight[s]
                            s += 1
            if needs_offsets:
                go = b * grad_offset_strides[0] + n * grad_offset_strides[1] + q * grad_offset_strides[2]
                s = 0
                for m in range(M):
                    for level in range(L):
                        target = go + m * grad_offset_strides[3] + level * grad_offset_strides[4]
                        for p in range(P):
                            grad_offsets[target] += grad_x[s] * base[2, level * P + p]
                            grad_offsets[target + grad_offset_strides[6]] += grad_y[s] * base[3, level * P + p]
                            target += grad_offset_strides[5]
                            s += 1
            if needs_reference:
                gr = b * grad_reference_strides[0] + n * grad_reference_strides[1] + q * grad_reference_strides[2]
                s = 0
                for m in range(M):
                    for level in range(L):
                        H = dtype.type(tables[0, level * P])
                        W = dtype.type(tables[1, level * P])
                        offset = b * offset_strides[0] + n * offset_strides[1] + q * offset_strides[2]
                        offset += m * offset_strides[3] + level * offset_strides[4]
                        z = 0
                        for _ in range(P):
                            target = gr + level * grad_reference_strides[3] + z * grad_reference_strides[4]
                            xy = grad_reference_strides[5]
                            grad_reference[target] += grad_x[s] * W
                            grad_reference[target + xy] += grad_y[s] * H
                            if box and inside[s]:  # outside, the offset may be anything
                                scale = half / dtype.type(P)
                                dx = offsets[offset] * scale
                                dy = offsets[offset + offset_strides[6]] * scale
                                grad_reference[target + 2 * xy] += grad_x[s] * W * dx
                                grad_reference[target + 3 * xy] += grad_y[s] * H * dy
                            offset += offset_strides[5]
                            z = z + 1 if z + 1 < Z else 0
                            s += 1


QUERY_BLOCK = 64
CHANNEL_BLOCK = 64


@cached_njit
def differentiate_value(reference, reference_strides, box, offsets, offset_strides, weights, weight_strides, seen,
                        levels, sizes, grad_output, grad_value, begin, end):  # fmt: skip
    """Add the value gradient of items ((b * N + n) * M + m) * L + l, times blocks of channels, in begin..end.

    Each item owns a slice of the gradient and walks through all queries in order: no atomic additions, and the same
    bits whatever the number of threads. `grad_value` is contiguous [B, N, S, M, D].
    """
    N, Q, M, D, L, P, Z, S = sizes
    blocks = (D + CHANNEL_BLOCK - 1) // CHANNEL_BLOCK
    count = QUERY_BLOCK * P
    dtype = grad_output.dtype
    index = np.empty((4, count), np.int32)
    factor = np.empty((4, count), dtype)
    base = np.empty((4, P), dtype)
    x = np.empty(count, dtype)
    y = np.empty(count, dtype)
    weight = np.empty(count, dtype)
    inside = np.empty(count, np.int32)
    everything = np.arange(count, dtype=np.int32)
    found = np.empty(count, np.int32)
    tables = np.empty((3, count), np.int32)
    queries = np.empty(QUERY_BLOCK, np.int64)
    for item in range(begin, end):
        slice_, block = divmod(item, blocks)
        slice_, level = divmod(slice_, L)
        camera, m = divmod(slice_, M)
        b, n = divmod(camera, N)
        channel = block * CHANNEL_BLOCK
        channels = min(CHANNEL_BLOCK, D - channel)
        tables[0] = levels[0, level]
        tables[1] = levels[1, level]
        tables[2] = levels[2, level]
        start = (camera * S * M + m) * D + channel
        q = 0
        while q < Q:
            filled = 0
            while q < Q and filled < QUERY_BLOCK:
                if seen[camera * Q + q]:
                    queries[filled] = q
                    filled += 1
                q += 1
            place(queries, filled, (b, n, m, level), reference, reference_strides, box, offsets, offset_strides,
                  weights, weight_strides, tables, (1, 1, P, Z), base, x, y, weight)  # fmt: skip
            total = filled * P
            kept = corners(total, x, y, weight, tables[0], tables[1], tables[2], index, factor, inside)
            chosen = everything if kept == total else found
            for k in range(filled):
                first = k * P
                last = first + P if kept == total else find_inside(first, first + P, inside, found)
                position = ((b * Q + queries[k]) * M + m) * D + channel
                scatter(channels, grad_value, start, M * D, index, factor, chosen, first, last, grad_output, position)
