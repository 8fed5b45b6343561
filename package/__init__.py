"""Learned compression of video features: `vidpress.model`, `vidpress.transforms`, `vidpress.pipeline`."""

from __future__ import annotations

import importlib.metadata


def __getattr__(name: str) -> str:
    if name == "__version__":
        return importlib.metadata.version("vidpress")
    raise AttributeError(f"module 'vidpress' has no attribute {name!r}")
