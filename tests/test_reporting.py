"""What is explained in one line, and what keeps its traceback."""

import errno
import os
import subprocess
import sys
import traceback

import pytest
from apache_beam.io.filesystem import BeamIOError

from vidpress.model.data_set.manifest import ManifestError
from vidpress.model.shards.shard_header import ShardError
from vidpress.pipeline.launching.reporting import count, explanation, printable


def crossed(error: Exception) -> RuntimeError:
    """The error as it arrives from a worker: as the text of its traceback."""
    try:
        raise error
    except Exception:
        return RuntimeError(traceback.format_exc())


def chained() -> RuntimeError:
    try:
        try:
            raise OSError(errno.EIO, "Input/output error", "/data/a.parquet")
        except OSError as error:
            raise ShardError("/data/a.parquet is damaged: fetch it again.") from error
    except ShardError:
        return RuntimeError(traceback.format_exc())


@pytest.mark.parametrize("arrived", [lambda error: error, crossed])
@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ManifestError("no manifest: give another."), "no manifest: give another."),
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/data/x"), "/data/x: the disk is full: make room, and run"),
        (OSError(errno.EMFILE, os.strerror(errno.EMFILE)), "too many open files: raise the limit (`ulimit -n 4096`)"),
        (OSError("[Errno 28] Error writing bytes to file. Detail: [errno 28] No space left"), "the disk is full"),
        (PermissionError(errno.EACCES, "Permission denied", "/data/x"), "/data/x: there is no permission"),
        (IsADirectoryError(errno.EISDIR, "Is a directory", "/data/x"), "/data/x: it is a folder, not a file"),
        (FileNotFoundError("/data/x does not exist."), "/data/x does not exist."),
        (MemoryError(), "not enough memory"),
    ],
)
def test_errors_are_explained_here_and_from_a_worker(error, line, arrived):
    assert explanation(arrived(error)).startswith(line)


def test_the_last_of_a_chain_is_said():
    assert explanation(chained()) == "/data/a.parquet is damaged: fetch it again."


def test_what_beam_wraps_with_a_step_is_understood():
    text = "OSError: [Errno 28] No space left on device [while running 'Write/Write shards']"
    assert explanation(crossed(RuntimeError(text))).startswith("the disk is full")
    annotated = ShardError("a.parquet is damaged. [while running 'Read shards']")
    assert explanation(crossed(annotated)) == "a.parquet is damaged."


def test_what_only_points_at_the_error_before_is_no_explanation():
    try:
        try:
            raise ShardError("a.parquet is damaged. [while running 'Read shards']")
        except ShardError as error:
            raise RuntimeError(
                "Bundle processing associated with inst019 has failed. Check prior failing response and attached "
                "exception for details."
            ) from error
    except RuntimeError:
        text = traceback.format_exc()
    assert explanation(RuntimeError(text)) == "a.parquet is damaged."


def test_a_listing_of_beams_names_the_file():
    error = BeamIOError("Match operation failed", {"gs://bucket/x": PermissionError(errno.EACCES, "denied")})
    assert explanation(error).startswith("gs://bucket/x: there is no permission")


@pytest.mark.parametrize("error", [TypeError("x"), KeyError("ShardError: no"), RuntimeError("ShardErrors: x")])
def test_mistakes_of_the_program_keep_their_traceback(error):
    assert explanation(error) is None
    assert explanation(crossed(error)) is None


def test_a_mistake_after_an_explained_error_is_not_hidden_by_it():
    try:
        try:
            raise ManifestError("no manifest")
        except ManifestError:
            raise TypeError("a bug") from None
    except TypeError:
        text = f"ManifestError: no manifest\n\n{traceback.format_exc()}"
    assert explanation(RuntimeError(text)) is None


def test_numbers_go_with_their_nouns():
    assert [count(number, "shard") for number in (0, 1, 2, 2000)] == ["0 shards", "1 shard", "2 shards", "2,000 shards"]


def test_what_strangers_wrote_cannot_move_the_cursor():
    assert printable("\x1b]0;owned\x07 \udcff é\n") == "\\x1b]0;owned\\x07 \\udcff é\\n"


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize(("end", "code"), [("> /dev/full", 1), ("| head -c 1 > /dev/null", 0)])
def test_an_output_that_cannot_be_written_to(model_path, end, code, unbuffered):
    command = f"'{sys.executable}' -m vidpress.pipeline.launching.cli inspect '{model_path}' {end}"
    environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    result = subprocess.run(["bash", "-c", command], capture_output=True, text=True, env=environment)
    assert result.returncode == code
    assert "Traceback" not in result.stderr
    assert "Exception ignored" not in result.stderr
    if code:
        assert result.stderr.count("\n") == 1
        assert result.stderr.startswith("vidpress inspect: error: the disk is full")


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("end", ["> /dev/full", "| head -c 1 > /dev/null"])
@pytest.mark.parametrize("arguments", ["--help", "--version", "inspect --help"])
def test_help_that_cannot_be_written(arguments, end, unbuffered):
    command = f"'{sys.executable}' -m vidpress.pipeline.launching.cli {arguments} {end}"
    environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    result = subprocess.run(["bash", "-c", command], capture_output=True, text=True, env=environment)
    assert "Traceback" not in result.stderr
    assert "Exception ignored" not in result.stderr
    if "full" in end and result.returncode:  # argparse passes over what cannot be written at once
        assert result.returncode == 1
        assert result.stderr.count("\n") == 1
        assert "error: the disk is full" in result.stderr
