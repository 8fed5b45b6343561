import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import REPO, SPEC

from vidpress.model.coding import range_coder
from vidpress.model.shards import shard, shard_layout, shard_rows, shard_writer, string_pages
from vidpress.model.shards.shard import Shard
from vidpress.model.shards.shard_header import ShardError, ShardHeader
from vidpress.model.shards.shard_rows import ROW_GROUP_SIZE, SCHEMA, decode_rows
from vidpress.model.shards.shard_writer import write_shard
from vidpress.model.tables.banks import choose_banks


def make_rows(model, num_videos, seed=0):
    """Rows sorted by id, and their z_hat."""
    rng = np.random.default_rng(seed)
    z_hat = model.quantize(rng.normal(size=(num_videos, SPEC.input_size)).astype(np.float32))
    bank = choose_banks(model.tables, z_hat)
    data, offsets = range_coder.encode(model.tables, z_hat, bank)
    columns = {
        "id": pa.array([f"{index:07d}".encode() for index in range(num_videos)], pa.binary()),
        "labels": pa.array([rng.integers(0, 3862, rng.integers(0, 5)).tolist() for _ in range(num_videos)]),
        "num_frames": pa.array([None if index % 5 == 0 else index % 300 for index in range(num_videos)], pa.int32()),
        "bank": pa.array(bank),
        "code": shard_rows.code_array(data, offsets),
    }
    return pa.table(columns).cast(SCHEMA), z_hat


def header_of(model, columns=()):
    return ShardHeader(model.model_id, model.spec, model.tables, tuple(columns))


def shard_bytes(model, rows, columns=()):
    buffer = io.BytesIO()
    write_shard(buffer, rows, header_of(model, columns))
    return buffer.getvalue()


def read_all(data):
    opened = Shard(io.BytesIO(data), "the-shard")
    return [opened.read(index) for index in range(len(opened.row_group_sizes))]


@pytest.mark.parametrize("num_videos", [1, 100, ROW_GROUP_SIZE, ROW_GROUP_SIZE + 1])
def test_round_trip(model, num_videos):
    rows, z_hat = make_rows(model, num_videos)
    batches = read_all(shard_bytes(model, rows))
    assert pa.Table.from_batches([batch.replace_schema_metadata() for batch in batches]).equals(rows)
    decoded = pa.Table.from_batches([decode_rows(batch) for batch in batches])
    assert decoded.schema.equals(shard_rows.decoded_schema(model.num_dims))
    np.testing.assert_array_equal(np.stack(decoded["z_hat"].to_numpy()), z_hat)
    assert decoded.drop_columns("z_hat").equals(rows.drop_columns(["bank", "code"]))


def test_header_round_trip(model):
    rows, _ = make_rows(model, 3)
    header = Shard(io.BytesIO(shard_bytes(model, rows)), "s").header
    assert (header.model_id, header.spec) == (model.model_id, model.spec)
    assert header.tables.to_bytes() == model.tables.with_banks(np.unique(rows["bank"])).to_bytes()


def test_equal_rows_give_equal_bytes(model):
    rows, _ = make_rows(model, 50)
    sliced = pa.concat_tables([rows.slice(0, 20), rows.slice(20)])
    assert shard_bytes(model, rows) == shard_bytes(model, sliced)


def test_row_groups_are_full_but_the_last(model):
    rows, _ = make_rows(model, 2 * ROW_GROUP_SIZE + 10)
    assert Shard(io.BytesIO(shard_bytes(model, rows)), "s").row_group_sizes == [
        ROW_GROUP_SIZE,
        ROW_GROUP_SIZE,
        10,
    ]


def test_parquet_adds_little_to_the_codes(model):
    rows, _ = make_rows(model, ROW_GROUP_SIZE)
    opened = Shard(io.BytesIO(shard_bytes(model, rows)), "s")
    code_bytes = pa.compute.sum(pa.compute.binary_length(rows["code"])).as_py()
    assert opened.column_bytes["code"] <= code_bytes + 2 * rows.num_rows


def test_any_parquet_reader_reads_it(model):
    rows, _ = make_rows(model, 30)
    table = pq.read_table(io.BytesIO(shard_bytes(model, rows)), page_checksum_verification=True)
    assert table.replace_schema_metadata().equals(rows)


