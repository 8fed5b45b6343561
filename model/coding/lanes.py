"""Eight integers side by side, as a Numba type: what is written once is done for eight rows at a time.

The type is an LLVM vector, which LLVM compiles for any processor: to one register and one instruction with AVX-512, to
several elsewhere. In compiled functions, `+ - & | << >>` and comparisons work on lanes; an integer on either side is
used for all of them. Arithmetic is modulo 2^64, and comparisons are unsigned. A comparison gives a mask.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic, lower_builtin, models, register_model, type_callable

from vidpress.model.numba_internals import array_struct, call_llvm

NUM_LANES = 8

_BIT, _BYTE, _INT32, _INT64 = (ir.IntType(bits) for bits in (1, 8, 32, 64))
_VECTOR = ir.VectorType(_INT64, NUM_LANES)
_BITS = ir.VectorType(_BIT, NUM_LANES)
_POINTERS = ir.VectorType(_BYTE.as_pointer(), NUM_LANES)
_ALL = ir.Constant(_BITS, [1] * NUM_LANES)


class _LanesType(types.Type):
    def __init__(self) -> None:
        super().__init__(name=f"lanes({NUM_LANES})")


class _MaskType(types.Type):
    def __init__(self) -> None:
        super().__init__(name=f"mask({NUM_LANES})")


_LANES, _MASK = _LanesType(), _MaskType()


@register_model(_LanesType)
class _LanesModel(models.PrimitiveModel):
    def __init__(self, manager: Any, numba_type: types.Type):
        super().__init__(manager, numba_type, _VECTOR)


@register_model(_MaskType)
class _MaskModel(models.PrimitiveModel):
    def __init__(self, manager: Any, numba_type: types.Type):
        super().__init__(manager, numba_type, _BITS)


def _broadcast(context, builder, values, numba_types):
    """Return each value in all lanes, unless it is lanes already."""
    return [
        value
        if isinstance(numba_type, _LanesType)
        else _splat(builder, context.cast(builder, value, numba_type, types.uint64))
        for value, numba_type in zip(values, numba_types, strict=True)
    ]


def _splat(builder, value):
    undefined = ir.Constant(ir.VectorType(value.type, NUM_LANES), ir.Undefined)
    first = builder.insert_element(undefined, value, ir.Constant(_INT32, 0))
    return builder.shuffle_vector(first, undefined, ir.Constant(ir.VectorType(_INT32, NUM_LANES), [0] * NUM_LANES))


def _define_operator(function, result, emit):
    @type_callable(function)
    def typer(_context):
        def type_of(a, b):
            operands = {type(a), type(b)}
            if _LanesType in operands and all(isinstance(each, _LanesType | types.Integer) for each in (a, b)):
                return result
            return None

        return type_of

    def lower(context, builder, signature, arguments):
        return emit(builder, *_broadcast(context, builder, arguments, signature.args))

    for operands in ((_LanesType, _LanesType), (_LanesType, types.Integer), (types.Integer, _LanesType)):
        lower_builtin(function, *operands)(lower)


def _comparison(sign):
    return lambda builder, a, b: builder.icmp_unsigned(sign, a, b)


for _function, _emit in {
    operator.add: lambda builder, a, b: builder.add(a, b),
    operator.sub: lambda builder, a, b: builder.sub(a, b),
    operator.and_: lambda builder, a, b: builder.and_(a, b),
    operator.or_: lambda builder, a, b: builder.or_(a, b),
    operator.lshift: lambda builder, a, b: builder.shl(a, b),
    operator.rshift: lambda builder, a, b: builder.lshr(a, b),
}.items():
    _define_operator(_function, _LANES, _emit)
for _function, _sign in {operator.lt: "<", operator.ge: ">=", operator.eq: "=="}.items():
    _define_operator(_function, _MASK, _comparison(_sign))


@type_callable(operator.or_)
def _type_either(_context):
    return lambda a, b: _MASK if isinstance(a, _MaskType) and isinstance(b, _MaskType) else None


@lower_builtin(operator.or_, _MaskType, _MaskType)
def _either(_context, builder, _signature, arguments):
    return builder.or_(*arguments)


def _item(context, builder, array_type, array, index_type, index):
    """Return the address of an item of a one-dimensional array, or of a two-dimensional one's first row."""
    data = array_struct(context, builder, array_type, array).data
    return builder.gep(data, [context.cast(builder, index, index_type, types.intp)])


_instruction: Callable[..., Any] = intrinsic


@_instruction
def lanes(_context, value):
    """Return an integer in all lanes."""

    def generate(context, builder, signature, arguments):
        (value,) = _broadcast(context, builder, arguments, signature.args)
        return value

    return _LANES(value), generate


@_instruction
def lane_numbers(_context):
    """Return 0 in the first lane, 1 in the second, and so on."""
    numbers = ir.Constant(_VECTOR, list(range(NUM_LANES)))
    return _LANES(), lambda _context, _builder, _signature, _arguments: numbers


