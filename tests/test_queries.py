"""Rows of shards that other engines have read, and what decodes them there."""

import concurrent.futures
import os
import pickle
import shutil
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import forked
from data_sets import KEPT, write_data_set

from vidpress.model.coding.range_coder import DamagedCodeError
from vidpress.model.reading import stored_videos
from vidpress.model.reading.video_dataset import VideoDataset
from vidpress.model.shards.shard import Shard
from vidpress.model.shards.shard_header import ShardError
from vidpress.model.shards.shard_rows import ROW_GROUP_SIZE
from vidpress.pipeline import compact

NUM_VIDEOS = 600


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("queries")
    write_data_set(path, model, NUM_VIDEOS, num_shards=2, generations=2, columns=KEPT)
    return path


@pytest.fixture(scope="module")
def dataset(folder):
    return VideoDataset(folder)


@pytest.fixture(scope="module")
def features_of(dataset):
    """The features of each id, as iterating gives them."""
    return {video_id: row for batch in dataset for video_id, row in zip(batch.ids, batch.features, strict=True)}


@pytest.fixture(scope="module")
def titles_of(dataset):
    """The titles of each id."""
    return {row["id"]: row["title"] for row in dataset.to_arrow(["id", "title"]).to_pylist()}


@pytest.fixture
def decoded(monkeypatch):
    """How many rows are decoded each time."""
    numbers = []
    decode_codes = stored_videos.decode_codes
    monkeypatch.setattr(
        stored_videos, "decode_codes", lambda rows, tables: numbers.append(rows.num_rows) or decode_codes(rows, tables)
    )
    return numbers


def check(ids, features, features_of):
    np.testing.assert_array_equal(np.stack(list(features)), [features_of[video_id] for video_id in ids])


def test_shard_files_are_those_of_the_generation(folder, dataset, monkeypatch):
    assert sorted(dataset.shard_files) == sorted(map(str, folder.glob("shard-*")))
    monkeypatch.chdir(folder)
    assert VideoDataset(".").shard_files == dataset.shard_files
    first = VideoDataset(folder, generation=1)
    assert sorted(first.shard_files) == sorted(map(str, folder.glob("shard-00001-*")))
    (one,) = VideoDataset(first.shard_files[0]).shard_files
    assert one == first.shard_files[0]


def test_rows_are_decoded_in_the_form_in_which_they_come(dataset, features_of):
    table = pq.read_table(dataset.shard_files).select(["code", "id", "bank"])
    decoded = dataset.decode_rows(table)
    assert decoded.schema == pa.schema([table.schema.field("id"), ("features", pa.list_(pa.float32(), 40))])
    check(decoded["id"].to_pylist(), decoded["features"].to_pylist(), features_of)
    batch = table.slice(5, 7).combine_chunks().to_batches()[0]
    assert dataset.decode_rows(batch).equals(decoded.slice(5, 7).combine_chunks().to_batches()[0])
    columns = dataset.decode_rows(table.slice(5, 7).to_pydict())
    assert columns.keys() == {"id", "features"}
    assert (columns["features"].dtype, columns["features"].shape) == (np.float32, (7, 40))
    check(columns["id"], columns["features"], features_of)
    assert dataset.decode_rows(table.slice(0, 0)).schema == decoded.schema
    assert dataset.decode_rows(table.slice(0, 0).to_pydict())["features"].shape == (0, 40)
    other_types = pa.table([table["code"].cast(pa.large_binary()), table["bank"].cast(pa.int16())], ["code", "bank"])
    assert dataset.decode_rows(other_types)["features"].equals(decoded["features"])


def test_a_shard_that_cannot_be_opened_for_a_while_is_opened_later(folder, monkeypatch):
    dataset = VideoDataset(folder)
    rows = pq.read_table(dataset.shard_files[0])
    with monkeypatch.context() as patch:
        patch.setattr(Shard, "open", lambda *arguments, **options: (_ for _ in ()).throw(OSError("timed out")))
        patch.setattr(stored_videos, "open_shard", lambda *arguments: (_ for _ in ()).throw(OSError("timed out")))
        with pytest.raises(OSError, match="timed out"):
            dataset.decode_rows(rows)
    assert dataset.decode_rows(rows).num_rows == rows.num_rows


def test_rows_that_are_not_the_data_sets_are_an_error(dataset):
    rows = pq.read_table(dataset.shard_files[0])
    for name in ("code", "bank"):
        null = rows.set_column(rows.schema.get_field_index(name), name, pa.nulls(len(rows), rows[name].type))
        with pytest.raises(ShardError, match="a code or a bank is NULL"):
            dataset.decode_rows(null)
    with pytest.raises(ShardError, match=r"has no tables of one of the banks \[200\]"):
        dataset.decode_rows({"code": [b"x"], "bank": [200]})
    with pytest.raises(DamagedCodeError, match="damaged"):
        dataset.decode_rows({"code": [b"x" * 100], "bank": [0]})


