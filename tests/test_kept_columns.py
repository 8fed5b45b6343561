"""Columns that are kept of the input: in records, in shards, in data sets, and wherever they are read again."""

import base64
import io
import json
import re
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import SPEC, frame_level, video_level, write_records
from data_sets import make_rows, write_data_set
from hypothesis import given, settings
from hypothesis import strategies as st

from vidpress.model.data_set import rows
from vidpress.model.data_set.manifest import Manifest
from vidpress.model.data_set.verification import verify
from vidpress.model.kept_columns import MAX_COLUMNS, KeptColumn, check_columns
from vidpress.model.reading.video_batch import VideoBatchWithColumns
from vidpress.model.reading.video_dataset import VideoDataset
from vidpress.model.records import examples, kept_values
from vidpress.model.records.examples import RecordError, serialize_record
from vidpress.model.records.tfrecord import read_tfrecords
from vidpress.model.records.videos import parse_video
from vidpress.model.shards import shard_layout, shard_rows
from vidpress.model.shards.shard import Shard
from vidpress.model.shards.shard_header import ShardError, ShardHeader
from vidpress.model.shards.shard_writer import write_shard
from vidpress.pipeline import compact, decode, encode, get, inspect

COLUMNS = tuple(map(KeptColumn.parse, ("title:string", "thumb:bytes", "starts:int64", "scores:float")))

FLOATS = st.floats(width=32, allow_nan=True)
VALUES = {
    "string": st.text(max_size=5),
    "bytes": st.binary(max_size=5),
    "int64": st.integers(-(2**63), 2**63 - 1),
    "float": FLOATS,
}
KEPT = st.fixed_dictionaries({column.key: st.none() | st.lists(VALUES[column.kind], max_size=4) for column in COLUMNS})


def feature_of(kind, values):
    """What a record holds of a list of values."""
    if kind in ("string", "bytes"):
        return tuple(value.encode() if kind == "string" else value for value in values)
    return np.array(values, np.float32) if kind == "float" else values


def context_of(kept):
    kinds = {column.key: column.kind for column in COLUMNS}
    return {key: feature_of(kinds[key], values) for key, values in kept.items() if values is not None}


def same(found, wanted):
    """Whether kept values are equal, bit by bit."""
    if found is None or wanted is None:
        return found is wanted
    if any(isinstance(value, float) for value in (*found, *wanted)):
        return np.array(found, np.float32).tobytes() == np.array(wanted, np.float32).tobytes()
    return list(found) == list(wanted)


def kept_rows(model, kept, columns=COLUMNS):
    """Rows as `make_rows` gives them, which keep lists of values by key."""
    table, _ = make_rows(model, len(kept))
    schema = shard_rows.schema_with(columns)
    for column in columns:
        field = schema.field(column.name)
        table = table.append_column(field, pa.array([row[column.key] for row in kept], field.type))
    return table


def shard_bytes(model, table, columns=COLUMNS):
    buffer = io.BytesIO()
    write_shard(buffer, table, ShardHeader(model.model_id, model.spec, model.tables, columns))
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("title:string", "title"),
        ("clip/label:text:bytes", "clip/label:text"),
        ("labels:string", "labels_string"),
        ("Labels:int64", "Labels_int64"),
        ("code:bytes", "code_bytes"),
        ("id.x:float", "id_x"),
        ("a b:float", "a b"),
    ],
)
def test_columns_are_parsed_and_get_names_that_nothing_else_has(text, name):
    column = KeptColumn.parse(text)
    assert str(column) == text
    assert column.name == name


@pytest.mark.parametrize("text", ["title", "title:", ":string", "title:text", "title:String", "", "a:string:int"])
def test_other_texts_are_refused_in_a_line_that_says_the_form(text):
    with pytest.raises(ValueError, match="is not KEY:KIND with a kind of string, bytes, int64, float; an example is"):
        KeptColumn.parse(text)


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["a:string", "a:int64"], "'a' and 'a' would be one column, 'a'"),
        (["a.b:string", "A_B:string"], "'a.b' and 'A_B' would be one column, 'a_b'"),
        (["labels:string", "labels_string:string"], "would be one column, 'labels_string'"),
        ([f"c{index}:float" for index in range(MAX_COLUMNS + 1)], "17 columns are to be kept, at most 16"),
        (["id:string"], "'id' is encoded as it is"),
        (["mean_rgb:float"], "'mean_rgb' is encoded as it is"),
    ],
)
def test_columns_that_cannot_be_kept_are_refused(texts, message):
    with pytest.raises(ValueError, match=message):
        check_columns([KeptColumn.parse(text) for text in texts], SPEC)


