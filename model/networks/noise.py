"""Noise that is a function of a seed, a call and a place: the same on every backend, and computed within other loops.

Keras's own generators give different numbers on each backend, and under XLA on TensorFlow they take half as long as a
network's matrix products.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from keras import ops

# Constants of a hash of 32 bits with little bias (Wellons, "Prospecting for Hash Functions", 2018), as int32.
_FACTORS = (0x21F0AAAD, 0x735A2D97)
_SHIFTS = (16, 15, 15)


def uniform(shape: tuple[Any, ...], seed: int, call: Any) -> Any:
    """Return numbers that are uniform from 0 to 1.

    Args:
      shape: The shape of the result; sizes may be tensors.
      seed: 0 to 2^32 - 1.
      call: int32 scalar. Each call has numbers of its own.

    Returns:
      float32, at least 0 and below 1, multiples of 2^-24.
    """
    places = ops.reshape(ops.arange(math.prod(shape), dtype="int32"), shape)
    key = _hash(_hash(ops.cast(call, "int32")) + np.uint32(seed).astype(np.int32))
    return ops.cast(ops.bitwise_and(_hash(_hash(places) + key), 2**24 - 1), "float32") / 2**24


def _hash(values: Any) -> Any:
    """Return int32 of int32, one to one."""
    values = _folded(values, _SHIFTS[0])
    for factor, shift in zip(_FACTORS, _SHIFTS[1:], strict=True):
        values = _folded(values * np.int32(factor), shift)
    return values


def _folded(values: Any, shift: int) -> Any:
    """Return values with their upper bits added to the lower ones. The mask removes the sign that the shift extends."""
    upper = ops.bitwise_and(ops.right_shift(values, shift), 2 ** (32 - shift) - 1)
    return ops.bitwise_xor(values, upper)
