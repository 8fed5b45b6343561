"""The jobs that a user starts; argument parsing lives here only."""

import os
import sys

from vidpress.pipeline.launching import reporting


def _is_part_of_a_command() -> bool:
    """Return whether this process runs `python -m vidpress.pipeline.COMMAND`, or was started by a command.

    While Python looks for a module that is run by `-m`, that is its `sys.argv[0]`, and `sys.orig_argv` has the name.
    """
    is_run = sys.argv[:1] == ["-m"] and f"{__name__}." in sys.orig_argv[-len(sys.argv)]
    return is_run or reporting.COMMAND_VARIABLE in os.environ


# Done here because the libraries log while they are imported, which is before any function of a command is called.
if _is_part_of_a_command():
    reporting.quiet_libraries()
