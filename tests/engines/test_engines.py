"""Every engine gives the same bytes, from real records, and whatever is killed.

The engines come from `make test-engines`, which names their folder with VIDPRESS_ENGINES. What could not be fetched is
skipped with the reason.
"""

import collections
import contextlib
import dataclasses
import hashlib
import json
import os
import pathlib
import re
import signal
import sys
from collections.abc import Iterable, Iterator

import pytest
from conftest import random_model
from flink_cluster import FlinkCluster
from processes import Process, free_port, readers_of, wait_for
from worker_pool import start_worker_pool

from vidpress.model.data_set.manifest import Manifest
from vidpress.model.features import FeatureSpec
from vidpress.model.reading.video_dataset import VideoDataset
from vidpress.model.records.examples import serialize_record
from vidpress.model.records.synthetic import make_videos
from vidpress.model.records.tfrecord import read_tfrecords, write_tfrecords

NUM_FILES = 10
NUM_SHARDS = 4

# As `vidpress` from the command line, with the counters that the job logs at its end.
COMMAND = [
    sys.executable,
    "-c",
    "import logging; logging.basicConfig(level=logging.INFO); from vidpress.pipeline.launching import cli; cli.main()",
]


@dataclasses.dataclass
class Engine:
    """Options that run a job on an engine.

    Attributes:
      options: For Beam.
      num_workers: How many processes must have loaded the model.
      cluster: The cluster, of Flink.
    """

    options: list[str]
    num_workers: int = 1
    cluster: FlinkCluster | None = None


def fetched(name: str) -> pathlib.Path:
    """The folder of what `make test-engines` fetched, or a skip with the reason why it could not."""
    if "VIDPRESS_ENGINES" not in os.environ:
        pytest.skip("needs what `make test-engines` fetches and names with VIDPRESS_ENGINES")
    folder = pathlib.Path(os.environ["VIDPRESS_ENGINES"])
    missing = folder / f"{name}.missing"
    if missing.exists():
        pytest.skip(f"{name} could not be fetched: {missing.read_text().strip()}")
    return folder / name


@pytest.fixture(scope="session")
def processes() -> Engine:
    return Engine(["--direct_num_workers", "2", "--direct_running_mode", "multi_processing"], num_workers=2)


@pytest.fixture(scope="session")
def prism() -> Engine:
    """Prism with its worker in the launcher, as it is without further options."""
    return Engine(["--runner", "PrismRunner", "--prism_location", str(fetched("prism") / "prism")])


@pytest.fixture(scope="session")
def prism_pool(prism, tmp_path_factory):
    """Prism with its worker in another process."""
    address = f"localhost:{free_port()}"
    pool = start_worker_pool(address, tmp_path_factory.mktemp("pool") / "pool.log")
    yield Engine([*prism.options, "--environment_type", "EXTERNAL", "--environment_config", address])
    pool.kill()


@pytest.fixture(scope="session")
def cluster(tmp_path_factory):
    cluster = FlinkCluster(fetched("flink") / "lib", tmp_path_factory.mktemp("flink"))
    try:
        cluster.add_task_manager()
        cluster.add_task_manager()
        cluster.wait_for_task_managers(2)
        yield cluster
    finally:
        cluster.close()


@pytest.fixture(scope="session")
def flink(request) -> Engine:
    (jar,) = fetched("flink-job-server").glob("*.jar")
    cluster = request.getfixturevalue("cluster")
    options = ["--runner", "FlinkRunner", "--flink_master", f"localhost:{cluster.rest_port}", "--parallelism", "2"]
    options += ["--flink_job_server_jar", str(jar)]
    options += ["--environment_type", "EXTERNAL", "--environment_config", f"worker-pool:{cluster.pool_port}"]
    return Engine(options, num_workers=2, cluster=cluster)


@pytest.fixture(params=["processes", "prism", "prism_pool", "flink"])
def engine(request) -> Engine:
    return request.getfixturevalue(request.param)


def titled(payloads: Iterable[bytes]) -> Iterator[bytes]:
    """Give two of three records a title: in protocol buffers, what follows a message is added to it."""
    for index, payload in enumerate(payloads):
        titles = tuple(f"Titel {index} ä".encode() for _ in range(index % 3))
        yield payload + serialize_record({"title": titles} if titles else {})


@pytest.fixture(scope="session")
def inputs(tmp_path_factory) -> list[pathlib.Path]:
    """Files of real videos where there are any, else of made-up ones. Some have titles."""
    data = os.environ.get("VIDPRESS_DATA")
    folder = tmp_path_factory.mktemp("inputs")
    paths = [folder / f"{index}.tfrecord" for index in range(NUM_FILES)]
    found = sorted(pathlib.Path(data).glob("yt8m_v2_video/*.tfrecord"))[:NUM_FILES] if data else []
    for index, path in enumerate(paths):
        payloads = make_videos(250, frames=(2, 5), start=250 * index)
        if found:
            with found[index].open("rb") as file:
                payloads = [payload for _, payload in read_tfrecords(file)]
        with path.open("wb") as file:
            write_tfrecords(file, titled(payloads))
    return paths


