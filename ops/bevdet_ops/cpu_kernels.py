"""Numba kernels of multi-camera deformable attention on the CPU.

Every tensor comes as a flat array and its strides, so that no view is copied and one compilation serves all. A kernel
handles a range of independent items and leaves the others' results alone. The scratch arrays hold all samples
s = (m * L + l) * P + p of one query in one camera, which makes the loops long enough for the vectoriser.
"""

# mypy: disable-error-code="call-arg"
# (an intrinsic's first argument is numba's, not the caller's)

import numpy as np
from numba import njit

from bevdet_ops.cpu_vector import dot_rows, gather_rows, scatter_rows

i32 = np.int32  # numba widens sums of 32-bit integers to 64 bits, and vectors would hold half as many


def cached_njit(function):
    """Compile at the first call, without the GIL, and keep the machine code on disk for later processes."""
    try:
        return njit(nogil=True, error_model="numpy", cache=True)(function)
    except RuntimeError:  # neither the package's folder nor the user's cache folder can be written
        return njit(nogil=True, error_model="numpy")(function)


@cached_njit
def corners(count, x, y, weight, heights, widths, starts, index, factor, inside):
    """Rows and factors of the four corners of every sample; returns how many samples lie inside their map.

    A corner outside the map gets factor 0 and the row of its neighbour, which the sample reads anyway.
    """
    one = x.dtype.type(1)
    zero = x.dtype.type(0)
    total = i32(0)
    for s in range(count):
        W = widths[s]
        H = heights[s]
        within = (x[s] > -one) & (x[s] < x.dtype.type(W)) & (y[s] > -one) & (y[s] < x.dtype.type(H))
        xs = x[s] if within else zero
        ys = y[s] if within else zero
        x0 = i32(xs)
        y0 = i32(ys)
        x0 = i32(x0 - i32(xs < x.dtype.type(x0)))
        y0 = i32(y0 - i32(ys < x.dtype.type(y0)))
        x1 = i32(x0 + i32(1))
        y1 = i32(y0 + i32(1))
        lx = xs - x.dtype.type(x0)
        ly = ys - x.dtype.type(y0)
        hx = one - lx if x0 >= i32(0) else zero
        hy = one - ly if y0 >= i32(0) else zero
        lx = lx if x1 < W else zero
        ly = ly if y1 < H else zero
        x0 = max(x0, i32(0))
        y0 = max(y0, i32(0))
        x1 = min(x1, i32(W - i32(1)))
        y1 = min(y1, i32(H - i32(1)))
        top = i32(starts[s] + i32(y0 * W))
        bottom = i32(starts[s] + i32(y1 * W))
        index[0, s] = top + x0
        index[1, s] = top + x1
        index[2, s] = bottom + x0
        index[3, s] = bottom + x1
        a = weight[s] if within else zero
        factor[0, s] = a * hy * hx
        factor[1, s] = a * hy * lx
        factor[2, s] = a * ly * hx
        factor[3, s] = a * ly * lx
        inside[s] = i32(within)
        total = i32(total + i32(within))
    return total


@cached_njit
def drop_outside(first, last, inside, index, factor):
    """Move the samples that lie inside to the front of first..last; returns the end of them."""
    kept = first
    for s in range(first, last):
        if inside[s]:
            if kept < s:
                for corner in range(4):
                    index[corner, kept] = index[corner, s]
                    factor[corner, kept] = factor[corner, s]
            kept += 1
    return kept


