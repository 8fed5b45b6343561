"""Paths and URIs in one form, whatever a user wrote."""

from __future__ import annotations

import os
import re
import urllib.parse

from vidpress.model.errors import VidpressError

# RFC 3986, section 3.1; `a:b` alone is a name.
_URI = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*|):/")


class PathError(VidpressError, ValueError):
    """A path or URI of a kind that is not supported: the message says which are."""


def normalized(uri: str | os.PathLike[str]) -> str:
    """Return a path or URI in the one form that everything else here takes: a local path, or `gs://BUCKET/NAME`.

    `file:///folder/name` is a local path, as `file:/folder/name` is, `~/name` one in the home folder. Everything else
    is left as it is, relative paths and names with `*` or `[` included.

    Raises:
      PathError: If it is empty, a URI of another kind, or in the home folder of a user that there is none of.
    """
    text = os.fspath(uri)
    if not text:
        raise PathError("An empty path was given: name a file or folder.")
    found = _URI.match(text)
    if found is None or ("://" not in text and os.path.lexists(text)):
        path = os.path.expanduser(text)
        if path.startswith("~") and not os.path.lexists(path):
            raise PathError(f"{text}: there is no user {path[1:].partition('/')[0]}; a file of that name is ./{text}.")
        return path
    scheme = found["scheme"].lower()
    if scheme == "file":
        parts = urllib.parse.urlsplit(text, allow_fragments=False)
        if parts.netloc not in ("", "localhost"):
            raise PathError(f"{text} names a file on {parts.netloc}: for one of this machine write file:///path.")
        return urllib.parse.unquote(text.partition(":")[2].removeprefix(f"//{parts.netloc}"))
    if scheme != "gs":
        raise PathError(
            f"{text}: {scheme}:// is not supported, only local paths and gs:// are. Copy the files there, or mount "
            f"that store as a folder. A file or folder of that name is ./{text}."
        )
    if not text.startswith("gs://"):
        raise PathError(f"{text} is no URI: write gs://BUCKET/NAME.")
    return text