@given(KEPT)
def test_values_are_those_of_the_record(kept):
    payload = frame_level(3, **context_of(kept))
    video = parse_video(payload, SPEC, columns=COLUMNS)
    for column, values in zip(COLUMNS, video.kept, strict=True):
        assert same(values, kept[column.key])
    assert parse_video(payload, SPEC).kept == ()


@pytest.mark.parametrize(
    ("context", "message"),
    [
        ({"title": [1]}, r"'title' is kept as string, but holds integers .*; keep it with --keep title:int64"),
        ({"starts": b"x"}, r"'starts' is kept as int64, but holds strings .*; keep it with --keep starts:string"),
        ({"thumb": np.ones(1)}, r"'thumb' is kept as bytes, but holds floats .*; keep it with --keep thumb:float"),
        ({"scores": [1]}, r"'scores' is kept as float, but holds integers .*; keep it with --keep scores:int64"),
        ({"title": b"\xff"}, "'title' is kept as text, but is not UTF-8; keep it with --keep title:bytes"),
        ({"starts": [1] * 16_385}, "'starts' has 16,385 values, more than 16,384"),
        ({"title": (b"",) * 16_385}, "'title' has 16,385 values, more than 16,384"),
        ({"scores": np.ones(16_385)}, "'scores' has 16,385 values, more than 16,384"),
        ({"thumb": b"x" * 2**20}, r"what is kept of it takes 1,048,\d+ bytes; 1,048,576 are possible"),
    ],
)
def test_records_with_other_values_are_refused(context, message):
    with pytest.raises(RecordError, match=message) as error:
        parse_video(frame_level(3, **context), SPEC, columns=COLUMNS)
    assert error.value.video_id == b"video00003"


def test_the_last_of_repeated_keys_counts_as_in_protocol_buffers():
    first, second = frame_level(3, title=b"one"), serialize_record({"title": b"two"})
    (title,) = parse_video(first + second, SPEC, columns=COLUMNS[:1]).kept
    assert title == ["two"]
    merged = examples._messages()["Record"].FromString(first + second)
    assert list(merged.context.feature["title"].bytes_list.value) == [b"two"]


def test_what_is_kept_does_not_hold_on_to_the_record():
    kept = parse_video(frame_level(3, scores=np.ones(5)), SPEC, columns=COLUMNS).kept
    assert kept[3].base is None
    assert kept_values.MAX_BYTES * 1024 < 2**31  # a batch of rows has offsets of 32 bits


def test_labels_that_are_kept_are_none_besides():
    kept = KeptColumn("labels", "string")
    video = parse_video(frame_level(3, labels=(b"music", b"live")), SPEC, columns=[kept])
    assert (video.kept, video.labels.tolist()) == ((["music", "live"],), [])
    with pytest.raises(RecordError, match=r"or keep them as they are with `vidpress encode --keep labels:string`"):
        parse_video(frame_level(3, labels=(b"music",)), SPEC)
    for labels in ([-1], [2**40]):
        with pytest.raises(RecordError, match=r"in 0 to 2147483647; keep other numbers with .*labels:int64`"):
            parse_video(frame_level(3, labels=labels), SPEC)
        (found,) = parse_video(frame_level(3, labels=labels), SPEC, columns=[KeptColumn("labels", "int64")]).kept
        assert found.tolist() == labels


