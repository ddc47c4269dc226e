"""Sixteen float32 at a time inside numba: vectors as values, so that what runs is what is written here.

LLVM maps them to the widest registers that the processor has. No operation may be reordered, hence equal bits.
"""

# pyright: reportCallIssue=false

import math

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic, models, register_model

LANES = 16

_FLOAT, _INT, _BIT = ir.FloatType(), ir.IntType(32), ir.IntType(1)
_VECTOR, _INTS, _MASK = (ir.VectorType(t, LANES) for t in (_FLOAT, _INT, _BIT))


class Vector(types.Type):
    """Sixteen float32."""

    def __init__(self):
        super().__init__(name="float32x16")


vector = Vector()


@register_model(Vector)
class _VectorModel(models.PrimitiveModel):
    """A Vector is an LLVM vector."""

    def __init__(self, manager, numba_type):
        super().__init__(manager, numba_type, _VECTOR)


def _splat(builder, scalar, kind):
    """The scalar in every lane."""
    one = builder.insert_element(ir.Constant(kind, ir.Undefined), scalar, ir.Constant(_INT, 0))
    return builder.shuffle_vector(one, ir.Constant(kind, ir.Undefined), ir.Constant(_INTS, [0] * LANES))


def _address(context, builder, array_type, array, index, kind):
    """Pointer to `kind` at element `index` of a contiguous array, counted flat."""
    data = context.make_array(array_type)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [index]), kind.as_pointer())


def _binary(emit):
    """A function of two vectors from the instruction that computes it."""

    @intrinsic
    def operation(typing_context, a, b):
        def generate(context, builder, signature, args):
            return emit(builder, *args)

        return vector(vector, vector), generate

    return operation


vadd = _binary(lambda builder, a, b: builder.fadd(a, b))
vsub = _binary(lambda builder, a, b: builder.fsub(a, b))
vmul = _binary(lambda builder, a, b: builder.fmul(a, b))
vmax = _binary(lambda builder, a, b: builder.select(builder.fcmp_ordered(">", a, b), a, b))
vmin = _binary(lambda builder, a, b: builder.select(builder.fcmp_ordered("<", a, b), a, b))


@intrinsic
def vfma(typing_context, a, b, c):
    """A·b + c, rounded once."""

    def generate(context, builder, signature, args):
        kind = ir.FunctionType(_VECTOR, [_VECTOR] * 3)
        fma = cgutils.get_or_insert_function(builder.module, kind, f"llvm.fma.v{LANES}f32")
        return builder.call(fma, args)

    return vector(vector, vector, vector), generate


@intrinsic
def vfill(typing_context, x):
    """The scalar in every lane."""

    def generate(context, builder, signature, args):
        return _splat(builder, args[0], _VECTOR)

    return vector(types.float32), generate


@intrinsic
def vload(typing_context, array, index):
    """Elements index … index + 15."""

    def generate(context, builder, signature, args):
        pointer = _address(context, builder, signature.args[0], args[0], args[1], _VECTOR)
        return builder.load(pointer, align=4)

    return vector(array, types.intp), generate


@intrinsic
def vstore(typing_context, array, index, value):
    """Write elements index … index + 15."""

    def generate(context, builder, signature, args):
        pointer = _address(context, builder, signature.args[0], args[0], args[1], _VECTOR)
        builder.store(args[2], pointer, align=4)
        return context.get_dummy_value()

    return types.none(array, types.intp, vector), generate


@intrinsic
def vpick(typing_context, value, other, first, stop):
    """Lanes first … stop − 1 of value, the rest of other."""

    def generate(context, builder, signature, args):
        value, other, first, stop = args
        lane = ir.Constant(_INTS, list(range(LANES)))
        low, high = (_splat(builder, builder.trunc(x, _INT), _INTS) for x in (first, stop))
        inside = builder.and_(builder.icmp_signed(">=", lane, low), builder.icmp_signed("<", lane, high))
        return builder.select(inside, value, other)

    return vector(vector, vector, types.intp, types.intp), generate


