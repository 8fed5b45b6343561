"""Which of Beam's runners are accepted, and which options are Beam's own."""

from __future__ import annotations

import argparse
import itertools
import os
from collections.abc import Iterable, Sequence
from typing import NoReturn

from apache_beam.io.filesystems import FileSystems
from apache_beam.options.pipeline_options import PipelineOptions, StandardOptions, _BeamArgumentParser
from apache_beam.runners import create_runner

from vidpress.pipeline.launching.options import Parser

# Beam's DirectRunner first tries to download another engine; this one is always there.
DEFAULT_RUNNER = "FnApiRunner"

# Runners that the project's tests run, or submit to; and what Airflow's operator asks for if no runner is named.
_TESTED = (DEFAULT_RUNNER, "PrismRunner", "FlinkRunner", "PortableRunner", "DataflowRunner")
_DEFAULT_OF_OTHERS = "directrunner"

# The options of jobs that name files and folders.
_PATHS = ("input", "model", "output", "data_set")

# Runners that break one of vidpress's promises, by lower-case name, and how they do.
_REFUSED = {"daskrunner": "it mixes up the outputs of a step and loses records"}
_TAKE = "use FnApiRunner, PrismRunner, FlinkRunner or DataflowRunner"


def parse_args(parser: Parser, argv: Sequence[str]) -> tuple[argparse.Namespace, PipelineOptions]:
    """Parse a job's own options and Beam's, with a runner that is known to work; anything else ends the program.

    Args:
      parser: The parser of the job's own options.
      argv: The command line.
    """
    parser.add_argument(
        "--allow_untested_runner",
        action="store_true",
        help="accept a --runner that vidpress is not tested with; one such runner lost everything without an error",
    )
    beam_parser = _beam_parser(parser)
    names = {name for action in beam_parser._actions for name in action.option_strings}
    # A Flex Template's launcher adds options of its own. The service has already refused those that the template does
    # not name.
    is_template = any(argument.split("=", 1)[0] == "--template_location" for argument in argv)
    if is_template:
        given = {argument.split("=", 1)[0] for argument in argv}
        names |= {name for name in given if not parser.misspelt(name)}
    # What Beam does not know first: else the value of one of its options would be taken for an argument of the job.
    _, own = beam_parser.parse_known_args(argv)
    args, rest = parser.parse_with(own, names)
    if rest and not is_template:
        parser.error(f"unrecognized arguments: {rest[0]}")
    for path in itertools.chain.from_iterable(_texts(value) for value in vars(args).values()):
        _check_reachable(path, parser)
    options = PipelineOptions([*_without(argv, own), *rest])
    standard = options.view_as(StandardOptions)
    standard.runner = _checked_runner(standard.runner, parser, args.allow_untested_runner)
    if _short_name(standard.runner) == "dataflowrunner":
        _check_remote(itertools.chain.from_iterable(_texts(getattr(args, name, None)) for name in _PATHS), parser)
    return args, options


def _without(argv: Sequence[str], others: Sequence[str]) -> list[str]:
    """Return the arguments that are none of the others, which are in the same order."""
    left = list(others)
    return [argument for argument in argv if not (left and argument == left[0] and left.pop(0))]


def _texts(value: object) -> list[str]:
    values = value if isinstance(value, list) else [value]
    return [each for each in values if isinstance(each, str)]


def _check_remote(paths: Iterable[str], parser: Parser) -> None:
    """Check that no path is local: Dataflow's workers would read, or write and lose, files on their own disks."""
    for path in paths:
        if os.path.isabs(path):
            parser.error(f"{path} is on this machine, where Dataflow's workers are not: name gs:// paths alone.")


def _check_reachable(path: str, parser: Parser) -> None:
    """Check that Beam can read Cloud Storage. Otherwise it finds out after minutes, in a worker."""
    if path.startswith("gs://"):
        try:
            FileSystems.get_filesystem(path)
        except ValueError:
            parser.error(f"{path}: jobs need vidpress[gcp] for gs:// paths: pip install 'vidpress[gcp]'.")


def _beam_parser(parser: Parser) -> argparse.ArgumentParser:
    """Return a parser of all options that Beam knows. Its errors are reported by `parser`."""

    class BeamParser(_BeamArgumentParser):
        def error(self, message: str) -> NoReturn:
            parser.error(message)

    beam_parser = BeamParser(add_help=False, allow_abbrev=False)
    # By name, as Beam does: a class that was defined twice is one.
    for options in {str(options): options for options in PipelineOptions.__subclasses__()}.values():
        options._add_argparse_args(beam_parser)
    return beam_parser


def _short_name(runner: str) -> str:
    """Return a runner's name as Beam compares it: in upper or lower case, with its module or without "Runner"."""
    short = runner.rsplit(".", 1)[-1].lower()
    return short if short.endswith("runner") else f"{short}runner"


def _checked_runner(name: str | None, parser: Parser, allow_untested: bool) -> str:
    """Return the name of the runner to use, or end the program."""
    if name is None:
        return DEFAULT_RUNNER
    *module, _ = name.rsplit(".", 1)
    short = _short_name(name)
    if short in _REFUSED:
        parser.error(f"--runner {name} is refused because {_REFUSED[short]}: {_TAKE}.")
    if not module or module[0].startswith("apache_beam."):
        if short in (DEFAULT_RUNNER.lower(), _DEFAULT_OF_OTHERS):
            return DEFAULT_RUNNER
        if short in map(str.lower, _TESTED):
            return name
    if not allow_untested:
        parser.error(f"--runner {name} is not tested: {_TAKE}, or give --allow_untested_runner to try it.")
    try:
        create_runner(name)
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        parser.error(f"--runner {name} is not available: {error}")
    return name