@cached_njit
def slopes(count, x, y, weight, heights, widths, dots, grad_weight, grad_x, grad_y):
    """Gradients of weight and pixel position from ``dots[c, s]``, the products of corner c's row and the gradient."""
    one = x.dtype.type(1)
    zero = x.dtype.type(0)
    for s in range(count):
        W = widths[s]
        H = heights[s]
        within = (x[s] > -one) & (x[s] < x.dtype.type(W)) & (y[s] > -one) & (y[s] < x.dtype.type(H))
        xs = x[s] if within else zero
        ys = y[s] if within else zero
        x0 = i32(xs)
        y0 = i32(ys)
        x0 = i32(x0 - i32(xs < x.dtype.type(x0)))
        y0 = i32(y0 - i32(ys < x.dtype.type(y0)))
        lx = xs - x.dtype.type(x0)
        ly = ys - x.dtype.type(y0)
        left = within & (x0 >= i32(0))
        right = within & (i32(x0 + i32(1)) < W)
        top = y0 >= i32(0)
        bottom = i32(y0 + i32(1)) < H
        top_left = dots[0, s] if left & top else zero
        top_right = dots[1, s] if right & top else zero
        bottom_left = dots[2, s] if left & bottom else zero
        bottom_right = dots[3, s] if right & bottom else zero
        upper = top_left + lx * (top_right - top_left)
        lower = bottom_left + lx * (bottom_right - bottom_left)
        a = weight[s] if within else zero
        grad_weight[s] = upper + ly * (lower - upper)
        grad_y[s] = a * (lower - upper)
        grad_x[s] = a * ((one - ly) * (top_right - top_left) + ly * (bottom_right - bottom_left))


@cached_njit
def place(reference, r, reference_strides, box, offsets, o, offset_strides, weights, w, weight_strides, tables, sizes,
          at, base, x, y, weight):  # fmt: skip
    """Write pixel positions and weights of one query's samples to the scratch arrays, from sample `at` on.

    `r`, `o` and `w` are the first elements of the query's references, offsets and weights; `reference_strides` are
    those of (l, z, xy), `offset_strides` of (m, l, p, xy), `weight_strides` of (m, l, p); `sizes` is (M, L, P, Z);
    `base` is scratch for the part that heads share: position and scale of the offsets.
    """
    M, L, P, Z = sizes
    half = x.dtype.type(0.5)
    xy = reference_strides[2]
    for level in range(L):
        W = x.dtype.type(tables[1, at + level * P])
        H = x.dtype.type(tables[0, at + level * P])
        z = 0
        for p in range(P):
            point = r + level * reference_strides[0] + z * reference_strides[1]
            base[0, level * P + p] = reference[point] * W - half
            base[1, level * P + p] = reference[point + xy] * H - half
            if box:
                base[2, level * P + p] = reference[point + 2 * xy] * half / x.dtype.type(P) * W
                base[3, level * P + p] = reference[point + 3 * xy] * half / x.dtype.type(P) * H
            else:
                base[2, level * P + p] = 1
                base[3, level * P + p] = 1
            z = z + 1 if z + 1 < Z else 0
    dense = offset_strides[1:] == (2 * P, 2, 1) and weight_strides[1:] == (P, 1)
    for m in range(M):
        first = at + m * L * P
        offset = o + m * offset_strides[0]
        source = w + m * weight_strides[0]
        if dense:  # as good as always; the vectoriser needs to see it
            for s in range(L * P):
                x[first + s] = base[0, s] + offsets[offset + 2 * s] * base[2, s]
                y[first + s] = base[1, s] + offsets[offset + 2 * s + 1] * base[3, s]
                weight[first + s] = weights[source + s]
            continue
        for level in range(L):
            for p in range(P):
                s = level * P + p
                point = offset + level * offset_strides[1] + p * offset_strides[2]
                x[first + s] = base[0, s] + offsets[point] * base[2, s]
                y[first + s] = base[1, s] + offsets[point + offset_strides[3]] * base[3, s]
                weight[first + s] = weights[source + level * weight_strides[1] + p * weight_strides[2]]


@cached_njit
def gather(D, rows, start, stride, index, factor, first, last, out, position):
    """`gather_rows` for any number of channels."""
    d = 0
    while d + 64 <= D:
        gather_rows(64, rows, start + d, stride, index, factor, first, last, out, position + d)
        d += 64
    while d + 32 <= D:
        gather_rows(32, rows, start + d, stride, index, factor, first, last, out, position + d)
        d += 32
    while d + 8 <= D:
        gather_rows(8, rows, start + d, stride, index, factor, first, last, out, position + d)
        d += 8
    while d < D:
        gather_rows(1, rows, start + d, stride, index, factor, first, last, out, position + d)
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
def scatter(D, rows, start, stride, index, factor, first, last, other, position):
    """`scatter_rows` for any number of channels."""
    d = 0
    while d + 64 <= D:
        scatter_rows(64, rows, start + d, stride, index, factor, first, last, other, position + d)
        d += 64
    while d + 32 <= D:
        scatter_rows(32, rows, start + d, stride, index, factor, first, last, other, position + d)
        d += 32
    while d + 8 <= D:
        scatter_rows(8, rows, start + d, stride, index, factor, first, last, other, position + d)
        d += 8
    while d < D:
        scatter_rows(1, rows, start + d, stride, index, factor, first, last, other, position + d)
        d += 1