@_instruction
def multiply(_context, a, b):
    """Return the products, of 64 bits, of the lower 32 bits of each lane."""

    def generate(_context, builder, _signature, arguments):
        low = ir.Constant(_VECTOR, [(1 << 32) - 1] * NUM_LANES)
        return builder.mul(*(builder.and_(argument, low) for argument in arguments))

    return _LANES(a, b), generate


@_instruction
def select(_context, mask, a, b):
    """Return `a` where the mask is set, else `b`; either may be an integer."""

    def generate(context, builder, signature, arguments):
        return builder.select(arguments[0], *_broadcast(context, builder, arguments[1:], signature.args[1:]))

    return _LANES(mask, a, b), generate


@_instruction
def to_bits(_context, mask):
    """Return an integer with a bit for each lane, the first lane's the lowest: 0 if the mask is set nowhere."""

    def generate(_context, builder, _signature, arguments):
        return builder.zext(builder.bitcast(arguments[0], ir.IntType(NUM_LANES)), _INT64)

    return types.uint64(mask), generate


@_instruction
def count(_context, mask):
    """Return in how many lanes the mask is set."""

    def generate(_context, builder, _signature, arguments):
        return builder.zext(builder.ctpop(builder.bitcast(arguments[0], ir.IntType(NUM_LANES))), _INT64)

    return types.uint64(mask), generate


@_instruction
def reverse_bytes(_context, values):
    """Return each lane with its eight bytes in reverse order."""

    def generate(_context, builder, _signature, arguments):
        return call_llvm(builder, f"bswap.v{NUM_LANES}i64", _VECTOR, *arguments)

    return _LANES(values), generate


@_instruction
def load(_context, array, index):
    """Return the items of a uint64 array from `index` on."""

    def generate(context, builder, signature, arguments):
        place = _item(context, builder, signature.args[0], arguments[0], signature.args[1], arguments[1])
        return builder.load(builder.bitcast(place, _VECTOR.as_pointer()), align=8)

    return _LANES(array, index), generate


@_instruction
def store(_context, array, index, values):
    """Write lanes to a one-dimensional array from `index` on: of each lane, the bits that fit into an item."""

    def generate(context, builder, signature, arguments):
        bits = signature.args[0].dtype.bitwidth
        place = _item(context, builder, signature.args[0], arguments[0], signature.args[1], arguments[1])
        items = ir.VectorType(ir.IntType(bits), NUM_LANES)
        value = arguments[2] if bits == 64 else builder.trunc(arguments[2], items)
        builder.store(value, builder.bitcast(place, items.as_pointer()), align=bits // 8)
        return context.get_dummy_value()

    return types.void(array, index, values), generate


@_instruction
def load_column(_context, array, index):
    """Return what uint32[NUM_LANES, n] holds at `index` of each row."""

    def generate(context, builder, signature, arguments):
        item = _item(context, builder, signature.args[0], arguments[0], signature.args[1], arguments[1])
        row = builder.bitcast(item, _BYTE.as_pointer())
        stride = builder.extract_value(array_struct(context, builder, signature.args[0], arguments[0]).strides, 0)
        column = ir.Constant(ir.VectorType(_INT32, NUM_LANES), ir.Undefined)
        for lane in range(NUM_LANES):
            value = builder.load(builder.bitcast(row, _INT32.as_pointer()))
            column = builder.insert_element(column, value, ir.Constant(_INT32, lane))
            row = builder.gep(row, [stride], source_etype=_BYTE)
        return builder.zext(column, _VECTOR)

    return _LANES(array, index), generate


@_instruction
def gather(_context, array, index):
    """Return the 64 bits, little endian, that begin with the items of an array at the lanes' indices."""

    def generate(context, builder, signature, arguments):
        data = array_struct(context, builder, signature.args[0], arguments[0]).data
        item_type = context.get_data_type(signature.args[0].dtype)
        places = builder.bitcast(builder.gep(_splat(builder, data), [arguments[1]], source_etype=item_type), _POINTERS)
        nothing = ir.Constant(_VECTOR, ir.Undefined)
        return call_llvm(builder, f"masked.gather.v{NUM_LANES}i64.v{NUM_LANES}p0", _VECTOR, places, _ALL, nothing)

    return _LANES(array, index), generate


@_instruction
def compress(_context, values, mask):
    """Return the lower 32 bits of the lanes where the mask is set, from the first lane on; the rest is undefined."""

    def generate(_context, builder, _signature, arguments):
        items = ir.VectorType(_INT32, NUM_LANES)
        low = builder.trunc(arguments[0], items)
        nothing = ir.Constant(items, ir.Undefined)
        chosen = call_llvm(builder, f"experimental.vector.compress.v{NUM_LANES}i32", items, low, arguments[1], nothing)
        return builder.zext(chosen, _VECTOR)

    return _LANES(values, mask), generate
