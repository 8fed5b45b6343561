"""A progress bar for a job that runs in the launcher's own process; elsewhere `advance` does nothing."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from tqdm import tqdm

_bar: tqdm | None = None


@contextlib.contextmanager
def bar(total: int, unit: str) -> Iterator[None]:
    """Show a progress bar while a job runs; only on a terminal.

    Args:
      total: What the bar counts to.
      unit: Of what: 'B' or 'videos'.
    """
    global _bar
    with tqdm(total=total, unit=unit, unit_scale=True, disable=None, leave=False) as shown:
        _bar = shown
        try:
            yield
        finally:
            _bar = None


def advance(amount: int) -> None:
    """Move the bar on, if one is shown."""
    if _bar is not None:
        _bar.update(amount)
