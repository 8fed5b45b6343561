"""The freezing job: the folder of a training run in, a frozen model out, at another rate or with other tables."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from vidpress.model.training.options import FreezingOptions
from vidpress.pipeline import train
from vidpress.pipeline.launching import launch, libraries, record_options
from vidpress.pipeline.training import jobs
from vidpress.pipeline.training.options import add_freezing_options, fields_of

if TYPE_CHECKING:
    from vidpress.model.training.loop import Trained
    from vidpress.model.training.training_data import LabelledVideos

_PROG = "vidpress freeze"

# The search for a rate uses at most this many videos. It counts the bytes of one in four, and fits the tables
# to the others: the codes of the very videos that tables were fitted to are shorter than those of new videos.
_SEARCH_SAMPLE = 64_000
_MEASURED_EVERY = 4


def parser() -> launch.Parser:
    """Return the parser of the job's options."""
    parser = launch.Parser(
        prog=_PROG,
        description="Freeze the network of a training run again: with other tables or, if it was trained with "
        "--lmbda_range, at another rate.",
        examples=[
            "vidpress freeze --training many.training --input 'yt8m/train*.tfrecord' --bytes 60 --banks 256 \\",
            "    --output sixty.safetensors",
            "vidpress freeze --training yt8m.training --tables_from 'ours/2026-1*.tfrecord' --output ours.safetensors",
        ],
    )
    files = parser.add_argument_group("files")
    files.add_argument(
        "--training",
        required=True,
        metavar="FOLDER",
        type=launch.absolute,
        help="folder of the training run: the --work_dir of `vidpress train`, by default MODEL.training",
    )
    data = files.add_mutually_exclusive_group(required=True)
    train.add_input_option(data, required=False)
    data.add_argument(
        "--tables_from",
        nargs="+",
        metavar="GLOB",
        type=launch.absolute,
        help="fit tables and the decoder of the input to these videos instead, such as those that will be encoded; "
        "they need no labels",
    )
    train.add_file_options(files, measured="the model's metrics")
    record_options.add_key_options(files, default_id="the training's", default_labels="the training's")
    rate = parser.add_argument_group("rate (of a network that was trained with --lmbda_range)")
    rates = rate.add_mutually_exclusive_group()
    rates.add_argument("--lmbda", type=float, help="cost of a bit")
    rates.add_argument(
        "--bytes",
        type=float,
        metavar="BYTES",
        help="use the lowest lmbda at which a video's code has at most BYTES bytes on average",
    )
    add_freezing_options(parser.add_argument_group("tables"))
    parser.set_defaults(**dataclasses.asdict(FreezingOptions()))
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Run the job with command-line options."""
    args = parser().parse_args(argv)
    libraries.load_keras(_PROG, "freezing")
    with launch.explained_errors(_PROG):
        print(run(args))


def run(args: argparse.Namespace) -> str:
    """Freeze, and return what to print.

    Raises:
      JobError: If an option does not fit the training run, or the rate is not possible.
    """
    from vidpress.model.networks import many_rates
    from vidpress.model.training import loop

    jobs.check_output(args.output)
    trained = loop.load_trained(args.training)
    options = trained.options
    if options.lmbda_range is None and (args.lmbda is not None or args.bytes is not None):
        raise launch.JobError(
            f"{args.training} was trained at lmbda={options.lmbda:g} only: leave out --lmbda and --bytes, or train "
            "with --lmbda_range."
        )
    if options.lmbda_range is not None and args.lmbda is None and args.bytes is None:
        raise launch.JobError(
            f"{args.training} was trained for lmbda from {options.lmbda_range[0]:g} to {options.lmbda_range[1]:g}: "
            "give --lmbda or --bytes."
        )
    try:
        freezing = fields_of(FreezingOptions, vars(args))
        if args.lmbda is not None:
            options = dataclasses.replace(options, lmbda=args.lmbda)
        freezing.check_rate(options.lmbda, options.lmbda_range)
        freezing.check_bottleneck(options)
        spec = record_options.with_keys(trained.spec, args)
    except ValueError as error:
        raise launch.JobError(str(error)) from error
    if args.tables_from is None:
        videos = jobs.load_videos(args.input, spec, options.num_classes)
        if videos.fingerprint["sha256"] != trained.training_data:
            raise launch.JobError(
                f"--input {' '.join(args.input)} is not the data that {args.training} was trained on: give that data, "
                "or fit tables to other videos with --tables_from."
            )
    else:
        if freezing.tables != "empirical":
            raise launch.JobError(f"--tables {freezing.tables} are not fitted to videos: leave out --tables_from.")
        videos = jobs.load_videos(args.tables_from, spec, None)
    jobs.check_num_videos(len(videos), freezing)
    validation = jobs.load_videos(args.validation, spec, options.num_classes) if args.validation else None
    lines = []
    if args.bytes is not None and options.lmbda_range is not None:
        lmbda, num_bytes = _find_lmbda(trained, options.lmbda_range, args.bytes, freezing, videos)
        options = dataclasses.replace(options, lmbda=lmbda)
        lines.append(f"{num_bytes:.1f} bytes a video at lmbda {lmbda:.4g}, on videos that no table was fitted to.")
    if options.lmbda_range is not None:
        many_rates.select_lmbda(trained.network, options.lmbda)
    model = jobs.freeze_network(
        trained.network,
        options,
        freezing,
        spec,
        videos,
        trained_on=trained.training_data if args.tables_from else None,
        teachers=trained.teachers,
        validation=validation,
    )
    if args.no_head:
        model = dataclasses.replace(model, head=None)
    model.save(args.output)
    lines += [
        f"Frozen at lmbda {options.lmbda:.4g} and step {options.steps:,}, with tables of {len(videos):,} videos.",
        *jobs.describe_metrics(model, validation),
        f"Model {model.model_id} in {args.output}",
    ]
    return "\n".join(lines)


def _find_lmbda(
    trained: Trained,
    lmbda_range: tuple[float, float],
    num_bytes: float,
    options: FreezingOptions,
    videos: LabelledVideos,
) -> tuple[float, float]:
    """Return the lowest lmbda at which codes have at most `num_bytes` bytes, and how many bytes they have.

    Raises:
      JobError: If there is no such lmbda.
    """
    from vidpress.model.networks import many_rates
    from vidpress.model.training import freezing

    if len(videos) < 2:
        raise launch.JobError("--bytes needs at least two videos: tables are fitted to some, and others are counted.")
    sample = videos.sample(_SEARCH_SAMPLE)
    measured = np.arange(len(sample)) % _MEASURED_EVERY == 0
    fitted, others = sample.take(np.flatnonzero(~measured)), sample.take(np.flatnonzero(measured))
    jobs.check_num_videos(len(fitted), options)
    found = {}

    def bytes_at(lmbda: float) -> float:
        many_rates.select_lmbda(trained.network, lmbda)
        model = freezing.freeze(trained.network, trained.spec, fitted, options)
        found[lmbda] = freezing.measure_size(model, others)["bytes_per_video"]
        print(f"lmbda {lmbda:.4g}: {found[lmbda]:.1f} bytes a video", file=sys.stderr)
        return found[lmbda]

    try:
        lmbda = freezing.find_lmbda(bytes_at, lmbda_range, num_bytes)
    except ValueError as error:
        raise launch.JobError(f"--bytes: {error}") from error
    return lmbda, found[lmbda]


if __name__ == "__main__":
    main()