@settings(max_examples=40)
@given(st.lists(KEPT, min_size=1, max_size=30))
def test_shards_give_back_what_they_keep(model, kept):
    table = kept_rows(model, kept)
    data = shard_bytes(model, table)
    opened = Shard(io.BytesIO(data), "s")
    assert opened.header.columns == COLUMNS
    assert opened.header.metadata["vidpress.format_version"] == "3"
    found = opened.read(0)
    for name in shard_rows.SCHEMA.names:
        assert found[name].equals(table[name].combine_chunks())
    for column in COLUMNS:
        for values, row in zip(found[column.name].to_pylist(), kept, strict=True):
            assert same(values, row[column.key])
    assert shard_rows.decode_rows(found).schema.equals(shard_rows.decoded_schema(model.num_dims, COLUMNS))
    sliced = pa.concat_tables([table.slice(0, len(kept) // 2), table.slice(len(kept) // 2)])
    assert shard_bytes(model, sliced) == data


def test_shards_without_kept_columns_are_those_of_version_2(model):
    opened = Shard(io.BytesIO(shard_bytes(model, make_rows(model, 5)[0], ())), "s")
    assert opened.header.metadata["vidpress.format_version"] == "2"
    assert "vidpress.columns" not in opened.header.metadata


def test_no_damaged_bit_gives_another_value(model):
    """Wherever in the file a bit flips: an error of ours, or the same values."""
    rng = np.random.default_rng(0)
    kept = [
        {
            "title": None if index % 4 == 0 else [f"title {index}"] * (index % 3),
            "thumb": [rng.bytes(3)] * (index % 4),
            "starts": rng.integers(0, 300, index % 5).tolist(),
            "scores": rng.random(index % 3).tolist(),
        }
        for index in range(40)
    ]
    table = kept_rows(model, kept)
    data = shard_bytes(model, table)
    whole = Shard(io.BytesIO(data), "s").read(0).replace_schema_metadata()
    noticed = 0
    for position in np.concatenate([rng.integers(0, len(data), 400), np.arange(len(data) - 200, len(data))]):
        damaged = bytearray(data)
        damaged[position] ^= 1 << rng.integers(8)
        try:
            found = Shard(io.BytesIO(bytes(damaged)), "s").read(0)
        except ShardError:
            noticed += 1
            continue
        assert found.replace_schema_metadata().equals(whole)
    assert noticed > 450


def test_another_value_is_another_checksum(model):
    """What a page's own checksum cannot know: null or empty, and where one string ends and the next begins."""
    metadata = ShardHeader(model.model_id, model.spec, model.tables, COLUMNS).metadata
    none = {"title": None, "thumb": None, "starts": None, "scores": None}
    variants = [
        none,
        {**none, "title": []},
        {**none, "title": [""]},
        {**none, "title": ["ab"]},
        {**none, "title": ["a", "b"]},
        {**none, "title": ["", "ab"]},
        {**none, "thumb": [b"ab"]},
        {**none, "starts": [0]},
        {**none, "starts": [0, 0]},
        {**none, "scores": [0.0]},
        {**none, "scores": [-0.0]},
    ]
    found = set()
    for one in variants:
        for kept in ([one, none], [none, one]):
            (batch,) = kept_rows(model, kept).combine_chunks().to_batches()
            found.add(shard_rows.row_group_crc32(batch, metadata))
    assert len(found) == 2 * len(variants) - 1


def test_row_groups_end_where_more_could_not_be_read(model, monkeypatch):
    kept = [{"title": ["abc"], "thumb": None, "starts": [1] * (index % 5), "scores": []} for index in range(50)]
    table = kept_rows(model, kept)
    monkeypatch.setattr(shard_layout, "MAX_ROW_GROUP_KEPT_BYTES", 30)
    opened = Shard(io.BytesIO(shard_bytes(model, table)), "s")
    assert opened.row_group_sizes == [10] * 5
    monkeypatch.setattr(shard_layout, "MAX_ROW_GROUP_KEPT_VALUES", 20)
    opened = Shard(io.BytesIO(shard_bytes(model, table)), "s")
    assert max(opened.row_group_sizes) == 4  # a value of each column, be it null
    monkeypatch.setattr(shard_layout, "MAX_ROW_GROUP_KEPT_BYTES", 2)
    with pytest.raises(ValueError, match="A row keeps more of the input than a shard can hold"):
        shard_bytes(model, table)


def test_most_columns_fit_into_a_footer(model):
    columns = tuple(KeptColumn(f"c{index}", "int64") for index in range(MAX_COLUMNS))
    kept = [{column.key: [1] for column in columns}] * 9000
    opened = Shard(io.BytesIO(shard_bytes(model, kept_rows(model, kept, columns), columns)), "s")
    assert len(opened.row_group_sizes) == 3
    assert opened.read(2)["c15"].to_pylist() == [[1]] * (9000 - 2 * 4096)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ("[]", "has none"),
        ("{}", "damaged metadata"),
        ('[{"key": "title"}]', "damaged metadata"),
        ('[{"key": "title", "kind": "text"}]', "damaged metadata"),
        ('[{"key": "title", "kind": "int64"}]', "its schema is damaged"),
        ('[{"key": "titles", "kind": "string"}]', "does not have the columns"),
        ('[{"key": "title", "kind": "string"}, {"key": "b", "kind": "string"}]', "does not have the columns"),
        ("[" * 100_000, "damaged metadata"),
        (None, "damaged metadata"),
    ],
)
def test_metadata_that_say_other_columns_are_refused(model, columns, message, monkeypatch):
    kept = (KeptColumn("title", "string"),)
    header = ShardHeader(model.model_id, model.spec, model.tables, kept)
    metadata = {**header.metadata, "vidpress.columns": columns}
    if columns is None:
        del metadata["vidpress.columns"]
    monkeypatch.setattr(ShardHeader, "metadata", metadata)
    buffer = io.BytesIO()
    write_shard(buffer, kept_rows(model, [{"title": ["a"]}], kept), header)
    with pytest.raises(ShardError, match=message) as error:
        Shard(io.BytesIO(buffer.getvalue()), "s")
    assert str(error.value).isprintable()


def merge_table(*entries):
    values = [
        {"id": b"k", "labels": [], "num_frames": 3, "bank": 0, "code": b"c", "file": "f", "offset": offset, **entry}
        for offset, entry in enumerate(entries)
    ]
    return pa.Table.from_pylist(values, rows.schema_with(COLUMNS))


def test_rows_are_duplicates_only_if_they_keep_the_same():
    nan = np.array([np.nan], np.float32)
    for same_twice in ({}, {"title": ["a"]}, {"scores": nan}, {"title": [], "starts": [1]}):
        merged, duplicates, letters = rows.merge_rows(merge_table(same_twice, same_twice))
        assert (merged.num_rows, duplicates, letters) == (1, 1, [])
    pairs = (
        ({}, {"title": []}),
        ({"title": ["a"]}, {"title": ["b"]}),
        ({"scores": [0.0]}, {"scores": [-0.0]}),
        ({"starts": [1, 2]}, {"starts": [2, 1]}),
    )
    for first, second in pairs:
        merged, duplicates, (letter,) = rows.merge_rows(merge_table(first, second))
        assert (merged.num_rows, duplicates) == (1, 0)
        assert "occurs twice with different content" in letter.reason


# The data set of the tests below: 60 videos, of which each third has no title.


def kept_of(index):
    title = {} if index % 3 == 0 else {"title": f"Titel {index} ä".encode()}
    return {
        **title,
        "starts": [index, -index],
        "scores": np.full(index % 4, index / 7, np.float32),
        "thumb": (bytes([index]), b"\xff"),
    }


def wanted(index):
    return {
        "title": None if index % 3 == 0 else [f"Titel {index} ä"],
        "thumb": [bytes([index]), b"\xff"],
        "starts": [index, -index],
        "scores": np.full(index % 4, index / 7, np.float32).tolist(),
    }


class Job:
    """Encode jobs with one model and folder."""

    def __init__(self, folder, model_path):
        self.folder, self.output = folder, folder / "out"
        self._model = model_path

    def run(self, payloads, *options, name="a"):
        path = write_records(self.folder / name, payloads)
        encode.main(["--input", path, "--model", self._model, "--output", str(self.output), *options])
        return Manifest.load(self.output)


@pytest.fixture
def job(tmp_path, model_path):
    return Job(tmp_path, model_path)


@pytest.fixture(scope="module")
def data_set(tmp_path_factory, model_path):
    """Two generations, of three shards and of one."""
    job = Job(tmp_path_factory.mktemp("kept"), model_path)
    keep = ("--keep", "title:string,thumb:bytes", "starts:int64", "scores:float")
    job.run([frame_level(index, **kept_of(index)) for index in range(40)], *keep, "--num_shards", "3")
    again = [frame_level(index, **kept_of(index)) for index in range(30, 40)]
    job.run([*again, *(video_level(index, **kept_of(index)) for index in range(40, 60))], "--append", name="b")
    return job.output


def test_a_data_set_keeps_columns(data_set):
    manifest = Manifest.load(data_set)
    assert manifest.columns == COLUMNS
    assert json.loads((data_set / "manifest.json").read_text())["columns"][0] == {"key": "title", "kind": "string"}
    assert (manifest.counts.videos, manifest.counts.duplicates) == (60, 10)
    report = verify(data_set)
    assert report.findings == []
    found = {}
    for entry in manifest.shards:
        for row in Shard.open(data_set / entry.name).read(0).to_pylist():
            found[row["id"]] = {column.name: row[column.name] for column in COLUMNS}
    assert found == {f"video{index:05d}".encode(): wanted(index) for index in range(60)}


def test_a_misspelt_key_fails_the_job_and_writes_no_manifest(job, capsys):
    for options in (("--keep", "titel:string"), ("--labels_key", "lables")):
        with pytest.raises(SystemExit) as stop:
            job.run([frame_level(index, **kept_of(index)) for index in range(5)], *options)
        assert stop.value.code == 1
        key = options[1].removesuffix(":string")
        line = capsys.readouterr().err.splitlines()[-1]
        assert f"No record has the key '{key}', which --labels_key or --keep names: keys are ['id', 'labels'," in line
        assert not list(job.output.glob("manifest*"))


def test_a_key_that_one_record_has_is_enough(job):
    payloads = [frame_level(index) for index in range(5)]
    payloads += [video_level(7, other=[]), video_level(8, bad=b"x")]
    manifest = job.run(
        payloads, "--keep", "other:int64", "bad:int64", "--labels_key", "other", "--max_bad_fraction", "0.2"
    )
    assert (manifest.counts.videos, manifest.counts.dead_letters) == (6, 1)


def test_no_video_of_a_later_file_needs_to_have_the_columns_of_the_data_set(job, capsys):
    job.run([frame_level(index, **kept_of(index)) for index in range(5)], "--keep", "title:string")
    manifest = job.run([frame_level(7)], "--append", name="b")
    assert manifest.counts.videos == 6
    assert manifest.columns == (KeptColumn("title", "string"),)
    assert verify(job.output).findings == []


def test_a_day_without_a_key_that_the_data_set_has_is_no_failure(job, caplog):
    options = ("--keep", "title:string", "--labels_key", "topics")
    job.run([frame_level(index, **kept_of(index), topics=[index]) for index in range(5)], *options)
    compact.main([str(job.output), "--num_shards", "2"])
    manifest = job.run([frame_level(7)], "--append", *options, name="b")
    assert manifest.counts.videos == 6
    assert "None of the 1 videos has labels under 'topics'" in caplog.text
    assert verify(job.output).findings == []
    assert job.run([frame_level(8)], "--append", *options, name="c").counts.videos == 7


def test_a_key_that_the_data_set_never_had_is_misspelt_later_too(job, capsys):
    def run_and_fail(*options):
        with pytest.raises(SystemExit):
            job.run([frame_level(7)], *options, "--append", name="b")
        return capsys.readouterr().err.splitlines()[-1]

    job.run([frame_level(index, topics=[index]) for index in range(5)], "--labels_key", "topics")
    assert "No record has the key 'topic', which" in run_and_fail("--labels_key", "topic")
    assert Manifest.load(job.output).generation == 1
    shutil.rmtree(job.output)
    job.run([video_level(0, mean_rgb=[])], "--keep", "titel:string", "--max_bad_fraction", "1")  # no video to have it
    assert "No record has the key 'titel', which" in run_and_fail("--keep", "titel:string")


def test_a_later_day_need_not_have_labels_under_the_key_of_the_model(job):
    job.run([frame_level(index) for index in range(5)])
    unlabelled = serialize_record(
        {"id": b"x", "mean_rgb": np.ones(24, np.float32), "mean_audio": np.ones(8, np.float32)}
    )
    assert job.run([unlabelled], "--append", "--labels_key", "labels", name="b").counts.videos == 6


def test_generations_keep_the_same_columns(job, capsys):
    job.run([frame_level(index, **kept_of(index)) for index in range(5)], "--keep", "title:string,starts:int64")
    with pytest.raises(SystemExit):
        job.run([frame_level(6, **kept_of(6))], "--append", "--keep", "starts:int64", name="b")
    line = capsys.readouterr().err.splitlines()[-1]
    assert "--keep is starts:int64, but --output" in line
    assert "keeps title:string starts:int64, and all of it has the same columns: leave --keep out" in line
    again = job.run([frame_level(7, **kept_of(7))], "--append", "--keep", "starts:int64", "title:string", name="b")
    assert list(map(str, again.columns)) == ["title:string", "starts:int64"]


def test_a_data_set_without_columns_gets_none(job, capsys):
    job.run([frame_level(0)])
    with pytest.raises(SystemExit):
        job.run([frame_level(7, **kept_of(7))], "--append", "--keep", "title:string", name="b")
    assert "keeps none, and all of it has the same columns" in capsys.readouterr().err


def test_labels_that_are_strings_are_kept(job, capsys):
    payloads = [frame_level(index, labels=(b"music", b"live")[: index % 3]) for index in range(9)]
    with pytest.raises(SystemExit):
        job.run(payloads)
    (letters,) = job.output.glob("dead-letters*")
    assert "--keep labels:string" in json.loads(letters.read_text().splitlines()[0])["reason"]
    letters.unlink()
    manifest = job.run(payloads, "--keep", "labels:string")
    assert manifest.counts.videos == 9
    (entry,) = manifest.shards
    found = Shard.open(job.output / entry.name).read(0)
    assert found["labels_string"].to_pylist() == [["music", "live"][: index % 3] for index in range(9)]
    assert found["labels"].to_pylist() == [[]] * 9


NAMES = [column.name for column in COLUMNS]


def wanted_of(ids, name):
    return [wanted(int(video_id.removeprefix(b"video")))[name] for video_id in ids]


@pytest.mark.parametrize("shuffle", [False, True])
def test_batches_have_the_columns_that_are_asked_for(data_set, shuffle):
    seen = 0
    for ids, labels, features, columns in VideoDataset(data_set, 7, shuffle=shuffle, columns=["scores", "title"]):
        assert len(ids) == len(labels) == len(features)
        assert list(columns) == ["scores", "title"]
        for name, values in columns.items():
            assert values == wanted_of(ids, name)
        seen += len(ids)
    assert seen == 60
    batch = next(iter(VideoDataset(data_set, num_classes=9, columns=["thumb"])))
    assert isinstance(batch, VideoBatchWithColumns)
    assert batch.labels.shape == (60, 9)


def test_without_columns_batches_are_what_they_were(data_set):
    for dataset in (VideoDataset(data_set), VideoDataset(data_set, columns=[])):
        ids, labels, features = next(iter(dataset))
        assert len(ids) == len(labels) == len(features) == 60


def test_columns_that_are_not_there_are_named(data_set, model, tmp_path):
    with pytest.raises(ValueError, match="keeps no column 'titel', 'x': its columns are 'title', 'thumb', 'starts',"):
        VideoDataset(data_set, columns=["titel", "title", "x"])
    with pytest.raises(TypeError, match="columns='title' must be a sequence of names"):
        VideoDataset(data_set, columns="title")
    write_data_set(tmp_path, model, 5)
    with pytest.raises(ValueError, match="keeps no column 'title': its columns are none"):
        VideoDataset(tmp_path, columns=["title"])


def test_tables_have_all_columns_or_those_that_are_asked_for(data_set):
    table = VideoDataset(data_set).to_arrow()
    assert table.schema.names == ["id", "labels", "num_frames", "features", *NAMES]
    assert table.schema == VideoDataset(data_set).schema
    for name in NAMES:
        assert table[name].to_pylist() == wanted_of(table["id"].to_pylist(), name)
    titles = VideoDataset(data_set).to_arrow(["title", "id"])
    assert titles["title"].to_pylist() == wanted_of(titles["id"].to_pylist(), "title")
    some = VideoDataset(data_set, columns=["title"])
    assert some.schema.names == ["id", "labels", "num_frames", "features", "title"]
    assert some.to_arrow().schema == some.schema
    (shard, *_) = sorted(data_set.glob("shard-*"))
    assert VideoDataset(shard).to_arrow().schema == table.schema


def test_videos_by_id_have_them(data_set):
    ids = [b"video00051", b"video00003", b"video00051"]
    rows = VideoDataset(data_set).get_arrow(ids)
    for name in NAMES:
        assert rows[name].to_pylist() == wanted_of(ids, name)
    assert len(VideoDataset(data_set).get(ids)) == 3
    dataset = VideoDataset(data_set, columns=["title"])
    *_, columns = dataset.get(ids)
    assert columns == {"title": wanted_of(ids, "title")}
    assert dataset.get([], missing="skip").columns == {"title": []}
    assert VideoDataset(data_set).get_arrow([]).schema == VideoDataset(data_set).schema


def test_get_prints_and_writes_them(data_set, tmp_path, capsys):
    get.main([str(data_set), "video00004", "video00003"])
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["title"] for line in lines] == [["Titel 4 ä"], None]
    assert lines[0]["thumb"] == [base64.b64encode(value).decode() for value in (bytes([4]), b"\xff")]
    assert lines[0]["starts"] == [4, -4]
    get.main([str(data_set), "video00004", "--output", str(tmp_path / "x.parquet")])
    table = pq.read_table(tmp_path / "x.parquet")
    assert {name: table[name].to_pylist() for name in NAMES} == {name: [wanted(4)[name]] for name in NAMES}


