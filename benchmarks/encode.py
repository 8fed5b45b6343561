"""Encode frame-level TFRecords with vidpress and with a pipeline of stock parts, side by side.

Same records, same weights, same range coding tables, same Beam runner. Every run has a fresh process, the two
take turns, and in the end the codes of both are decoded and compared. Each turn also encodes a single record:
what that takes is start-up, and the rest is the steady state.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import dataclasses
import glob
import itertools
import math
import multiprocessing
import os
import pathlib
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

# This module is imported afresh by every run's process, and what a run imports is part of its time and memory:
# each function imports what it needs.
if TYPE_CHECKING:
    import numpy as np

    from vidpress.model.features import FeatureSpec
    from vidpress.model.frozen_model import FrozenModel

    Video = tuple[bytes, np.ndarray, np.ndarray]

T = TypeVar("T")

RECORDS = "records-*.tfrecord"
ONE_RECORD = "one-record.tfrecord"
MODEL = "model.safetensors"
STOCK_MODEL = "stock.keras"
STOCK_TABLES = "stock-tables.npz"
SHARE_OF_NONZERO = 0.07


@dataclasses.dataclass(frozen=True)
class Description:
    """What is encoded, and with what."""

    records: str
    model: str
    num_records: int
    num_bytes: int
    num_frames: int


@dataclasses.dataclass(frozen=True)
class Run:
    """What one run took.

    Attributes:
      pipeline_seconds: To build and run the pipeline, the loading of the model included, after imports.
      process_seconds: As above, with the start of the interpreter, imports and its end.
      cpu_seconds: User and system time of the pipeline, worker processes included.
      peak_bytes: The launching process's largest resident set.
    """

    pipeline_seconds: float
    process_seconds: float
    cpu_seconds: float
    peak_bytes: int


@dataclasses.dataclass(frozen=True)
class Turn:
    """The runs of one turn."""

    one_record: Run
    all_records: Run


@dataclasses.dataclass(frozen=True)
class Comparison:
    """How the two outputs compare."""

    num_videos: tuple[int, int]
    symbols: int
    different_symbols: int
    different_videos: int
    code_bytes: tuple[int, int]


def main() -> None:
    """Prepare, run both in turns, compare and print."""
    from vidpress.pipeline import machine

    args = parser().parse_args()
    if args.records < 2 or args.repeats < 1:
        parser().error("--records must be at least 2 and --repeats at least 1.")
    print(machine.describe())
    with tempfile.TemporaryDirectory(prefix="vidpress-benchmark-", dir=args.scratch) as folder:
        description = in_fresh_process(prepare, folder, args)
        print(
            f"records: {description.num_records}, {description.num_bytes / description.num_records:,.0f} bytes "
            f"and {description.num_frames / description.num_records:.0f} frames each; {description.records}\n"
            f"model:   {description.model}\n"
            f"runner:  FnApiRunner, {args.workers} worker process{'es' if args.workers > 1 else ''}; "
            f"{args.repeats} runs of each, in turns, after one to warm up",
            flush=True,
        )
        sides: dict[str, Callable[[str, str, str, int], Run]] = {"vidpress": run_vidpress, "stock": run_stock}
        turns: dict[str, list[Turn]] = {name: [] for name in sides}
        for index in range(args.repeats + 1):
            for name, run in sides.items():
                output = f"{folder}/{name}-{index}"
                turn = Turn(
                    timed(run, folder, ONE_RECORD, f"{output}-one", args.workers),
                    timed(run, folder, RECORDS, output, args.workers),
                )
                if index:
                    turns[name].append(turn)
        print(table(turns, description))
        last = args.repeats
        print(verdict(in_fresh_process(compare, folder, f"{folder}/vidpress-{last}", f"{folder}/stock-{last}")))


def parser() -> argparse.ArgumentParser:
    """Return the command line's parser."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--input",
        metavar="GLOB",
        help="video-level TFRecords whose means the frames are made around (default: YouTube-8M's under "
        "$VIDPRESS_DATA or ../shared/data, else synthetic videos)",
    )
    parser.add_argument("--records", type=int, default=2000, help="how many, at least 2 (default: %(default)s)")
    parser.add_argument("--files", type=int, default=8, help="in how many files (default: %(default)s)")
    parser.add_argument("--frames", default="120,300", help="least and most of a record (default: %(default)s)")
    parser.add_argument("--model", help="a frozen model (default: random weights)")
    parser.add_argument("--hidden", default="2000", help="layer sizes of the random weights (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each (default: %(default)s)")
    parser.add_argument(
        "--workers", type=int, default=1, help="Beam worker processes; 1 is in-process (default: %(default)s)"
    )
    parser.add_argument("--scratch", help="where the records and outputs go (default: the temporary folder)")
    return parser