def test_threads_and_processes_share_a_data_set(folder, features_of):
    dataset = VideoDataset(folder)
    batches = pq.read_table(dataset.shard_files).to_batches(max_chunksize=100)

    def check_all(dataset):
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            for rows in pool.map(dataset.decode_rows, batches):
                check(rows["id"].to_pylist(), rows["features"].to_pylist(), features_of)

    check_all(dataset)
    check_all(pickle.loads(pickle.dumps(dataset)))
    process = forked(lambda: check_all(dataset))
    process.join()
    assert process.exitcode == 0


@pytest.mark.parametrize("engine", ["in-memory", "streaming"])
def test_polars_decodes_what_it_selects(engine, dataset, features_of, titles_of, decoded):
    polars = pytest.importorskip("polars")
    query = polars.scan_parquet(dataset.shard_files).filter(polars.col("num_frames") > 200)
    query = query.select("id", dataset.decode_expr(), "title")
    found = query.collect(engine=engine)
    schema = {"id": polars.Binary, "features": polars.Array(polars.Float32, 40), "title": polars.List(polars.String)}
    assert found.schema == query.collect_schema() == schema
    assert found["title"].to_list() == [titles_of[video_id] for video_id in found["id"]]
    assert 0 < sum(decoded) == found.height < NUM_VIDEOS
    check(found["id"], found["features"].to_numpy(), features_of)
    assert query.filter(polars.col("id") == b"none").collect(engine=engine).height == 0


def test_hugging_face_gives_every_video_in_the_epochs_order(folder, features_of, decoded):
    pytest.importorskip("datasets")
    dataset = VideoDataset(folder, shuffle=True)
    order = [video_id for batch in VideoDataset(folder, 100, shuffle=True) for video_id in batch.ids]
    rows = dataset.to_hf()
    assert rows.num_shards == len(dataset)
    assert list(rows.features) == dataset.schema.names
    found = list(rows)
    assert [row["id"] for row in found] == order
    check(order, [row["features"] for row in found], features_of)
    assert {row["id"]: row["labels"] for row in found} == {
        row["id"]: row["labels"] for row in dataset.to_arrow(["id", "labels"]).to_pylist()
    }
    batch = next(iter(rows.with_format("numpy").iter(64)))
    check(batch["id"].tolist(), batch["features"], features_of)
    mixed = [row["id"] for row in rows.shuffle(seed=1, buffer_size=10)]
    assert mixed != order
    assert sorted(mixed) == sorted(order)


def test_hugging_face_goes_on_and_decodes_only_the_rest(folder, decoded):
    pytest.importorskip("datasets")
    rows = VideoDataset(folder, 50, shuffle=True).to_hf()
    order = [row["id"] for row in rows]
    reading = iter(rows)
    begun = [next(reading)["id"] for _ in range(170)]
    state = rows.state_dict()
    decoded.clear()
    resumed = VideoDataset(folder, 50, shuffle=True).to_hf()
    resumed.load_state_dict(state)
    assert begun + [row["id"] for row in resumed] == order
    assert sum(decoded) == NUM_VIDEOS - 150  # whole batches of 50


def test_processes_share_what_hugging_face_reads(folder, features_of, no_garbage):
    pytest.importorskip("datasets")
    data = pytest.importorskip("torch.utils.data")
    rows = VideoDataset(folder).to_hf().with_format("torch").batch(64)
    batches = list(data.DataLoader(rows, batch_size=None, num_workers=2))
    ids = [video_id for batch in batches for video_id in batch["id"]]
    assert sorted(ids) == sorted(features_of)
    check(ids, [row.numpy() for batch in batches for row in batch["features"]], features_of)


@pytest.mark.parametrize("form", [None, "arrow"])
def test_hugging_face_decodes_parquet(form, dataset, features_of, titles_of):
    datasets = pytest.importorskip("datasets")
    rows = datasets.load_dataset("parquet", data_files=dataset.shard_files, split="train", streaming=True)
    rows = rows.with_format(form).map(dataset.decode_rows, batched=True, remove_columns=["code", "bank"])
    found = list(rows.with_format(None))
    assert found[0].keys() == {"id", "labels", "num_frames", "features", *(column.name for column in KEPT)}
    assert {row["id"]: row["title"] for row in found} == titles_of
    assert sorted(row["id"] for row in found) == sorted(features_of)
    check([row["id"] for row in found], [row["features"] for row in found], features_of)


def test_hugging_face_decodes_in_processes_or_when_rows_are_asked_for(dataset, features_of, tmp_path, no_garbage):
    datasets = pytest.importorskip("datasets")
    rows = datasets.load_dataset("parquet", data_files=dataset.shard_files, split="train", cache_dir=str(tmp_path))
    found = rows.map(dataset.decode_rows, batched=True, remove_columns=["code", "bank"], num_proc=2)
    check(found["id"], found["features"], features_of)
    some = rows.with_transform(dataset.decode_rows).select_columns(["id", "code", "bank"])[5:8]
    assert some.keys() == {"id", "features"}
    check(some["id"], some["features"], features_of)


