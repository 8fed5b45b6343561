"""What every job does around its pipeline: check its input and output, run, and report what went wrong."""

from __future__ import annotations

import argparse
import collections
import contextlib
import errno
import logging
import os
import pathlib
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence

import apache_beam as beam
from apache_beam.metrics import MetricsFilter
from apache_beam.options.pipeline_options import (
    DirectOptions,
    GoogleCloudOptions,
    PipelineOptions,
    StandardOptions,
)
from apache_beam.runners.runner import PipelineResult, PipelineState

from vidpress.model.cpus import num_cpus
from vidpress.model.data_set.manifest import manifest_numbers
from vidpress.model.errors import VidpressError, fix_of
from vidpress.model.files import input_files, storage
from vidpress.model.files.file_names import generation_of_manifest, join
from vidpress.model.files.input_files import MatchedFile
from vidpress.model.files.uris import PathError
from vidpress.pipeline.launching import runners, worker_processes
from vidpress.pipeline.launching.options import (
    Parser,
    absolute,
    boolean,
    fraction,
    local_folder,
    model_output,
    not_negative,
    positive_int,
    shards,
)
from vidpress.pipeline.launching.reporting import count, explained_errors, explanation
from vidpress.pipeline.launching.runners import DEFAULT_RUNNER
from vidpress.transforms import metrics, progress

__all__ = [
    "DEFAULT_RUNNER",
    "JobError",
    "Parser",
    "absolute",
    "boolean",
    "check_data_set_writable",
    "check_no_folder",
    "check_output",
    "check_writable",
    "count",
    "explained_errors",
    "fraction",
    "graph_location",
    "local_folder",
    "match_input",
    "model_output",
    "not_negative",
    "parse_args",
    "positive_int",
    "run",
    "runs_in_this_process",
    "shards",
    "threads_per_worker",
]

_log = logging.getLogger("vidpress")

_PROBE = re.compile(rf"/{re.escape(storage.PROBE)}[0-9a-f]{{32}}")

# How Beam's errors begin if an engine that it starts by itself is not available, or if a runner needs other options.
_INVALID_OPTIONS = "Pipeline has validations errors: "
_NO_ENGINE = ("Unable to fetch remote", "You must specify a --job_endpoint")


class JobError(VidpressError):
    """A job that cannot start or did not finish: the message names the cause and the fix."""


def parse_args(parser: Parser, argv: Sequence[str] | None) -> tuple[argparse.Namespace, PipelineOptions]:
    """Parse a job's own options and Beam's; an option that neither knows ends the program."""
    return runners.parse_args(parser, list(sys.argv[1:] if argv is None else argv))


def runs_in_this_process(options: PipelineOptions) -> bool:
    """Return whether the workers share the launcher's memory."""
    direct = options.view_as(DirectOptions)
    return (
        options.view_as(StandardOptions).runner == DEFAULT_RUNNER
        and direct.direct_num_workers == 1
        and direct.direct_running_mode != "multi_processing"
    )


def graph_location(options: PipelineOptions) -> str | None:
    """Return where the pipeline's graph is to be written, as for a Flex Template; None if it is to be run."""
    return options.view_as(GoogleCloudOptions).template_location


def threads_per_worker(options: PipelineOptions) -> int:
    """Return how many threads a worker should have besides its own: one a core if it is the only worker, else none."""
    return num_cpus() if runs_in_this_process(options) else 0


def match_input(patterns: Sequence[str]) -> list[MatchedFile]:
    """Return the files of some patterns, each once.

    Raises:
      JobError: If a pattern matches nothing, or something that cannot be read.
    """
    try:
        return input_files.match(patterns)
    except VidpressError as error:
        raise JobError(f"--input {error}") from error


def check_output(output: str, *, fix: str = "name another folder, or remove it first") -> None:
    """Check that a folder can be written and holds no data set.

    Raises:
      JobError: If not. If it holds a data set, the message ends with `fix`.
    """
    if manifest_numbers(output):
        raise JobError(f"--output {output} holds a data set already: {fix}.")
    check_data_set_writable(output)


def check_data_set_writable(output: str) -> None:
    """Check that a data set can be written to a folder, its manifest included.

    Raises:
      JobError: If not.
    """
    check_writable(output, output)
    check_no_folder(output, lambda name: generation_of_manifest(name) is not None)