def in_fresh_process(function: Callable[..., T], *args: object) -> T:
    """Run a function in an interpreter of its own."""
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(max_workers=1, mp_context=context) as executor:
        return executor.submit(function, *args).result()


def timed(run: Callable[[str, str, str, int], Run], *args: object) -> Run:
    """Run in a fresh process and add what the process as a whole took."""
    start = time.perf_counter()
    result = in_fresh_process(run, *args)
    return dataclasses.replace(result, process_seconds=time.perf_counter() - start)


def prepare(folder: str, args: argparse.Namespace) -> Description:
    """Write the records, the frozen model and the stock pipeline's copy of it."""
    import numpy as np

    from vidpress.model.features import FeatureSpec
    from vidpress.model.frozen_model import FrozenModel

    model = FrozenModel.load(args.model) if args.model else None
    spec = model.spec if model else FeatureSpec()
    least, most = (int(number) for number in args.frames.split(","))
    source, videos = video_source(args.input, spec)
    taken = list(itertools.islice(videos, args.records))
    if len(taken) < args.records:
        raise SystemExit(f"The input holds {len(taken)} videos, fewer than --records {args.records}.")
    num_bytes, num_frames = write_records(folder, taken, spec, args.files, (least, most))
    if model is None:
        model = random_model(spec, [int(size) for size in args.hidden.split(",")], np.stack([v[2] for v in taken]))
        weights = "RANDOM WEIGHTS, tables fitted to these records"
    else:
        weights = str(args.model)
    model.save(f"{folder}/{MODEL}")
    save_stock_model(model, folder)
    sizes = [spec.input_size, *(kernel.shape[1] for kernel, _ in model.hidden)]
    return Description(
        records=source,
        model=f"{'-'.join(map(str, sizes))}, {weights}",
        num_records=len(taken),
        num_bytes=num_bytes,
        num_frames=num_frames,
    )


def video_source(pattern: str | None, spec: FeatureSpec) -> tuple[str, Iterator[Video]]:
    """Return what the videos are, and the videos: id, labels, mean features."""
    from vidpress.model import synthetic
    from vidpress.model.tfrecord import read_tfrecords
    from vidpress.model.videos import parse_video, pool_frames

    given = pattern
    if pattern is None:
        shared = pathlib.Path(__file__).resolve().parent.parent.parent / "shared" / "data"
        data = pathlib.Path(os.environ.get("VIDPRESS_DATA", shared))
        pattern = f"{data}/yt8m_v2_video/*.tfrecord"
    paths = sorted(glob.glob(pattern))
    if given and not paths:
        raise SystemExit(f"--input {given} matches no file.")

    def payloads() -> Iterator[bytes]:
        for path in paths:
            with open(path, "rb") as file:
                for _, payload in read_tfrecords(file):
                    if isinstance(payload, bytes):
                        yield payload

    if paths:
        source = "frames are AR(1) noise around the means of REAL videos, ids and labels are theirs"
    else:
        source = "SYNTHETIC videos"
    made = payloads() if paths else synthetic.make_videos(10**9, spec=spec, frames=(8, 8))
    pooled = (pool_frames(parse_video(payload, spec), spec) for payload in made)
    return source, ((video.id, video.labels, video.x) for video in pooled)


def write_records(
    folder: str, videos: list[Video], spec: FeatureSpec, num_files: int, frames: tuple[int, int]
) -> tuple[int, int]:
    """Write frame-level records around the videos' means; return their payload bytes and frames."""
    import numpy as np

    from vidpress.model import synthetic
    from vidpress.model.tfrecord import write_tfrecords

    rng = np.random.default_rng(0)
    num_bytes = num_frames = 0

    def payloads(part: list[Video]) -> Iterator[bytes]:
        nonlocal num_bytes, num_frames
        for video_id, labels, mean in part:
            q = synthetic.frames_around(mean, int(rng.integers(frames[0], frames[1] + 1)), rng, spec)
            payload = synthetic.serialize_video(video_id, labels, q, spec)
            num_bytes += len(payload)
            num_frames += len(q)
            yield payload

    for index in range(num_files):
        with open(f"{folder}/{RECORDS.replace('*', f'{index:03d}')}", "wb") as file:
            write_tfrecords(file, payloads(videos[index::num_files]))
    totals = num_bytes, num_frames
    with open(f"{folder}/{ONE_RECORD}", "wb") as file:
        write_tfrecords(file, payloads(videos[:1]))
    return totals


