"""Commands that are stopped, and processes that die: the right exit code, one line, and nobody left."""

import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest
from conftest import SPEC, video_level, write_records

from vidpress.model.records.synthetic import write_shards

TWO_PROCESSES = ("--direct_num_workers", "2", "--direct_running_mode", "multi_processing")
LINES = {
    signal.SIGINT: "vidpress encode: stopped by Ctrl-C: the same command can be run again.",
    signal.SIGTERM: "vidpress encode: stopped by SIGTERM: the same command can be run again.",
}

# Generous: machines are slow, and what hangs hangs for ever.
LIMIT = 120


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    """More than a run reads before it is stopped."""
    folder = tmp_path_factory.mktemp("records")
    path = write_records(folder / "a.tfrecord", [video_level(index) for index in range(2000)])
    for number in range(100):
        os.link(path, folder / f"{number}.tfrecord")
    return f"{folder}/*"


class Command:
    """A command in a session of its own."""

    def __init__(self, folder: pathlib.Path, *arguments: str) -> None:
        self.log = folder / "log"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "vidpress.pipeline.launching.cli", *arguments],
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def pids(self) -> set[int]:
        """The processes of the session that are alive."""
        found = set()
        for path in pathlib.Path("/proc").glob("[0-9]*/stat"):
            try:
                state, _, _, session = path.read_text().rpartition(")")[2].split()[:4]
            except OSError:
                continue
            if int(session) == self.process.pid and state != "Z":
                found.add(int(path.parent.name))
        return found

    def workers(self, number: int) -> list[int]:
        """Wait for so many workers, and return them."""
        wait_for(lambda: len(self.pids()) > number or self.process.poll() is not None)
        return sorted(self.pids() - {self.process.pid})

    def end(self) -> tuple[int, list[str]]:
        """Wait for the end, and return exit code and lines; nobody must be left soon after."""
        try:
            code = self.process.wait(LIMIT)
            wait_for(lambda: not self.pids())
        finally:
            for pid in self.pids():
                os.kill(pid, signal.SIGKILL)
        return code, [line for line in self.log.read_text().splitlines() if "Compiling for" not in line]


class Job(Command):
    """An encode job."""

    def __init__(self, records: str, model_path: str, folder: pathlib.Path, *options: str) -> None:
        arguments = ["--input", records, "--model", model_path, "--output", str(folder / "out"), *options]
        super().__init__(folder, "encode", *arguments)

    def wait_for_work(self) -> None:
        """Wait until a process of the job is at its first step: it has opened a file of records."""

        def reads() -> bool:
            paths = [path for pid in self.pids() for path in open_files(pid)]
            return any(path.endswith(".tfrecord") for path in paths)

        wait_for(lambda: reads() or self.process.poll() is not None)


def open_files(pid: int) -> list[str]:
    try:
        return [os.readlink(path) for path in pathlib.Path(f"/proc/{pid}/fd").iterdir()]
    except OSError:
        return []


def wait_for(condition) -> None:
    end = time.monotonic() + LIMIT
    while not condition():
        assert time.monotonic() < end, "it did not come to pass"
        time.sleep(0.02)


@pytest.mark.parametrize("signum", LINES)
@pytest.mark.parametrize("workers", [(), TWO_PROCESSES])
def test_a_job_is_stopped(records, model_path, tmp_path, signum, workers):
    job = Job(records, model_path, tmp_path, *workers)
    if workers:
        job.workers(2)
    job.wait_for_work()
    # A terminal sends Ctrl-C to every process of the job; who ends a service may tell the first alone.
    (os.killpg if signum == signal.SIGINT else os.kill)(job.process.pid, signum)
    assert job.end() == (128 + signum, [LINES[signum]])
    assert not list(tmp_path.glob("out/manifest*"))
    assert not list(tmp_path.glob("out/.*"))


def test_a_job_is_stopped_while_its_libraries_are_loaded(records, model_path, tmp_path):
    job = Job(records, model_path, tmp_path)
    wait_for(lambda: "apache_beam" in pathlib.Path(f"/proc/{job.process.pid}/maps").read_text())
    os.kill(job.process.pid, signal.SIGINT)
    assert job.end() == (130, [LINES[signal.SIGINT]])


def test_a_job_of_processes_is_stopped_while_they_start(records, model_path, tmp_path):
    job = Job(records, model_path, tmp_path, *TWO_PROCESSES)
    job.workers(1)
    os.killpg(job.process.pid, signal.SIGTERM)  # as systemd does
    assert job.end() == (143, [LINES[signal.SIGTERM]])


@pytest.mark.parametrize("early", [True, False])
def test_a_worker_that_dies_ends_the_job(records, model_path, tmp_path, early):
    job = Job(records, model_path, tmp_path, *TWO_PROCESSES)
    workers = job.workers(1 if early else 2)
    if not early:
        job.wait_for_work()
    os.kill(workers[0], signal.SIGKILL)
    assert job.end() == (
        1,
        [
            "vidpress encode: error: a worker process was killed by SIGKILL, as happens when the system runs out of "
            "memory: the job did not finish, run the same command again."
        ],
    )
    assert not list(tmp_path.glob("out/manifest*"))


@pytest.mark.parametrize("early", [True, False])
def test_no_worker_outlives_its_launcher(records, model_path, tmp_path, early):
    job = Job(records, model_path, tmp_path, *TWO_PROCESSES)
    job.workers(1 if early else 2)
    if not early:
        job.wait_for_work()
    job.process.kill()
    assert job.end() == (-signal.SIGKILL, [])


def test_what_ignores_ctrl_c_goes_on(records, model_path, tmp_path):
    """As under nohup, or in the background of a script."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        job = Job(records.replace("*", "1*"), model_path, tmp_path)
    finally:
        signal.signal(signal.SIGINT, before)
    job.wait_for_work()
    os.kill(job.process.pid, signal.SIGINT)
    code, lines = job.end()
    assert (code, lines[0].split()[0]) == (0, "Encoded")


@pytest.mark.parametrize("early", [True, False])
def test_an_evaluation_by_processes_is_stopped(tmp_path, early):
    pytest.importorskip("tensorflow", reason="needs the extra vidpress[train]")
    pytest.importorskip("jinja2", reason="needs the extra vidpress[report]")
    (records,) = write_shards(tmp_path / "videos", 1, 60, spec=SPEC, num_classes=6, frames=(2, 4))
    evaluation = Command(
        tmp_path,
        *("evaluate", "--input", str(records), "--validation", str(records), "--output", str(tmp_path / "out")),
        *("--features", str(SPEC), "--classes", "6", "--hidden", "8", "--lmbda", "0.01", "--banks", "1"),
        *("--steps", "1000000", "--rivals", "none", "--jobs", "2"),
    )

    def trains() -> bool:
        return any(tmp_path.glob("out.work/**/tensorboard"))

    evaluation.workers(2)  # with what multiprocessing starts to tidy up after the others
    wait_for(lambda: early or trains() or evaluation.process.poll() is not None)
    os.killpg(evaluation.process.pid, signal.SIGINT)
    code, lines = evaluation.end()
    assert code == 130
    assert len(lines) == 3, "\n".join(lines)
    finished, page, last = lines
    assert finished == "0 of 3 points are finished."
    assert page.startswith("Page: ")
    assert last == "vidpress evaluate: stopped by Ctrl-C: the same command can be run again."
