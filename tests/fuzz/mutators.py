"""How to damage files below their checksums.

A fuzzer alone would find nothing but checksums: these change what one covers, and then make it right again. Each takes
a file that is whole, a source of choices, what changes bytes, and how long those may get; it raises what it likes where
a file is too damaged for that.
"""

from __future__ import annotations

import base64
import io
import json
import lzma
import random
import struct
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import safetensors.numpy

from vidpress.model.files.record_framing import footer_of, header_of
from vidpress.model.frozen import model_file
from vidpress.model.records import tfrecord
from vidpress.model.shards import shard_header, shard_layout, shard_rows
from vidpress.model.shards.shard import Shard
from vidpress.model.shards.shard_header import ShardError
from vidpress.model.tables import packing

# Changes some bytes; the second argument is how many there may be then.
ChangeBytes = Callable[[bytes, int], bytes]

# Unpacked as the tables' own, and packed much faster.
_FAST_LZMA = [{"id": lzma.FILTER_LZMA2, "preset": 0, "dict_size": 1 << 16, "lc": 0, "pb": 0}]
_TABLES = f"{shard_header.METADATA_PREFIX}range_coding_tables"
_ODD_VALUES = [None, 0, -1, 2**31, 2**64, 1.5, 1e300, True, "", "x" * 300, "../x", "/x", "\0", "\x1b[2J", [], {}, [[]]]


def record(payload: bytes) -> bytes:
    """Return a payload as a TFRecord."""
    return header_of(len(payload)) + payload + footer_of(payload)


def mutate_tfrecord(data: bytes, rng: random.Random, change: ChangeBytes, max_size: int) -> bytes:
    """Change a record's payload."""
    payloads = [payload for _, payload in tfrecord.read_tfrecords(io.BytesIO(data)) if isinstance(payload, bytes)]
    index = rng.randrange(len(payloads))
    payloads[index] = change(payloads[index], max_size)
    return b"".join(map(record, payloads))


def mutate_tables(data: bytes, rng: random.Random, change: ChangeBytes, max_size: int) -> bytes:
    """Change the sizes of range coding tables, or what is packed, or make that very long."""
    version = data[4]
    rest = data[packing.HEADER.size :]
    sizes = rest[: packing.SIZES[version].size]
    body = lzma.decompress(rest[len(sizes) :], format=lzma.FORMAT_RAW, filters=packing.LZMA)
    if rng.random() < 0.2:
        sizes = change(sizes, len(sizes)).ljust(len(sizes), b"\0")
    elif rng.random() < 0.9:
        body = change(body, max_size)
    else:
        body += bytes(rng.choice([1, 1000, 10**7]))
    rest = sizes + lzma.compress(body, format=lzma.FORMAT_RAW, filters=_FAST_LZMA)
    return packing.HEADER.pack(b"VPRT", version, zlib.crc32(rest)) + rest


def write_shard(rows: pa.Table, header: dict[str, str], *, page_checksums: bool, row_group_size: int) -> bytes:
    """Write a shard whose values fit their checksums, whatever they are."""
    buffer = io.BytesIO()
    encodings = {
        "id": "DELTA_BYTE_ARRAY",
        "labels.list.element": "DELTA_BINARY_PACKED",
        "num_frames": "DELTA_BINARY_PACKED",
        "code": "DELTA_LENGTH_BYTE_ARRAY",
    }
    with pq.ParquetWriter(
        buffer,
        rows.schema,
        use_dictionary=["bank"],
        compression="none",
        column_encoding=encodings,
        write_page_checksum=page_checksums,
        store_schema=False,
    ) as writer:
        checksums = []
        for start in range(0, rows.num_rows, row_group_size):
            (batch,) = rows.slice(start, row_group_size).combine_chunks().to_batches()
            writer.write_batch(batch)
            checksums.append(f"{shard_rows.row_group_crc32(batch, header):08x}")
        writer.add_key_value_metadata({**header, shard_header.CHECKSUMS_KEY: ",".join(checksums)})
    return buffer.getvalue()


