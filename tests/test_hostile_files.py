"""Files that a stranger made: what reading them takes, and that they are refused in one line.

Each is some KB, fits its checksums, and claims gigabytes. A process of their own reads them, so that its memory shows.
"""

import base64
import dataclasses
import io
import json
import lzma
import os
import subprocess
import sys
import zlib

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import REPO, SPEC

from vidpress.model.coding.range_coder import DamagedCodeError
from vidpress.model.kept_columns import KeptColumn
from vidpress.model.shards import shard_header, shard_layout, shard_rows
from vidpress.model.shards.shard import Shard
from vidpress.model.shards.shard_header import ShardError, ShardHeader
from vidpress.model.tables import packing
from vidpress.model.tables.range_coding_tables import RangeCodingTables

MODEL_ID = "0123456789abcdef"
# What a file may take beside four times its size.
ALLOWED_BYTES = 2**28

READ = """
import json, sys
from vidpress.model.errors import VidpressError
from vidpress.model.shards.shard import Shard
from vidpress.model.shards.shard_rows import decode_rows

def read(path):
    shard = Shard.open(path)
    for row_group in range(len(shard.row_group_sizes)):
        decode_rows(shard.read(row_group))

def memory(kind):
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(kind))

read(sys.argv[1])  # compiles, which is not the others' doing
results = {}
for path in sys.argv[1:]:
    with open("/proc/self/clear_refs", "w") as peak:
        peak.write("5")
    before = memory("VmRSS")
    try:
        read(path)
        message = "read"
    except VidpressError as error:
        message = str(error)
    results[path.rsplit("/", 1)[-1]] = message, memory("VmHWM") - before
print(json.dumps(results))
"""


def columns(num_rows, **changed):
    values = {
        "id": pa.array([b"%07d" % row for row in range(num_rows)], pa.binary()),
        "labels": pa.array([[1]] * num_rows, pa.list_(pa.int32())),
        "num_frames": pa.array([1] * num_rows, pa.int32()),
        "bank": pa.array([0] * num_rows, pa.uint8()),
        "code": pa.array([b""] * num_rows, pa.binary()),
    }
    return values | changed


def many_labels(num_rows, num_labels, dtype=np.int32):
    """All labels in the first row."""
    offsets = np.full(num_rows + 1, num_labels, np.int32)
    offsets[0] = 0
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(np.full(num_labels, 3, dtype)))


KEPT = (KeptColumn("text", "string"), KeptColumn("numbers", "int64"))


def kept_columns(num_rows, **changed):
    none = {column.name: pa.array([None] * num_rows) for column in KEPT}
    return columns(num_rows) | none | changed


def metadata_of(tables, kept=()):
    if isinstance(tables, RangeCodingTables):
        return ShardHeader(MODEL_ID, SPEC, tables, kept).metadata
    return metadata_of(plain_tables()) | {
        f"{shard_header.METADATA_PREFIX}range_coding_tables": base64.b64encode(tables).decode()
    }


def plain_tables(num_dims=40):
    cdf = np.tile([0, 65000, 65536], num_dims)
    return RangeCodingTables(cdf, np.arange(num_dims + 1) * 3, np.zeros(num_dims, np.int32), 16)


def flat_tables(num_dims, tilts=(0,)):
    """Of every dimension all 65,536 intervals, in as many banks as there are tilts."""
    size = 2**16 + 1
    start = np.arange(num_dims + 1) * size
    tilt = np.repeat(np.array(tilts, np.int8)[:, None], num_dims, axis=1)
    return RangeCodingTables(np.tile(np.arange(size), num_dims), start, np.zeros(num_dims, np.int32), 16, tilt)


def packed_tables(body, *, num_dims=40, num_banks=1):
    """Bytes of tables that fit their checksum; the body may be an iterable of pieces."""
    compressor = lzma.LZMACompressor(format=lzma.FORMAT_RAW, filters=packing.LZMA)
    packed = b"".join([*map(compressor.compress, body), compressor.flush()])
    rest = packing.SIZES[2].pack(16, num_dims, num_banks) + packed
    return packing.HEADER.pack(b"VPRT", 2, zlib.crc32(rest)) + rest


def with_size(size):
    """Tables of 40 dimensions, the first of which claims so many entries."""
    planes = np.zeros((4, 2 * 40 + 2 * 40), np.uint8)
    planes[0, :40] = 3
    planes[:, 0] = np.array([size], "<u4").view(np.uint8)
    return packed_tables([planes.tobytes(), bytes(40)])


