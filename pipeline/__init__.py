"""The jobs that a user starts; argument parsing lives here only."""

import os
import sys

from vidpress.pipeline.launching import reporting


def _module_run() -> str | None:
    """Return the name in this package of the module that `python -m` runs in this process, or None.

    While Python looks for a module that is run by `-m`, that is its `sys.argv[0]`, and `sys.orig_argv` has the name.
    """
    name = sys.orig_argv[-len(sys.argv)] if sys.argv[:1] == ["-m"] else ""
    _, found, module = name.rpartition(f"{__name__}.")
    return module if found else None


def _try_import(command: str) -> None:
    """Import a command's module as `vidpress COMMAND` does: if a library is missing, the same line says so.

    Python imports it once more to run it. All that it needs is loaded then.
    """
    from vidpress.pipeline.launching import cli

    with reporting.explained_errors(f"vidpress {command}"):
        cli.imported(command)
    del sys.modules[f"{__name__}.{command}"]


# Done here because libraries log, or are missing, while they are imported: before any function of a command is called.
_module = _module_run()
if _module or reporting.COMMAND_VARIABLE in os.environ:
    reporting.quiet_libraries()
if _module and "." not in _module:  # a command, and no worker
    _try_import(_module)
