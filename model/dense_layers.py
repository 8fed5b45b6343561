"""Dense layers with a ReLU: in NumPy, and more than twice as fast on processors with matrix units (Intel AMX).

Those multiply in bfloat16. A float32 number is nearly the sum of two of bfloat16, `a = a_hi + a_lo`, to within
`2**-18 * |a|`. Of a product of two such sums, the three greater parts are kept, `a_hi * b_hi + a_lo * b_hi + a_hi *
b_lo`, and summed in float32 (Henry, Tang and Heinecke, "Leveraging the bfloat16 Artificial Intelligence Datatype For
Higher-Precision Computations", ARITH 2019).
"""

from __future__ import annotations

import ctypes
import functools
import math
import platform
import sys
from collections.abc import Callable
from typing import Any

import llvmlite.binding
import numba
import numpy as np
from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from vidpress.model.compiled import call_llvm, jit

# Beyond, the nearest bfloat16 might be infinity.
_MAX_INPUT = 2.0**120

# Tiles hold 16 rows of 64 bytes: 16 x 32 of A, 16 pairs of rows x 16 columns of B, or 16 x 16 float32 sums. A step
# takes 32 rows of A with 32 columns of B over a depth of 32.
_BLOCK = 32
_HALF = _BLOCK // 2
_TILE_BYTES = 1024
_TILE = _HALF, _BLOCK
_STEP_BYTES = 4 * _TILE_BYTES
# So much of A stays in the second cache while all of B passes.
_ROWS_AT_ONCE = 128
_DEPTH_AT_ONCE = 36 * _BLOCK

_CONFIG = np.zeros(64, np.uint8)
_CONFIG[0] = 1  # palette
_CONFIG[16:32:2] = 64  # bytes a row of tiles 0 to 7
_CONFIG[48:56] = 16  # their rows

_SYS_ARCH_PRCTL, _ARCH_REQ_XCOMP_PERM, _XFEATURE_XTILEDATA = 158, 0x1023, 18


@functools.cache
def has_matrix_units() -> bool:
    """Return whether `SplitDense` runs here: the processor has matrix units, and this process may use them."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return False
    name, compiled_for = numba.config.CPU_NAME, numba.config.CPU_FEATURES  # type: ignore[attr-defined]
    if (name or compiled_for is not None) and not {"+amx-tile", "+amx-bf16"} <= set((compiled_for or "").split(",")):
        return False  # Numba compiles for another processor
    features = llvmlite.binding.get_host_cpu_features()
    if not (features.get("amx-tile") and features.get("amx-bf16")):
        return False
    # Linux saves the tiles of processes that asked for it.
    return ctypes.CDLL(None).syscall(_SYS_ARCH_PRCTL, _ARCH_REQ_XCOMP_PERM, _XFEATURE_XTILEDATA) == 0


def dense(x: np.ndarray, kernel: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """Return `relu(x @ kernel + bias)`, in the precision of the weights; what is too large becomes infinity or NaN."""
    with np.errstate(over="ignore", invalid="ignore"):
        activations = x @ kernel
        activations += bias
        return np.maximum(activations, 0, out=activations)


class Dense:
    """`dense` in float32 with certain weights, by NumPy.

    Args:
      kernel: float32[in, out].
      bias: float32[out].

    Attributes:
      margin: How far an output may be off, in units of |x| * |the kernel's column|.
    """

    # Sums in any order were seen to lie within a third of it of the exact value; the tests try the matrix products of
    # five kinds of processors.
    margin = 2.0**-20

    def __init__(self, kernel: np.ndarray, bias: np.ndarray):
        self._kernel = kernel
        self._bias = bias

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """Return float32[n, out] for `x` float32[n, in]."""
        return dense(x, self._kernel, self._bias)


class SplitDense(Dense):
    """`Dense` by products of bfloat16.

    Raises:
      RuntimeError: If this processor or process has no use of matrix units (`has_matrix_units`).
    """

    def __init__(self, kernel: np.ndarray, bias: np.ndarray):
        if not has_matrix_units():
            raise RuntimeError("SplitDense needs a processor with AMX, and Linux from 5.16 on: use `dense`.")
        super().__init__(kernel, bias)
        # What is lost are the remainders of a and b, and a_lo * b_lo, each at most 2**-18: never more than the first.
        # Of many products it averages out: in 57 trained networks, whose lower layers add to it, no output of 650
        # million was off by more than a third of the second.
        self.margin = min(2.0**-16, 2.0**-13 / math.sqrt(len(kernel)))
        depth, columns = (-(-size // _BLOCK) for size in kernel.shape)
        # For each block of columns, and of rows of those: two tiles of b_hi, then two of b_lo.
        self._tiles = _aligned((columns, depth, 4, *_TILE), np.uint16)
        self._tiles[:] = 0  # where the kernel ends within a block
        _split_kernel(np.ascontiguousarray(kernel), self._tiles)

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """Return float32[n, out] for `x` float32[n, in]."""
        columns, depth = self._tiles.shape[:2]
        rows = min(_ROWS_AT_ONCE, max(-(-len(x) // _BLOCK), 1) * _BLOCK)
        inputs = _aligned((rows // _BLOCK, min(depth, _DEPTH_AT_ONCE // _BLOCK), 4, *_TILE), np.uint16)
        sums = _aligned((rows, columns * _BLOCK), np.float32)
        activations = np.empty((len(x), len(self._bias)), np.float32)
        if _multiply(np.ascontiguousarray(x), self._tiles, self._bias, inputs, sums, _CONFIG, activations):
            return activations
        return super().__call__(x)


def compile_split_dense() -> None:
    """Compile what `SplitDense` runs, without running it: for processors that this one is none of."""
    x, kernel, activations = (np.zeros((1, 1), np.float32) for _ in range(3))
    bias = np.zeros(1, np.float32)
    tiles, sums = _aligned((1, 1, 4, *_TILE), np.uint16), _aligned((_BLOCK, _BLOCK), np.float32)
    for function, arguments in (
        (_split_kernel, (kernel, tiles)),
        (_multiply, (x, tiles, bias, tiles, sums, _CONFIG, activations)),
    ):
        function.compile(tuple(map(numba.typeof, arguments)))  # type: ignore[attr-defined]


def _aligned(shape: tuple[int, ...], dtype: type) -> np.ndarray:
    """Return an array that begins with a cache line, as tiles should, filled with nothing in particular."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    memory = np.empty(size + 64, np.uint8)
    start = -memory.ctypes.data % 64
    return memory[start : start + size].view(dtype).reshape(shape)


