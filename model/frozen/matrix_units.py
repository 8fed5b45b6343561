"""Products in matrix units (Intel AMX): float32 matrices, split into bfloat16, multiplied more than twice as fast.

A float32 number is nearly the sum of two of bfloat16, `a = a_hi + a_lo`. Of a product of two such sums, the three
greater parts are kept, `a_hi * b_hi + a_lo * b_hi + a_hi * b_lo`, and summed in float32 (Henry, Tang and Heinecke,
"Leveraging the bfloat16 Artificial Intelligence Datatype For Higher-Precision Computations", ARITH 2019). If all `a_lo`
are 0, as for small integers, two parts are enough.

`dense_layers` relies on how the sums are rounded. One instruction, TDPBF16PS, adds 32 products to a sum. According to
Intel's manual (Software Developer's Manual, volume 2), the 16 even ones are summed by fused multiply-adds, and so are
the 16 odd ones, then both sums are added, and the result is added to the sum: each time rounded to the nearest float32,
with denormal numbers treated as 0. In other texts of Intel, the products are added to the sum one by one, which rounds
more; so `has_matrix_units` tries it out.
"""

from __future__ import annotations

import ctypes
import functools
import platform
import sys
from collections.abc import Callable
from typing import Any

import llvmlite.binding
import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from vidpress.model.compiled import compiles_for, jit, reordered
from vidpress.model.numba_internals import array_struct, call_llvm

# For larger numbers, the nearest bfloat16 might be infinity.
MAX_INPUT = 2.0**120

# Tiles hold 16 rows of 64 bytes: 16 x 32 of A, 16 pairs of rows x 16 columns of B, or 16 x 16 float32 sums. A step
# takes 32 rows of A with 32 columns of B over a depth of 32.
_BLOCK = 32
_HALF = _BLOCK // 2
_TILE_BYTES = 1024
_TILE = _HALF, _BLOCK
_STEP_BYTES = 4 * _TILE_BYTES
# This many rows of A stay in the second-level cache while all of B passes.
_ROWS_AT_ONCE = 128
# Sums start again from 0 after this many blocks, and are added: fewer roundings, and so more precise.
_BLOCKS_AT_ONCE = 36
_DEPTH_AT_ONCE = _BLOCKS_AT_ONCE * _BLOCK

_CONFIG = np.zeros(64, np.uint8)
_CONFIG[0] = 1  # palette
_CONFIG[16:32:2] = 64  # bytes a row of tiles 0 to 7
_CONFIG[48:56] = 16  # their rows

_FEATURES = "amx-tile", "amx-bf16"
_SYS_ARCH_PRCTL, _ARCH_REQ_XCOMP_PERM, _XFEATURE_XTILEDATA = 158, 0x1023, 18


