"""The training job: YouTube-8M TFRecords in, a frozen model out."""

from __future__ import annotations

import argparse
import dataclasses
import errno
import importlib.metadata
import math
import os
import tempfile
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from vidpress.model.files import storage
from vidpress.model.frozen.frozen_model import FrozenModel
from vidpress.model.tables.banks import check_num_banks
from vidpress.model.tables.limits import MAX_DIMS
from vidpress.pipeline.launching import launch, libraries, record_options, stopping

if TYPE_CHECKING:
    import keras

    from vidpress.model.training.loop import TrainingOptions
    from vidpress.model.training.training_data import LabelledVideos

_PROG = "vidpress train"
_SUFFIX = ".safetensors"


def parser() -> launch.Parser:
    """Return the parser of the job's options."""
    parser = launch.Parser(
        prog=_PROG,
        description="Train a bottleneck network on TFRecords, frame level or video level, and freeze it. "
        "The defaults are those of Singh et al., End-to-end Learning of Compressible Features (ICIP 2020).",
        epilog="Run again with the same options, a training that was stopped goes on from its last checkpoint.",
        examples=[
            "vidpress train --input 'yt8m/train*.tfrecord' --validation 'yt8m/validate*.tfrecord' \\",
            "    --hidden 2000 --lmbda 0.0015 --steps 3000 --output model.safetensors",
        ],
    )
    files = parser.add_argument_group("files")
    add_file_options(files)
    files.add_argument(
        "--work_dir",
        metavar="FOLDER",
        type=launch.absolute,
        help="folder for checkpoints and TensorBoard's logs (default: MODEL.training beside the output)",
    )
    record_options.add_record_options(files)
    add_model_options(parser)
    return parser


