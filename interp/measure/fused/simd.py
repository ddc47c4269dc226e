"""Sixteen float32 or float64 at a time inside numba: vectors as values, so that what runs is what is written here.

LLVM maps them to the widest registers that the processor has. No operation may be reordered, hence equal bits. Names
that start with v take float32, with w ("wide") float64. Nothing checks bounds: `fused_pass` shapes every array.
"""

# pyright: reportCallIssue=false

import math

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic, models, register_model

LANES = 16

FLOAT, DOUBLE, INT = ir.FloatType(), ir.DoubleType(), ir.IntType(32)
VECTOR, WIDE, _INTS = (ir.VectorType(t, LANES) for t in (FLOAT, DOUBLE, INT))


class Vector(types.Type):
    """Sixteen numbers of one LLVM type."""

    def __init__(self, name, kind):
        super().__init__(name=name)
        self.kind = kind


@register_model(Vector)
class _VectorModel(models.PrimitiveModel):
    """A Vector is an LLVM vector."""

    def __init__(self, manager, numba_type):
        super().__init__(manager, numba_type, numba_type.kind)


vector, wide = Vector("float32x16", VECTOR), Vector("float64x16", WIDE)


def splat(builder, scalar, kind):
    """The scalar in every lane."""
    one = builder.insert_element(ir.Constant(kind, ir.Undefined), scalar, ir.Constant(INT, 0))
    return builder.shuffle_vector(one, ir.Constant(kind, ir.Undefined), ir.Constant(_INTS, [0] * LANES))


def address(context, builder, array_type, array, index):
    """Pointer to element `index` of a contiguous array, counted flat."""
    return builder.gep(context.make_array(array_type)(context, builder, array).data, [index])


def fma(builder, a, b, c):
    """A·b + c of LLVM vectors: rounded once where the processor can (elsewhere fma would be a call for each lane)."""
    kind = ir.FunctionType(a.type, [a.type] * 3)
    name = "llvm.fmuladd.v16f32" if a.type == VECTOR else "llvm.fmuladd.v16f64"
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), (a, b, c))


def _elementwise(emit, kind, arity):
    """A function of two or three vectors from the instruction that computes it."""

    def generate(context, builder, signature, args):
        return emit(builder, *args)

    if arity == 3:

        @intrinsic
        def ternary(typing_context, a, b, c):
            return kind(kind, kind, kind), generate

        return ternary

    @intrinsic
    def binary(typing_context, a, b):
        return kind(kind, kind), generate

    return binary


def _larger(builder, a, b):
    """Lanes of a where they are larger, the rest of b."""
    return builder.select(builder.fcmp_ordered(">", a, b), a, b)


def _smaller(builder, a, b):
    """Lanes of a where they are smaller, the rest of b."""
    return builder.select(builder.fcmp_ordered("<", a, b), a, b)


def _add(builder, a, b):
    """A + b."""
    return builder.fadd(a, b)


def _sub(builder, a, b):
    """A − b."""
    return builder.fsub(a, b)


def _mul(builder, a, b):
    """A·b."""
    return builder.fmul(a, b)


def _div(builder, a, b):
    """A / b."""
    return builder.fdiv(a, b)


vadd, vsub, vmul, vdiv, vmax, vmin = (
    _elementwise(emit, vector, 2) for emit in (_add, _sub, _mul, _div, _larger, _smaller)
)
wadd, wsub, wmul, wdiv, wmax = (_elementwise(emit, wide, 2) for emit in (_add, _sub, _mul, _div, _larger))
vfma, wfma = (_elementwise(fma, kind, 3) for kind in (vector, wide))


def _memory(kind, scalar):
    """Fill, load and store of one kind of vector."""

    @intrinsic
    def fill(typing_context, x):
        """The scalar in every lane."""

        def generate(context, builder, signature, args):
            return splat(builder, args[0], kind.kind)

        return kind(scalar), generate

    @intrinsic
    def load(typing_context, array, index):
        """Elements index … index + 15."""

        def generate(context, builder, signature, args):
            pointer = address(context, builder, signature.args[0], *args)
            return builder.load(builder.bitcast(pointer, kind.kind.as_pointer()), align=4)

        return kind(array, types.intp), generate

    @intrinsic
    def store(typing_context, array, index, value):
        """Write elements index … index + 15."""

        def generate(context, builder, signature, args):
            pointer = address(context, builder, signature.args[0], *args[:2])
            builder.store(args[2], builder.bitcast(pointer, kind.kind.as_pointer()), align=4)
            return context.get_dummy_value()

        return types.none(array, types.intp, kind), generate

    return fill, load, store


vfill, vload, vstore = _memory(vector, types.float32)
wfill, wload, wstore = _memory(wide, types.float64)


@intrinsic
def widen(typing_context, x):
    """Float64 from float32."""

    def generate(context, builder, signature, args):
        return builder.fpext(args[0], WIDE)

    return wide(vector), generate


@intrinsic
def vlanes(typing_context):
    """0, 1, … 15."""

    def generate(context, builder, signature, args):
        return ir.Constant(VECTOR, [float(i) for i in range(LANES)])

    return vector(), generate


