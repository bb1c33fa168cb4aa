"""What numba does not write well itself, in LLVM code: rows of channels, at ten times its speed, and exponentials.

A sample has four corners. ``index[c, s]`` is the row of corner c of sample s and ``factor[c, s]`` its factor; row r
starts at element ``start + r * stride`` of a flat array. `width` is a literal: so many channels are handled at once, in
registers, and LLVM splits them into whatever vectors the processor has. Sums run in a fixed order.

16-bit rows come as their bits, for numba knows neither type on a CPU, and are widened in registers: int16 holds
float16, uint16 holds bfloat16.
"""

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

I32 = ir.IntType(32)
FUSED = ("contract",)  # multiply and add in one instruction where the processor has it


@intrinsic(prefer_literal=True)
def gather_rows(typing, width, rows, start, stride, index, factor, chosen, first, last, out, position):
    """``out[position:][:width] += sum over samples chosen[first:last] and their corners of factor * row``."""

    def codegen(context, builder, signature, arguments):
        _, rows_, start_, stride_, index_, factor_, chosen_, first_, last_, out_, position_ = arguments
        vector = _vector(context, out, width)
        zero = ir.Constant(vector, [0.0] * vector.count)
        totals = [cgutils.alloca_once_value(builder, zero) for _ in range(4)]  # one each: four chains of additions
        with cgutils.for_range(builder, last_, first_) as loop:
            sample = builder.sext(_load(context, builder, chosen, chosen_, loop.index), loop.index.type)
            for corner, total in enumerate(totals):
                row_index = _load(context, builder, index, index_, corner, sample)
                row = _row(context, builder, rows, rows_, start_, stride_, row_index, vector)
                scale = _splat(builder, _load(context, builder, factor, factor_, corner, sample), vector)
                builder.store(_multiply_add(builder, row, scale, builder.load(total)), total)
        target = _pointer(context, builder, out, out_, vector, position_)
        result = _load_vector(builder, target)
        for total in totals:
            result = builder.fadd(result, builder.load(total))
        _store_vector(builder, result, target)
        return context.get_dummy_value()

    i64 = types.int64
    return types.void(width, rows, i64, i64, index, factor, chosen, i64, i64, out, i64), codegen


@intrinsic(prefer_literal=True)
def dot_rows(typing, width, rows, start, stride, index, first, last, other, position, dots):
    """``dots[c, s] += <row of corner c of sample s, other[position:][:width]>`` for samples first..last."""

    def codegen(context, builder, signature, arguments):
        _, rows_, start_, stride_, index_, first_, last_, other_, position_, dots_ = arguments
        vector = _vector(context, other, width)
        fixed = _load_vector(builder, _pointer(context, builder, other, other_, vector, position_))
        with cgutils.for_range(builder, last_, first_) as loop:
            for corner in range(4):
                row_index = _load(context, builder, index, index_, corner, loop.index)
                row = _row(context, builder, rows, rows_, start_, stride_, row_index, vector)
                target = _pointer(context, builder, dots, dots_, vector.element, corner, loop.index)
                total = _sum(builder, builder.fmul(row, fixed))
                builder.store(builder.fadd(builder.load(target), total), target)
        return context.get_dummy_value()

    i64 = types.int64
    return types.void(width, rows, i64, i64, index, i64, i64, other, i64, dots), codegen


@intrinsic(prefer_literal=True)
def scatter_rows(typing, width, rows, start, stride, index, factor, chosen, first, last, other, position):
    """``row of corner c of sample s += factor * other[position:][:width]`` for samples chosen[first:last], in order."""

    def codegen(context, builder, signature, arguments):
        _, rows_, start_, stride_, index_, factor_, chosen_, first_, last_, other_, position_ = arguments
        vector = _vector(context, other, width)
        fixed = _load_vector(builder, _pointer(context, builder, other, other_, vector, position_))
        with cgutils.for_range(builder, last_, first_) as loop:
            sample = builder.sext(_load(context, builder, chosen, chosen_, loop.index), loop.index.type)
            for corner in range(4):
                row_index = _load(context, builder, index, index_, corner, sample)
                element = builder.add(start_, builder.mul(builder.sext(row_index, stride_.type), stride_))
                target = _pointer(context, builder, rows, rows_, vector, element)
                scale = _splat(builder, _load(context, builder, factor, factor_, corner, sample), vector)
                _store_vector(builder, _multiply_add(builder, fixed, scale, _load_vector(builder, target)), target)
        return context.get_dummy_value()

    i64 = types.int64
    return types.void(width, rows, i64, i64, index, factor, chosen, i64, i64, other, i64), codegen