def random_model(spec: FeatureSpec, hidden: list[int], x: np.ndarray) -> FrozenModel:
    """Return a model of random weights; as in a trained one, more than 90 % of `z_hat` are zero."""
    import numpy as np

    from vidpress.model.frozen_model import FrozenModel
    from vidpress.model.range_coding_tables import RangeCodingTables

    rng = np.random.default_rng(0)
    layers = []
    activations = x
    for size, share in zip(hidden, [0.5] * (len(hidden) - 1) + [SHARE_OF_NONZERO], strict=True):
        fan_in = activations.shape[1]
        kernel = rng.standard_normal((fan_in, size), np.float32) * np.float32(np.sqrt(2 / fan_in))
        before = activations @ kernel
        # Each unit gets unit variance, and a bias that sets how often it is rounded to more than zero.
        scale = 1 / np.maximum(before.std(axis=0), 1e-6)
        bias = 0.5 - np.quantile(before * scale, 1 - share, axis=0)
        layers.append(((kernel * scale).astype(np.float32), bias.astype(np.float32)))
        activations = np.maximum(before * scale + bias.astype(np.float32), 0)
    tables = RangeCodingTables.fit(np.rint(activations).astype(np.int32))
    return FrozenModel(spec, tuple(layers), tables, metadata={"weights": "random"})


def save_stock_model(model: FrozenModel, folder: str) -> None:
    """Write the same network for Keras and the same tables for tensorflow-compression."""
    import numpy as np
    import tensorflow as tf

    keras_model = tf.keras.Sequential([tf.keras.Input((model.spec.input_size,))])
    for kernel, bias in model.hidden:
        layer = tf.keras.layers.Dense(kernel.shape[1], activation="relu")
        keras_model.add(layer)
        layer.set_weights([kernel, bias])
    keras_model.save(f"{folder}/{STOCK_MODEL}")
    np.savez(
        f"{folder}/{STOCK_TABLES}",
        cdf=model.tables.lookup,
        cdf_offset=model.tables.cdf_offset,
        precision=model.tables.precision,
    )


def run_vidpress(folder: str, records: str, output: str, workers: int) -> Run:
    """Encode with `vidpress.pipeline.encode`, the launcher's reading of the model included."""
    from vidpress.model.frozen_model import FrozenModel
    from vidpress.model.shard import ShardHeader
    from vidpress.pipeline.encode import build_pipeline

    def build(pipeline: Any) -> None:
        model = FrozenModel.load(f"{folder}/{MODEL}")
        build_pipeline(
            pipeline,
            file_patterns=[f"{folder}/{records}"],
            model=f"{folder}/{MODEL}",
            header=ShardHeader(model.model_id, model.spec, model.tables),
            output=output,
        )

    return measure(build, workers)


def run_stock(folder: str, records: str, output: str, workers: int) -> Run:
    """Encode with the pipeline of stock parts."""
    from stock_pipeline import build_pipeline

    def build(pipeline: Any) -> None:
        build_pipeline(
            pipeline,
            file_pattern=f"{folder}/{records}",
            model=f"{folder}/{STOCK_MODEL}",
            tables=f"{folder}/{STOCK_TABLES}",
            output=f"{output}/codes",
        )

    os.makedirs(output)
    return measure(build, workers)


def measure(build: Callable[[Any], None], workers: int) -> Run:
    """Build and run a pipeline."""
    import apache_beam as beam
    from apache_beam.options.pipeline_options import PipelineOptions

    flags = ["--runner=FnApiRunner", f"--direct_num_workers={workers}"]
    if workers > 1:
        flags.append("--direct_running_mode=multi_processing")
        # Worker processes are to find the stock pipeline's module.
        paths = [os.path.dirname(os.path.abspath(__file__)), os.environ.get("PYTHONPATH", "")]
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    cpu_start = cpu_seconds()
    start = time.perf_counter()
    with beam.Pipeline(options=PipelineOptions(flags)) as pipeline:
        build(pipeline)
    seconds = time.perf_counter() - start
    return Run(seconds, seconds, cpu_seconds() - cpu_start, peak_bytes())