@intrinsic
def vless(typing_context, a, b, x, y):
    """Lanes of x where a < b, the rest of y."""

    def generate(context, builder, signature, args):
        a, b, x, y = args
        return builder.select(builder.fcmp_ordered("<", a, b), x, y)

    return vector(vector, vector, vector, vector), generate


@intrinsic
def vpick(typing_context, value, other, first, stop):
    """Lanes first … stop − 1 of value, the rest of other."""

    def generate(context, builder, signature, args):
        value, other, first, stop = args
        lane = ir.Constant(_INTS, list(range(LANES)))
        low, high = (splat(builder, builder.trunc(x, INT), _INTS) for x in (first, stop))
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


@intrinsic
def vmore(typing_context, a, b):
    """One bit per lane in which a > b, as an integer."""

    def generate(context, builder, signature, args):
        bits = builder.bitcast(builder.fcmp_ordered(">", *args), ir.IntType(LANES))
        return builder.zext(bits, ir.IntType(64))

    return types.int64(vector, vector), generate


@intrinsic
def store_from(typing_context, array, index, value, lowest):
    """Write the lanes with value ≥ lowest one behind the other; gives how many they are."""

    def generate(context, builder, signature, args):
        value, lowest = args[2:]
        kept = builder.fcmp_ordered(">=", value, lowest)
        pointer = address(context, builder, signature.args[0], *args[:2])
        pointer = builder.bitcast(pointer, FLOAT.as_pointer())
        kind = ir.FunctionType(ir.VoidType(), [VECTOR, pointer.type, kept.type])
        store = cgutils.get_or_insert_function(builder.module, kind, "llvm.masked.compressstore.v16f32")
        builder.call(store, (value, pointer, kept))
        bits = builder.bitcast(kept, ir.IntType(LANES))
        return builder.zext(builder.ctpop(bits), ir.IntType(64))

    return types.int64(array, types.intp, vector, vector), generate


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
            return builder.extract_element(x, ir.Constant(INT, 0))

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
        value = builder.fadd(value, ir.Constant(VECTOR, [0.0] * LANES))
        bits = builder.bitcast(value, _INTS)
        bits = builder.add(bits, builder.ashr(bits, ir.Constant(_INTS, [31] * LANES)))
        bits = builder.ashr(bits, splat(builder, builder.trunc(shift, INT), _INTS))
        bits = builder.add(bits, splat(builder, builder.trunc(offset, INT), _INTS))
        pointer = address(context, builder, signature.args[0], array, index)
        builder.store(bits, builder.bitcast(pointer, _INTS.as_pointer()), align=4)
        return context.get_dummy_value()

    return types.none(array, types.intp, vector, types.intp, types.intp), generate


@intrinsic
def _times_power_of_two(typing_context, x, shifted):
    """X·2ⁿ from n + 1.5 · 2²³, whose low bits are n: n is added to the exponent of x."""

    def generate(context, builder, signature, args):
        n = builder.shl(builder.bitcast(args[1], _INTS), ir.Constant(_INTS, [23] * LANES))
        return builder.bitcast(builder.add(builder.bitcast(args[0], _INTS), n), VECTOR)

    return vector(vector, vector), generate


_ROUND, _LOWEST, _ONE = np.float32(1.5 * 2**23), np.float32(-125.0), np.float32(1.0)
# Relative minimax of 2^f over |f| ≤ 1/2 that is exact at 0, by Lawson's iteration: 9.2e-8.
_C1, _C2, _C3, _C4, _C5 = (
    np.float32(c) for c in (6.931469776e-1, 2.402224208e-1, 5.550733744e-2, 9.671512688e-3, 1.326472725e-3)
)


@njit(inline="always")
def vexp2(x):
    """2ˣ of x ≤ 1 to 2e-7 relative; 2⁻¹²⁵ below −125."""
    x = vmax(x, vfill(_LOWEST))
    shifted = vadd(x, vfill(_ROUND))
    f = vsub(x, vsub(shifted, vfill(_ROUND)))
    y = vfma(vfill(_C5), f, vfill(_C4))
    y = vfma(y, f, vfill(_C3))
    y = vfma(y, f, vfill(_C2))
    y = vfma(y, f, vfill(_C1))
    return _times_power_of_two(vfma(y, f, vfill(_ONE)), shifted)


_MINUS_TWO_LOG2E, _SMALL = np.float32(-2 * math.log2(math.e)), np.float32(0.2)
_T3, _T5, _T7 = np.float32(-1 / 3), np.float32(2 / 15), np.float32(-17 / 315)


@njit(inline="always")
def vtanh(x):
    """Tanh to 5e-7 relative: a series near 0, where 1 − exp(−2|x|) would cancel."""
    square = vmul(x, x)
    series = vfma(vfma(vfill(_T7), square, vfill(_T5)), square, vfill(_T3))
    series = vfma(vmul(series, square), x, x)
    size = vmax(x, vsub(vfill(np.float32(0)), x))
    e = vexp2(vmul(size, vfill(_MINUS_TWO_LOG2E)))
    far = vdiv(vsub(vfill(_ONE), e), vadd(vfill(_ONE), e))
    far = vless(x, vfill(np.float32(0)), vsub(vfill(np.float32(0)), far), far)
    return vless(size, vfill(_SMALL), series, far)