@pytest.mark.parametrize("num_workers", [0, 2])
def test_torch_gives_lists(data_set, num_workers, no_garbage):
    torch = pytest.importorskip("torch")
    dataset = VideoDataset(data_set, 16, shuffle=True, columns=["title", "scores", "thumb"]).to_torch()
    seen = 0
    loader = torch.utils.data.DataLoader(dataset, batch_size=None, num_workers=num_workers)
    for ids, labels, features, columns in loader:
        assert isinstance(features, torch.Tensor)
        assert labels.offsets.shape == (len(ids) + 1,)
        for name, values in columns.items():
            assert values == wanted_of(ids, name)
        seen += len(ids)
    assert seen == 60


def test_grain_gives_lists(data_set):
    source = VideoDataset(data_set, 16, columns=["title"]).to_grain()
    for index in range(len(source)):
        ids, _, _, columns = source[index]
        assert columns == {"title": wanted_of(ids, "title")}


def test_tensorflow_gives_ragged_tensors(data_set):
    tf = pytest.importorskip("tensorflow")
    dataset = VideoDataset(data_set, 16, num_classes=9, columns=NAMES)
    seen = 0
    for ids, features, labels, columns in dataset.to_tf(with_ids=True):
        assert features.shape[0] == labels.shape[0] == len(ids)
        for name in NAMES:
            assert isinstance(columns[name], tf.RaggedTensor)
            values = [each or [] for each in wanted_of(ids.numpy(), name)]
            expected = [[value.encode() for value in each] for each in values] if name == "title" else values
            assert columns[name].to_list() == expected
        seen += len(ids)
    assert seen == 60
    _, _, columns = next(iter(dataset.to_tf()))
    assert list(columns) == NAMES