@cached_njit
def attend(value, value_strides, reference, reference_strides, box, offsets, offset_strides, weights, weight_strides,
           seen, tables, sizes, out, begin, end):  # fmt: skip
    """The output rows [M * D] of items b * Q + q in begin..end, summed over cameras."""
    N, Q, M, D, L, P, Z = sizes
    count = M * L * P
    index = np.empty((4, count), np.int32)
    factor = np.empty((4, count), out.dtype)
    base = np.empty((4, L * P), out.dtype)
    x = np.empty(count, out.dtype)
    y = np.empty(count, out.dtype)
    weight = np.empty(count, out.dtype)
    inside = np.empty(count, np.int32)
    for item in range(begin, end):
        b = item // Q
        q = item - b * Q
        out[item * M * D : (item + 1) * M * D] = 0
        for n in range(N):
            if not seen[(b * N + n) * Q + q]:
                continue
            r = b * reference_strides[0] + n * reference_strides[1] + q * reference_strides[2]
            o = b * offset_strides[0] + n * offset_strides[1] + q * offset_strides[2]
            w = b * weight_strides[0] + n * weight_strides[1] + q * weight_strides[2]
            place(reference, r, reference_strides[3:], box, offsets, o, offset_strides[3:], weights, w,
                  weight_strides[3:], tables, (M, L, P, Z), 0, base, x, y, weight)  # fmt: skip
            kept = corners(count, x, y, weight, tables[0], tables[1], tables[2], index, factor, inside)
            for m in range(M):
                first = m * L * P
                last = first + L * P if kept == count else drop_outside(first, first + L * P, inside, index, factor)
                start = b * value_strides[0] + n * value_strides[1] + m * value_strides[3]
                gather(D, value, start, value_strides[2], index, factor, first, last, out, (item * M + m) * D)


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
            r = b * reference_strides[0] + n * reference_strides[1] + q * reference_strides[2]
            o = b * offset_strides[0] + n * offset_strides[1] + q * offset_strides[2]
            w = b * weight_strides[0] + n * weight_strides[1] + q * weight_strides[2]
            place(reference, r, reference_strides[3:], box, offsets, o, offset_strides[3:], weights, w,
                  weight_strides[3:], tables, (M, L, P, Z), 0, base, x, y, weight)  # fmt: skip
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
                        offset = o + m * offset_strides[3] + level * offset_strides[4]
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
        r = b * reference_strides[0] + n * reference_strides[1] + level * reference_strides[3]
        o = b * offset_strides[0] + n * offset_strides[1] + m * offset_strides[3] + level * offset_strides[4]
        w = b * weight_strides[0] + n * weight_strides[1] + m * weight_strides[3] + level * weight_strides[4]
        start = (camera * S * M + m) * D + channel
        q = 0
        while q < Q:
            filled = 0
            while q < Q and filled < QUERY_BLOCK:
                if seen[camera * Q + q]:
                    place(reference, r + q * reference_strides[2], reference_strides[3:], box,
                          offsets, o + q * offset_strides[2], offset_strides[3:],
                          weights, w + q * weight_strides[2], weight_strides[3:],
                          tables, (1, 1, P, Z), filled * P, base, x, y, weight)  # fmt: skip
                    queries[filled] = q
                    filled += 1
                q += 1
            total = filled * P
            kept = corners(total, x, y, weight, tables[0], tables[1], tables[2], index, factor, inside)
            for k in range(filled):
                first = k * P
                last = first + P if kept == total else drop_outside(first, first + P, inside, index, factor)
                position = ((b * Q + queries[k]) * M + m) * D + channel
                scatter(channels, grad_value, start, M * D, index, factor, first, last, grad_output, position)