@intrinsic
def vequal(typing_context, a, b):
    """One bit per lane that is equal in both, as an integer."""

    def generate(context, builder, signature, args):
        bits = builder.bitcast(builder.fcmp_ordered("==", *args), ir.IntType(LANES))
        return builder.zext(bits, ir.IntType(64))

    return types.int64(vector, vector), generate


def _reduction(emit):
    """A function from a vector to a scalar, by halving: lane i meets lane i + 8, then i + 4 …"""

    @intrinsic
    def operation(typing_context, a):
        def generate(context, builder, signature, args):
            x, half = args[0], LANES // 2
            while half:
                lanes = [i + half if i < half else i for i in range(LANES)]
                x = emit(builder, x, builder.shuffle_vector(x, x, ir.Constant(_INTS, lanes)))
                half //= 2
            return builder.extract_element(x, ir.Constant(_INT, 0))

        return types.float32(vector), generate

    return operation


hsum = _reduction(lambda builder, a, b: builder.fadd(a, b))
hmax = _reduction(lambda builder, a, b: builder.select(builder.fcmp_ordered(">", a, b), a, b))
hmin = _reduction(lambda builder, a, b: builder.select(builder.fcmp_ordered("<", a, b), a, b))


@intrinsic
def store_bits(typing_context, array, index, value, shift, offset):
    """Write the histogram index of each lane: bits, one less in magnitude when negative, shifted, plus offset."""

    def generate(context, builder, signature, args):
        array, index, value, shift, offset = args
        value = builder.fadd(value, ir.Constant(_VECTOR, [0.0] * LANES))
        bits = builder.bitcast(value, _INTS)
        bits = builder.add(bits, builder.ashr(bits, ir.Constant(_INTS, [31] * LANES)))
        bits = builder.ashr(bits, _splat(builder, builder.trunc(shift, _INT), _INTS))
        bits = builder.add(bits, _splat(builder, builder.trunc(offset, _INT), _INTS))
        builder.store(bits, _address(context, builder, signature.args[0], array, index, _INTS), align=4)
        return context.get_dummy_value()

    return types.none(array, types.intp, vector, types.intp, types.intp), generate


@intrinsic
def _power_of_two(typing_context, shifted):
    """2ⁿ from n + 1.5 · 2²³, whose low bits are n."""

    def generate(context, builder, signature, args):
        n = builder.shl(builder.bitcast(args[0], _INTS), ir.Constant(_INTS, [23] * LANES))
        return builder.bitcast(builder.add(n, ir.Constant(_INTS, [127 << 23] * LANES)), _VECTOR)

    return vector(vector), generate


_ROUND = np.float32(1.5 * 2**23)
_LOG2E = np.float32(math.log2(math.e))
_LN2_HIGH = np.float32(-0.693359375)
_LN2_LOW = np.float32(2.12194440e-4)
_LOWEST = np.float32(-87.0)
_C0, _C1, _C2, _C3, _C4, _C5 = (
    np.float32(c)
    for c in (1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1)
)
_ONE = np.float32(1.0)


@njit(inline="always")
def vexp(x):
    """Exp of x ≤ 0 to 1e-7 relative; e⁻⁸⁷ below −87.

    Source: Moshier, Cephes, expf.c.
    """
    x = vmax(x, vfill(_LOWEST))
    shifted = vfma(x, vfill(_LOG2E), vfill(_ROUND))
    n = vsub(shifted, vfill(_ROUND))
    r = vfma(n, vfill(_LN2_LOW), vfma(n, vfill(_LN2_HIGH), x))
    y = vfma(vfill(_C0), r, vfill(_C1))
    y = vfma(y, r, vfill(_C2))
    y = vfma(y, r, vfill(_C3))
    y = vfma(y, r, vfill(_C4))
    y = vfma(y, r, vfill(_C5))
    y = vadd(vfma(vmul(y, r), r, r), vfill(_ONE))
    return vmul(y, _power_of_two(shifted))