@pytest.fixture(scope="session")
def model(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    random_model(FeatureSpec(), hidden=(500, 250)).save(path)
    return str(path)


@pytest.fixture
def run(tmp_path):
    """Starts a command in the background; whatever still runs of it after the test is killed."""
    started = []

    def start(*arguments: object) -> Process:
        log = tmp_path / f"{len(started)}-{arguments[0]}.log"
        started.append(Process([*COMMAND, *map(str, arguments)], log))
        return started[-1]

    yield start
    for process in started:
        process.kill()


def encode_arguments(paths, model, output, engine):
    return [
        "encode",
        "--input",
        *paths,
        "--model",
        model,
        "--output",
        output,
        "--keep",
        "title:string",
        "--num_shards",
        NUM_SHARDS,
        *engine.options,
    ]


def finish(job: Process) -> dict[str, int]:
    """Wait for a job, see that it succeeded, and return its counters, and how many values its distributions have."""
    assert job.wait() == 0, job.output()[-6000:]
    metrics = re.findall(r"^INFO:vidpress:(\S+): (\d+)", job.output(), re.MULTILINE)
    return {name: int(value) for name, value in metrics}


def assert_counted(metrics: dict[str, int], name: str, expected: int, engine: Engine) -> None:
    """The counter has the expected value, or on Prism at most that, and not nothing.

    Of the bundles that end before Prism knows a counter's name, it keeps the last one's count (`metricsStore` in its
    jobservices/metrics.go, at 2.73).
    """
    if "PrismRunner" in engine.options:
        assert 0 < metrics[name] <= expected, name
    else:
        assert metrics[name] == expected, name


def digests(folder: pathlib.Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def assert_same_videos(folder: pathlib.Path, reference: pathlib.Path) -> None:
    """The shards and the counts are the same; of the input files, whose list a data set keeps too, the paths differ."""
    manifest, expected = Manifest.load(folder), Manifest.load(reference)
    assert (manifest.shards, manifest.counts) == (expected.shards, expected.counts)
    for shard in manifest.shards:
        assert (folder / shard.name).read_bytes() == (reference / shard.name).read_bytes()


def decoded_records(folder: pathlib.Path) -> collections.Counter[bytes]:
    """The records in all files of a folder: which file holds which is the engine's choice."""
    found: collections.Counter[bytes] = collections.Counter()
    for path in folder.glob("features-*"):
        with path.open("rb") as file:
            found.update(payload for _, payload in read_tfrecords(file))
    return found


@pytest.fixture(scope="session")
def reference(inputs, model, tmp_path_factory) -> pathlib.Path:
    """What one process gives: folders `compact` and `features`."""
    folder = tmp_path_factory.mktemp("reference")
    for arguments in (
        encode_arguments(inputs, model, folder / "compact", Engine([])),
        ["decode", "--input", folder / "compact", "--output", folder / "features"],
    ):
        finish(Process([*COMMAND, *map(str, arguments)], folder / f"{arguments[0]}.log"))
    assert Manifest.load(folder / "compact").counts.videos >= 2000
    assert len(list((folder / "compact").glob("*.parquet"))) == NUM_SHARDS
    titles = VideoDataset(folder / "compact").to_arrow(["title"])["title"].to_pylist()
    assert {None if title is None else len(title) for title in titles} == {None, 1, 2}
    return folder


def test_same_bytes(engine, inputs, model, reference, run, tmp_path):
    """The shards, the manifest, the decoded records, and the counters are those of one process."""
    videos = Manifest.load(reference / "compact").counts.videos
    metrics = finish(run(*encode_arguments(inputs, model, tmp_path / "compact", engine)))
    assert digests(tmp_path / "compact") == digests(reference / "compact")
    for name in ("records-read", "videos-encoded", "code-bytes-per-video"):
        assert_counted(metrics, name, videos, engine)
    assert_counted(metrics, "shards-written", NUM_SHARDS, engine)
    # Each process loads the model.
    assert metrics["model-load-msec"] >= engine.num_workers
    if engine.cluster:
        job_id = engine.cluster.job_ids("FINISHED")[0]
        shares = engine.cluster.records_read(job_id)
        assert len([name for name, records in shares.items() if records]) >= 2, shares

    decode = run("decode", "--input", tmp_path / "compact", "--output", tmp_path / "features", *engine.options)
    metrics = finish(decode)
    assert decoded_records(tmp_path / "features") == decoded_records(reference / "features")
    assert_counted(metrics, "videos-decoded", videos, engine)


def test_too_many_bad_records(engine, inputs, model, run, tmp_path):
    """The job fails with the reason in one line, and without a manifest, though the error arose in another process."""
    with (tmp_path / "bad.tfrecord").open("wb") as file:
        write_tfrecords(file, [b"rubbish"] * 500)
    output = tmp_path / "compact"
    job = run(*encode_arguments([*inputs, tmp_path / "bad.tfrecord"], model, output, engine))
    assert job.wait() == 1, job.output()[-6000:]
    message = r"^vidpress encode: error: 500 of \d+ records are bad, more than --max_bad_fraction=0.01 allows"
    assert re.search(message, job.output(), re.MULTILINE), job.output()[-6000:]
    assert not (output / "manifest.json").exists()
    letters = [json.loads(line) for path in output.glob("dead-letters-*") for line in path.read_text().splitlines()]
    assert len(letters) == 500


class StalledInput:
    """An input whose last file takes long to read: it holds its records again and again.

    Who reads it is stopped there, so that the job stays in the middle of it until `release`, which puts the file as it
    was in its place.
    """

    def __init__(self, inputs: list[pathlib.Path], folder: pathlib.Path):
        folder.mkdir()
        self.paths = [folder / path.name for path in inputs]
        for source, path in zip(inputs, self.paths, strict=True):
            path.symlink_to(source)
        self._source, self._stalling = inputs[-1], folder.parent / "stalling"
        self._stalling.write_bytes(50 * self._source.read_bytes())
        self._replace_last(self._stalling)
        self._readers: list[int] = []

    def stop_reader(self, job: Process) -> int:
        """Wait until a worker reads the last file and stop it there; return its process id."""

        def readers() -> list[int]:
            assert job.is_running(), job.output()[-6000:]
            return readers_of(self._stalling)

        self._readers = wait_for("reading", readers)
        for pid in self._readers:
            os.kill(pid, signal.SIGSTOP)
        return self._readers[0]

    def release(self) -> None:
        """Let whoever was stopped and still lives go on, and others find the file as it was."""
        self._replace_last(self._source)
        for pid in self._readers:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)

    def _replace_last(self, source: pathlib.Path) -> None:
        link = self._stalling.with_name("link")
        link.symlink_to(source)
        link.replace(self.paths[-1])


def test_killed_for_good(engine, inputs, model, reference, run, tmp_path):
    """A job that is killed in the middle leaves no manifest; the same command again gives the same bytes."""
    stalled = StalledInput(inputs, tmp_path / "inputs")
    arguments = encode_arguments(stalled.paths, model, tmp_path / "compact", engine)
    job = run(*arguments)
    stalled.stop_reader(job)
    if engine.cluster:
        engine.cluster.cancel(engine.cluster.job_ids("RUNNING")[0])
    job.kill()
    stalled.release()
    assert not (tmp_path / "compact" / "manifest.json").exists()
    finish(run(*arguments))
    assert_same_videos(tmp_path / "compact", reference / "compact")


def test_killed_worker(processes, inputs, model, run, tmp_path):
    """This engine does not start a lost worker's part again: the job ends with an error, and leaves no manifest."""
    stalled = StalledInput(inputs, tmp_path / "inputs")
    job = run(*encode_arguments(stalled.paths, model, tmp_path / "compact", processes))
    worker = stalled.stop_reader(job)
    assert worker != job.pid
    os.kill(worker, signal.SIGKILL)
    stalled.release()
    assert job.wait() == 1, job.output()[-6000:]
    assert not (tmp_path / "compact" / "manifest.json").exists()


def test_killed_task_manager(flink, inputs, model, reference, run, tmp_path):
    """A job whose TaskManager is killed in the middle goes on on the other, and gives the same bytes."""
    cluster = flink.cluster
    stalled = StalledInput(inputs, tmp_path / "inputs")
    job = run(*encode_arguments(stalled.paths, model, tmp_path / "compact", flink))
    reader = stalled.stop_reader(job)
    (index,) = [index for index, pool in enumerate(cluster.worker_pools) if reader in pool.family()]
    (job_id,) = cluster.job_ids("RUNNING")
    cluster.task_managers[index].kill()
    stalled.release()
    try:
        finish(job)
    finally:
        cluster.add_task_manager()
        cluster.wait_for_task_managers(2)
    failures = cluster.get(f"/jobs/{job_id}/exceptions")["exceptionHistory"]["entries"]
    assert any(f"task-manager-{index}" in json.dumps(failure) for failure in failures), failures
    assert_same_videos(tmp_path / "compact", reference / "compact")


def test_cluster_replaces_a_task_manager(cluster):
    """What the tests above rest on: a killed TaskManager is noticed, and another takes its place."""
    cluster.task_managers[-1].kill()
    cluster.wait_for_task_managers(1)
    cluster.add_task_manager()
    cluster.wait_for_task_managers(2)