def test_a_compaction_keeps_them(data_set, tmp_path):
    folder = shutil.copytree(data_set, tmp_path / "out")
    compact.main([str(folder), "--num_shards", "2"])
    manifest = Manifest.load(folder)
    assert (manifest.generation, manifest.columns, len(manifest.shards)) == (3, COLUMNS, 2)
    assert verify(folder).findings == []
    names = ["id", "labels", "features", *NAMES]
    before, after = (VideoDataset(path).to_arrow(names).sort_by("id") for path in (data_set, folder))
    assert after.equals(before)


def test_hugging_face_has_them(data_set):
    pytest.importorskip("datasets")
    for row in VideoDataset(data_set, 16).to_hf():
        for name in NAMES:
            assert [row[name]] == wanted_of([row["id"]], name)


def test_shards_that_keep_other_columns_than_the_manifest_says_are_refused(data_set, tmp_path):
    folder = shutil.copytree(data_set, tmp_path / "out")
    for path in folder.glob("manifest*"):
        path.write_text(path.read_text().replace('"key": "title"', '"key": "titles"'))
    message = "keeps the columns title:string .*, the data set titles:string .*: the shard does not belong to it"
    for read in (lambda: list(VideoDataset(folder)), lambda: list(inspect.describe(str(folder)))):
        with pytest.raises(ShardError, match=message):
            read()
    assert all(re.search(message, finding) for finding in verify(folder).findings)
    assert len(verify(folder).findings) == len(Manifest.load(folder).shards)


