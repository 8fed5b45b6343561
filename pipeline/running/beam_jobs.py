"""Running a Beam job: its options, its end, and its metrics."""

from __future__ import annotations

import argparse
import collections
import contextlib
import logging
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
from vidpress.pipeline.launching.launch import JobError
from vidpress.pipeline.launching.options import Parser
from vidpress.pipeline.launching.reporting import explanation
from vidpress.pipeline.running import runners, worker_processes
from vidpress.pipeline.running.runners import DEFAULT_RUNNER
from vidpress.transforms import metrics, progress

_log = logging.getLogger("vidpress")

# How Beam's errors begin if an engine that it starts by itself is not available, or if a runner needs other options.
_INVALID_OPTIONS = "Pipeline has validations errors: "
_NO_ENGINE = ("Unable to fetch remote", "You must specify a --job_endpoint")


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
