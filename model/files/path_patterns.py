"""The language of patterns for files, as a shell has it: `*`, `?`, `[...]`, `**` and `{a,b}`."""

from __future__ import annotations

import fnmatch
import functools
import re
from collections.abc import Callable

MAX_ALTERNATIVES = 10_000

_MAGIC = re.compile(r"[*?[]")
_BRACES = re.compile(r"\{([^{}]*,[^{}]*)\}")


def is_magic(segment: str) -> bool:
    """Return whether a name or pattern has one of `*`, `?` and `[`."""
    return _MAGIC.search(segment) is not None


def literal_prefix(pattern: str) -> str:
    """Return what all matches of a pattern without `{a,b}` begin with."""
    return _MAGIC.split(pattern, maxsplit=1)[0]


def alternatives(pattern: str, exists: Callable[[str], bool]) -> list[str]:
    """Return the patterns that one with `{a,b}` in it stands for, each once.

    Args:
      pattern: The pattern.
      exists: Tells whether there is something of a name. Braces in one that there is are meant as they are.

    Raises:
      ValueError: If there are more than `MAX_ALTERNATIVES`.
    """
    # With each pattern, from where on its braces are still to be looked at.
    waiting = [(pattern, 0)]
    found: dict[str, None] = {}
    while waiting:
        text, start = waiting.pop()
        braces = _BRACES.search(text, start)
        if braces is None:
            found[text] = None
        elif exists(text[: text.find("/", braces.end())] if "/" in text[braces.end() :] else text):
            waiting.append((text, braces.end()))
        else:
            parts = reversed(braces[1].split(","))
            waiting += [(text[: braces.start()] + part + text[braces.end() :], 0) for part in parts]
        if len(waiting) + len(found) > MAX_ALTERNATIVES:
            raise ValueError(f"{pattern[:100]} stands for more than {MAX_ALTERNATIVES:,} patterns: name fewer.")
    return list(found)


@functools.lru_cache(maxsize=256)
def segment_matcher(segment: str) -> Callable[[str], bool]:
    """Return what tells whether a name matches a part of a pattern; hidden ones do if it begins with a dot, too."""
    # `fnmatch` knows `[!a]`, a shell `[^a]` as well.
    match = re.compile(fnmatch.translate(segment.replace("[^", "[!"))).match
    if segment.startswith("."):
        return lambda name: match(name) is not None
    return lambda name: not name.startswith(".") and match(name) is not None


def matches(pattern: str, name: str) -> bool:
    """Return whether a whole name, with its folders, matches a pattern without `{a,b}`."""
    parts = pattern.split("/")
    if parts[-1] == "**":
        parts.append("*")
    return _match_segments(parts, name.split("/"))


def _match_segments(parts: list[str], names: list[str]) -> bool:
    if not parts:
        return not names
    if not names:
        return False
    if parts[0] == "**":
        if parts[1] == "**":
            return _match_segments(parts[1:], names)
        inner = not names[0].startswith(".") and _match_segments(parts, names[1:])
        return inner or _match_segments(parts[1:], names)
    return segment_matcher(parts[0])(names[0]) and _match_segments(parts[1:], names[1:])
