import collections
import dataclasses
import subprocess
import sys
import time

import numpy as np
import pytest
from conftest import REPO
from test_shard import header_of, make_rows

from vidpress.model.data_set.manifest import Counts, FileEntry, Generation, Manifest, ManifestError
from vidpress.model.files.file_names import file_name
from vidpress.model.reading.video_dataset import VideoDataset
from vidpress.model.shards.shard import footer_crc32
from vidpress.model.shards.shard_header import ShardError
from vidpress.model.shards.shard_rows import ROW_GROUP_SIZE
from vidpress.model.shards.shard_writer import write_shard

SIZES = (ROW_GROUP_SIZE + 300, 500, 40)
TOTAL = sum(SIZES)


@pytest.fixture(scope="module")
def data_set(model, tmp_path_factory):
    """Three shards; the folder, and z_hat by id."""
    folder = tmp_path_factory.mktemp("data_set")
    rows, z_hat = make_rows(model, TOTAL)
    entries = []
    start = 0
    for index, size in enumerate(SIZES):
        name = file_name("shard", 1, (index, len(SIZES)), "0" * 64)
        with (folder / name).open("wb") as file:
            write_shard(file, rows.slice(start, size), header_of(model))
        data = (folder / name).read_bytes()
        groups = (ROW_GROUP_SIZE, size - ROW_GROUP_SIZE) if size > ROW_GROUP_SIZE else (size,)
        entries.append(FileEntry(name, size, len(data), "0" * 64, groups, footer_crc32(data)))
        start += size
    counts = Counts(TOTAL, TOTAL, 0, 0, 0, 0)
    generation = Generation(len(SIZES), tuple(entries), (), None, counts)
    manifest = Manifest(model.model_id, model.num_dims, (generation,))
    (folder / "manifest.json").write_text(manifest.to_json())
    return folder, dict(zip(rows["id"].to_pylist(), z_hat, strict=True)), rows


def ids_of(batches):
    return [video_id for batch in batches for video_id in batch.ids]


