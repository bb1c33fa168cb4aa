"""Where the samples of deformable attention lie and what they weigh, on the CPU.

The scratch arrays hold all samples s = (m * L + l) * P + p of one query in one camera, which makes the loops long
enough for the vectoriser.
"""

# mypy: disable-error-code="call-arg"
# (an intrinsic's first argument is numba's, not the caller's)

import numpy as np

from bevdet_ops.cpu_compile import cached_njit
from bevdet_ops.cpu_vector import exponential, place_samples, softmax_row

SIGMOID, SOFTMAX = 1, 2
ACTIVATIONS = {"none": 0, "sigmoid": SIGMOID, "softmax": SOFTMAX}  # of the weights
i32 = np.int32  # numba widens sums of 32-bit integers to 64 bits, and vectors would hold half as many


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
def find_inside(first, last, inside, chosen):
    """Write the samples of first..last that lie inside to chosen[first:]; returns the end of them."""
    end = first
    for s in range(first, last):
        chosen[end] = s  # to be written over where it lies outside: a branch would often be foretold wrongly
        end += inside[s]
    return end


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
def place(queries, count, origin, reference, reference_strides, box, offsets, offset_strides, weights, weight_strides,
          tables, sizes, base, x, y, weight):  # fmt: skip
    """Write pixel positions and weights of the samples of ``queries[:count]`` to the scratch arrays, one by one.

    `origin` is (b, n, m, l), with the first of M heads and L levels; `sizes` is (M, L, P, Z). Strides are those of all
    axes: (b, n, q, l, z, xy) of the references, (b, n, q, m, l, p, xy) of the offsets, (b, n, q, m, l, p) of the
    weights. `base` is scratch for the part that heads share: position and scale of the offsets.
    """
    M, L, P, Z = sizes
    b, n, head, top = origin
    r = b * reference_strides[0] + n * reference_strides[1] + top * reference_strides[3]
    o = b * offset_strides[0] + n * offset_strides[1] + head * offset_strides[3] + top * offset_strides[4]
    w = b * weight_strides[0] + n * weight_strides[1] + head * weight_strides[3] + top * weight_strides[4]
    half = x.dtype.type(0.5)
    xy = reference_strides[5]
    dense = offset_strides[4:] == (2 * P, 2, 1) and weight_strides[4:] == (P, 1)
    first = 0
    for k in range(count):
        query = queries[k]
        for level in range(L):
            W = x.dtype.type(tables[1, level * P])
            H = x.dtype.type(tables[0, level * P])
            z = 0
            for p in range(P):
                point = r + query * reference_strides[2] + level * reference_strides[3] + z * reference_strides[4]
                base[0, level * P + p] = reference[point] * W - half
                base[1, level * P + p] = reference[point + xy] * H - half
                if box:
                    base[2, level * P + p] = reference[point + 2 * xy] * half / x.dtype.type(P) * W
                    base[3, level * P + p] = reference[point + 3 * xy] * half / x.dtype.type(P) * H
                else:
                    base[2, level * P + p] = 1
                    base[3, level * P + p] = 1
                z = z + 1 if z + 1 < Z else 0
        for m in range(M):
            offset = o + query * offset_strides[2] + m * offset_strides[3]
            source = w + query * weight_strides[2] + m * weight_strides[3]
            if dense:  # as good as always
                s = 0
                while s + 8 <= L * P:
                    place_samples(8, base, s, offsets, offset + 2 * s, weights, source + s, x, y, weight, first + s)
                    s += 8
                while s + 4 <= L * P:
                    place_samples(4, base, s, offsets, offset + 2 * s, weights, source + s, x, y, weight, first + s)
                    s += 4
                while s < L * P:
                    place_samples(1, base, s, offsets, offset + 2 * s, weights, source + s, x, y, weight, first + s)
                    s += 1
            else:
                for level in range(L):
                    for p in range(P):
                        s = level * P + p
                        point = offset + level * offset_strides[4] + p * offset_strides[5]
                        x[first + s] = base[0, s] + offsets[point] * base[2, s]
                        y[first + s] = base[1, s] + offsets[point + offset_strides[6]] * base[3, s]
                        weight[first + s] = weights[source + level * weight_strides[4] + p * weight_strides[5]]
            first += L * P


@cached_njit
def activate(activation, rows, samples, weight):
    """Turn raw weights, `samples` to a row, into activated ones; softmax is over a row."""
    one = weight.dtype.type(1)
    if activation == SIGMOID:
        for s in range(rows * samples):
            weight[s] = one / (one + exponential(-weight[s]))
    elif activation == SOFTMAX:
        for row in range(rows):
            if samples == 4:
                softmax_row(4, weight, row * samples)
            elif samples == 8:
                softmax_row(8, weight, row * samples)
            elif samples == 16:
                softmax_row(16, weight, row * samples)
            elif samples == 32:
                softmax_row(32, weight, row * samples)
            else:
                softmax(row * samples, (row + 1) * samples, weight)


@cached_njit
def softmax(first, last, weight):
    """`softmax_row` for any number of samples."""
    largest = weight[first]
    for s in range(first + 1, last):
        largest = weight[s] if weight[s] > largest else largest
    total = weight.dtype.type(0)
    for s in range(first, last):
        weight[s] = exponential(weight[s] - largest)
        total += weight[s]
    for s in range(first, last):
        weight[s] /= total
