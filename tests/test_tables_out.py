"""Reading into the data frames and engines that users have."""

import concurrent.futures
import gc
import multiprocessing
import os
import pickle
import sys
import threading

import numpy as np
import pyarrow as pa
import pytest
from conftest import forked
from data_sets import KEPT, write_data_set

from vidpress.model.reading import stored_videos
from vidpress.model.reading.row_groups import OfProcess, RowGroups
from vidpress.model.reading.video_dataset import VideoDataset


@pytest.fixture(scope="module")
def data_set(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tables")
    rows, z_hat = write_data_set(folder, model, 600, num_shards=2, columns=KEPT)
    place = {video_id: index for index, video_id in enumerate(rows["id"].to_pylist())}
    return folder, rows, z_hat, place


@pytest.fixture(scope="module")
def label(data_set):
    """The most frequent label."""
    values = np.concatenate(data_set[1]["labels"].to_pylist()).astype(int)
    return int(np.bincount(values).argmax())


def test_arrow(data_set):
    folder, rows, z_hat, place = data_set
    dataset = VideoDataset(folder, 100)
    table = dataset.to_arrow()
    assert table.schema == dataset.schema
    assert table.schema.field("features").type == pa.list_(pa.float32(), z_hat.shape[1])
    order = [place[video_id] for video_id in table["id"].to_pylist()]
    assert sorted(order) == list(range(600))
    np.testing.assert_array_equal(np.stack(table["features"].to_numpy()), z_hat[order])
    for name in ("labels", "num_frames"):
        assert table[name].to_pylist() == rows[name].take(pa.array(order)).to_pylist()
    batches = list(dataset.to_arrow_batches(["id", "features"]))
    assert [batch.num_rows for batch in batches] == [100] * 6
    assert batches[0].schema.names == ["id", "features"]
    assert VideoDataset(folder, shuffle=True).to_arrow()["id"].to_pylist() != table["id"].to_pylist()
    with pytest.raises(KeyError, match="nothing"):
        dataset.to_arrow(["nothing"])


def test_arrow_batches_are_an_iteration(data_set):
    """They go on where a state says, begin the next epoch each time, and a state follows them; tables are whole."""
    folder = data_set[0]

    def ids_of(batches):
        return [video_id for batch in batches for video_id in batch["id"].to_pylist()]

    dataset = VideoDataset(folder, 100, shuffle=True)
    epochs = [[video_id for batch in VideoDataset(folder, 100, shuffle=True) for video_id in batch.ids]]
    epochs.append([video_id for batch in dataset.iterate(1, 0, 1) for video_id in batch.ids])
    assert dataset.to_arrow()["id"].to_pylist() == epochs[0]
    reading = dataset.to_arrow_batches(["id"])
    assert ids_of(reading.read_next_batch() for _ in range(2)) == epochs[0][:200]
    resumed = VideoDataset(folder, 70, shuffle=True)
    resumed.load_state_dict(dataset.state_dict())
    assert resumed.to_arrow(["id"])["id"].to_pylist() == epochs[0]
    assert ids_of(resumed.to_arrow_batches()) == epochs[0][200:]
    assert ids_of(resumed.to_arrow_batches()) == epochs[1]
    assert resumed.to_arrow(["id"]).num_rows == 600
    with pytest.raises(KeyError, match="nothing"):
        dataset.to_arrow_batches(["nothing"])


def test_without_features_nothing_is_decoded(data_set, monkeypatch):
    monkeypatch.setattr("vidpress.model.reading.stored_videos.decode_codes", None)
    assert VideoDataset(data_set[0]).to_arrow(["labels", "id"]).num_rows == 600


def test_pandas(data_set):
    pytest.importorskip("pandas")
    folder, _, z_hat, place = data_set
    frame = VideoDataset(folder).to_pandas()
    np.testing.assert_array_equal(np.stack(frame["features"]), z_hat[[place[video_id] for video_id in frame["id"]]])


def test_polars(data_set, label):
    polars = pytest.importorskip("polars")
    folder, rows, z_hat, place = data_set
    frame = VideoDataset(folder).to_polars()
    assert frame["features"].dtype == polars.Array(polars.Float32, z_hat.shape[1])
    np.testing.assert_array_equal(frame["features"].to_numpy(), z_hat[[place[video_id] for video_id in frame["id"]]])
    some = frame.filter(polars.col("labels").list.contains(label))
    assert some.height == sum(label in labels for labels in rows["labels"].to_pylist())


def test_duckdb(data_set, label):
    duckdb = pytest.importorskip("duckdb")
    folder, rows, z_hat, place = data_set
    connection = duckdb.connect()
    connection.register("videos", VideoDataset(folder).to_arrow_batches())
    found = connection.sql(
        f"SELECT id, features[1:3], scores FROM videos WHERE list_contains(labels, {label}) ORDER BY id"
    ).fetchall()
    labels_of = zip(rows["id"].to_pylist(), rows["labels"].to_pylist(), strict=True)
    expected = [video_id for video_id, labels in labels_of if label in labels]
    assert [video_id for video_id, *_ in found] == expected
    for video_id, features, scores in found:
        assert features == z_hat[place[video_id], :3].tolist()
        assert scores == rows["scores"][place[video_id]].as_py()


def test_sql_decodes_what_it_selects(data_set, label, monkeypatch):
    duckdb = pytest.importorskip("duckdb")
    folder, rows, z_hat, place = data_set
    decoded = []
    decode_codes = stored_videos.decode_codes
    monkeypatch.setattr(
        stored_videos, "decode_codes", lambda rows, tables: decoded.append(rows.num_rows) or decode_codes(rows, tables)
    )
    connection = duckdb.connect()
    dataset = VideoDataset(folder)
    dataset.register_in(connection)
    query = f"""
        SELECT id, vidpress_decode(code, bank) AS features, title, starts FROM read_parquet($shards)
        WHERE list_contains(labels, {label}) ORDER BY id"""
    found = connection.sql(query, params={"shards": dataset.shard_files}).fetchall()
    expected = sorted(
        video_id
        for video_id, labels in zip(rows["id"].to_pylist(), rows["labels"].to_pylist(), strict=True)
        if label in labels
    )
    assert [video_id for video_id, *_ in found] == expected
    assert 0 < sum(decoded) == len(expected)
    for video_id, features, *kept in found:
        np.testing.assert_array_equal(features, z_hat[place[video_id]])
        assert kept == [rows[name][place[video_id]].as_py() for name in ("title", "starts")]
    ((total, length),) = connection.sql(
        f"SELECT sum(list_sum(vidpress_decode(code, bank)::FLOAT[])), count(*) FROM '{folder}/*.parquet'"
    ).fetchall()
    assert (total, length) == (z_hat.sum(), len(z_hat))
    with pytest.raises(duckdb.Error, match="a code or a bank is NULL"):
        connection.sql("SELECT vidpress_decode(NULL::BLOB, 0::UTINYINT)").fetchall()
    with pytest.raises(duckdb.Error, match=r"has no tables of one of the banks \[200\]"):
        connection.sql("SELECT vidpress_decode('x'::BLOB, 200::UTINYINT)").fetchall()
    with pytest.raises(duckdb.Error, match="damaged"):
        connection.sql(f"SELECT vidpress_decode('{'x' * 100}'::BLOB, 0::UTINYINT)").fetchall()


def test_each_process_makes_its_own_and_threads_share_it():
    locks = OfProcess()
    barrier = threading.Barrier(8)
    with concurrent.futures.ThreadPoolExecutor(8) as threads:
        made = list(threads.map(lambda _: barrier.wait() >= 0 and locks.get(threading.Lock), range(8)))
    assert len(set(map(id, made))) == 1
    with made[0]:
        process = forked(lambda: sys.exit(locks.get(threading.Lock).locked()))
        process.join()
        assert process.exitcode == 0
        assert not pickle.loads(pickle.dumps(locks)).get(threading.Lock).locked()
    assert locks.get(threading.Lock) is made[0]


@pytest.mark.parametrize("start_method", ["fork", "spawn"])
def test_a_process_does_not_wait_for_a_thread_of_another_that_reads(data_set, start_method, monkeypatch):
    """The thread holds a lock while the process begins."""
    source = VideoDataset(data_set[0], 50).to_grain()
    expected = source[3].ids
    reads, goes_on = threading.Event(), threading.Event()
    read, parent = RowGroups.read, os.getpid()

    def wait_and_read(row_groups, numbers):
        if os.getpid() == parent:
            reads.set()
            assert goes_on.wait(600)
        return read(row_groups, numbers)

    monkeypatch.setattr(RowGroups, "read", wait_and_read)
    source = VideoDataset(data_set[0], 50).to_grain()
    with concurrent.futures.ThreadPoolExecutor(1) as threads:
        in_thread = threads.submit(source.__getitem__, 3)
        try:
            assert reads.wait(600)
            gc.freeze()  # see `forked`
            with multiprocessing.get_context(start_method).Pool(1) as pool:
                assert pool.apply_async(_ids_of, (source, 3)).get(300) == expected
        finally:
            gc.unfreeze()
            goes_on.set()
        assert in_thread.result().ids == expected


def _ids_of(source, index):
    return source[index].ids


def test_grain_reads_two_shuffled_epochs_in_shards(data_set):
    grain = pytest.importorskip("grain")
    folder, _, z_hat, place = data_set
    source = VideoDataset(folder, 50, shuffle=True, num_classes=3862).to_grain()
    assert len(source) == 12
    every = [video_id for batch in source for video_id in batch.ids]
    assert every == [video_id for batch in VideoDataset(folder, 64, shuffle=True) for video_id in batch.ids]
    epochs = [[], []]
    for shard in range(2):
        batches = grain.MapDataset.source(source).shuffle(seed=3)[shard::2].repeat(2)
        found = list(batches.to_iter_dataset(grain.ReadOptions(num_threads=4, prefetch_buffer_size=8)))
        assert len(found) == 12
        for index, batch in enumerate(found):
            np.testing.assert_array_equal(batch.features, z_hat[[place[video_id] for video_id in batch.ids]])
            assert batch.labels.shape == (50, 3862)
            epochs[index // 6] += batch.ids
    assert [sorted(epoch) for epoch in epochs] == [sorted(place)] * 2
    assert epochs[0] != every
    with pytest.raises(IndexError, match="none with the number 12"):
        source[12]
    assert source[-1].ids == source[11].ids
    assert pickle.loads(pickle.dumps(source))[3].ids == source[3].ids
