"""How the project's loops are compiled: by Numba, at their first call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba


def jit(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile a function that releases the GIL, and keep the machine code on disk where a folder can be written.

    Where neither the package's folder nor the user's cache can be, as in a read-only image, each process compiles anew.
    """
    try:
        return numba.njit(nogil=True, cache=True)(function)
    except RuntimeError:
        return numba.njit(nogil=True)(function)
