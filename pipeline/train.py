"""The training job: YouTube-8M TFRecords in, a frozen model out."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from vidpress.model.frozen.frozen_model import FrozenModel
from vidpress.model.training.options import PAPER
from vidpress.pipeline.launching import launch, libraries, record_options
from vidpress.pipeline.training import jobs
from vidpress.pipeline.training.options import ModelOptions, add_model_options, paper_options

if TYPE_CHECKING:
    from vidpress.model.training.training_data import LabelledVideos

_PROG = "vidpress train"
_SUFFIX = ".safetensors"


def parser() -> launch.Parser:
    """Return the parser of the job's options."""
    parser = launch.Parser(
        prog=_PROG,
        description="Train a bottleneck network on TFRecords, frame level or video level, and freeze it. By default, "
        "the network and its training are those of Singh et al., End-to-end Learning of Compressible Features (ICIP "
        "2020). The coding is not: banks of tables that are fitted to the training data, and rounding that takes the "
        "bits into account, give shorter codes. With --paper, everything is as in the paper.",
        epilog="A training run that was stopped resumes from its last checkpoint if it is run again with the same "
        "options.",
        examples=[
            "vidpress train --input 'yt8m/train*.tfrecord' --validation 'yt8m/validate*.tfrecord' \\",
            "    --hidden 2000 --lmbda 0.0015 --steps 3000 --output model.safetensors",
        ],
    )
    files = parser.add_argument_group("files")
    add_input_option(files, required=True)
    add_file_options(files, measured="GAP during training, and the model's metrics at the end,")
    files.add_argument(
        "--work_dir",
        metavar="FOLDER",
        type=launch.absolute,
        help="folder for checkpoints and TensorBoard's logs (default: MODEL.training beside the output)",
    )
    record_options.add_record_options(files)
    add_model_options(parser)
    parser.add_argument(
        "--paper", action="store_true", help=f"use the paper's method: {paper_options()}, unless these are given"
    )
    return parser


def add_input_option(files: argparse._ActionsContainer, *, required: bool) -> None:
    """Add the option that says what a model is trained on."""
    files.add_argument(
        "--input",
        required=required,
        nargs="+",
        metavar="GLOB",
        type=launch.absolute,
        help="training data; .gz is unpacked",
    )


def add_file_options(files: argparse._ArgumentGroup, *, measured: str) -> None:
    """Add the options that say what a model is measured on, and where it is written.

    Args:
      files: The group of options.
      measured: What is measured, and when.
    """
    files.add_argument(
        "--validation",
        nargs="+",
        metavar="GLOB",
        type=launch.absolute,
        help=f"data to measure {measured} on",
    )
    files.add_argument(
        "--output",
        required=True,
        metavar="MODEL.safetensors",
        type=launch.model_output,
        help="the model; must not exist yet",
    )
    files.add_argument("--no_head", action="store_true", help="leave the task head (the logits) out of the model")


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Parse the job's options. --paper sets those of its options that are not given."""
    own_parser = parser()
    args = own_parser.parse_args(argv)
    if args.paper:
        own_parser.set_defaults(**PAPER)
        args = own_parser.parse_args(argv)
    return args


def main(argv: Sequence[str] | None = None) -> None:
    """Run the job with command-line options."""
    args = parse(sys.argv[1:] if argv is None else argv)
    libraries.load_keras(_PROG, "training")
    try:
        features = record_options.with_keys(args.features, args)
        options = ModelOptions.of(vars(args))
    except ValueError as error:
        parser().error(str(error))
    with launch.explained_errors(_PROG):
        jobs.check_output(args.output)
        work_dir = args.work_dir or args.output.removesuffix(_SUFFIX) + ".training"
        num_classes = options.training.num_classes
        videos = jobs.load_videos(args.input, features, num_classes)
        jobs.check_num_videos(len(videos), options.freezing)
        validation = jobs.load_videos(args.validation, features, num_classes) if args.validation else None
        model, seconds = jobs.train_model(options, features, videos, validation, work_dir)
        if args.no_head:
            model = dataclasses.replace(model, head=None)
        model.save(args.output)
        print(_summary(model, args.output, work_dir, seconds, videos, validation))


def _summary(
    model: FrozenModel,
    output: str,
    work_dir: str,
    seconds: float,
    videos: LabelledVideos,
    validation: LabelledVideos | None,
) -> str:
    """Return a summary of a finished training run."""
    lines = [
        f"Trained to step {model.metadata['steps']:,} in {seconds:.1f} s, on {len(videos):,} videos"
        f" ({videos.num_unlabelled:,} without labels left out).",
        *jobs.describe_metrics(model, validation),
        f"Model {model.model_id} in {output}",
        f"Curves: tensorboard --logdir {work_dir}/tensorboard",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