def mutate_shard(data: bytes, rng: random.Random, change: ChangeBytes, max_size: int) -> bytes:
    """Change the footer, pages, the tables, other metadata, or values."""
    choice = rng.choice(["footer", "page", "tables", "metadata", "values"])
    end = len(data) - shard_layout.TAIL_SIZE
    footer_start = end - shard_layout.footer_size(data, len(data))
    footer = data[footer_start:end]
    if choice == "footer":
        footer = change(footer, max_size)
        return data[:footer_start] + footer + struct.pack("<I", len(footer)) + shard_layout.MAGIC
    if choice == "page":
        chunks = [each for row_group in shard_layout.parse_footer(footer).row_groups for each in row_group.columns]
        start, size = (chunk := rng.choice(chunks)).start, chunk.size
        page = change(data[start : start + size], size).ljust(size, b"\0")
        return _fit_checksums(data[:start] + page + data[start + size :])
    opened = Shard(io.BytesIO(data), "a shard")
    batches = [opened.read(index).replace_schema_metadata() for index in range(len(opened.row_group_sizes))]
    rows, header = pa.Table.from_batches(batches), dict(opened.header.metadata)
    if choice == "tables":
        tables = mutate_tables(base64.b64decode(header[_TABLES]), rng, change, max_size)
        header[_TABLES] = base64.b64encode(tables).decode()
    elif choice == "metadata":
        name = rng.choice(sorted(header))
        header[name] = change(header[name].encode(), max_size).decode(errors="replace")
    else:
        rows = _mutate_values(rows, rng, change)
    return write_shard(rows, header, page_checksums=rng.random() < 0.5, row_group_size=rng.choice([1, 25, 5000]))


def _mutate_values(rows: pa.Table, rng: random.Random, change: ChangeBytes) -> pa.Table:
    kept = [field.name for field in rows.schema if field.type == pa.list_(pa.field("element", pa.binary(), False))]
    name = rng.choice(["id", "bank", "code", *kept])
    values = rows[name].to_pylist()
    for row in rng.sample(range(len(values)), min(len(values), 4)):
        if name == "bank":
            values[row] = rng.randrange(256)
        elif name in kept:
            values[row] = [change(value, rng.choice([8, 100, 5000])) for value in values[row] or [b"a"]]
        else:
            values[row] = change(values[row], rng.choice([8, 100, 5000]))
    field = rows.schema.field(name)
    return rows.set_column(rows.schema.get_field_index(name), field, [pa.array(values, field.type)])


def _fit_checksums(data: bytes) -> bytes:
    """Make the checksums of row groups fit what they hold, where that can be read."""
    opened = Shard(io.BytesIO(data), "a damaged shard")
    for index, checksum in enumerate(opened._checksums.split(",")):
        try:
            batch = opened._read_columns(index, opened._row_groups[index].columns)
        except ShardError:
            continue
        data = data.replace(checksum.encode(), f"{shard_rows.row_group_crc32(batch, opened._metadata):08x}".encode())
    return data


def mutate_model(data: bytes, rng: random.Random, change: ChangeBytes, max_size: int) -> bytes:
    """Change the header, or a tensor's values, shape or type, or leave it out."""
    length = int.from_bytes(data[:8], "little")
    text = json.loads(data[8 : 8 + length])["__metadata__"]["vidpress"]
    tensors = dict(safetensors.numpy.load(data))
    tensor = tensors[name := rng.choice(sorted(tensors))]
    choice = rng.choice(["header", "header", "header", "values", "values", "shape", "type", "absent"])
    if choice == "header":
        text = change(text.encode(), max_size).decode(errors="replace")
    elif choice == "values":
        changed = change(tensor.tobytes(), max(tensor.nbytes, 1)).ljust(tensor.nbytes, b"\0")[: tensor.nbytes]
        tensors[name] = np.frombuffer(changed, tensor.dtype).reshape(tensor.shape)
    elif choice == "shape":
        tensors[name] = tensor[: rng.randrange(len(tensor) + 1)].copy()
    elif choice == "type":
        tensors[name] = tensor.astype(rng.choice([np.float64, np.complex64]))
    else:
        del tensors[name]
    header = json.loads(text)
    header.pop("sha256", None)
    header["sha256"] = model_file.content_sha256(header, tensors)
    return safetensors.numpy.save(tensors, {"vidpress": json.dumps(header, sort_keys=True)})


def mutate_manifest(data: bytes, rng: random.Random, change: ChangeBytes, max_size: int) -> bytes:
    """Change values in a manifest, or leave them out; it stays JSON."""
    document = json.loads(data)
    for _ in range(rng.choice([1, 1, 2, 4])):
        container, place = rng.choice(list(_places(document)))
        value = container[place]
        choice = rng.choice(["absent", "near", "odd", "odd"])
        if choice == "absent":
            del container[place]
        elif choice == "near" and isinstance(value, str):
            container[place] = change(value.encode(), 200).decode(errors="replace")
        elif choice == "near" and isinstance(value, int):
            container[place] = value + rng.choice([-1, 1, 4096])
        else:
            container[place] = rng.choice(_ODD_VALUES)
    return json.dumps(document).encode()


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Yield all containers in JSON values, each with all of its keys or indices."""
    if isinstance(value, dict | list):
        for place in value if isinstance(value, dict) else range(len(value)):
            yield value, place
            yield from _places(value[place])