def write(path, values, tables, *, schema=shard_rows.SCHEMA, row_group_size=4096, **options):
    """Write what `write_shard` would not; the options are pyarrow's."""
    kept = KEPT if "text" in values else ()
    schema = pa.schema([*schema, *shard_rows.kept_fields(kept)])
    metadata = tables if isinstance(tables, dict) else metadata_of(tables, kept)
    encodings = {
        "id": "DELTA_BYTE_ARRAY",
        "labels.list.element": "DELTA_BINARY_PACKED",
        "num_frames": "DELTA_BINARY_PACKED",
        "code": "DELTA_LENGTH_BYTE_ARRAY",
    }
    compressed = ["labels.list.element", "num_frames", "bank", *(f"{column.name}.list.element" for column in kept)]
    compression = dict.fromkeys(compressed, "zstd") | {"id": "none", "code": "none"}
    settings = {
        "use_dictionary": ["bank"],
        "compression": compression,
        "column_encoding": encodings,
        "write_statistics": False,
        "write_page_checksum": True,
        "store_schema": False,
    }
    rows = pa.table(values).select(schema.names).cast(schema)
    with pq.ParquetWriter(path, schema, **(settings | options)) as writer:
        checksums = []
        for start in range(0, rows.num_rows, row_group_size):
            (batch,) = rows.slice(start, row_group_size).combine_chunks().to_batches()
            writer.write_batch(batch, row_group_size=row_group_size)
            checksums.append(f"{shard_rows.row_group_crc32(batch, metadata):08x}")
        writer.add_key_value_metadata({**metadata, shard_header.CHECKSUMS_KEY: ",".join(checksums)})


def shared_prefix(num_rows, size):
    return columns(num_rows, id=pa.array([b"a" * size + b"%07d" % row for row in range(num_rows)], pa.binary()))


def repeated(name, num_rows=4000, size=100_000):
    return columns(num_rows, **{name: pa.array([b"a" * size] * num_rows, pa.binary())})


# What is in a file, how it is written, and what is said of it.
REFUSED = {
    "labels in one row": (
        lambda: columns(2, labels=many_labels(2, 40_000_000)),
        {},
        "40,000,001 values of labels in 2",
    ),
    "ids with a long prefix": (
        lambda: shared_prefix(4000, 100_000),
        {},
        "an id shares 100,006 bytes with the one before",
    ),
    "ids with a prefix": (lambda: shared_prefix(4000, 50_000), {}, "its ids share"),
    "an id in a dictionary": (
        lambda: repeated("id"),
        {"use_dictionary": ["id"], "column_encoding": None},
        "id has a page of a type",
    ),
    "a code in a dictionary": (
        lambda: repeated("code"),
        {"use_dictionary": ["code"], "column_encoding": None},
        "code has a page of a type",
    ),
    "front-coded codes": (
        lambda: repeated("code"),
        {"column_encoding": {"code": "DELTA_BYTE_ARRAY"}},
        "code is encoded as a shard's is not",
    ),
    "compressed codes": (lambda: repeated("code"), {"compression": {"code": "zstd"}}, "code is compressed"),
    "compressed ids": (lambda: repeated("id"), {"compression": {"id": "zstd"}}, "cannot hold 4,000 ids"),
    "kept values in one row": (
        lambda: kept_columns(2, numbers=many_labels(2, 40_000_000, np.int64)),
        {},
        "40,000,001 values of numbers in 2",
    ),
    "kept strings of GBs": (
        lambda: kept_columns(2000, text=pa.array([["a" * 100_000]] * 2000)),
        {},
        "row group 0 keeps 4,000 values in 200,",
    ),
    "kept strings in a dictionary": (
        lambda: kept_columns(4000, text=pa.array([["a" * 8000]] * 4000)),
        {"use_dictionary": ["text.list.element"]},
        "text has a page of a type",
    ),
    "kept strings that are front-coded": (
        lambda: kept_columns(4000, text=pa.array([["a" * 100_000]] * 4000)),
        {"column_encoding": {"text.list.element": "DELTA_BYTE_ARRAY"}},
        "text is encoded as a shard's is not",
    ),
    "a large row group": (lambda: columns(100_000), {"row_group_size": 100_000}, "has 100,000 rows, not 1 to 4,096"),
    "more row groups than bytes": (lambda: columns(17_000), {"row_group_size": 1}, "lists 17,000 row groups"),
}