@jit
def _bfloat16(value):
    """Return the bits of the nearest bfloat16, halves to even, of a float32 that is not too large."""
    bits = np.float32(value).view(np.uint32)
    return np.uint16((bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16))


@jit
def _float32(bits):
    return np.uint32(np.uint32(bits) << np.uint32(16)).view(np.float32)


@jit
def _split_kernel(kernel, tiles):
    for row in range(kernel.shape[0]):
        block, pair, odd = row // _BLOCK, row % _BLOCK // 2, row % 2
        for column in range(kernel.shape[1]):
            hi = _bfloat16(kernel[row, column])
            place = 2 * (column % _HALF) + odd
            half = column % _BLOCK // _HALF
            tiles[column // _BLOCK, block, half, pair, place] = hi
            tiles[column // _BLOCK, block, 2 + half, pair, place] = _bfloat16(kernel[row, column] - _float32(hi))


@jit
def _split_inputs(x, first, tiles):
    """Split the columns of `x` from `first` on, `_BLOCK` a block; return whether all are numbers that can be split."""
    fits = True
    for row in range(len(x)):
        half, place = row % _BLOCK // _HALF, row % _HALF
        for block in range(tiles.shape[1]):
            start = first + _BLOCK * block
            values = x[row, start : start + _BLOCK]
            hi, lo = tiles[row // _BLOCK, block, half, place], tiles[row // _BLOCK, block, 2 + half, place]
            for column in range(len(values)):
                value = values[column]
                fits &= abs(value) < _MAX_INPUT
                hi[column] = _bfloat16(value)
                lo[column] = _bfloat16(value - _float32(hi[column]))
            hi[len(values) :] = 0
            lo[len(values) :] = 0
    return fits


@jit
def _multiply(x, kernel, bias, inputs, sums, config, outputs):
    depth = kernel.shape[1]
    fits = True
    for first_row in range(0, len(x), len(sums)):
        rows = x[first_row : first_row + len(sums)]
        for first in range(0, depth, inputs.shape[1]):
            part = inputs[:, : min(inputs.shape[1], depth - first)]
            fits &= _split_inputs(rows, _BLOCK * first, part)
            _multiply_tiles(inputs, part.shape[1], kernel, first, sums, config)
        for row in range(len(rows)):
            for column in range(len(bias)):
                value = sums[row, column] + bias[column]
                outputs[first_row + row, column] = value if value > 0 else np.float32(0)
    return fits


@jit
def _multiply_tiles(a, depth, b, first, sums, config):
    """Add the products of A's blocks with those of B from `first` on to the sums, or begin them where that is 0.

    Tiles 0 to 3 hold sums, 4 and 5 two of A, above one another, 6 and 7 two of B, side by side.
    """
    _load_config(config)
    stride = 4 * sums.shape[1]
    for column in range(b.shape[0]):
        for row in range(a.shape[0]):
            at = 4 * _BLOCK * column + stride * _BLOCK * row
            below = at + stride * _HALF
            if first == 0:
                _zero(0)
                _zero(1)
                _zero(2)
                _zero(3)
            else:
                _load(0, sums, at, stride)
                _load(1, sums, at + 64, stride)
                _load(2, sums, below, stride)
                _load(3, sums, below + 64, stride)
            for block in range(depth):
                at_a = _STEP_BYTES * (row * a.shape[1] + block)
                at_b = _STEP_BYTES * (column * b.shape[1] + first + block)
                # a_lo * b_hi
                _load(4, a, at_a + 2 * _TILE_BYTES, 64)
                _load(5, a, at_a + 3 * _TILE_BYTES, 64)
                _load(6, b, at_b, 64)
                _load(7, b, at_b + _TILE_BYTES, 64)
                _add_four_products()
                # a_hi * b_hi
                _load(4, a, at_a, 64)
                _load(5, a, at_a + _TILE_BYTES, 64)
                _add_four_products()
                # a_hi * b_lo
                _load(6, b, at_b + 2 * _TILE_BYTES, 64)
                _load(7, b, at_b + 3 * _TILE_BYTES, 64)
                _add_four_products()
            _store(0, sums, at, stride)
            _store(1, sums, at + 64, stride)
            _store(2, sums, below, stride)
            _store(3, sums, below + 64, stride)
    _release()


@jit
def _add_four_products():
    _add_products(0, 4, 6)
    _add_products(1, 4, 7)
    _add_products(2, 5, 6)
    _add_products(3, 5, 7)


def _tile(number):
    return ir.Constant(ir.IntType(8), number.literal_value)


def _address(context, builder, array_type, array):
    return builder.bitcast(context.make_array(array_type)(context, builder, array).data, ir.IntType(8).as_pointer())


def _tile_instruction(name, *tiles):
    """Compile an instruction for tiles that are named by their numbers."""

    def generate(context, builder, signature, _arguments):
        call_llvm(builder, f"x86.{name}", ir.VoidType(), *map(_tile, signature.args))
        return context.get_dummy_value()

    return types.void(*tiles), generate


def _memory_instruction(name, tile, array, offset, stride):
    """Compile an instruction for a tile, and an array with its rows: where the first one is, and how far the next."""

    def generate(context, builder, signature, arguments):
        tile, array, *integers = signature.args
        offset, stride = (
            context.cast(builder, value, integer, types.intp)
            for value, integer in zip(arguments[2:], integers, strict=True)
        )
        rows = builder.gep(_address(context, builder, array, arguments[1]), [offset])
        call_llvm(builder, f"x86.{name}", ir.VoidType(), _tile(tile), rows, stride)
        return context.get_dummy_value()

    return types.void(tile, array, offset, stride), generate


_instruction: Callable[..., Any] = intrinsic(prefer_literal=True)


@_instruction
def _load_config(_context, config):
    def generate(context, builder, signature, arguments):
        call_llvm(builder, "x86.ldtilecfg", ir.VoidType(), _address(context, builder, signature.args[0], arguments[0]))
        return context.get_dummy_value()

    return types.void(config), generate


@_instruction
def _load(_context, tile, array, offset, stride):
    return _memory_instruction("tileloadd64", tile, array, offset, stride)


@_instruction
def _store(_context, tile, array, offset, stride):
    return _memory_instruction("tilestored64", tile, array, offset, stride)


@_instruction
def _zero(_context, tile):
    return _tile_instruction("tilezero", tile)


@_instruction
def _add_products(_context, sums, a, b):
    return _tile_instruction("tdpbf16ps", sums, a, b)


@_instruction
def _release(_context):
    return _tile_instruction("tilerelease")