def test_inspect_names_the_columns(data_set):
    (shard, *_) = sorted(data_set.glob("shard-*"))
    for path in (data_set, shard):
        lines = list(inspect.describe(str(path)))
        assert "  kept columns     title:string thumb:bytes starts:int64 scores:float" in lines
    assert any(re.match(r"    title +[\d,]+ bytes", line) for line in lines)


def decoded_contexts(folder):
    """The context features of all records of a folder, by id."""
    found = {}
    for path in folder.glob("*.tfrecord"):
        with path.open("rb") as file:
            for _, payload in read_tfrecords(file):
                context, _ = examples.parse_record(payload)
                (video_id,) = examples.bytes_values(context["id"])
                found[video_id] = context
    return found


@pytest.mark.parametrize("features", ["z_hat", "input"])
def test_decode_writes_records_with_them(data_set, tmp_path, features):
    decode.main(["--input", str(data_set), "--output", str(tmp_path / "f"), "--as", features])
    found = decoded_contexts(tmp_path / "f")
    assert len(found) == 60
    for video_id, context in found.items():
        index = int(video_id.removeprefix(b"video"))
        original, _ = examples.parse_record((frame_level if index < 40 else video_level)(index, **kept_of(index)))
        for column in COLUMNS:
            assert context.get(column.key) == original.get(column.key)
        names = {"z_hat"} if features == "z_hat" else {"mean_rgb", "mean_audio"}
        assert set(context) == {"id", "labels", *names, *kept_of(index)}


