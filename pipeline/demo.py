"""The demo: run vidpress's own commands on a small data set, and show what that gains, in a few minutes."""

from __future__ import annotations

import contextlib
import glob
import os
import pathlib
import shlex
import shutil
import time
from collections.abc import Sequence
from typing import NamedTuple

from vidpress.model.records import synthetic
from vidpress.pipeline.demonstration import comparison as demo_comparison
from vidpress.pipeline.launching import cli, launch, libraries

_PROG = "vidpress demo"

# The options that the networks with and without a rate share. So few steps need a higher learning rate than the
# default, and without weight decay and dropout the networks would memorise so few videos.
_TRAINING = "--hidden 512 --learning_rate 0.005 --weight_decay 3e-4"
_WITHOUT_RATE = "--lmbda 0"

# How many made-up videos there are, and of what kind.
_NUM_CLASSES = 100
_NUM_SHARDS = 6
_VIDEOS_PER_SHARD = 4000
_FRAMES = (8, 16)

_MARKER = ".vidpress-demo"


class DemoData(NamedTuple):
    """The demo's input, and the options that suit it.

    Attributes:
      train: Glob of the training files.
      validation: Glob of the validation files.
      num_classes: How many classes there are.
      description: What the data are.
      input_dropout: The input dropout of both networks.
      rate: The options of `vidpress train` for the network with a rate.
      steps: Training steps of each network.
    """

    train: str
    validation: str
    num_classes: int
    description: str
    input_dropout: float
    rate: str
    steps: int


def find_data(output: pathlib.Path) -> DemoData:
    """Return the real YouTube-8M where `VIDPRESS_DATA` or `../shared/data` holds it, else made-up videos.

    Args:
      output: The folder that made-up videos are written to, if they are needed.
    """
    folder = pathlib.Path(os.environ.get("VIDPRESS_DATA", "../shared/data")) / "yt8m_v2_video"
    train, validation = "validate00[0-9][0-9].tfrecord", "validate01[0-9][0-9].tfrecord"
    if any(folder.glob(train)) and any(folder.glob(validation)):
        return DemoData(
            train=str(folder / train),
            validation=str(folder / validation),
            num_classes=3862,
            description=f"YouTube-8M, real, from {folder}",
            input_dropout=0.2,
            rate="--lmbda 0.0005 --lmbda_range 0.0002 0.001",
            steps=1000,
        )
    folder = output / "synthetic"
    *train_files, validation_file = synthetic.write_shards(
        folder, _NUM_SHARDS, _VIDEOS_PER_SHARD, num_classes=_NUM_CLASSES, frames=_FRAMES
    )
    for file in train_files:
        file.rename(file.with_name(f"train-{file.name}"))
    return DemoData(
        train=f"{glob.escape(str(folder))}/train-*.tfrecord",
        validation=glob.escape(str(validation_file)),
        num_classes=_NUM_CLASSES,
        description="SYNTHETIC videos, because there are no real ones at $VIDPRESS_DATA or ../shared/data",
        input_dropout=0.4,
        rate="--lmbda 0.0001 --lmbda_range 0.0001 0.001",
        steps=2000,
    )


def run(output: pathlib.Path, steps: int | None = None) -> str:
    """Run the demo into a new folder.

    Args:
      output: The folder.
      steps: Training steps of each of the two networks; by default, a number that suits the data.

    Returns:
      What to print at the end: a table and the conclusions from it.
    """
    start = time.monotonic()
    data = find_data(output)
    print(f"Data: {data.description}.")
    steps = steps or data.steps
    training = (
        f"--classes {data.num_classes} {_TRAINING} --input_dropout {data.input_dropout} --steps {steps} "
        f"--checkpoint_every {steps}"
    )
    with (output / "log.txt").open("w") as log:

        def command(title: str, line: str) -> None:
            """Run a command of vidpress as a user would, and keep what it prints."""
            print(f"\n{title}\n  vidpress {line}", flush=True)
            log.write(f"$ vidpress {line}\n")
            log.flush()
            with contextlib.redirect_stdout(log):
                cli.main(shlex.split(line))

        for name, title, rate in (
            ("without-rate", "Training a network without a rate, to compare with:", _WITHOUT_RATE),
            ("vidpress", "Training the same network with a rate:", data.rate),
        ):
            model = shlex.quote(str(output / f"model-{name}.safetensors"))
            command(title, f"train --input {shlex.quote(data.train)} {training} {rate} --output {model}")
            folder = shlex.quote(str(output / f"compact-{name}-validation"))
            command(
                "Encoding videos that it was not trained on:",
                f"encode --input {shlex.quote(data.validation)} --model {model} --output {folder}",
            )
        folder = shlex.quote(str(output / "compact-vidpress-validation"))
        features = shlex.quote(str(output / "features-validation"))
        command("Checking what was encoded:", f"verify {folder}")
        command("Decoding it:", f"decode --input {folder} --output {features}")
    comparison = demo_comparison.compare(output, data.train, data.validation, data.num_classes)
    return "\n".join(
        [
            *("", *demo_comparison.table(comparison, data.description)),
            *("", *demo_comparison.findings(comparison)),
            f"\nDone in {time.monotonic() - start:.0f} s. Models, data sets, features and log.txt are in {output}/",
        ]
    )


def _local_folder(path: str) -> pathlib.Path:
    return pathlib.Path(launch.local_folder(path))


def main(argv: Sequence[str] | None = None) -> None:
    """Run the demo with command-line options."""
    parser = launch.Parser(
        prog=_PROG,
        description="Train a small network with a rate and one without, encode, verify and decode videos, and compare "
        "what is read back; on real YouTube-8M at $VIDPRESS_DATA or ../shared/data, else on synthetic videos.",
        examples=["vidpress demo", "VIDPRESS_DATA=/data vidpress demo --output /tmp/demo"],
    )
    parser.add_argument(
        "--output",
        type=_local_folder,
        default=pathlib.Path("demo-output"),
        help="output folder; if it is that of an earlier demo, it is replaced (default: %(default)s)",
    )
    parser.add_argument(
        "--steps", type=launch.positive_int, help="training steps of each network (default: what suits the data)"
    )
    args = parser.parse_args(argv)
    if args.output.is_symlink():
        parser.error(f"--output {args.output} is a symbolic link: name the folder itself.")
    if args.output.exists() and not (args.output / _MARKER).exists():
        parser.error(f"--output {args.output} exists and was not written by a demo: name another folder.")
    with launch.explained_errors(_PROG):
        libraries.check_modules("the demo", ("apache_beam",), "beam,train")
    libraries.load_keras(_PROG, "the demo")
    with launch.explained_errors(_PROG):
        if args.output.exists():
            shutil.rmtree(args.output)
        launch.check_writable(str(args.output), str(args.output))
        (args.output / _MARKER).touch()
        print(run(args.output, args.steps))


if __name__ == "__main__":
    main()