def test_hugging_face_takes_what_was_compacted_twice_from_a_folder(folder, tmp_path):
    """What docs/reading.md warns of."""
    datasets = pytest.importorskip("datasets")
    compacted = shutil.copytree(folder, tmp_path / "compacted")
    compact.main([str(compacted), "--num_shards", "1"])
    choices = (f"{compacted}/*.parquet", VideoDataset(compacted).shard_files)
    numbers = [
        sum(1 for _ in datasets.load_dataset("parquet", data_files=paths, split="train", streaming=True))
        for paths in choices
    ]
    assert numbers == [2 * NUM_VIDEOS, NUM_VIDEOS]


@pytest.fixture(scope="module")
def spark():
    """A Spark on this machine, whose Python workers have what this process has."""
    sql = pytest.importorskip("pyspark.sql", reason="needs pyspark, which is in no environment of `make`: it is large")
    if not (shutil.which("java") or os.environ.get("JAVA_HOME")):
        pytest.skip("Spark needs Java")
    os.environ["PYSPARK_PYTHON"] = sys.executable
    session = sql.SparkSession.builder.master("local[2]").config("spark.ui.enabled", "false").getOrCreate()
    yield session
    session.stop()


def test_spark_decodes_on_its_executors(spark, dataset, features_of, titles_of):
    rows = spark.read.parquet(*dataset.shard_files).select("id", "code", "bank", "title")
    schema = "id binary, title array<string>, features array<float>"
    found = rows.mapInArrow(dataset.decode_batches, schema).collect()
    assert {bytes(row["id"]): row["title"] for row in found} == titles_of
    check([bytes(row["id"]) for row in found], [row["features"] for row in found], features_of)


def test_batches_for_spark_have_lists_of_any_size(dataset, features_of):
    batches = pq.read_table(dataset.shard_files[0]).select(["id", "bank", "code"]).to_batches(max_chunksize=500)
    found = pa.Table.from_batches(dataset.decode_batches(batches))
    assert found.schema.names == ["id", "features"]
    assert found.schema.field("features").type == pa.list_(pa.float32())
    check(found["id"].to_pylist(), found["features"].to_pylist(), features_of)


def plain(column) -> list:
    """Return a column's values as Python's: numbers that are missing as None, lists as lists."""
    if column.dtype.kind != "O":
        return [None if missing else int(value) for value, missing in zip(column, column.isna(), strict=True)]
    return [value if value is None or isinstance(value, bytes) else list(value) for value in column]


@pytest.fixture(scope="module")
def shard(model, tmp_path_factory):
    """A shard of two row groups: its path, and its rows."""
    folder = tmp_path_factory.mktemp("shard")
    rows, _ = write_data_set(folder, model, ROW_GROUP_SIZE + 100, num_shards=1, columns=KEPT)
    (path,) = folder.glob("shard-*")
    return str(path), rows


@pytest.mark.parametrize("name", ["id", "labels", "num_frames", "bank", "code", *(column.name for column in KEPT)])
class TestNoEngineReadsAShardWrong:
    """Row by row, or with an error."""

    def test_ours(self, shard, name):
        path, rows = shard
        opened = Shard.open(path)
        assert len(opened.row_group_sizes) == 2
        assert [value for index in range(2) for value in opened.read(index)[name].to_pylist()] == rows[name].to_pylist()

    def test_pandas(self, shard, name):
        pandas = pytest.importorskip("pandas")
        path, rows = shard
        assert plain(pandas.read_parquet(path, columns=[name])[name]) == rows[name].to_pylist()

    def test_polars(self, shard, name):
        polars = pytest.importorskip("polars")
        path, rows = shard
        for frame in (polars.read_parquet(path), polars.scan_parquet(path).collect()):
            assert frame[name].to_list() == rows[name].to_pylist()

    def test_duckdb(self, shard, name):
        duckdb = pytest.importorskip("duckdb")
        path, rows = shard
        query = f"SELECT {name} FROM read_parquet($file, file_row_number = true) ORDER BY file_row_number"
        assert [value for (value,) in duckdb.execute(query, {"file": path}).fetchall()] == rows[name].to_pylist()

    def test_fastparquet(self, shard, name):
        """It lacks encodings of version 2 of Parquet's format, and says so."""
        fastparquet = pytest.importorskip("fastparquet")
        path, rows = shard
        file = fastparquet.ParquetFile(path)
        if name in ("id", "code"):
            with pytest.raises(NotImplementedError, match="Encoding"):
                file.to_pandas(columns=[name])
        else:
            assert plain(file.to_pandas(columns=[name])[name]) == rows[name].to_pylist()

    def test_spark(self, spark, shard, name):
        path, rows = shard
        values = [value for (value,) in spark.read.parquet(path).select(name).collect()]
        values = [bytes(value) if isinstance(value, bytearray) else value for value in values]
        assert sorted(values, key=repr) == sorted(rows[name].to_pylist(), key=repr)  # its parts come in any order
