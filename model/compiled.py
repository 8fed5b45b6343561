"""How the project's loops are compiled: by Numba, when they are first called."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import Any

import llvmlite.binding
import numba

from vidpress.model.numba_internals import keep_machine_code

_log = logging.getLogger("vidpress")

# The features that LLVM's names of kinds of processors stand for, as far as loops are chosen by them.
_FEATURES_OF = {"x86-64-v3": {"avx2"}, "x86-64-v4": {"avx2", "avx512vl"}}


def jit(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile a function that releases the GIL, and keep the machine code on disk if there is a writable folder.

    Sums are in the order in which they are written, and products are rounded before they are added: without
    `fastmath`, Numba does not let LLVM change this. So compiled code does the same arithmetic on every processor.
    """
    return _compile(function)


def reordered(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile as `jit` does, but let sums be in any order: faster, and not the same on every processor."""
    return _compile(function, fastmath={"reassoc"})


def _compile(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    loop: Any = numba.njit(nogil=True, **options)(function)
    keep_machine_code(loop, _say)
    return loop


@functools.cache
def _say() -> None:
    """Log once in a process why it takes long to begin."""
    _log.warning("Compiling for this processor, which takes about 20 s the first time.")


def compiles_for(*features: str) -> bool:
    """Return whether Numba compiles for a processor that has all of some features, by LLVM's names.

    It is this processor unless NUMBA_CPU_NAME and NUMBA_CPU_FEATURES name another. For most names, the features are not
    known here: then the answer is no.
    """
    name, named = numba.config.CPU_NAME, numba.config.CPU_FEATURES  # type: ignore[attr-defined]
    if name is None and named is None:
        host = llvmlite.binding.get_host_cpu_features()
        return all(host.get(feature) for feature in features)
    added = {feature.removeprefix("+") for feature in (named or "").split(",")}
    return added | _FEATURES_OF.get(name, set()) >= set(features)