@intrinsic(prefer_literal=True)
def place_samples(typing, width, base, column, offsets, offset, weights, source, x, y, weight, at):
    """``x[at:][:width] = base[0] + base[2] * every other of offsets[offset:]``, y from the others, and the weights.

    Of each row of `base`, the columns from `column` on.
    """

    def codegen(context, builder, signature, arguments):
        _, base_, column_, offsets_, offset_, weights_, source_, x_, y_, weight_, at_ = arguments
        vector = _vector(context, x, width)
        count = vector.count
        pairs = ir.VectorType(vector.element, 2 * count)
        both = _load_vector(builder, _pointer(context, builder, offsets, offsets_, pairs, offset_))
        for axis, (target, target_) in enumerate(((x, x_), (y, y_))):
            lanes = ir.Constant(ir.VectorType(I32, count), list(range(axis, 2 * count, 2)))
            own = builder.shuffle_vector(both, both, lanes)
            place, scale = (
                _load_vector(builder, _pointer(context, builder, base, base_, vector, row, column_))
                for row in (axis, axis + 2)
            )
            result = builder.fadd(place, builder.fmul(own, scale))
            _store_vector(builder, result, _pointer(context, builder, target, target_, vector, at_))
        own = _load_vector(builder, _pointer(context, builder, weights, weights_, vector, source_))
        _store_vector(builder, own, _pointer(context, builder, weight, weight_, vector, at_))
        return context.get_dummy_value()

    i64 = types.int64
    return types.void(width, base, i64, offsets, i64, weights, i64, x, y, weight, i64), codegen


@intrinsic(prefer_literal=True)
def softmax_row(typing, width, array, at):
    """``array[at:][:width]`` becomes its softmax."""

    def codegen(context, builder, signature, arguments):
        _, array_, at_ = arguments
        vector = _vector(context, array, width)
        pointer = _pointer(context, builder, array, array_, vector, at_)
        values = _load_vector(builder, pointer)

        def larger(a, b):
            return builder.select(builder.fcmp_ordered(">", a, b), a, b)

        values = builder.fsub(values, _splat(builder, _folded(builder, values, larger), vector))
        values = _exponential(builder, values)
        _store_vector(builder, builder.fdiv(values, _splat(builder, _sum(builder, values), vector)), pointer)
        return context.get_dummy_value()

    return types.void(width, array, types.int64), codegen


@intrinsic
def exponential(typing, x):
    """The power of e to a float, in loops that LLVM can turn into vectors where it is of 32 bits; to 2e-7 of itself."""
    return x(x), lambda context, builder, signature, arguments: _exponential(builder, *arguments)


