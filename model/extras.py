"""Libraries that come with an extra of vidpress, and that may not be installed."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from vidpress.model.errors import VidpressError


class MissingLibraryError(VidpressError, ModuleNotFoundError):
    """A library that is not installed: the message says for what it is needed, and which command installs it."""


def missing(doing: str, library: str, extras: str) -> str:
    """Return the message of an error: what needs which library, and the command that installs it.

    Args:
      doing: What needs the library.
      library: Its name, or several names.
      extras: The extras of vidpress that install it, separated by commas; none for what vidpress itself installs.
    """
    return f"{doing} needs {library}: pip install '{f'vidpress[{extras}]' if extras else 'vidpress'}'."


@contextlib.contextmanager
def needed(doing: str, extras: str) -> Iterator[None]:
    """Say what to install if a library is missing that is imported here.

    Args:
      doing: What needs it.
      extras: The extras of vidpress that install it.

    Raises:
      MissingLibraryError: If it is missing.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        library = error.name or ""
        # One that is missing within vidpress is no matter of extras.
        if isinstance(error, MissingLibraryError) or library.partition(".")[0] in ("", "vidpress"):
            raise
        raise MissingLibraryError(missing(doing, library, extras), name=library) from error