def check_no_folder(output: str, is_files: Callable[[str], bool]) -> None:
    """Check that no folder has the name of a file that a job writes. Otherwise the job would find out at its end.

    Args:
      output: The output.
      is_files: Returns whether a name is that of such a file.

    Raises:
      JobError: If there is such a folder.
    """
    for name in filter(is_files, storage.list_folders(output)):
        raise JobError(
            f"--output {output} cannot be written: {join(output, name)} is a folder, where a file has to go: "
            "remove it, or name another --output."
        )


def check_writable(output: str, folder: str) -> None:
    """Check that an output can be written, and that one of two runs that write the same file would fail.

    Args:
      output: The output, for the message.
      folder: Where its files will be.

    Raises:
      JobError: If not.
    """
    try:
        storage.check_writable(folder)
    except PathError as error:
        raise JobError(f"--output {output} cannot be written: {error}") from error
    except OSError as error:
        if error.errno == errno.ENOTDIR and (file := _file_in_the_way(folder)):
            reason = f"{file} is a file, not a folder: name another --output."
        elif fix := fix_of(error):
            reason = f"{fix}."
        else:
            reason = _PROBE.sub("", str(error))
        raise JobError(f"--output {output} cannot be written: {reason}") from error


def _file_in_the_way(folder: str) -> str | None:
    """Return the first of a folder's path and the paths above it that is a file, if there is one."""
    paths = (folder, *map(str, pathlib.Path(folder).parents))
    return next((path for path in paths if os.path.exists(path) and not os.path.isdir(path)), None)


def run(options: PipelineOptions, build: Callable[[beam.Pipeline], object], *, total: int, unit: str) -> float:
    """Build a pipeline, run it, and wait for its end with a progress bar.

    Args:
      options: The pipeline's options.
      build: Adds the job's steps to the pipeline.
      total: What the progress bar counts to.
      unit: What it counts.

    Returns:
      How many seconds it took.

    Raises:
      JobError: If the job fails for a reason that needs no traceback.
    """
    start = time.monotonic()
    bar = progress.bar(total, unit) if runs_in_this_process(options) else contextlib.nullcontext()
    try:
        with bar, worker_processes.supervised(), _no_cells(), beam.Pipeline(options=options) as pipeline:
            build(pipeline)
    except Exception as error:
        # Runners that cross a process boundary pass on an error's text, not its type.
        text = explanation(error)
        if text is None and str(error).startswith(_NO_ENGINE):
            text = f"{error}: docs/engines.md says what each engine needs."
        if text is None and str(error).startswith(_INVALID_OPTIONS):
            runner = options.view_as(StandardOptions).runner
            text = f"--runner {runner}: {' '.join(str(error).removeprefix(_INVALID_OPTIONS).split())}"
        if text is None:
            raise
        raise JobError(text) from error
    seconds = time.monotonic() - start
    if pipeline.result.state == PipelineState.DONE and _log.isEnabledFor(logging.INFO):
        _log_metrics(pipeline.result)
    return seconds


@contextlib.contextmanager
def _no_cells() -> Iterator[None]:
    """Keep Beam from naming steps by the cells of a notebook: for that, it imports what fails with some pandas."""
    module = vars(beam.pipeline)
    before = module["alter_label_if_ipython"]
    module["alter_label_if_ipython"] = lambda *_args: None
    try:
        yield
    finally:
        module["alter_label_if_ipython"] = before


def _log_metrics(result: PipelineResult) -> None:
    """Log what the workers counted: the metrics of `vidpress.transforms.metrics`."""
    found = result.metrics().query(MetricsFilter().with_namespace(metrics.NAMESPACE))
    totals: dict[str, int] = collections.defaultdict(int)
    for counter in found["counters"]:
        # None for a counter at zero if a runner reports only what it committed.
        totals[counter.key.metric.name] += counter.result or 0
    for name, total in sorted(totals.items()):
        _log.info("%s: %d", name, total)
    for values in found["distributions"]:
        data = values.result
        _log.info("%s: %d values from %d to %d", values.key.metric.name, data.count, data.min, data.max)