def banks_of_flat_tables(num_dims, num_banks):
    """More than `RangeCodingTables` itself takes."""
    flat = flat_tables(num_dims)
    tilt = np.repeat(np.arange(num_banks, dtype=np.int8)[:, None] - 24, num_dims, axis=1)
    distributions = packing.pack_distributions(flat.cdf, flat.cdf_start, flat.cdf_offset)
    return packed_tables([distributions, tilt.tobytes()], num_dims=num_dims, num_banks=num_banks)


REFUSED_TABLES = {
    "LZMA of GBs": (lambda: packed_tables([bytes(2**24)] * 64), "they unpack to more than"),
    "a size of 600 million": (lambda: with_size(600_000_000), "Dimension 0 has a cdf of 600000000 entries"),
    "a size beyond the body": (lambda: with_size(65_000), "do not hold 65,117 entries"),
    "wide banks": (lambda: banks_of_flat_tables(20, 49), "64,226,260 entries in all: at most 16,777,216 are possible"),
    "many dimensions": (lambda: packed_tables([bytes(100)], num_dims=2**20), "1 banks of 1,048,576 dimensions"),
    "no dimensions": (lambda: packed_tables([b""], num_dims=0), "1 banks of 0 dimensions"),
    "no banks": (lambda: packed_tables([bytes(400)], num_banks=0), "0 banks of 40 dimensions"),
    "nothing packed": (lambda: packed_tables([b""]), "The range coding tables are damaged"),
}


# What is within the limits, if only just.
TAKEN = {
    "labels": (lambda: columns(4096, labels=many_labels(4096, 2**23 - 4096)), plain_tables),
    "ids": (lambda: shared_prefix(4096, 8150), plain_tables),
    "kept values": (lambda: kept_columns(4096, numbers=many_labels(4096, 2**22 - 8192, np.int64)), plain_tables),
    "kept strings": (lambda: kept_columns(4096, text=pa.array([["a" * 8150]] * 4096)), plain_tables),
    "dimensions": (lambda: columns(4096), lambda: plain_tables(2**13)),
    "entries": (lambda: columns(4096), lambda: flat_tables(31)),
    "entries of banks": (lambda: columns(4096), lambda: flat_tables(5, range(-24, 25))),
}


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """The message and the memory of each file, and its size."""
    folder = tmp_path_factory.mktemp("hostile")
    for name, (values, options, _) in REFUSED.items():
        write(folder / name, values(), plain_tables(), **options)
    for name, (tables, _) in REFUSED_TABLES.items():
        write(folder / name, columns(2), tables())
    for name, (values, tables) in TAKEN.items():
        write(folder / name, values(), tables())
    files = sorted(folder.iterdir())
    result = subprocess.run(
        [sys.executable, "-c", READ, str(REPO / "tests" / "golden" / "shard-v2.parquet"), *map(str, files)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    found = json.loads(result.stdout)
    return {file.name: (*found[file.name], file.stat().st_size) for file in files}


@pytest.mark.parametrize("name", [*REFUSED, *REFUSED_TABLES])
def test_what_claims_much_is_refused(results, name):
    message, taken, size = results[name]
    assert {**REFUSED, **REFUSED_TABLES}[name][-1] in message
    assert message.isprintable()
    assert taken < 4 * size + ALLOWED_BYTES / 2


@pytest.mark.parametrize("name", TAKEN)
def test_the_most_that_is_read_takes_little(results, name):
    message, taken, size = results[name]
    assert size < 2**16
    assert message == "read"
    assert taken < 4 * size + ALLOWED_BYTES


def opened(values, tables=None, **options):
    buffer = io.BytesIO()
    write(buffer, values, plain_tables() if tables is None else tables, **options)
    return Shard(io.BytesIO(buffer.getvalue()), "x")


def changed_header(**changes):
    """The metadata of a shard, with some of it changed."""
    metadata = metadata_of(plain_tables())
    return metadata | {f"{shard_header.METADATA_PREFIX}{name}": value for name, value in changes.items()}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format_version": "3"}, "damaged metadata"),
        ({"model_id": "x"}, "model_id is not 16 hexadecimal digits"),
        ({"model_id": "\x1b[2J" + "0" * 12}, "model_id is not 16 hexadecimal digits"),
        ({"format_version": "\x1b]0;owned\x07"}, r"format version \\x1b\]0;owned\\x07; this vidpress"),
        ({"feature_spec": '{"a":' + "[" * 100_000}, "nested too deeply"),
        ({"feature_spec": "[]"}, "damaged metadata"),
        ({"feature_spec": "{}"}, "damaged metadata"),
        ({"feature_spec": "1" * 5000}, "damaged metadata"),
        ({"range_coding_tables": "!"}, "damaged metadata"),
        ({"range_coding_tables": ""}, "These 0 bytes are not range coding tables"),
    ],
)
def test_odd_metadata_are_refused_in_one_line(changes, message):
    with pytest.raises(ShardError, match=message) as error:
        opened(columns(2), changed_header(**changes))
    assert str(error.value).isprintable()