def test_gives_every_video_once_in_order(data_set):
    folder, z_hat, rows = data_set
    dataset = VideoDataset(folder, batch_size=100)
    batches = list(dataset)
    assert ids_of(batches) == rows["id"].to_pylist()
    assert [len(batch.ids) for batch in batches] == [100] * (TOTAL // 100) + [TOTAL % 100]
    assert dataset.num_videos == TOTAL
    features = np.concatenate([batch.features for batch in batches])
    assert features.dtype == np.float32
    np.testing.assert_array_equal(features, np.stack(list(z_hat.values())))
    labels = [values.tolist() for batch in batches for values in batch.labels]
    assert labels == rows["labels"].to_pylist()


def test_drop_remainder(data_set):
    assert {len(batch.ids) for batch in VideoDataset(data_set[0], 100, drop_remainder=True)} == {100}


def test_shuffled_epochs_are_permutations_that_differ_and_repeat_by_seed(data_set):
    folder, z_hat, rows = data_set
    dataset = VideoDataset(folder, 64, shuffle=True, seed=5)
    first, second = list(dataset), list(dataset)
    in_order = rows["id"].to_pylist()
    assert sorted(ids_of(first)) == sorted(ids_of(second)) == in_order
    assert ids_of(first) not in (in_order, ids_of(second))
    again = VideoDataset(folder, 64, shuffle=True, seed=5)
    assert [ids_of(again), ids_of(again)] == [ids_of(first), ids_of(second)]
    assert ids_of(VideoDataset(folder, 64, shuffle=True, seed=6)) != ids_of(first)
    for batch in first:
        np.testing.assert_array_equal(batch.features, np.stack([z_hat[video_id] for video_id in batch.ids]))
    labels = dict(zip(in_order, rows["labels"].to_pylist(), strict=True))
    assert all(
        values.tolist() == labels[video_id]
        for batch in first
        for video_id, values in zip(batch.ids, batch.labels, strict=True)
    )


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("num_workers", [1, 2, 3, 7])
def test_workers_share_the_videos_without_overlap(data_set, shuffle, num_workers):
    parts = [
        ids_of(VideoDataset(data_set[0], 64, shuffle=shuffle, worker=worker, num_workers=num_workers))
        for worker in range(num_workers)
    ]
    counts = collections.Counter(video_id for part in parts for video_id in part)
    assert len(counts) == TOTAL
    assert set(counts.values()) == {1}


def test_a_single_shard_is_a_data_set(data_set):
    dataset = VideoDataset(data_set[0] / file_name("shard", 1, (1, 3), "0" * 64))
    assert len(ids_of(dataset)) == dataset.num_videos == SIZES[1]


def test_multi_hot_labels(data_set):
    folder, _, rows = data_set
    batches = list(VideoDataset(folder, 100, num_classes=3862))
    dense = np.concatenate([batch.labels for batch in batches])
    assert dense.shape == (TOTAL, 3862)
    assert [np.flatnonzero(row).tolist() for row in dense] == [sorted(set(row)) for row in rows["labels"].to_pylist()]
    with pytest.raises(ValueError, match="but there are 5 classes"):
        list(VideoDataset(folder, num_classes=5))


def test_options_are_checked(data_set):
    with pytest.raises(ValueError, match="batch_size=0 must be at least 1"):
        VideoDataset(data_set[0], 0)
    with pytest.raises(ValueError, match=r"worker=2 must lie in \[0, num_workers=2\)"):
        VideoDataset(data_set[0], worker=2, num_workers=2)


def test_a_folder_without_manifest_is_refused(tmp_path):
    with pytest.raises(ManifestError, match="is not a vidpress data set, or its job did not finish"):
        VideoDataset(tmp_path)


def test_a_damaged_shard_is_an_error(data_set, tmp_path):
    folder, _, rows = data_set
    path = tmp_path / "damaged.parquet"
    data = bytearray((folder / file_name("shard", 1, (0, 3), "0" * 64)).read_bytes())
    data[data.index(rows["code"][20].as_py())] ^= 4
    path.write_bytes(data)
    with pytest.raises(ShardError, match=r"damaged\.parquet, row group 0, is damaged"):
        list(VideoDataset(path))


def test_a_shard_of_another_model_is_refused(data_set, tmp_path):
    folder, _, _ = data_set
    manifest = Manifest.load(folder)
    for entry in manifest.shards:
        (tmp_path / entry.name).write_bytes((folder / entry.name).read_bytes())
    other = dataclasses.replace(manifest, model_id="0" * 16)
    (tmp_path / "manifest.json").write_text(other.to_json())
    with pytest.raises(ShardError, match="the shard does not belong to it"):
        list(VideoDataset(tmp_path))


def test_to_tf(data_set):
    tf = pytest.importorskip("tensorflow")
    folder, z_hat, rows = data_set
    dataset = VideoDataset(folder, 500).to_tf(with_ids=True)
    seen = 0
    for ids, features, labels in dataset:
        assert isinstance(labels, tf.RaggedTensor)
        np.testing.assert_array_equal(features, np.stack([z_hat[video_id] for video_id in ids.numpy()]))
        assert labels.to_list() == rows["labels"].slice(seen, len(ids)).to_pylist()
        seen += len(ids)
    assert seen == TOTAL
    features, dense = next(iter(VideoDataset(folder, 500, num_classes=4000).to_tf()))
    np.testing.assert_array_equal(features, np.stack(list(z_hat.values())[:500]))
    assert dense.shape == (500, 4000)


def test_to_tf_goes_into_keras_fit_and_begins_where_it_is_told(data_set):
    tf = pytest.importorskip("tensorflow")
    videos = VideoDataset(data_set[0], 1000, num_classes=3862, shuffle=True)
    network = tf.keras.Sequential([tf.keras.layers.Dense(3862)])
    network.compile("sgd", "mse")
    history = network.fit(videos.to_tf(), epochs=3, verbose=0).history["loss"]
    assert len(history) == 3
    expected = [ids_of(videos.iterate(epoch, 0, 1)) for epoch in (3, 7, 8)]
    batches = videos.to_tf(with_ids=True)
    assert [video_id for ids, *_ in batches for video_id in ids.numpy()] == expected[0]
    videos.set_epoch(7)
    first = []
    for ids, *_ in batches.take(2):
        first += ids.numpy().tolist()
        time.sleep(0.2)  # for whatever reads ahead
        assert videos.state_dict()["rows"] == len(first)
    assert first == expected[1][: len(first)]
    videos.load_state_dict(videos.state_dict())
    rest = [video_id for ids, *_ in batches for video_id in ids.numpy()]
    assert rest == expected[1][len(first) :]
    assert [video_id for ids, *_ in batches for video_id in ids.numpy()] == expected[2]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_to_torch(data_set, num_workers, no_garbage):
    torch = pytest.importorskip("torch")
    dataset = VideoDataset(data_set[0], 100, shuffle=True, num_classes=3862).to_torch()
    loader = torch.utils.data.DataLoader(dataset, batch_size=None, num_workers=num_workers)
    first, second = list(loader), list(loader)
    assert isinstance(first[0].features, torch.Tensor)
    assert sorted(ids_of(first)) == sorted(data_set[1])
    assert ids_of(first) != ids_of(second)


def test_needs_numpy_numba_and_pyarrow_alone(data_set):
    """Reading for training must not pull in Beam, TensorFlow or cloud clients."""
    script = (
        "import sys\n"
        "for name in ('apache_beam', 'tensorflow', 'google', 'safetensors', 'threadpoolctl', 'tqdm'):\n"
        "    sys.modules[name] = None\n"
        "from vidpress.model import VideoDataset\n"
        f"print(sum(len(batch.ids) for batch in VideoDataset({str(data_set[0])!r}, shuffle=True)))\n"
    )
    result = subprocess.run([sys.executable, "-c", script], cwd=REPO.parent, capture_output=True, text=True, check=True)
    assert int(result.stdout) == TOTAL


def test_an_empty_data_set_gives_no_batches(model, tmp_path):
    counts = Counts(0, 0, 0, 0, 0, 0)
    generation = Generation(1, (), (), None, counts)
    (tmp_path / "manifest.json").write_text(Manifest(model.model_id, model.num_dims, (generation,)).to_json())
    assert list(VideoDataset(tmp_path)) == []