@functools.cache
def has_matrix_units() -> bool:
    """Return whether the processor has matrix units that sum as they should, and this process may use them."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return False
    if not compiles_for(*_FEATURES):
        return False
    features = llvmlite.binding.get_host_cpu_features()
    if not all(features.get(feature) for feature in _FEATURES):
        return False
    # Linux saves the tiles only for processes that asked for it.
    if ctypes.CDLL(None).syscall(_SYS_ARCH_PRCTL, _ARCH_REQ_XCOMP_PERM, _XFEATURE_XTILEDATA) != 0:
        return False
    return sums_products_first()


def sums_products_first() -> bool:
    """Return whether an instruction sums its 32 products before it adds them to a sum.

    If they were added to 2^24 one by one, products of 1 would be lost.
    """
    sums = aligned((_HALF, _HALF), np.float32)
    sums[:] = 2.0**24
    ones = aligned(_TILE, np.uint16)
    ones[:] = 0x3F80
    _add_once(sums, ones, _CONFIG)
    return bool((sums == 2.0**24 + _BLOCK).all())


def compile_ahead() -> None:
    """Compile what layers run, without running it: for other processors than this one."""
    matrix, outputs = (np.zeros((1, 1), np.float32) for _ in range(2))
    bias = np.zeros(1, np.float32)
    tiles, sums = aligned((1, 1, 4, *_TILE), np.uint16), aligned((_BLOCK, _BLOCK), np.float32)
    for function, arguments in (
        (_add_once, (sums, aligned(_TILE, np.uint16), _CONFIG)),
        (_split_squares, (matrix,)),
        (_split_kernel, (matrix, tiles)),
        (_multiply, (matrix, tiles, bias, tiles, sums, sums, _CONFIG, outputs)),
    ):
        function.compile(tuple(map(numba.typeof, arguments)))  # type: ignore[attr-defined]


def num_roundings(depth: int) -> int:
    """Return how many roundings a product goes through at most on its way into a sum of `multiply`, over a depth."""
    blocks = -(-depth // _BLOCK)
    # Half of an instruction's products, and the other half's sum; three instructions a block; the sums of blocks.
    return _HALF + 1 + 3 * min(blocks, _BLOCKS_AT_ONCE) + -(-blocks // _BLOCKS_AT_ONCE)


def split_kernel(kernel: np.ndarray) -> np.ndarray:
    """Return the tiles of a kernel float32[in, out], for `multiply`."""
    depth, columns = (-(-size // _BLOCK) for size in kernel.shape)
    # For each block of columns, and each block of its rows: two tiles of b_hi, then two of b_lo.
    tiles = aligned((columns, depth, 4, *_TILE), np.uint16)
    tiles[:] = 0  # where the kernel ends within a block
    _split_kernel(np.ascontiguousarray(kernel), tiles)
    return tiles


def multiply(x: np.ndarray, tiles: np.ndarray, bias: np.ndarray) -> np.ndarray | None:
    """Return `relu(x @ kernel + bias)` float32[n, out] of `x` float32[n, in], or None if a value cannot be split.

    These values are NaN, and numbers whose magnitude is `MAX_INPUT` or more.
    """
    columns, depth = tiles.shape[:2]
    rows = min(_ROWS_AT_ONCE, max(-(-len(x) // _BLOCK), 1) * _BLOCK)
    inputs = aligned((rows // _BLOCK, min(depth, _BLOCKS_AT_ONCE), 4, *_TILE), np.uint16)
    sums = aligned((rows, columns * _BLOCK), np.float32)
    part = aligned((_BLOCK, _BLOCK), np.float32)
    outputs = np.empty((len(x), len(bias)), np.float32)
    fits = _multiply(np.ascontiguousarray(x), tiles, bias, inputs, sums, part, _CONFIG, outputs)
    return outputs if fits else None


def aligned(shape: tuple[int, ...], dtype: type) -> np.ndarray:
    """Return an uninitialised array that begins with a cache line, as tiles should."""
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


def split_norms(rows: np.ndarray) -> np.ndarray:
    """Return upper bounds of the norms of the parts that splitting makes of each row of float32[n, k].

    Returns:
      float64[n, 2]: of the low parts, and of what the high and the low parts leave out.
    """
    return np.sqrt(_split_squares(np.ascontiguousarray(rows))) * (1 + 2.0**-20)


@reordered
def _split_squares(rows):
    squares = np.empty((len(rows), 2))
    for row in range(len(rows)):
        low_square, rest_square = np.float64(0), np.float64(0)
        for value in rows[row]:
            rest = value - _float32(_bfloat16(value))
            low = _float32(_bfloat16(rest))
            rest -= low
            low_square += np.float64(low) * np.float64(low)
            rest_square += np.float64(rest) * np.float64(rest)
        squares[row] = low_square, rest_square
    return squares


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
    """Split the columns of `x` from `first` on, in blocks of `_BLOCK`.

    Returns whether all are numbers that can be split, and whether any low part is not 0.
    """
    fits, low = True, np.uint16(0)
    for row in range(len(x)):
        half, place = row % _BLOCK // _HALF, row % _HALF
        for block in range(tiles.shape[1]):
            start = first + _BLOCK * block
            values = x[row, start : start + _BLOCK]
            hi, lo = tiles[row // _BLOCK, block, half, place], tiles[row // _BLOCK, block, 2 + half, place]
            for column in range(len(values)):
                value = values[column]
                fits &= abs(value) < MAX_INPUT
                hi[column] = _bfloat16(value)
                lo[column] = _bfloat16(value - _float32(hi[column]))
                low |= lo[column]
            hi[len(values) :] = 0
            lo[len(values) :] = 0
    return fits, low != 0


@jit
def _multiply(x, kernel, bias, inputs, sums, part, config, outputs):
    depth = kernel.shape[1]
    fits = True
    for first_row in range(0, len(x), len(sums)):
        rows = x[first_row : first_row + len(sums)]
        for first in range(0, depth, inputs.shape[1]):
            blocks = min(inputs.shape[1], depth - first)
            fitting, has_low = _split_inputs(rows, _BLOCK * first, inputs[:, :blocks])
            fits &= fitting
            _multiply_tiles(inputs, blocks, has_low, kernel, first, sums, part, config)
        for row in range(len(rows)):
            for column in range(len(bias)):
                value = sums[row, column] + bias[column]
                outputs[first_row + row, column] = value if value > 0 else np.float32(0)
    return fits


@jit
def _multiply_tiles(a, depth, has_low, b, first, sums, part, config):
    """Add the products of A's blocks with those of B from `first` on to the sums; if `first` is 0, the sums begin.

    Tiles 0 to 3 hold sums, 4 and 5 two tiles of A, one above the other, 6 and 7 two of B, side by side.
    """
    _load_config(config)
    for column in range(b.shape[0]):
        for row in range(a.shape[0]):
            _zero(0)
            _zero(1)
            _zero(2)
            _zero(3)
            for block in range(depth):
                at_a = _STEP_BYTES * (row * a.shape[1] + block)
                at_b = _STEP_BYTES * (column * b.shape[1] + first + block)
                _load(6, b, at_b, 64)
                _load(7, b, at_b + _TILE_BYTES, 64)
                if has_low:  # a_lo * b_hi
                    _load(4, a, at_a + 2 * _TILE_BYTES, 64)
                    _load(5, a, at_a + 3 * _TILE_BYTES, 64)
                    _add_four_products()
                # a_hi * b_hi
                _load(4, a, at_a, 64)
                _load(5, a, at_a + _TILE_BYTES, 64)
                _add_four_products()
                # a_hi * b_lo
                _load(6, b, at_b + 2 * _TILE_BYTES, 64)
                _load(7, b, at_b + 3 * _TILE_BYTES, 64)
                _add_four_products()
            if first == 0:
                stride = 4 * sums.shape[1]
                _store_sums(sums, 4 * _BLOCK * column + stride * _BLOCK * row, stride)
            else:
                _store_sums(part, 0, 4 * _BLOCK)
                for i in range(_BLOCK):
                    total, new = sums[_BLOCK * row + i, _BLOCK * column :], part[i]
                    for j in range(len(new)):
                        total[j] += new[j]
    _release()


@jit
def _store_sums(sums, at, stride):
    below = at + stride * _HALF
    _store(0, sums, at, stride)
    _store(1, sums, at + 64, stride)
    _store(2, sums, below, stride)
    _store(3, sums, below + 64, stride)


@jit
def _add_once(sums, tile, config):
    _load_config(config)
    _load(0, sums, 0, 64)
    _load(4, tile, 0, 64)
    _load(6, tile, 0, 64)
    _add_products(0, 4, 6)
    _store(0, sums, 0, 64)
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
    return builder.bitcast(array_struct(context, builder, array_type, array).data, ir.IntType(8).as_pointer())


def _tile_instruction(name, *tiles):
    """Compile an instruction for tiles that are named by their numbers."""

    def generate(context, builder, signature, _arguments):
        call_llvm(builder, f"x86.{name}", ir.VoidType(), *map(_tile, signature.args))
        return context.get_dummy_value()

    return types.void(*tiles), generate


def _memory_instruction(name, tile, array, offset, stride):
    """Compile an instruction for a tile and an array with its rows: the offset of the first, and their distance."""

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
