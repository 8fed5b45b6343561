"""How the project's loops are compiled: by Numba, at their first call."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import logging
import pickle
from collections.abc import Callable
from typing import Any

import numba
from llvmlite import ir
from numba.core import cgutils
from numba.core.caching import FunctionCache, IndexDataCacheFile, NullCache

_log = logging.getLogger("vidpress")


def jit(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile a function that releases the GIL, and keep the machine code on disk where a folder can be written.

    Sums are in the order in which they are written, and products are rounded before they are added: without
    `fastmath`, Numba leaves LLVM no liberty. So what is compiled does the same arithmetic on every processor.

    Where neither the package's folder nor the user's cache can be, as in a read-only image, each process compiles anew.
    Machine code on disk that was cut or changed is compiled anew, too, and replaced.
    """
    return _compile(function)


def reordered(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile as `jit` does, but let sums be in any order: faster, and not the same on every processor."""
    return _compile(function, fastmath={"reassoc"})


def _compile(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    dispatcher: Any = numba.njit(nogil=True, **options)(function)
    try:
        dispatcher._cache = _Cache(function)
    except (RuntimeError, OSError):
        dispatcher._cache = _NoCache()
    return dispatcher


@functools.cache
def _say() -> None:
    """Say once in a process why it takes long to begin."""
    _log.warning("Compiling for this processor, which takes some 20 s where it was not done before.")


class _CheckedFile(IndexDataCacheFile):
    """Numba's file of machine code, with a checksum before it: what is damaged is not there."""

    def _save_data(self, name: str, data: Any) -> None:
        content = self._dump(data)
        with self._open_for_write(self._data_path(name)) as file:
            file.write(hashlib.sha256(content).digest() + content)

    def _load_data(self, name: str) -> Any:
        with open(self._data_path(name), "rb") as file:
            checksum, content = file.read(hashlib.sha256().digest_size), file.read()
        return pickle.loads(content) if hashlib.sha256(content).digest() == checksum else None


class _Cache(FunctionCache):
    """Numba's cache, which is only ever a help: whatever is wrong with it, the function is compiled."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__(function)
        stamp = self._impl.locator.get_source_stamp()
        self._cache_file = _CheckedFile(self._cache_path, self._impl.filename_base, stamp)

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        try:
            found = super().load_overload(sig, target_context)
        except Exception:  # unpickling what was cut or changed can raise anything
            found = None
            with contextlib.suppress(OSError):
                self.flush()
        if found is None:
            _say()
        return found

    def save_overload(self, sig: Any, data: Any) -> None:
        with contextlib.suppress(OSError):  # a full disk, a folder that became read-only
            super().save_overload(sig, data)


class _NoCache(NullCache):
    """Where nothing can be kept."""

    def load_overload(self, sig: Any, target_context: Any) -> None:
        _say()


def call_llvm(builder: ir.IRBuilder, name: str, result: ir.Type, *arguments: ir.Value) -> ir.Value:
    """Call one of LLVM's own functions, `llvm.{name}`."""
    signature = ir.FunctionType(result, [argument.type for argument in arguments])
    return builder.call(cgutils.get_or_insert_function(builder.module, signature, f"llvm.{name}"), arguments)