@pytest.mark.parametrize("features", ["z_hat", "input"])
def test_decode_writes_parquet_with_them(data_set, tmp_path, features):
    decode.main(["--input", str(data_set), "--output", str(tmp_path / "f"), "--as", features, "--format", "parquet"])
    table = pq.read_table(tmp_path / "f")
    for name in NAMES:
        assert table[name].to_pylist() == wanted_of(table["id"].to_pylist(), name)
    assert table.schema.names[-4:] == NAMES
    assert "num_frames" in table.schema.names


def test_decoded_records_encode_to_the_same_columns(data_set, tmp_path, model_path):
    decode.main(["--input", str(data_set), "--output", str(tmp_path / "f"), "--as", "input"])
    keep = ["--keep", *map(str, COLUMNS)]
    output = tmp_path / "again"
    encode.main(["--input", f"{tmp_path}/f/*.tfrecord", "--model", model_path, "--output", str(output), *keep])
    tables = [VideoDataset(folder).to_arrow(["id", "labels", *NAMES]).sort_by("id") for folder in (data_set, output)]
    assert tables[0].equals(tables[1])


def test_a_decode_that_died_is_completed_whatever_the_first_record_has(data_set, tmp_path, caplog):
    arguments = ["--input", str(data_set), "--output", str(tmp_path / "f"), "--as", "input"]
    decode.main(arguments)
    (tmp_path / "f" / "_SUCCESS").unlink()
    decode.main(arguments)
    assert "written again" not in caplog.text


