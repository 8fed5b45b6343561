"""Objects of Google Cloud Storage, by `gs://BUCKET/NAME`, through Google's own client.

Requests that are throttled, fail or break off are tried again for two minutes.
"""

from __future__ import annotations

import base64
import contextlib
import functools
import os
import uuid
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, BinaryIO

from vidpress.model.errors import VidpressError
from vidpress.model.extras import MissingLibraryError, missing
from vidpress.model.files.uris import PathError

if TYPE_CHECKING:
    from google.cloud.storage import Blob, Client

# What one request to Cloud Storage fetches at least: two row groups of 4096 codes or so. By the client's own 40 MiB, a
# shuffled epoch would fetch each shard many times over.
_GCS_CHUNK_SIZE = 2**20

# The key of an object's metadata that tells one upload of it from another.
_UPLOAD_KEY = "vidpress-upload"
_CONTENT_TYPE = "application/octet-stream"


class UnreachableError(VidpressError, OSError):
    """Cloud Storage that fails, or does not answer, for longer than it is worth trying."""


def is_object(uri: str) -> bool:
    """Return whether a path or URI, as `uris.normalized` gives it, is of Cloud Storage."""
    return uri.startswith("gs://")


def open_input(uri: str) -> BinaryIO:
    """Open an object for reading; it can be sought."""
    with explained(uri):
        return existing_blob(uri).open("rb", chunk_size=_GCS_CHUNK_SIZE)


def exists(uri: str) -> bool:
    """Return whether there is an object of that name."""
    with explained(uri):
        return blob_of(uri).exists()


def is_folder(uri: str) -> bool:
    """Return whether objects lie under a name."""
    with explained(uri):
        parent = blob_of(f"{uri.rstrip('/')}/")
        found = parent.bucket.list_blobs(prefix=parent.name, max_results=1, retry=_retry())
        return next(iter(found), None) is not None


def list_objects(folder: str, prefix: str) -> Iterator[tuple[str, int, float]]:
    """Yield name, size and time of writing, in seconds since 1970, of the objects in a folder that begin so."""
    with explained(folder):
        parent = blob_of(f"{folder.rstrip('/')}/")
        blobs = list(parent.bucket.list_blobs(prefix=parent.name + prefix, delimiter="/", retry=_retry()))
    for blob in blobs:
        yield blob.name.removeprefix(parent.name), blob.size, blob.updated.timestamp()


def write_new(uri: str, data: bytes) -> None:
    """Write an object that must not exist yet.

    Raises:
      FileExistsError: If it exists.
    """
    with explained(uri):
        from google.api_core import exceptions

        blob = blob_of(uri)
        upload = uuid.uuid4().hex
        blob.metadata = {_UPLOAD_KEY: upload}
        try:
            blob.upload_from_string(data, content_type=_CONTENT_TYPE, if_generation_match=0)
        except exceptions.PreconditionFailed as error:
            # The client tries again when an answer is lost, and what it then finds may be its own first attempt's.
            found = blob.bucket.get_blob(blob.name)
            if found is None or (found.metadata or {}).get(_UPLOAD_KEY) != upload:
                raise FileExistsError(uri) from error


def write(uri: str, data: bytes) -> None:
    """Write an object, in the place of one that is there.

    One that has this content already stays: its readers, who ask for this version of it, would lose it.
    """
    try:
        write_new(uri, data)
    except FileExistsError:
        with explained(uri):
            blob = blob_of(uri)
            found = blob.bucket.get_blob(blob.name)
            if found is None or (found.size, found.crc32c) != (len(data), _crc32c(data)):
                blob.upload_from_string(data, content_type=_CONTENT_TYPE, retry=_retry())


def _crc32c(data: bytes) -> str:
    """Return what Cloud Storage calls an object's CRC-32C."""
    import google_crc32c

    return base64.b64encode(google_crc32c.value(data).to_bytes(4, "big")).decode()


def upload(uri: str, file: BinaryIO) -> None:
    """Write what a file holds, from its beginning, in the place of an object that is there."""
    with explained(uri):
        blob_of(uri).upload_from_file(file, rewind=True, content_type=_CONTENT_TYPE, retry=_retry())


def remove(uri: str) -> None:
    """Remove an object; one that is gone already is no error."""
    with explained(uri):
        from google.api_core import exceptions

        with contextlib.suppress(exceptions.NotFound):
            blob_of(uri).delete(retry=_retry())


def existing_blob(uri: str) -> Blob:
    """Return an object that is there, of one version: its generation goes into all requests.

    Raises:
      FileNotFoundError: If there is none.
    """
    blob = blob_of(uri)
    found = blob.bucket.get_blob(blob.name)
    if found is None:
        raise FileNotFoundError(f"{uri} does not exist.")
    return found


def blob_of(uri: str) -> Blob:
    """Return an object by its URI, whether it is there or not.

    Raises:
      PathError: If the URI names none.
    """
    bucket, _, name = uri.removeprefix("gs://").partition("/")
    if not bucket or not name:
        raise PathError(f"{uri} is no object of Cloud Storage: gs://BUCKET/NAME is.")
    return client().bucket(bucket).blob(name)


def client() -> Client:
    """Return this process's client: its connections do not survive a fork."""
    return _client(os.getpid())


@functools.cache
def _client(_pid: int) -> Client:
    from google.cloud import storage  # type: ignore[attr-defined]

    return storage.Client()


def _retry() -> Any:
    """Return the client's policy of trying again; by itself it only does so where a precondition is given."""
    from google.cloud.storage.retry import DEFAULT_RETRY

    return DEFAULT_RETRY


@contextlib.contextmanager
def explained(uri: str) -> Iterator[None]:
    """Turn the client's errors into ours, with the URI.

    Raises:
      MissingLibraryError: If there is no client.
    """
    try:
        from google.api_core import exceptions
        from google.auth.exceptions import GoogleAuthError
        from google.cloud import storage  # type: ignore[attr-defined]  # noqa: F401, which is what may be missing
    except ImportError as error:  # of a name, if another library of Google's is there
        raise MissingLibraryError(missing(uri, "google-cloud-storage", "read"), name="google.cloud.storage") from error
    try:
        yield
    except (exceptions.Forbidden, exceptions.Unauthorized, GoogleAuthError) as error:
        raise PermissionError(f"{uri} cannot be reached: {error}") from error
    except exceptions.RetryError as error:
        raise UnreachableError(f"{uri} cannot be reached: {error.cause or error}") from error
    except exceptions.GoogleAPIError as error:
        raise UnreachableError(f"{uri} cannot be reached: {error}") from error