def test_a_schema_of_arrow_s_own_is_refused():
    """It can name types of other packages, which were once unpickled."""
    with pytest.raises(ShardError, match="written anew by another program"):
        opened(columns(2), store_schema=True)


@pytest.mark.parametrize("name", ["id", "bank", "code", "labels"])
def test_null_is_refused(name):
    field = shard_rows.SCHEMA.field(name)
    index = shard_rows.SCHEMA.get_field_index(name)
    values = columns(3)
    with pytest.raises(ShardError, match="its schema is damaged"):
        opened(values, schema=shard_rows.SCHEMA.set(index, field.with_nullable(True)))
    values[name] = pa.array([*values[name].to_pylist()[:2], None], field.type)
    batch = pa.RecordBatch.from_pydict(values)
    if name in ("bank", "code"):
        with pytest.raises(DamagedCodeError, match="rows 2"):
            shard_rows.decode_codes(batch, plain_tables())


def test_a_bank_that_the_tables_lack_is_a_damaged_code():
    read = opened(columns(5, bank=pa.array([0, 1, 0, 255, 0], pa.uint8()))).read(0)
    with pytest.raises(DamagedCodeError, match="2 of 5 codes are damaged or belong to other tables: rows 1, 3"):
        shard_rows.decode_rows(read)


def test_kept_text_that_is_not_utf_8_is_refused():
    offsets, data = pa.py_buffer(np.array([0, 1], np.int32)), pa.py_buffer(b"\xff")
    text = pa.ListArray.from_arrays([0, 1, 1], pa.Array.from_buffers(pa.string(), 1, [None, offsets, data]))
    values = kept_columns(2, text=text)
    with pytest.raises(ShardError, match=r"row group 0, is damaged .*UTF8"):
        opened(values).read(0)


@pytest.mark.parametrize("options", [{"data_page_version": "2.0"}, {"compression": "snappy"}, {"compression": "gzip"}])
def test_other_writers_are_refused_or_read_alike(options):
    good = opened(columns(5)).read(0)
    try:
        read = opened(columns(5), **options).read(0)
    except ShardError as error:
        assert str(error).isprintable()
    else:
        assert read.equals(good)


def test_a_file_without_rows_is_refused():
    with pytest.raises(ShardError, match="it has no rows"):
        opened(shard_rows.SCHEMA.empty_table())


def footer_of(data):
    size = shard_layout.footer_size(data, len(data))
    end = len(data) - shard_layout.TAIL_SIZE
    return data[: end - size], data[end - size : end]


@pytest.mark.parametrize(
    "footer",
    [
        b"",
        b"\x00",
        b"\x15",
        b"\x19\xfc" + b"\xff" * 9 + b"\x01",  # a list of 2^64 structs
        b"\x19\xfc\xff\xff\x03" + b"\x00" * 70_000,  # of 65,535 empty ones
        b"\x1c" * 5000,  # structs in structs
        b"\x19" * 5000,  # lists in lists
        b"\x49\x1c\x19\xfc\xff\xff\x03" + b"\x00" * 70_000,  # 65,535 empty columns
    ],
)
def test_footers_that_claim_much_are_refused(footer):
    data = shard_layout.MAGIC + footer + len(footer).to_bytes(4, "little") + shard_layout.MAGIC
    with pytest.raises(ShardError, match="not a Parquet file, or is damaged") as error:
        Shard(io.BytesIO(data), "x")
    assert str(error.value).isprintable()


def test_row_groups_do_not_share_bytes():
    """Or a few of them would be read as often as the footer likes."""
    buffer = io.BytesIO()
    write(buffer, columns(2), plain_tables(), row_group_size=1)
    footer = shard_layout.parse_footer(footer_of(buffer.getvalue())[1])
    first, second = footer.row_groups
    shared = dataclasses.replace(footer, row_groups=(first, first._replace(num_rows=second.num_rows)))
    shard_layout.check_footer(footer, shard_rows.SCHEMA.names, len(buffer.getvalue()), 4096)
    with pytest.raises(shard_layout.LayoutError, match="row group 1: the pages of id do not follow"):
        shard_layout.check_footer(shared, shard_rows.SCHEMA.names, len(buffer.getvalue()), 4096)