def test_labels_that_are_kept_go_back_under_their_key(job, tmp_path):
    job.run(
        [video_level(index, labels=(b"music",), num_frames=[index]) for index in range(5)],
        *("--keep", "labels:string", "num_frames:int64"),
    )
    decode.main(["--input", str(job.output), "--output", str(tmp_path / "f"), "--as", "input"])
    for video_id, context in decoded_contexts(tmp_path / "f").items():
        assert set(context) == {"id", "labels", "num_frames", "mean_rgb", "mean_audio"}
        assert examples.bytes_values(context["labels"]) == [b"music"]
        assert examples.int64_values(context["num_frames"]).tolist() == [int(video_id.removeprefix(b"video"))]
    decode.main(["--input", str(job.output), "--output", str(tmp_path / "z")])
    for context in decoded_contexts(tmp_path / "z").values():
        assert set(context) == {"id", "labels", "z_hat", "labels_string", "num_frames_int64"}
        assert examples.int64_values(context["labels"]).tolist() == []


def test_decode_puts_no_two_things_under_one_key(job, tmp_path, capsys):
    """The labels are under another key than the model's, which is that of something else that is kept."""
    payloads = [video_level(index, labels=(b"music",), topics=[3]) for index in range(5)]
    job.run(payloads, "--labels_key", "topics", "--keep", "labels:string")
    for options, message in (
        ((), "'labels' is the key of a kept column, and of the labels: name another --labels_key."),
        (("--id_key", "labels"), "'labels' is the key of a kept column, and of the id or a feature"),
    ):
        with pytest.raises(SystemExit):
            decode.main(["--input", str(job.output), "--output", str(tmp_path / "f"), "--as", "input", *options])
        assert message in capsys.readouterr().err
    decode.main(
        ["--input", str(job.output), "--output", str(tmp_path / "f"), "--as", "input", "--labels_key", "topics"]
    )
    (context, *_) = decoded_contexts(tmp_path / "f").values()
    assert examples.int64_values(context["topics"]).tolist() == [3]
    assert examples.bytes_values(context["labels"]) == [b"music"]
