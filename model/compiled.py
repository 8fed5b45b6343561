"""How the project's loops are compiled: by Numba, at their first call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba
from llvmlite import ir
from numba.core import cgutils


def jit(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile a function that releases the GIL, and keep the machine code on disk where a folder can be written.

    Sums are in the order in which they are written, and products are rounded before they are added: without
    `fastmath`, Numba leaves LLVM no liberty. So what is compiled does the same arithmetic on every processor.

    Where neither the package's folder nor the user's cache can be, as in a read-only image, each process compiles anew.
    """
    return _compile(function)


def reordered(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile as `jit` does, but let sums be in any order: faster, and not the same on every processor."""
    return _compile(function, fastmath={"reassoc"})


def _compile(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    try:
        return numba.njit(nogil=True, cache=True, **options)(function)
    except RuntimeError:
        return numba.njit(nogil=True, **options)(function)


def call_llvm(builder: ir.IRBuilder, name: str, result: ir.Type, *arguments: ir.Value) -> ir.Value:
    """Call one of LLVM's own functions, `llvm.{name}`."""
    signature = ir.FunctionType(result, [argument.type for argument in arguments])
    return builder.call(cgutils.get_or_insert_function(builder.module, signature, f"llvm.{name}"), arguments)
