import gzip
import io
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vidpress.model.tfrecord import Damage, masked_crc32c, open_gzip, read_tfrecords, write_tfrecords


def tfrecord_bytes(payloads: list[bytes]) -> bytes:
    buffer = io.BytesIO()
    assert write_tfrecords(buffer, payloads) == len(payloads)
    return buffer.getvalue()


def read_all(data: bytes) -> list[tuple[int, bytes | Damage]]:
    return list(read_tfrecords(io.BytesIO(data)))


@given(st.lists(st.binary(max_size=100)))
def test_round_trip(payloads):
    assert [payload for _, payload in read_all(tfrecord_bytes(payloads))] == payloads


def test_offsets_are_those_of_the_records():
    assert [offset for offset, _ in read_all(tfrecord_bytes([b"abc", b"", b"defgh"]))] == [0, 19, 35]


def test_is_tensorflows_format(tmp_path):
    tf = pytest.importorskip("tensorflow")
    payloads = [b"first", b"", bytes(range(256)) * 10]
    ours = tmp_path / "ours.tfrecord"
    ours.write_bytes(tfrecord_bytes(payloads))
    assert list(tf.data.TFRecordDataset(str(ours)).as_numpy_iterator()) == payloads
    with tf.io.TFRecordWriter(str(tmp_path / "theirs.tfrecord")) as writer:
        for payload in payloads:
            writer.write(payload)
    assert (tmp_path / "theirs.tfrecord").read_bytes() == ours.read_bytes()


def test_damaged_payload_is_reported_and_reading_goes_on():
    data = bytearray(tfrecord_bytes([b"first", b"second", b"third"]))
    data[21 + 12] ^= 1
    (_, first), (offset, damage), (_, third) = read_all(bytes(data))
    assert (first, third) == (b"first", b"third")
    assert damage == Damage(21, "the record's 6 bytes fail their checksum", ends_file=False)
    assert offset == 21


def test_damaged_payload_checksum_is_reported():
    data = bytearray(tfrecord_bytes([b"first"]))
    data[-1] ^= 0x80
    assert [type(item) for _, item in read_all(bytes(data))] == [Damage]


@pytest.mark.parametrize("position", range(12))
def test_damaged_length_ends_the_file(position):
    data = bytearray(tfrecord_bytes([b"first", b"second", b"third"]))
    data[21 + position] ^= 1
    items = read_all(bytes(data))
    assert len(items) == 2
    assert items[1][1] == Damage(21, "the record's length fails its checksum", ends_file=True)


def test_absurd_length_with_a_right_checksum_ends_the_file():
    length = struct.pack("<Q", 2**60)
    data = length + struct.pack("<I", masked_crc32c(length))
    assert [item.ends_file for _, item in read_all(data)] == [True]


@given(st.integers(1, 53))
def test_every_cut_is_reported(cut):
    data = tfrecord_bytes([b"first", b"second", b"third"])
    whole = {21, 43}
    items = read_all(data[:cut])
    damages = [item for _, item in items if isinstance(item, Damage)]
    assert len(damages) == (cut not in whole)
    assert all(damage.ends_file for damage in damages)


@pytest.mark.parametrize("cut", [5, 15, 40])
def test_cut_gzip_is_reported(cut):
    compressed = gzip.compress(tfrecord_bytes([b"first" * 100, b"second" * 100]))
    file = open_gzip(io.BytesIO(compressed[:cut]))
    items = [item for _, item in read_tfrecords(file)]
    assert isinstance(items[-1], Damage)
    assert "gzip stream is damaged or cut" in items[-1].reason or "ends within" in items[-1].reason


def test_gzip_cut_between_records_is_reported():
    """All records can be read, but the stream's end is missing: more may have been lost."""
    compressed = gzip.compress(tfrecord_bytes([b"first"]))
    items = [item for _, item in read_tfrecords(open_gzip(io.BytesIO(compressed[:-8])))]
    assert items[0] == b"first"
    assert isinstance(items[1], Damage)


PAYLOADS = [bytes([65 + index]) * 200 for index in range(5)]


@given(st.data())
def test_damaged_gzip_gives_no_wrong_record(data):
    """Whatever bit is flipped: each record is one that was written, in order, or a damage is reported."""
    compressed = bytearray(gzip.compress(tfrecord_bytes(PAYLOADS)))
    compressed[data.draw(st.integers(0, len(compressed) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    items = [item for _, item in read_tfrecords(open_gzip(io.BytesIO(bytes(compressed))))]
    records = [item for item in items if isinstance(item, bytes)]
    assert records == PAYLOADS[: len(records)]
    assert records == PAYLOADS or isinstance(items[-1], Damage)


@given(st.lists(st.binary(max_size=400), max_size=4), st.booleans())
def test_gzip_of_several_members_is_read_as_gzip_reads_it(parts, padded):
    compressed = b"".join(gzip.compress(part) + bytes(7 * padded) for part in parts)
    assert open_gzip(io.BytesIO(compressed)).read() == gzip.decompress(compressed) == b"".join(parts)


def test_what_is_no_gzip_is_reported():
    ((_, item),) = read_tfrecords(open_gzip(io.BytesIO(b"rubbish" * 10)))
    assert isinstance(item, Damage)
    assert "gzip stream is damaged" in item.reason