def cpu_seconds() -> float:
    """Return the CPU time of this process and of the children that have ended."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def peak_bytes() -> int:
    """Return the largest resident set of this process."""
    # ru_maxrss starts from what the parent process held, VmHWM does not.
    for line in pathlib.Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def table(turns: dict[str, list[Turn]], description: Description) -> str:
    """Return the runs as a table: medians, with the least and the most."""
    videos, num_bytes = description.num_records, description.num_bytes

    def steady(attribute: str, turn: Turn, turns: list[Turn]) -> float:
        """Return the seconds that each further video takes; start-up varies, so that its median is taken off."""
        start_up = statistics.median(getattr(other.one_record, attribute) for other in turns)
        seconds = getattr(turn.all_records, attribute) - start_up
        return seconds / (videos - 1) if seconds > 0 else math.nan  # too few records to tell

    rows: list[tuple[str, str, Callable[[Turn, list[Turn]], float]]] = [
        ("videos/s, pipeline", ",.0f", lambda turn, _: videos / turn.all_records.pipeline_seconds),
        ("MB/s, pipeline", ",.0f", lambda turn, _: num_bytes / 1e6 / turn.all_records.pipeline_seconds),
        ("videos/s, steady state", ",.0f", lambda turn, turns: 1 / steady("pipeline_seconds", turn, turns)),
        ("videos/s, whole process", ",.0f", lambda turn, _: videos / turn.all_records.process_seconds),
        ("CPU ms a video, pipeline", ".2f", lambda turn, _: 1e3 * turn.all_records.cpu_seconds / videos),
        ("CPU ms a video, steady", ".2f", lambda turn, turns: 1e3 * steady("cpu_seconds", turn, turns)),
        ("one record, pipeline s", ".2f", lambda turn, _: turn.one_record.pipeline_seconds),
        ("one record, process s", ".2f", lambda turn, _: turn.one_record.process_seconds),
        ("peak memory, MiB", ",.0f", lambda turn, _: turn.all_records.peak_bytes / 2**20),
    ]
    lines = [f"\n{'median (least to most)':26}" + "".join(f"{name:>26}" for name in turns) + "    vidpress : stock"]
    for label, form, value in rows:
        cells, medians = [], []
        for results in turns.values():
            values = [value(turn, results) for turn in results]
            medians.append(statistics.median(values))
            cells.append(f"{medians[-1]:{form}} ({min(values):{form}} to {max(values):{form}})")
        lines.append(f"{label:26}" + "".join(f"{cell:>26}" for cell in cells) + f"{medians[0] / medians[1]:>19.2f}x")
    return "\n".join(lines)


def compare(folder: str, vidpress_output: str, stock_output: str) -> Comparison:
    """Decode both outputs with the model's tables and compare them video by video."""
    import numpy as np
    import pyarrow.parquet as pq

    from vidpress.model import range_coder
    from vidpress.model.frozen_model import FrozenModel

    tables = [
        pq.read_table(sorted(glob.glob(f"{output}/*.parquet"))).sort_by("id")
        for output in (vidpress_output, stock_output)
    ]
    ids = [table["id"].to_pylist() for table in tables]
    if ids[0] != ids[1]:
        raise SystemExit(f"The ids differ: vidpress wrote {len(ids[0])} videos, the stock pipeline {len(ids[1])}.")
    for name in ("labels", "num_frames"):
        if tables[0][name].to_pylist() != tables[1][name].to_pylist():
            raise SystemExit(f"The column {name!r} differs.")
    model = FrozenModel.load(f"{folder}/{MODEL}")
    codes = [table["code"].to_pylist() for table in tables]
    # The stock pipeline has the shared tables alone.
    z_hat = [
        model.decompress(codes[0], tables[0]["bank"].to_numpy()),
        range_coder.decompress(model.tables.shared, codes[1]),
    ]
    different = z_hat[0] != z_hat[1]
    return Comparison(
        num_videos=(len(ids[0]), len(ids[1])),
        symbols=different.size,
        different_symbols=int(np.count_nonzero(different)),
        different_videos=int(different.any(axis=1).sum()),
        code_bytes=(sum(map(len, codes[0])), sum(map(len, codes[1]))),
    )


def verdict(comparison: Comparison) -> str:
    """Return the comparison as text."""
    videos = comparison.num_videos[0]
    ours, stock = (num_bytes / videos for num_bytes in comparison.code_bytes)
    return (
        f"\nBoth wrote the same {videos} ids, labels and frame counts. Of {comparison.symbols:,} decoded symbols "
        f"{comparison.different_symbols:,} differ, in {comparison.different_videos} videos (ties of rounding: the "
        f"matrix products differ in the last bits). Codes: {ours:.2f} and {stock:.2f} bytes a video."
    )


if __name__ == "__main__":
    main()
