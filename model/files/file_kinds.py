"""What a file is that is not what it should be, told by its first bytes, and what to do about it."""

from __future__ import annotations

import codecs
import re

# How much of a file's start `describe` wants to see: up to the mark of a tar archive.
START_BYTES = 512

_UNPACK = "unpack it first"
_CONVERT = "write its videos as TFRecords of tf.train.Example or SequenceExample first"
_AGAIN = "fetch the file itself"

_GZIP = rb"\x1f\x8b"
_KINDS = (
    (_GZIP, "is compressed by gzip", f"{_UNPACK}, with gunzip"),
    (rb"\x28\xb5\x2f\xfd|[\x50-\x5f]\x2a\x4d\x18", "is compressed by zstd", f"{_UNPACK}, with zstd -d"),
    (rb"\xff\x06\x00\x00sNaPpY", "is compressed by snappy", _UNPACK),
    (rb"\x04\x22\x4d\x18|\x02\x21\x4c\x18", "is compressed by LZ4", f"{_UNPACK}, with lz4 -d"),
    (rb"BZh[1-9]", "is compressed by bzip2", f"{_UNPACK}, with bunzip2"),
    (rb"\xfd7zXZ\x00|\x5d\x00\x00.\x00", "is compressed by xz", f"{_UNPACK}, with unxz"),
    (rb"PK(\x03\x04|\x05\x06)", "is a zip archive (or an .npz)", "unpack the files in it first"),
    (rb"7z\xbc\xaf\x27\x1c|Rar!", "is an archive", "unpack the files in it first"),
    (rb".{257}ustar", "is a tar archive", "unpack the files in it first"),
    (rb"PAR1", "is a Parquet file", _CONVERT),
    (rb"ARROW1|\xff\xff\xff\xff.{4}\x10\x00\x00\x00", "is an Arrow file", _CONVERT),
    (rb"Obj\x01", "is an Avro file", _CONVERT),
    (rb"\x89HDF\r\n\x1a\n", "is an HDF5 file", _CONVERT),
    (rb"\x93NUMPY", "is a NumPy file", _CONVERT),
    (rb"\x80[\x02-\x05][\x28-\x95]", "is a pickle", _CONVERT),
    (rb"\x89PNG|\xff\xd8\xff|GIF8", "is an image", _CONVERT),
    (rb".{4}ftyp|\x1a\x45\xdf\xa3|RIFF", "is a video or sound file", "extract its features first"),
    (rb"version https://git-lfs", "is a Git LFS pointer", "fetch the file itself with git lfs pull"),
    (rb"(\xef\xbb\xbf)?\s*<", "is a web page or XML", f"{_AGAIN}: a server sent this in its place"),
    (rb"(\xef\xbb\xbf)?\s*[{\[]", "is JSON", _CONVERT),
    (rb"\x00{12}", "begins with zeros, as a crash or a broken download leaves it", f"{_AGAIN} again"),
    (rb"\x0a.{1,5}\x0a.{1,2}\x0a.[\w /.-]{1,64}\x12", "is one tf.train message without a record around it", _CONVERT),
)
_PATTERNS = tuple((re.compile(pattern, re.DOTALL), what, fix) for pattern, what, fix in _KINDS)


def stand_in(start: bytes) -> str | None:
    """Say what lies in the place of a model, a shard or a manifest, and what to do, by its first bytes.

    Returns:
      The end of a sentence that begins with the file, such as "is a Git LFS pointer; ...", or None.
    """
    for pattern, what, fix in _PATTERNS:
        if pattern.match(start):
            return what if fix == _CONVERT else f"{what}; {fix}"
    return None


def describe(start: bytes) -> str | None:
    """Say what lies in the place of TFRecords, and what to do, by its first `START_BYTES`, of which no record begins.

    Returns:
      The end of a sentence that begins with the file, such as "is compressed by zstd; ...", or None.
    """
    from vidpress.model.files.record_framing import begins_with_a_record  # needs a library that reading shards does not

    if re.match(_GZIP, start):  # which has been unpacked once
        return "is packed by gzip twice, or once more within; unpack it once"
    for pattern, what, fix in _PATTERNS:
        if pattern.match(start):
            return f"{what}; {fix}"
    if len(start) > 1 and start[0] == 0x78 and int.from_bytes(start[:2], "big") % 31 == 0:  # RFC 1950, section 2.2
        return f"is compressed by zlib; {_UNPACK}, or write it with gzip"
    if begins_with_a_record(_snappy_start(start)) or begins_with_a_record(_snappy_start(start[8:])):
        return f"is compressed by snappy; {_UNPACK}"
    if len(start) > 3 and not re.search(rb"[\x00-\x08\x0e-\x1a\x1c-\x1f]", start):
        try:
            codecs.getincrementaldecoder("utf-8")().decode(start)
        except UnicodeDecodeError:
            return None
        return f"is a text; {_CONVERT}"
    return None


def _snappy_start(data: bytes) -> bytes:
    """Return what the first bytes of a raw snappy stream (format_description.txt of google/snappy) unpack to."""
    position = next((index + 1 for index, byte in enumerate(data[:5]) if byte < 0x80), len(data))
    out = b""
    while position < len(data) and len(out) < 12:
        tag = data[position]
        position += 1
        size = (tag >> 2) + 1
        if tag & 3 == 0:  # literal bytes
            if size > 60:
                extra = size - 60
                size = int.from_bytes(data[position : position + extra], "little") + 1
                position += extra
            out += data[position : position + min(size, START_BYTES)]
            position += size
            continue
        extra = (0, 1, 2, 4)[tag & 3]
        distance = int.from_bytes(data[position : position + extra], "little")
        if tag & 3 == 1:
            size = (tag >> 2 & 7) + 4
            distance |= tag >> 5 << 8
        position += extra
        if not 0 < distance <= len(out):
            return b""
        for _ in range(size):
            out += out[-distance : len(out) - distance + 1]
    return out
