"""The one kind of error that a user can cause, mend, or must know of."""

from __future__ import annotations


class VidpressError(Exception):
    """An error whose message says all: what is wrong, where, and what to do. No traceback is wanted."""