def test_blobs_have_neither_dictionary_nor_statistics(model):
    rows, _ = make_rows(model, 30)
    metadata = pq.ParquetFile(io.BytesIO(shard_bytes(model, rows))).metadata.row_group(0)
    columns = {metadata.column(i).path_in_schema: metadata.column(i) for i in range(metadata.num_columns)}
    assert [name for name, column in columns.items() if column.has_dictionary_page] == ["bank"]
    assert not columns["code"].is_stats_set
    assert columns["code"].compression == "UNCOMPRESSED"
    assert "DELTA_LENGTH_BYTE_ARRAY" in columns["code"].encodings


def test_no_damaged_bit_gives_another_value(model):
    """Wherever in the file a bit flips: an error of ours, or the same values."""
    rows, _ = make_rows(model, 40)
    data = shard_bytes(model, rows)
    rng = np.random.default_rng(0)
    noticed = 0
    for position in np.concatenate([rng.integers(0, len(data), 500), np.arange(len(data) - 200, len(data))]):
        damaged = bytearray(data)
        damaged[position] ^= 1 << rng.integers(8)
        try:
            batches = read_all(bytes(damaged))
            decoded = [decode_rows(batch) for batch in batches]
        except ShardError as error:
            assert "the-shard" in str(error)
            noticed += 1
            continue
        assert pa.Table.from_batches([batch.replace_schema_metadata() for batch in batches]).equals(rows)
        assert sum(batch.num_rows for batch in decoded) == rows.num_rows
    assert noticed > 500


def test_a_page_s_own_checksum_is_checked(model):
    """Ids that are read by themselves have no other."""
    rows, _ = make_rows(model, 50)
    data = bytearray(shard_bytes(model, rows))
    last_id = rows["id"].to_pylist()[-1]
    data[data.index(last_id[-1:], 60)] ^= 1
    for read in (Shard.read, Shard.read_ids):
        with pytest.raises(ShardError, match="a page of id has not the checksum that its header says"):
            read(Shard(io.BytesIO(data), "s"), 0)


def test_damaged_page_names_file_and_row_group(model):
    rows, _ = make_rows(model, ROW_GROUP_SIZE + 100)
    data = bytearray(shard_bytes(model, rows))
    code = rows["code"][ROW_GROUP_SIZE + 50].as_py()
    data[data.index(code)] ^= 1
    opened = Shard(io.BytesIO(bytes(data)), "folder/x.parquet")
    opened.read(0)
    with pytest.raises(ShardError, match=r"folder/x\.parquet, row group 1, is damaged .*: fetch or encode it again"):
        opened.read(1)


def test_truncated_shard_is_refused(model):
    rows, _ = make_rows(model, 30)
    data = shard_bytes(model, rows)
    for length in (0, 3, 100, len(data) - 1):
        with pytest.raises(ShardError, match="not a Parquet file, or is damaged"):
            Shard(io.BytesIO(data[:length]), "s")


def test_other_files_are_refused(model, tmp_path):
    path = tmp_path / "other.parquet"
    pq.write_table(pa.table({"a": [1]}), path)
    with pytest.raises(ShardError, match=r"other\.parquet is a Parquet file, but not one that `vidpress encode` wrote"):
        Shard.open(path)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        Shard.open(tmp_path / "absent.parquet")


def test_later_format_is_refused(model):
    rows, _ = make_rows(model, 3)
    table = pq.read_table(io.BytesIO(shard_bytes(model, rows)))
    buffer = io.BytesIO()
    pq.write_table(table.replace_schema_metadata({**table.schema.metadata, b"vidpress.format_version": b"5"}), buffer)
    with pytest.raises(ShardError, match="format version 5; this vidpress reads 1, 2, 3, 4"):
        Shard(buffer, "s")


def test_a_footer_holds_only_the_banks_that_its_rows_use(model):
    rows, z_hat = make_rows(model, 300)
    assert np.array_equal(np.unique(rows["bank"]), np.arange(4))
    one = rows.filter(pa.compute.equal(rows["bank"], 2))
    opened = Shard(io.BytesIO(shard_bytes(model, one)), "s")
    assert opened.header.tables.has_bank.tolist() == [False, False, True, False]
    assert len(opened.header.tables.to_bytes()) < len(model.tables.to_bytes())
    decoded = decode_rows(opened.read(0))["z_hat"].flatten().to_numpy().reshape(one.num_rows, -1)
    np.testing.assert_array_equal(decoded, z_hat[rows["bank"].to_numpy() == 2])


