import json

import numpy as np
import pyarrow as pa
import pytest
from conftest import SPEC, frame_level
from hypothesis import given
from hypothesis import strategies as st

from vidpress.model.data_set import rows
from vidpress.model.data_set.id_hash import shard_of
from vidpress.model.data_set.rows import DeadLetter, encode_videos, merge_rows, split_by_shard
from vidpress.model.records.videos import parse_video, pool_frames
from vidpress.model.shards.shard_rows import SCHEMA, decode_codes


def pooled(index, file="f", offset=0):
    return pool_frames(parse_video(frame_level(index), SPEC, file=file, offset=offset), SPEC)


def row(key, code=b"c", file="f", offset=0, labels=(1,)):
    return {"id": key, "labels": list(labels), "num_frames": 3, "code": code, "file": file, "offset": offset}


def table(*entries):
    return pa.Table.from_pylist(list(entries), rows.schema_with())


def test_encoded_rows_hold_what_the_videos_do(model):
    videos = [pooled(index, file=f"file{index % 2}", offset=index) for index in range(10)]
    batch, letters = encode_videos(model, videos)
    assert letters == []
    assert batch.schema.equals(rows.schema_with())
    for video, entry in zip(videos, batch.to_pylist(), strict=True):
        assert entry["id"] == video.id
        assert entry["labels"] == video.labels.tolist()
        assert entry["num_frames"] == video.num_frames
        assert (entry["file"], entry["offset"]) == (video.file, video.offset)
    z_hat = model.quantize(np.stack([video.x for video in videos]))
    np.testing.assert_array_equal(decode_codes(batch, model.tables), z_hat)
    np.testing.assert_array_equal(decode_codes(batch.slice(3, 4), model.tables), z_hat[3:7])
    assert batch["code"].to_pylist() == model.compress(np.stack([video.x for video in videos]))[0]


def test_shard_of_a_key_is_fixed():
    """A change would break joins between data sets of different ages."""
    assert [shard_of(key, 1000) for key in (b"", b"a", b"02aa")] == [756, 928, 213]


@given(st.lists(st.binary(min_size=1, max_size=8), unique=True, max_size=60), st.integers(1, 9))
def test_rows_are_dealt_to_their_shards(keys, num_shards):
    parts = split_by_shard(table(*map(row, keys)), num_shards)
    dealt = {index: part["id"].to_pylist() for index, part in parts.items()}
    assert all(shard_of(key, num_shards) == index for index, ids in dealt.items() for key in ids)
    assert sorted(key for ids in dealt.values() for key in ids) == sorted(keys)
    assert all(dealt.values())


@given(st.lists(st.tuples(st.sampled_from("abcd"), st.sampled_from("xy"), st.integers(0, 99)), max_size=30))
def test_merging_keeps_the_first_of_each_id_and_accounts_for_all(entries):
    entries = list({offset: (key, code, offset) for key, code, offset in entries}.values())
    expected = {}
    duplicates, conflicts = 0, []
    for key, code, offset in sorted(entries, key=lambda entry: entry[2]):
        if key not in expected:
            expected[key] = code
        elif expected[key] == code:
            duplicates += 1
        else:
            conflicts.append((key, offset))
    merged, found_duplicates, letters = merge_rows(
        table(*(row(key.encode(), code.encode(), "f", offset) for key, code, offset in entries))
    )
    assert merged["id"].to_pylist() == sorted(key.encode() for key in expected)
    assert merged["code"].to_pylist() == [expected[key].encode() for key in sorted(expected)]
    assert found_duplicates == duplicates
    assert sorted((letter.id.decode(), letter.offset) for letter in letters) == sorted(conflicts)
    assert len(entries) == merged.num_rows + found_duplicates + len(letters)
    assert merged.schema.names == SCHEMA.names


def test_a_conflict_names_both_sources():
    _, _, letters = merge_rows(table(row(b"k", b"1", "second", 7), row(b"k", b"2", "first", 900)))
    (letter,) = letters
    assert (letter.file, letter.offset, letter.id) == ("second", 7, b"k")
    assert "id b'k' occurs twice" in letter.reason
    assert "in first at offset 900, which is kept" in letter.reason


@pytest.mark.parametrize("change", [{"labels": (2,)}, {"code": b"other"}])
def test_any_difference_is_a_conflict(change):
    _, duplicates, letters = merge_rows(table(row(b"k"), row(b"k", offset=1, **change)))
    assert (duplicates, len(letters)) == (0, 1)


def test_dead_letter_as_json():
    letter = DeadLetter("f", 3, "because", b"\xff\x00a")
    assert json.loads(letter.to_json()) == {"file": "f", "offset": 3, "reason": "because", "id": "\\xff\x00a"}
    assert json.loads(DeadLetter("f", 3, "because").to_json())["id"] is None
