"""Videos by their ids."""

import concurrent.futures
import json
import multiprocessing
import pickle

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data_sets import write_data_set

from vidpress.model.data_set.manifest import Manifest
from vidpress.model.files import storage
from vidpress.model.reading import lookup, row_groups
from vidpress.model.reading.video_dataset import VideoDataset
from vidpress.model.shards.shard import Shard
from vidpress.model.shards.sorted_ids import SortedIds
from vidpress.pipeline.launching import cli

NUM_VIDEOS = 9000


@pytest.fixture(scope="module")
def data_set(model, tmp_path_factory):
    """Two generations of shards, one of which has several row groups."""
    folder = tmp_path_factory.mktemp("lookup")
    rows, z_hat = write_data_set(folder, model, NUM_VIDEOS, num_shards=1, generations=2)
    return folder, rows, z_hat


def check(found, rows, z_hat, places):
    assert found.ids == [rows["id"][place].as_py() for place in places]
    np.testing.assert_array_equal(found.features, z_hat[places])
    assert [values.tolist() for values in found.labels] == [rows["labels"][place].as_py() for place in places]


def test_gives_videos_in_the_order_asked_over_all_generations(data_set):
    folder, rows, z_hat = data_set
    dataset = VideoDataset(folder)
    places = np.random.default_rng(0).integers(0, NUM_VIDEOS, 300)
    places[7] = places[3]
    ids = rows["id"].take(pa.array(places)).to_pylist()
    check(dataset.get(ids), rows, z_hat, places)
    check(dataset.get([ids[5].decode()]), rows, z_hat, places[5:6])
    check(dataset.get(iter(ids[:2])), rows, z_hat, places[:2])
    every = dataset.get(rows["id"].to_pylist())
    np.testing.assert_array_equal(every.features, z_hat)


def test_missing_ids_are_named_or_skipped(data_set):
    folder, rows, z_hat = data_set
    dataset = VideoDataset(folder, num_classes=3862)
    known = rows["id"][4000].as_py()
    with pytest.raises(KeyError, match=r"has no video b'', b'nobody'\."):
        dataset.get([b"", known, "nobody", b""])
    found = dataset.get([b"", known, "nobody", known], missing="skip")
    assert found.ids == [known, known]
    np.testing.assert_array_equal(found.features, z_hat[[4000, 4000]])
    for none in (dataset.get([]), dataset.get([b"x", b"\xff"], missing="skip")):
        assert (none.ids, none.labels.shape, none.features.shape) == ([], (0, 3862), (0, z_hat.shape[1]))
    with pytest.raises(KeyError, match="b'09' and 2 more"):
        dataset.get([b"%02d" % index for index in range(12)])
    with pytest.raises(TypeError, match="put it into a list"):
        dataset.get("0000001")
    for other in (5, -1, None, [known]):
        with pytest.raises(TypeError, match="is no id: ids are bytes or str"):
            dataset.get([known, other], missing="skip")
    with pytest.raises(ValueError, match="missing='ignore' must be 'raise' or 'skip'"):
        dataset.get([], missing="ignore")


def test_a_single_shard_and_an_older_generation(data_set):
    folder, rows, z_hat = data_set
    first = VideoDataset(folder, generation=1)
    assert first.get([rows["id"][1].as_py()], missing="skip").ids == []
    shard = VideoDataset(folder / Manifest.load(folder).shards[0].name)
    check(shard.get([rows["id"][8000].as_py()]), rows, z_hat, [8000])


def test_input_features(model, data_set, tmp_path):
    folder, rows, z_hat = data_set
    dataset = VideoDataset(folder)
    dataset._videos.decoder = type("File", (), {"decoder": model.decoder})
    found = dataset.get([rows["id"][10].as_py()])
    np.testing.assert_array_equal(found.features, model.decoder.restore(z_hat[10:11]))


class CountedReads:
    """A file that counts the ranges that are read."""

    def __init__(self, file, reads):
        self._file, self._reads = file, reads

    def read(self, size):
        self._reads.append(size)
        return self._file.read(size)

    def __getattr__(self, name):
        return getattr(self._file, name)


def test_a_video_takes_two_reads_and_then_one(data_set, monkeypatch):
    folder, rows, _ = data_set
    reads = []
    opened = storage.open_input
    dataset = VideoDataset(folder, generation=1)
    monkeypatch.setattr(storage, "open_input", lambda *args, **options: CountedReads(opened(*args, **options), reads))
    dataset.get([rows["id"][0].as_py()])
    assert len(reads) == 2
    dataset.get([rows["id"][8998].as_py()])
    assert len(reads) == 3
    dataset.get([rows["id"][8996].as_py()])
    assert len(reads) == 3


def test_row_groups_are_kept_up_to_a_limit(data_set, monkeypatch):
    folder, rows, z_hat = data_set
    reads = []
    opened = storage.open_input
    places = np.arange(0, NUM_VIDEOS, 700)
    ids = rows["id"].take(pa.array(places)).to_pylist()
    datasets = VideoDataset(folder), VideoDataset(folder)
    num_row_groups = sum(len(shard.row_groups) for shard in Manifest.load(folder).shards)
    monkeypatch.setattr(storage, "open_input", lambda *args, **options: CountedReads(opened(*args, **options), reads))
    for dataset, limit in zip(datasets, (2**28, 0), strict=True):
        monkeypatch.setattr(lookup, "_MAX_KEPT_BYTES", limit)
        check(dataset.get(ids), rows, z_hat, places)
        reads.clear()
        check(dataset.get(ids[::-1]), rows, z_hat, places[::-1])
        assert len(reads) == (0 if limit else num_row_groups)


