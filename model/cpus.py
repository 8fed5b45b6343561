"""How many CPUs this process may use."""

from __future__ import annotations

import math
import os
import pathlib

# The limit that a container's runtime sets: microseconds of CPU time in each period, or "max", and the period.
_LIMIT = pathlib.Path("/sys/fs/cgroup/cpu.max")


def num_cpus() -> int:
    """Return how many CPUs this process may use: fewer than the machine has, if a container or a mask limits them."""
    # macOS has no masks.
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = _LIMIT.read_text().split()
        return max(1, min(allowed, math.ceil(int(quota) / int(period))))
    except (OSError, ValueError):  # there is no such limit
        return allowed