def add_file_options(files: argparse._ArgumentGroup) -> None:
    """Add the options that say what a model is made of, and where it goes."""
    files.add_argument(
        "--input",
        required=True,
        nargs="+",
        metavar="GLOB",
        type=launch.absolute,
        help="training data; .gz is unpacked",
    )
    files.add_argument(
        "--validation",
        nargs="+",
        metavar="GLOB",
        type=launch.absolute,
        help="data for GAP along the way and for the model's metrics",
    )
    files.add_argument(
        "--output",
        required=True,
        metavar="MODEL.safetensors",
        type=launch.model_output,
        help="the model; must not exist yet",
    )
    files.add_argument("--no_head", action="store_true", help="leave the task's logits out of the model")


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that say what is trained and how: those that `train_model` reads."""
    network = parser.add_argument_group("network")
    network.add_argument(
        "--hidden", type=sizes, default="2000", help="units of the hidden layers; the last one's are coded"
    )
    network.add_argument("--classes", type=int, default=3862, help="classes of the task")
    network.add_argument(
        "--lmbda",
        type=float,
        default=0.002,
        help="what a bit costs; more gives fewer bytes; 0 trains without rate and rounding",
    )
    network.add_argument(
        "--lmbda_range",
        type=float,
        nargs=2,
        metavar=("LOW", "HIGH"),
        help="train one network for all rates from LOW to HIGH, of which `vidpress freeze` takes others than --lmbda",
    )
    add_freezing_options(network)
    training = parser.add_argument_group("training")
    training.add_argument(
        "--teacher",
        nargs="+",
        default=[],
        metavar="MODEL.safetensors",
        help="models trained with --lmbda 0 whose class probabilities are learnt instead of the labels",
    )
    training.add_argument("--steps", type=int, default=300_000, help="training steps")
    training.add_argument("--batch_size", type=int, default=100, help="videos a step")
    training.add_argument("--learning_rate", type=float, default=0.001, help="Adam's, at first")
    training.add_argument("--prior_learning_rate", type=float, default=0.01, help="Adam's for the prior, at first")
    training.add_argument("--decay_rate", type=float, default=0.94, help="factor on the learning rates ...")
    training.add_argument(
        "--decay_steps", type=int, default=0, help="... every so many steps; 0 is 1000, or a 50th of --steps if less"
    )
    training.add_argument("--weight_decay", type=float, default=1e-6, help="L2 penalty on the dense kernels")
    training.add_argument(
        "--input_dropout", type=float, default=0.0, help="share of the input's numbers that each step sets to 0"
    )
    training.add_argument(
        "--prior_banks",
        type=int,
        default=16,
        help="banks of the prior in training, as many as --banks at best; 1 is the paper's",
    )
    training.add_argument(
        "--mixed_precision", action="store_true", help="multiply in bfloat16, where the processor does so faster"
    )
    training.add_argument("--seed", type=int, default=0, help="of weights, noise and the order of the data")
    training.add_argument("--checkpoint_every", type=int, default=1000, metavar="STEPS", help="between checkpoints")
    training.add_argument("--validate_every", type=int, default=1000, metavar="STEPS", help="between validations")


def add_freezing_options(group: argparse._ArgumentGroup) -> None:
    """Add the options that say how a trained network is frozen."""
    group.add_argument(
        "--tables",
        choices=["empirical", "prior"],
        default="empirical",
        help="range coding tables: fitted to the training data, or the trained prior's",
    )
    group.add_argument(
        "--banks",
        type=int,
        default=16,
        help="banks of tables, a power of two up to 256: more give shorter codes, and larger footers of shards",
    )
    group.add_argument(
        "--rounding_lmbda",
        type=float,
        default=0.03,
        help="what a bit costs when rounding, in squared rounding steps; 0 rounds to the nearest integers",
    )


def sizes(text: str) -> tuple[int, ...]:
    """Parse an option such as 6000,2000."""
    try:
        return tuple(int(size) for size in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not sizes such as 2000 or 6000,2000") from None


def main(argv: Sequence[str] | None = None) -> None:
    """Run the job with command-line options."""
    args = parser().parse_args(argv)
    libraries.load_keras(_PROG, "training")
    try:
        args.features = record_options.with_keys(args.features, args)
        check_options(args)
    except ValueError as error:
        parser().error(str(error))
    with launch.explained_errors(_PROG):
        check_output(args.output)
        work_dir = args.work_dir or args.output.removesuffix(_SUFFIX) + ".training"
        videos = load_videos(args.input, args)
        check_num_videos(args, len(videos))
        validation = None
        if args.validation:
            validation = load_videos(args.validation, args)
        model, seconds = train_model(args, videos, validation, work_dir)
        head = None if args.no_head else model.head
        model = dataclasses.replace(model, head=head)
        model.save(args.output)
        print(summary(model, args.output, work_dir, seconds, videos, validation))


def training_options(args: argparse.Namespace) -> TrainingOptions:
    """Return what `args` says of the training.

    Raises:
      ValueError: If a value is out of range; the message names it.
    """
    from vidpress.model.training.loop import TrainingOptions

    names = [field.name for field in dataclasses.fields(TrainingOptions)]
    return TrainingOptions(**{name: getattr(args, name) for name in names if name in args}, num_classes=args.classes)


def check_options(args: argparse.Namespace) -> None:
    """See that a model can be trained with the options of `add_model_options`.

    Raises:
      ValueError: If not; the message names the option.
    """
    check_freezing_options(args, training_options(args))


def check_freezing_options(args: argparse.Namespace, options: TrainingOptions) -> None:
    """See that a network trained with `options` can be frozen with the options of `add_freezing_options`.

    Raises:
      ValueError: If not; the message names the option.
    """
    if args.tables == "prior" and not options.lmbda:
        raise ValueError("--tables prior needs --lmbda above 0: without a rate no prior is trained.")
    if args.tables == "prior" and options.lmbda_range is not None:
        raise ValueError("--tables prior cannot be had with --lmbda_range: take empirical tables.")
    if options.hidden[-1] > MAX_DIMS:
        raise ValueError(
            f"--hidden {options.hidden[-1]} is too wide to code: the last layer may have {MAX_DIMS:,} units."
        )
    check_num_banks(args.banks)
    if not 0 <= args.rounding_lmbda < math.inf:
        raise ValueError(f"--rounding_lmbda {args.rounding_lmbda} must not be negative.")


def train_model(
    args: argparse.Namespace, videos: LabelledVideos, validation: LabelledVideos | None, work_dir: str
) -> tuple[FrozenModel, float]:
    """Train a network, or go on with what `work_dir` holds, and freeze it.

    Args:
      args: With the options of `add_model_options`, and `features`.
      videos: The training data.
      validation: Videos for the metrics in the model's metadata, if given.
      work_dir: As `vidpress.model.training.loop.train` takes it.

    Returns:
      The model, with its task head and with metadata; and how many seconds the training took.
    """
    from vidpress.model.training import loop

    options = training_options(args)
    start = time.monotonic()
    teachers = [FrozenModel.load(path) for path in args.teacher]
    with stopping.finishing() as asked_to_stop:
        try:
            network = loop.train(
                options,
                args.features,
                videos,
                work_dir,
                validation=validation,
                teachers=teachers,
                asked_to_stop=lambda: bool(asked_to_stop()),
            )
        except loop.TrainingStopped as stopped:
            message = f"stopped at step {stopped.step:,}: run the same command again to go on."
            raise stopping.Stopped(asked_to_stop(), message) from stopped
    seconds = time.monotonic() - start
    teacher_ids = [teacher.model_id for teacher in teachers]
    return freeze_network(network, options, teacher_ids, args, videos, validation), seconds


def freeze_network(
    network: keras.Model,
    options: TrainingOptions,
    teachers: Sequence[str],
    args: argparse.Namespace,
    videos: LabelledVideos,
    validation: LabelledVideos | None,
) -> FrozenModel:
    """Freeze a network, and write down where it comes from.

    Args:
      network: The trained network.
      options: How it was trained; it is frozen at their `lmbda`.
      teachers: The model ids of those that it learnt from.
      args: With the options of `add_freezing_options`, and `features`.
      videos: The training data.
      validation: Videos for the metrics in the model's metadata, if given.

    Returns:
      The model, with its task head and with metadata.
    """
    from vidpress.model.training import freezing

    rounding_lmbda = args.rounding_lmbda if options.lmbda else 0.0  # a baseline's activations are not coded
    metadata: dict[str, Any] = {
        "vidpress": importlib.metadata.version("vidpress"),
        "training": options.to_json(),
        "lmbda": options.lmbda,
        "steps": options.steps,
        "seed": options.seed,
        "tables": args.tables,
        "banks": args.banks,
        "rounding_lmbda": rounding_lmbda,
        "teachers": list(teachers),
        "training_data": videos.fingerprint,
    }
    model = freezing.freeze(
        network,
        args.features,
        videos,
        tables=args.tables,
        num_banks=args.banks,
        rounding_lmbda=rounding_lmbda,
    )
    if validation is not None:
        metadata["validation_data"] = validation.fingerprint
        metadata["metrics"] = freezing.measure(model, validation)
        if not options.lmbda:
            metadata["metrics_unrounded"] = freezing.measure_unrounded(model, validation)
    return dataclasses.replace(model, metadata=metadata)


def check_num_videos(args: argparse.Namespace, num_videos: int) -> None:
    """See that so many videos are enough to fit the banks to.

    Raises:
      JobError: If not.
    """
    if num_videos < args.banks:
        raise launch.JobError(f"{num_videos} videos are too few for --banks={args.banks}: take fewer banks.")


def load_videos(patterns: Sequence[str], args: argparse.Namespace) -> LabelledVideos:
    """Read the labelled videos of some patterns, with a progress bar."""
    from vidpress.model.training import training_data

    files = training_data.match_files(patterns)
    with tqdm(unit="video", desc=f"read {launch.count(len(files), 'file')}", disable=None) as bar:
        try:
            return training_data.load_videos(files, args.features, args.classes, progress=bar.update)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise
            raise launch.JobError(
                f"the temporary folder {tempfile.gettempdir()} is full, where all videos' means are kept: make room, "
                "or name a larger one by the environment's TMPDIR, and run the same command again."
            ) from error


def check_output(output: str) -> None:
    """See that the model can be written at the end, before hours of training.

    Raises:
      FileExistsError: If there is one already.
      JobError: If it cannot be written.
    """
    if storage.exists(output):
        raise FileExistsError(f"--output {output} exists already: choose another name or remove it.")
    launch.check_writable(output, os.path.dirname(output) or ".")


def summary(
    model: FrozenModel,
    output: str,
    work_dir: str,
    seconds: float,
    videos: LabelledVideos,
    validation: LabelledVideos | None,
) -> str:
    """Return what a person wants to know of a finished training."""
    lines = [
        f"Trained to step {model.metadata['steps']:,} in {seconds:.1f} s, on {len(videos):,} videos"
        f" ({videos.num_unlabelled:,} without labels left out).",
        *describe_metrics(model, validation),
        f"Model {model.model_id} in {output}",
        f"Curves: tensorboard --logdir {work_dir}/tensorboard",
    ]
    return "\n".join(lines)


def describe_metrics(model: FrozenModel, validation: LabelledVideos | None) -> list[str]:
    """Return lines about a model's metrics, if it was measured."""
    lines = []
    if validation is not None:
        metrics = model.metadata["metrics"]
        lines += [
            f"On {len(validation):,} other videos ({validation.num_unlabelled:,} without labels left out):",
            f"  GAP {metrics['gap']:.4f}, Hit@1 {metrics['hit_at_1']:.4f}, PERR {metrics['perr']:.4f}, "
            f"mAP {metrics['mean_ap']:.4f}",
            f"  {metrics['bytes_per_video']:.1f} bytes a video ({metrics['bits_per_video'] / 8:.1f} by the tables)",
        ]
        if baseline := model.metadata.get("metrics_unrounded"):
            lines.append(
                f"  not rounded: GAP {baseline['gap']:.4f} at {baseline['bytes_per_video']:.0f} bytes a video "
                "(float32, zlib)"
            )
    return lines


if __name__ == "__main__":
    main()