def test_of_row_groups_those_that_were_used_last_are_kept(data_set):
    folder, _, _ = data_set
    shard = Shard.open(folder / Manifest.load(folder).shards[0].name)
    num_bytes = shard.read(0).get_total_buffer_size()
    kept = lookup._Kept(2 * num_bytes)
    read = [lookup._RowGroup(shard.read(0), SortedIds(shard.read_ids(0))) for _ in range(3)]
    kept.put(0, read[0])
    kept.put(1, read[1])
    assert kept.get(0) is read[0]
    kept.put(2, read[2])
    assert [kept.get(number) for number in range(3)] == [read[0], None, read[2]]


def test_shards_that_are_no_longer_open_are_not_opened_to_see_that_they_lack_an_id(model, tmp_path, monkeypatch):
    rows, z_hat = write_data_set(tmp_path, model, 60, num_shards=1, generations=20)
    opens = []
    opened = storage.open_input
    dataset = VideoDataset(tmp_path)
    monkeypatch.setattr(storage, "open_input", lambda *args, **options: opens.append(args) or opened(*args, **options))
    monkeypatch.setattr(row_groups, "_OPEN_SHARDS", 2)
    check(dataset.get(rows["id"].to_pylist()), rows, z_hat, np.arange(60))
    assert len(opens) == 20
    check(dataset.get([rows["id"][7].as_py()]), rows, z_hat, [7])
    assert dataset.get([b"", b"\xff"], missing="skip").ids == []
    assert len(opens) == 20


@hypothesis.given(
    st.lists(st.binary(max_size=3), min_size=1, unique=True), st.lists(st.binary(max_size=3), min_size=1, unique=True)
)
def test_places_of_ids_are_those_of_python(ids, wanted):
    ids, wanted = sorted(ids), sorted(wanted)
    column = pa.array([b"before", *ids, b"after"], pa.binary()).slice(1, len(ids))
    start = len(wanted) // 3
    places = SortedIds(column).places(SortedIds(pa.array(wanted, pa.binary())), start, len(wanted))
    assert places.tolist() == [ids.index(each) if each in ids else -1 for each in wanted[start:]]


def test_many_rows_of_a_row_group_and_few(data_set):
    folder, rows, z_hat = data_set
    places = np.concatenate([np.arange(40), [5000, 8500]])
    dataset = VideoDataset(folder)
    check(dataset.get(rows["id"].take(pa.array(places)).to_pylist()), rows, z_hat, places)


def test_without_statistics_ids_are_read(data_set, monkeypatch):
    folder, rows, z_hat = data_set
    opened = Shard.__init__

    def without_statistics(self, *args):
        opened(self, *args)
        self._row_groups = tuple(
            group._replace(columns=tuple(chunk._replace(least=None) for chunk in group.columns))
            for group in self._row_groups
        )

    monkeypatch.setattr(Shard, "__init__", without_statistics)
    check(VideoDataset(folder).get([rows["id"][8999].as_py()]), rows, z_hat, [8999])


def test_ids_without_statistics_because_they_are_long(model, tmp_path):
    from test_shard import make_rows, shard_bytes

    rows, z_hat = make_rows(model, 5)
    long = [f"{index}{'x' * 8000}".encode() for index in range(5)]
    path = tmp_path / "shard.parquet"
    path.write_bytes(shard_bytes(model, rows.set_column(0, rows.schema.field("id"), [long])))
    found = VideoDataset(path).get([long[3]])
    np.testing.assert_array_equal(found.features, z_hat[3:4])


def _get(dataset, ids):
    return dataset.get(ids).features.sum()


def test_threads_and_processes_can_share_a_data_set(data_set):
    folder, rows, z_hat = data_set
    dataset = VideoDataset(folder)
    ids = rows["id"].to_pylist()
    parts = [ids[start::40] for start in range(40)]
    expected = [z_hat[start::40].sum() for start in range(40)]
    with concurrent.futures.ThreadPoolExecutor(8) as threads:
        assert list(threads.map(lambda part: _get(dataset, part), parts)) == expected
    with multiprocessing.get_context("fork").Pool(2) as processes:
        assert processes.starmap(_get, [(dataset, part) for part in parts]) == expected
    assert _get(pickle.loads(pickle.dumps(dataset)), parts[0]) == expected[0]


def test_the_command_prints_or_writes_videos(data_set, tmp_path, capsys):
    folder, rows, z_hat = data_set
    ids = [rows["id"][place].as_py().decode() for place in (17, 3)]
    cli.main(["get", str(folder), *ids])
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["id"] for line in lines] == ids
    assert lines[0]["labels"] == rows["labels"][17].as_py()
    assert lines[1]["num_frames"] == rows["num_frames"][3].as_py()
    np.testing.assert_array_equal([line["features"] for line in lines], z_hat[[17, 3]])
    output = tmp_path / "videos.parquet"
    (tmp_path / "ids").write_text("".join(f"{video_id}\n" for video_id in ids))
    cli.main(["get", str(folder), "--ids_from", str(tmp_path / "ids"), "--output", str(output)])
    table = pq.read_table(output)
    assert table["id"].to_pylist() == [video_id.encode() for video_id in ids]
    np.testing.assert_array_equal(np.stack(table["features"].to_pylist()), z_hat[[17, 3]])
    with pytest.raises(SystemExit):
        cli.main(["get", str(folder), "nobody"])
    assert "has no video b'nobody'" in capsys.readouterr().err
    cli.main(["get", str(folder), "nobody", ids[0], "--missing", "skip"])
    assert len(capsys.readouterr().out.splitlines()) == 1
    with pytest.raises(SystemExit):
        cli.main(["get", str(folder)])
    assert "Name at least one id" in capsys.readouterr().err