class Counted(io.BytesIO):
    """A file that notes what is read of it."""

    def __init__(self, data):
        super().__init__(data)
        self.reads = []

    def read(self, size=-1):
        data = super().read(size)
        self.reads.append(len(data))
        return data


def test_opening_is_one_read_and_each_row_group_another(model):
    rows, _ = make_rows(model, 2 * ROW_GROUP_SIZE)
    data = shard_bytes(model, rows)
    file = Counted(data)
    opened = Shard(file, "s")
    assert file.reads == [min(len(data), 2**18)]
    opened.read(1)
    opened.read_ids(0)
    assert len(file.reads) == 3
    columns = opened.column_bytes
    assert file.reads[1] + file.reads[2] < sum(columns.values()) / 2 + columns["id"]


def test_a_footer_beyond_the_tail_is_another_read(model, monkeypatch):
    rows, _ = make_rows(model, 900)
    monkeypatch.setattr(shard_writer, "ROW_GROUP_SIZE", 1)
    file = Counted(shard_bytes(model, rows))
    assert Shard(file, "s").num_rows == 900
    assert len(file.reads) == 2
    assert file.reads[1] > file.reads[0] == 2**18


def test_the_footer_s_checksum_is_of_all_of_it_and_of_nothing_else(model):
    rows, _ = make_rows(model, 30)
    data = shard_bytes(model, rows)
    opened = Shard(io.BytesIO(data), "s")
    assert opened.num_bytes == len(data)
    assert opened.footer_crc32 == shard.footer_crc32(data) == shard.footer_crc32(memoryview(data))
    footer_start = sum(opened.column_bytes.values()) + 4
    for position, is_footer in ((footer_start - 1, False), (footer_start, True), (len(data) - 9, True)):
        damaged = bytearray(data)
        damaged[position] ^= 1
        assert (shard.footer_crc32(damaged) != opened.footer_crc32) == is_footer
    with pytest.raises(ShardError, match="are no shard"):
        shard.footer_crc32(data[:-1])


def test_row_groups_end_where_more_could_not_be_read(model, monkeypatch):
    rows, z_hat = make_rows(model, 300)
    monkeypatch.setattr(shard_layout, "MAX_ROW_GROUP_LABELS", 60)
    monkeypatch.setattr(shard_layout, "MAX_ROW_GROUP_ID_BYTES", 200)
    data = shard_bytes(model, rows)
    opened = Shard(io.BytesIO(data), "s")
    assert max(opened.row_group_sizes) == 28  # ids of 7 bytes
    assert len(set(opened.row_group_sizes[:-1])) > 2
    decoded = pa.Table.from_batches([decode_rows(opened.read(index)) for index in range(len(opened.row_group_sizes))])
    np.testing.assert_array_equal(np.stack(decoded["z_hat"].to_numpy()), z_hat)
    monkeypatch.setattr(string_pages, "MAX_ID_BYTES", 6)
    with pytest.raises(ValueError, match="Row 0 has more labels, or a longer id, than a shard can hold"):
        shard_bytes(model, rows)


def test_a_shard_without_rows_is_not_written(model):
    with pytest.raises(ValueError, match="without rows"):
        shard_bytes(model, SCHEMA.empty_table())


@pytest.mark.parametrize("version", [1, 2, 3, 4])
def test_golden_shard_is_read(version):
    golden = REPO / "tests" / "golden" / f"shard-v{version}.parquet"
    opened = Shard.open(golden)
    decoded = decode_rows(opened.read(0))
    assert opened.header.tables.num_banks == {1: 1}.get(version, 4)
    assert decoded.num_rows == 25
    assert decoded["id"].to_pylist()[:2] == [b"0000000", b"0000001"]
    expected = np.load(golden.with_suffix(".npy"))
    np.testing.assert_array_equal(decoded["z_hat"].flatten().to_numpy().reshape(25, -1), expected)
    kept = json.loads(golden.with_suffix(".json").read_text()) if version >= 3 else {}
    found = {column.name: decoded[column.name].to_pylist() for column in opened.header.columns}
    if "thumb" in found:
        found["thumb"] = [None if each is None else [value.hex() for value in each] for each in found["thumb"]]
    assert found == kept
