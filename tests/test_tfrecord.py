import gzip
import io
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vidpress.model.files.gzip_stream import GzipStream
from vidpress.model.files.record_framing import header_of
from vidpress.model.records import tfrecord
from vidpress.model.records.tfrecord import Damage, read_tfrecords, write_tfrecords


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
    assert [item.ends_file for _, item in read_all(header_of(2**60))] == [True]


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
    compressed = gzip.compress(tfrecord_bytes([b"first" * 100, b"second" * 100]), mtime=0)
    file = GzipStream(io.BytesIO(compressed[:cut]))
    items = [item for _, item in read_tfrecords(file)]
    assert isinstance(items[-1], Damage)
    assert "gzip stream is damaged or cut" in items[-1].reason or "ends within" in items[-1].reason


def test_gzip_cut_between_records_is_reported():
    """All records can be read, but the stream's end is missing: more may have been lost."""
    compressed = gzip.compress(tfrecord_bytes([b"first"]), mtime=0)
    items = [item for _, item in read_tfrecords(GzipStream(io.BytesIO(compressed[:-8])))]
    assert items[0] == b"first"
    assert isinstance(items[1], Damage)


PAYLOADS = [bytes([65 + index]) * 200 for index in range(5)]


@given(st.data())
def test_damaged_gzip_gives_no_wrong_record(data):
    """Whatever bit is flipped: each record is one that was written, in order, or a damage is reported."""
    compressed = bytearray(gzip.compress(tfrecord_bytes(PAYLOADS), mtime=0))
    compressed[data.draw(st.integers(0, len(compressed) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    items = [item for _, item in read_tfrecords(GzipStream(io.BytesIO(bytes(compressed))))]
    records = [item for item in items if isinstance(item, bytes)]
    assert records == PAYLOADS[: len(records)]
    assert records == PAYLOADS or isinstance(items[-1], Damage)


@given(st.lists(st.binary(max_size=400), min_size=1, max_size=4))
def test_gzip_of_several_members_is_read_as_gzip_reads_it(parts):
    packed = b"".join(map(gzip.compress, parts))
    assert GzipStream(io.BytesIO(packed)).read() == gzip.decompress(packed) == b"".join(parts)


FIRST, SECOND = (gzip.compress(tfrecord_bytes(PAYLOADS[part]), mtime=0) for part in (slice(0, 2), slice(2, 5)))


@pytest.mark.parametrize(
    ("packed", "num_records", "reason"),
    [
        (b"", 0, "the file is empty, which no gzip file is"),
        (bytes(len(FIRST)), 0, "begins with zeros"),
        (FIRST + bytes(1), 2, "1 zero follows its end"),
        (FIRST + bytes(len(SECOND)), 2, f"{len(SECOND)} zeros follow its end"),
        (FIRST + bytes(200_000), 2, "200,000 zeros follow its end"),
        (FIRST + bytes(7) + SECOND, 2, "zeros and then something else follow its end"),
        (FIRST + bytes(100_000) + SECOND, 2, "zeros and then something else follow its end"),
        (FIRST + b"garbage", 2, "damaged or cut"),
        (FIRST[:-1], 2, "the file ends within it"),
        (FIRST + SECOND[:15], 2, "the file ends within it"),
    ],
)
def test_a_gzip_file_that_is_not_whole_is_reported(packed, num_records, reason):
    *records, (offset, damage) = read_tfrecords(io.BytesIO(packed), len(packed), name="a.tfrecord.gz")
    assert [payload for _, payload in records] == PAYLOADS[:num_records]
    assert damage.ends_file
    assert reason in damage.reason
    assert offset == damage.offset == sum(16 + len(payload) for _, payload in records)


def test_an_empty_file_is_whole_unless_it_is_to_be_packed():
    assert list(read_tfrecords(io.BytesIO(b""), 0, name="a.tfrecord")) == []
    assert list(read_tfrecords(io.BytesIO(gzip.compress(b"", mtime=0)), name="a.tfrecord.gz")) == []


@pytest.mark.parametrize("name", ["a.tfrecord", "a.tfrecord.gz"])
def test_compression_is_told_by_the_first_bytes(name):
    plain = tfrecord_bytes(PAYLOADS)
    for data in (plain, gzip.compress(plain, mtime=0)):
        records = [payload for _, payload in read_tfrecords(io.BytesIO(data), len(data), name=name)]
        assert records == PAYLOADS


def test_a_record_whose_length_begins_as_gzip_does_is_none():
    payload = bytes(0x88B1F)  # in little endian 1f 8b 08
    assert [payload for _, payload in read_tfrecords(io.BytesIO(tfrecord_bytes([payload])))] == [payload]


def test_lost_bytes_are_those_of_the_file():
    data = bytearray(tfrecord_bytes(PAYLOADS))
    data[2 * 216 + 3] ^= 1
    *_, (_, damage) = read_tfrecords(io.BytesIO(bytes(data)), len(data))
    assert damage.lost_bytes == len(data) - 2 * 216
    packed = gzip.compress(bytes(data), 0, mtime=0)  # stored, so that places are known
    *_, (_, damage) = read_tfrecords(io.BytesIO(packed), len(packed))
    assert damage.lost_bytes == pytest.approx(3 * 216, abs=30)
    data[2 * 216 + 3] ^= 1
    data[2 * 216 + 13] ^= 1
    assert [item.lost_bytes for _, item in read_tfrecords(io.BytesIO(bytes(data))) if isinstance(item, Damage)] == [0]


def test_lost_bytes_of_a_large_gzip_file_are_those_behind_the_damage():
    rng = np.random.default_rng(0)
    letters = rng.integers(65, 81, (2000, 1000), np.uint8)
    packed = bytearray(gzip.compress(tfrecord_bytes([row.tobytes() for row in letters]), 1))
    place = len(packed) // 4
    packed[place : place + 100] = b"\xff" * 100
    *records, (_, damage) = read_tfrecords(io.BytesIO(bytes(packed)), len(packed))
    assert all(isinstance(record, bytes) for _, record in records)
    assert len(packed) - place <= damage.lost_bytes <= len(packed) - place + 2**16
    assert 1016 * len(records) == damage.offset


def test_a_file_is_read_up_to_its_size_and_must_reach_it():
    data = tfrecord_bytes(PAYLOADS)
    assert len(list(read_tfrecords(io.BytesIO(data), 2 * 216))) == 2
    *_, (_, damage) = read_tfrecords(io.BytesIO(data), 2 * 216 + 5)
    assert "ends within a record's length" in damage.reason
    *_, (offset, damage) = read_tfrecords(io.BytesIO(data), len(data) + 100)
    assert (offset, damage.reason) == (len(data), "the file ends at byte 1,080 of 1,180")
    assert damage.lost_bytes == 100


def test_a_length_beyond_the_file_is_not_allocated():
    tracemalloc.start()
    try:
        for data in (header_of(2**31 - 1), header_of(2**31 - 1) + bytes(1000)):
            for wrapped, num_bytes in ((data, len(data)), (data, None), (gzip.compress(data, mtime=0), None)):
                ((_, damage),) = read_tfrecords(io.BytesIO(wrapped), num_bytes)
                assert "ends within a record of 2147483647 bytes" in damage.reason
        assert tracemalloc.get_traced_memory()[1] < 2**26
    finally:
        tracemalloc.stop()


def test_what_little_unpacks_to_too_much_is_refused(monkeypatch):
    monkeypatch.setattr(tfrecord, "MAX_UNPACKED_BYTES", 2**25)
    bomb = gzip.compress(tfrecord_bytes([b"first", b"a" * 2**26, b"third"]), mtime=0)
    (_, first), (_, damage), (_, third) = read_tfrecords(io.BytesIO(bomb))
    assert (first, third) == (b"first", b"third")
    assert "packed to less than a 16th" in damage.reason
    assert not damage.ends_file
    *_, (_, damage) = read_tfrecords(io.BytesIO(bomb[: len(bomb) // 2]))
    assert damage.ends_file
    stored = gzip.compress(tfrecord_bytes([b"a" * 2**26]), 0, mtime=0)
    ((_, payload),) = read_tfrecords(io.BytesIO(stored))
    assert payload == b"a" * 2**26


def test_what_is_no_gzip_is_reported():
    ((_, item),) = read_tfrecords(GzipStream(io.BytesIO(b"rubbish" * 10)))
    assert isinstance(item, Damage)
    assert "gzip stream is damaged" in item.reason
