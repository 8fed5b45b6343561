"""What every job does around its pipeline: check what it is given, run, and say what went wrong."""

from __future__ import annotations

import argparse
import collections
import contextlib
import logging
import math
import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence

import apache_beam as beam
from apache_beam.io.filesystems import FileSystems
from apache_beam.metrics import MetricsFilter
from apache_beam.options.pipeline_options import (
    DirectOptions,
    GoogleCloudOptions,
    PipelineOptions,
    StandardOptions,
)
from apache_beam.runners.runner import PipelineResult, PipelineState

from vidpress.model import input_files, storage
from vidpress.model.errors import VidpressError
from vidpress.model.input_files import MatchedFile
from vidpress.model.manifest import manifest_numbers
from vidpress.transforms import metrics, progress

_log = logging.getLogger("vidpress")

# Beam's DirectRunner first tries to download another engine; this one is always there.
DEFAULT_RUNNER = "FnApiRunner"

# Runners that break a promise, by lower-case name, and which one.
REFUSED_RUNNERS = {"daskrunner": "it mixes up the outputs of a step and loses records"}

# Errors of ours whose message says all; of any other, the traceback is wanted.
_EXPLAINED = (
    "ModelError",
    "ManifestError",
    "ShardError",
    "DamagedCodeError",
    "InputChangedError",
    "InputError",
    "PathError",
    "TooManyDeadLettersError",
)


class JobError(VidpressError):
    """A job that cannot start or did not finish: the message names the cause and the fix."""


def parse_args(
    parser: argparse.ArgumentParser, argv: Sequence[str] | None
) -> tuple[argparse.Namespace, PipelineOptions]:
    """Parse a job's own options, and leave the others to Beam."""
    args, beam_args = parser.parse_known_args(argv)
    options = PipelineOptions(beam_args)
    standard = options.view_as(StandardOptions)
    if standard.runner is None:
        standard.runner = DEFAULT_RUNNER
    # Beam takes a runner's name in any case, and with its module.
    broken = REFUSED_RUNNERS.get(standard.runner.rsplit(".", 1)[-1].lower())
    if broken is not None:
        parser.error(
            f"--runner {standard.runner} is refused because {broken}: take FnApiRunner, PrismRunner, FlinkRunner or "
            "DataflowRunner."
        )
    return args, options


def absolute(path: str) -> str:
    """Return a local path or pattern as it reads from any folder, for workers started elsewhere; a URI as it is."""
    return path if FileSystems.get_scheme(path) is not None else os.path.abspath(path)


def positive_int(text: str) -> int:
    """Parse an option that must be a whole number of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} must be a whole number of at least 1")
    return int(text)


def fraction(text: str) -> float:
    """Parse an option that must lie in [0, 1]."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} must lie in [0, 1]")
    return value


def boolean(text: str) -> bool:
    """Parse the value of a switch, for launchers that give every option one."""
    if text.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"{text!r} must be true or false")
    return text.lower() == "true"


def runs_in_this_process(options: PipelineOptions) -> bool:
    """Return whether the workers share the launcher's memory."""
    return (
        options.view_as(StandardOptions).runner == DEFAULT_RUNNER
        and options.view_as(DirectOptions).direct_num_workers == 1
    )


def graph_location(options: PipelineOptions) -> str | None:
    """Return where the pipeline's graph is written instead of being run: so does a Flex Template's launcher."""
    return options.view_as(GoogleCloudOptions).template_location


def threads_per_worker(options: PipelineOptions) -> int:
    """Return how many threads a worker should have besides its own: all cores' if it is the only one, else none."""
    return len(os.sched_getaffinity(0)) if runs_in_this_process(options) else 0


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
    """See that a folder can be written and holds no data set.

    Raises:
      JobError: If not; of a data set it says the fix.
    """
    if manifest_numbers(output):
        raise JobError(f"--output {output} holds a data set already: {fix}.")
    check_writable(output, output)


def check_writable(output: str, folder: str) -> None:
    """See that an output can be written, and that of two runs that write the same file one fails.

    Args:
      output: The output, for the message.
      folder: Where its files will be.

    Raises:
      JobError: If not.
    """
    try:
        storage.check_writable(folder)
    except (OSError, storage.PathError) as error:
        raise JobError(f"--output {output} cannot be written: {error}") from error


def run(options: PipelineOptions, build: Callable[[beam.Pipeline], object], *, total: int, unit: str) -> float:
    """Build a pipeline, run it, and wait for its end with a progress bar.

    Args:
      options: Of the pipeline.
      build: Adds the job's steps to the pipeline.
      total: What the bar counts to.
      unit: Of what.

    Returns:
      How many seconds it took.

    Raises:
      JobError: If the job fails for a reason that needs no traceback.
    """
    start = time.monotonic()
    bar = progress.bar(total, unit) if runs_in_this_process(options) else contextlib.nullcontext()
    try:
        with bar, beam.Pipeline(options=options) as pipeline:
            build(pipeline)
    except Exception as error:
        # Runners that cross a process boundary pass on an error's text, not its type.
        found = re.search(rf"(?:{'|'.join(_EXPLAINED)}): (.*)", f"{type(error).__name__}: {error}")
        if found is None:
            raise
        raise JobError(re.sub(r" \[while running .*", "", found.group(1))) from error
    seconds = time.monotonic() - start
    if pipeline.result.state == PipelineState.DONE and _log.isEnabledFor(logging.INFO):
        _log_metrics(pipeline.result)
    return seconds


def _log_metrics(result: PipelineResult) -> None:
    """Log what the workers counted: the metrics of `vidpress.transforms.metrics`."""
    found = result.metrics().query(MetricsFilter().with_namespace(metrics.NAMESPACE))
    totals: dict[str, int] = collections.defaultdict(int)
    for counter in found["counters"]:
        # None for a counter at zero, where a runner reports nothing but what it committed.
        totals[counter.key.metric.name] += counter.result or 0
    for name, total in sorted(totals.items()):
        _log.info("%s: %d", name, total)
    for values in found["distributions"]:
        data = values.result
        _log.info("%s: %d values from %d to %d", values.key.metric.name, data.count, data.min, data.max)


@contextlib.contextmanager
def explained_errors(prog: str) -> Iterator[None]:
    """End the program with one line and exit code 1 where the message of an error says all."""
    try:
        yield
    except Exception as error:
        if not isinstance(error, JobError | FileNotFoundError | FileExistsError | PermissionError) and (
            type(error).__name__ not in _EXPLAINED
        ):
            raise
        print(f"{prog}: error: {error}", file=sys.stderr)
        raise SystemExit(1) from error