def _exponential(builder, x):
    """The powers of e to a scalar or a vector."""
    element = getattr(x.type, "element", x.type)
    if element != ir.FloatType():
        if element is x.type:
            return builder.call(builder.module.declare_intrinsic("llvm.exp", [element]), [x])
        lanes = [ir.Constant(I32, lane) for lane in range(x.type.count)]
        for lane in lanes:
            x = builder.insert_element(x, _exponential(builder, builder.extract_element(x, lane)), lane)
        return x
    whole_type = I32 if element is x.type else ir.VectorType(I32, x.type.count)

    def constant(number, kind=x.type):
        return ir.Constant(kind, number if element is x.type else [number] * x.type.count)

    # e^x = 2^n e^r with |r| <= ln(2) / 2, a Taylor series; of NaN, n is 0 and r is NaN.
    above, below = (builder.fcmp_ordered(*test) for test in ((">", x, constant(-87.0)), ("<", x, constant(88.0))))
    safe = builder.select(builder.and_(above, below), x, constant(0.0))
    half = builder.select(builder.fcmp_ordered("<", safe, constant(0.0)), constant(-0.5), constant(0.5))
    n = builder.fptosi(_multiply_add(builder, safe, constant(1.4426950408889634), half), whole_type)
    whole = builder.sitofp(n, x.type)
    high, low = constant(-0.693359375), constant(2.12194440e-4)  # ln(2) in two parts: n times the first is exact
    r = _multiply_add(builder, whole, low, _multiply_add(builder, whole, high, x))
    total = constant(1.0 / 5040)
    for factor in (1.0 / 720, 1.0 / 120, 1.0 / 24, 1.0 / 6, 0.5, 1.0, 1.0):
        total = _multiply_add(builder, total, r, constant(factor))
    bits = builder.shl(builder.add(n, constant(127, whole_type)), constant(23, whole_type))
    result = builder.fmul(total, builder.bitcast(bits, x.type))
    result = builder.select(builder.fcmp_ordered("<=", x, constant(-87.0)), constant(0.0), result)
    return builder.select(builder.fcmp_ordered(">=", x, constant(88.0)), constant(float("inf")), result)


def _vector(context, array_type, width):
    return ir.VectorType(context.get_data_type(array_type.dtype), width.literal_value)


def _pointer(context, builder, array_type, array, vector, *indices):
    """Where `vector` starts at an element of an array."""
    constants = [ir.Constant(ir.IntType(64), i) if isinstance(i, int) else i for i in indices]
    struct = context.make_array(array_type)(context, builder, array)
    pointer = cgutils.get_item_pointer(context, builder, array_type, struct, constants)
    return builder.bitcast(pointer, vector.as_pointer())


def _load(context, builder, array_type, array, *indices):
    return builder.load(
        _pointer(context, builder, array_type, array, context.get_data_type(array_type.dtype), *indices)
    )


def _load_vector(builder, pointer):
    vector = pointer.type.pointee
    return builder.load(pointer, align=_size(vector.element))


def _store_vector(builder, value, pointer):
    builder.store(value, pointer, align=_size(value.type.element))


def _size(element):
    return {ir.FloatType(): 4, ir.DoubleType(): 8}.get(element, 2)


def _row(context, builder, array_type, array, start, stride, row_index, vector):
    """A stretch of a row, widened to `vector`."""
    element = builder.add(start, builder.mul(builder.sext(row_index, stride.type), stride))
    stored = ir.VectorType(context.get_data_type(array_type.dtype), vector.count)
    row = _load_vector(builder, _pointer(context, builder, array_type, array, stored, element))
    if array_type.dtype == types.int16:
        return builder.fpext(builder.bitcast(row, ir.VectorType(ir.HalfType(), vector.count)), vector)
    if array_type.dtype == types.uint16:
        words = ir.VectorType(I32, vector.count)
        upper = builder.shl(builder.zext(row, words), ir.Constant(words, [16] * vector.count))
        return builder.bitcast(upper, vector)
    return row


def _splat(builder, scalar, vector):
    undefined = ir.Constant(vector, ir.Undefined)
    lane = builder.insert_element(undefined, scalar, ir.Constant(I32, 0))
    return builder.shuffle_vector(lane, undefined, ir.Constant(ir.VectorType(I32, vector.count), [0] * vector.count))


def _multiply_add(builder, a, b, c):
    return builder.fadd(builder.fmul(a, b, flags=FUSED), c, flags=FUSED)


def _sum(builder, vector):
    return _folded(builder, vector, builder.fadd)


def _folded(builder, vector, operation):
    """A vector's lanes in one: its halves are joined until one is left."""
    while vector.type.count > 1:
        half = vector.type.count // 2
        halves = [
            builder.shuffle_vector(vector, vector, ir.Constant(ir.VectorType(I32, half), list(range(at, at + half))))
            for at in (0, half)
        ]
        vector = operation(*halves)
    return builder.extract_element(vector, ir.Constant(I32, 0))
