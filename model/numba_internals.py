"""What uses Numba's internals, which may change with any version: pyproject.toml says which versions this works with.

Everything else uses Numba's documented modules. `compiled` compiles the project's loops.
"""

from __future__ import annotations

import contextlib
import hashlib
import pickle
from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba.core import cgutils
from numba.core.caching import FunctionCache, IndexDataCacheFile, NullCache
from numba.core.registry import CPUDispatcher

Loop = CPUDispatcher


def keep_machine_code(loop: Any, say_that_it_compiles: Callable[[], None]) -> None:
    """Let a loop find its machine code on disk, and save it there.

    Machine code that was cut or changed is compiled again, too, and replaced. If neither the package's folder nor the
    user's cache can be written, as in a read-only image, each process compiles again.
    """
    try:
        loop._cache = _Cache(loop.py_func, say_that_it_compiles)
    except (RuntimeError, OSError):
        loop._cache = _NoCache(say_that_it_compiles)


class _CheckedFile(IndexDataCacheFile):
    """Numba's file of machine code, with a checksum before it: if it is damaged, it counts as missing."""

    def _save_data(self, name: str, data: Any) -> None:
        content = self._dump(data)
        with self._open_for_write(self._data_path(name)) as file:
            file.write(hashlib.sha256(content).digest() + content)

    def _load_data(self, name: str) -> Any:
        with open(self._data_path(name), "rb") as file:
            checksum, content = file.read(hashlib.sha256().digest_size), file.read()
        return pickle.loads(content) if hashlib.sha256(content).digest() == checksum else None


class _Cache(FunctionCache):
    """Numba's cache, which may fail: whatever is wrong with it, the function is compiled."""

    def __init__(self, function: Callable[..., Any], say_that_it_compiles: Callable[[], None]) -> None:
        super().__init__(function)
        stamp = self._impl.locator.get_source_stamp()
        self._cache_file = _CheckedFile(self._cache_path, self._impl.filename_base, stamp)
        self._say = say_that_it_compiles

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        try:
            found = super().load_overload(sig, target_context)
        except Exception:  # unpickling what was cut or changed can raise anything
            found = None
            with contextlib.suppress(OSError):
                self.flush()
        if found is None:
            self._say()
        return found

    def save_overload(self, sig: Any, data: Any) -> None:
        with contextlib.suppress(OSError):  # a full disk, a folder that became read-only
            super().save_overload(sig, data)


class _NoCache(NullCache):
    """A cache that keeps nothing."""

    def __init__(self, say_that_it_compiles: Callable[[], None]) -> None:
        self._say = say_that_it_compiles

    def load_overload(self, sig: Any, target_context: Any) -> None:
        self._say()


def call_llvm(builder: ir.IRBuilder, name: str, result: ir.Type, *arguments: ir.Value) -> ir.Value:
    """Call one of LLVM's own functions, `llvm.{name}`."""
    signature = ir.FunctionType(result, [argument.type for argument in arguments])
    return builder.call(cgutils.get_or_insert_function(builder.module, signature, f"llvm.{name}"), arguments)


def array_struct(context: Any, builder: ir.IRBuilder, array_type: Any, array: ir.Value) -> Any:
    """Return an array's parts: `data`, its first item's address, and `strides`."""
    return context.make_array(array_type)(context, builder, array)
