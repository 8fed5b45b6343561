"""TFRecord files: reading them, also beyond damaged records, and writing them."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Iterable, Iterator
from typing import BinaryIO

from vidpress.model.files import file_kinds
from vidpress.model.files.gzip_stream import GzipError, GzipStream
from vidpress.model.files.record_framing import FOOTER, HEADER, begins_with_a_record, footer_of, header_of

# Protocol buffers have at most 2 GiB; anything longer is not a record.
MAX_PAYLOAD_BYTES = 2**31 - 1

# A record of this size may unpack from a few bytes of a gzip file. A larger one must be at most `MAX_EXPANSION` times
# the bytes that it takes in the file. Features of real videos shrink by a tenth.
MAX_UNPACKED_BYTES = 2**28
MAX_EXPANSION = 16

_PIECE = 1 << 24  # of a large record: no more is allocated than arrives
_GZIP = b"\x1f\x8b"
_GZIP_SUFFIXES = (".gz", ".gzip", ".tgz")


@dataclasses.dataclass(frozen=True)
class Damage:
    """A place in a TFRecord file that cannot be read.

    Attributes:
      offset: Byte offset of the record in the (unpacked) file.
      reason: What is wrong with it.
      ends_file: Whether the rest of the file could not be read either.
      lost_bytes: How many bytes of the file that rest has, compressed bytes if the file is compressed; 0 if the file
        can be read on.
    """

    offset: int
    reason: str
    ends_file: bool
    lost_bytes: int = 0


def read_tfrecords(
    file: BinaryIO, num_bytes: int | None = None, *, name: str = ""
) -> Iterator[tuple[int, bytes | Damage]]:
    """Read the records of a TFRecord file, and continue after a damaged payload.

    A gzipped file is recognised by its first bytes.

    Args:
      file: A binary file at its start. Errors of reading itself, which a retry may fix, are passed on.
      num_bytes: The file's size. No more is read; if there is less, something is lost.
      name: The file's name. An empty file is not damaged, unless its name ends like that of a gzip file.

    Yields:
      `(offset, payload)`, or `(offset, Damage)` where a checksum does not fit or the file ends early. After a damaged
      length, and after a cut, the rest of the file cannot be trusted: that `Damage` is the last.
    """
    offset = 0

    def lost(reason: str) -> tuple[int, Damage]:
        if num_bytes is None:
            return offset, Damage(offset, reason, True)
        packed = offset if stream is None else stream.packed_bytes(offset)
        return offset, Damage(offset, reason, True, max(num_bytes - packed, 0))

    stream = file if isinstance(file, GzipStream) else None
    while True:
        try:
            rest = HEADER.size if num_bytes is None or stream is not None else num_bytes - offset
            header = file.read(min(rest, HEADER.size))
            if not offset and stream is None and header[:2] == _GZIP and not begins_with_a_record(header):
                file = stream = GzipStream(file, header)
                header = file.read(HEADER.size)
            if not header:
                if not offset and stream is None and not num_bytes and name.lower().endswith(_GZIP_SUFFIXES):
                    yield lost("the file is empty, which no gzip file is")
                elif stream is None and num_bytes is not None and offset < num_bytes:
                    yield lost(f"the file ends at byte {offset:,} of {num_bytes:,}")
                return
            if not begins_with_a_record(header):
                yield lost(_explain(header, file, offset, stream))
                return
            length = HEADER.unpack(header)[0]
            size = length + FOOTER.size
            if length > MAX_PAYLOAD_BYTES:
                yield lost(
                    f"a record of {length:,} bytes is longer than the {MAX_PAYLOAD_BYTES:,} that a record may have"
                )
                return
            if stream is None and num_bytes is not None and size > num_bytes - offset - HEADER.size:
                yield lost(f"file ends within a record of {length} bytes")
                return
            payload: bytes | None
            if length <= _PIECE:
                payload = file.read(length)
                num_read = len(payload)
            else:
                payload, num_read = _read_large(file, length, stream, offset)
            footer = file.read(FOOTER.size)
        except GzipError as error:
            yield lost(f"the gzip stream is damaged or cut: {error}")
            return
        if num_read < length or len(footer) < FOOTER.size:
            yield lost(f"file ends within a record of {length} bytes")
            return
        if payload is None:
            reason = (
                f"a record of {length:,} bytes is packed to less than a {MAX_EXPANSION}th: write one of more than "
                f"{MAX_UNPACKED_BYTES:,} bytes without compression"
            )
            yield offset, Damage(offset, reason, False)
        elif footer != footer_of(payload):
            yield offset, Damage(offset, f"the record's {length} bytes fail their checksum", False)
        else:
            yield offset, payload
        offset += HEADER.size + size


def _read_large(file: BinaryIO, length: int, stream: GzipStream | None, offset: int) -> tuple[bytes | None, int]:
    """Return a record's payload and how much of it there is. The payload is None if too few bytes unpack to it."""
    data = io.BytesIO()
    num_read = 0
    too_large = False
    while num_read < length:
        piece = file.read(min(_PIECE, length - num_read))
        if not piece:
            break
        num_read += len(piece)
        if stream is not None and num_read > MAX_UNPACKED_BYTES and not too_large:
            packed = stream.packed_bytes(offset + num_read) - stream.packed_bytes(offset)
            if num_read > MAX_EXPANSION * packed:
                too_large, data = True, io.BytesIO()
        if not too_large:
            data.write(piece)
    return None if too_large else data.getvalue(), num_read


def _explain(header: bytes, file: BinaryIO, offset: int, stream: GzipStream | None) -> str:
    """Say why no record begins with `header`, and what the file is, if it can be recognised."""
    if len(header) < HEADER.size:
        reason = f"file ends within a record's length ({len(header)} bytes)"
    else:
        reason = "the record's length fails its checksum"
    if offset:
        return reason
    kind = file_kinds.describe(header + file.read(file_kinds.START_BYTES - len(header)))
    if kind is None:
        return reason
    return f"{reason}: {'the file' if stream is None else 'what the gzip file holds'} {kind}"


def write_tfrecords(file: BinaryIO, payloads: Iterable[bytes]) -> int:
    """Write payloads as TFRecords and return how many there were."""
    count = 0
    for payload in payloads:
        file.write(header_of(len(payload)))
        file.write(payload)
        file.write(footer_of(payload))
        count += 1
    return count
