"""Encode TFRecords with vidpress, with a Beam pipeline of stock parts and with a tf.data script, side by side.

Same records, same weights, same range coding tables. Every run has a fresh process, the alternatives take turns, and
the first turn, which fills caches, is not counted. Each turn also encodes a single record: what that takes is start-up,
and what each further video takes is the steady state. In the end the codes are decoded and compared.
"""

from __future__ import annotations

import argparse
import glob
import math
import os
import statistics
import tempfile
from collections.abc import Callable, Sequence
from typing import Any

from measuring import Run, in_fresh_process, measure, timed_in_fresh_process
from results import Report, parser

from vidpress.pipeline.launching import machine

# A run's process imports this module, and what it imports counts in its time and memory: the rest is imported where it
# is used.

SIDES = ("vidpress", "stock Beam", "tf.data")
LEVELS = {"frames": "frame level", "frames-gz": "frame level, gzip", "means": "video level"}
TARGETS = {
    ("frames", "1152-6000-2000", "stock Beam"): 3.5,
    ("frames", "1152-2000", "stock Beam"): 5.0,
    ("frames", "1152-6000-2000", "tf.data"): 1.5,
}


def main(argv: Sequence[str] | None = None) -> None:
    """Prepare, run all in turns, compare and report."""
    args = _parser().parse_args(argv)
    print(machine.describe(), flush=True)
    with tempfile.TemporaryDirectory(prefix="vidpress-benchmark-", dir=args.scratch) as folder:
        source, description, num_videos, num_bytes = in_fresh_process(prepare, folder, args)
        report = Report(f"Encode, {LEVELS[args.level]}, {description}")
        report.note(f"{num_videos:,} records of {num_bytes / num_videos:,.0f} bytes made of {source}.")
        report.note(
            f"vidpress and the pipeline of stock parts on Beam's FnApiRunner, {args.workers} worker process(es); "
            f"{args.repeats} runs of each, in turns, after one to warm up."
        )
        turns: dict[str, list[tuple[Run, Run]]] = {name: [] for name in SIDES}
        for index in range(args.repeats + 1):
            for name in SIDES:
                output = f"{folder}/{name.replace(' ', '-')}-{index}"
                one, whole = (
                    timed_in_fresh_process(run, name, folder, part, f"{output}-{part}", args) for part in ("one", "all")
                )
                if index:
                    turns[name].append((one, whole))
        add_rows(report, turns, num_videos, num_bytes)
        for other in SIDES[1:]:
            target = TARGETS.get((args.level, description, other))
            if target:
                ratio = _median(report, "videos/s, steady state", "vidpress") / _median(
                    report, "videos/s, steady state", other
                )
                report.target(f"encode {LEVELS[args.level]}, {description}, against {other}", target, ratio)
        last = {name: f"{folder}/{name.replace(' ', '-')}-{args.repeats}-all" for name in SIDES}
        for note in in_fresh_process(compare, folder, last):
            report.note(note)
    report.finish(args)


def _parser() -> argparse.ArgumentParser:
    command_line = parser(__doc__, repeats=3)
    command_line.add_argument("--level", choices=list(LEVELS), default="frames", help="(default: %(default)s)")
    command_line.add_argument("--records", type=int, default=24000, help="how many (default: %(default)s)")
    command_line.add_argument("--files", type=int, default=8, help="in how many files (default: %(default)s)")
    command_line.add_argument(
        "--hidden", default="6000,2000", help="layer sizes of random weights (default: %(default)s)"
    )
    command_line.add_argument("--model", help="a frozen model, instead of random weights")
    command_line.add_argument(
        "--input",
        metavar="GLOB",
        help="TFRecords whose means the records are made of (default: YouTube-8M's under $VIDPRESS_DATA or "
        "../shared/data, else synthetic videos)",
    )
    command_line.add_argument("--workers", type=int, default=1, help="Beam worker processes (default: %(default)s)")
    command_line.add_argument("--scratch", help="where the records and outputs go (default: the temporary folder)")
    return command_line


def prepare(folder: str, args: argparse.Namespace) -> tuple[str, str, int, int]:
    """Write the records and the models; return what they are, how many records and of how many bytes."""
    import numpy as np
    import workload

    from vidpress.model.frozen.frozen_model import FrozenModel

    source, videos = workload.real_videos(args.input, args.records)
    records = {}
    for part, taken, num_files in (("one", videos[:1], 1), ("all", videos, args.files)):
        os.makedirs(f"{folder}/{part}")
        if args.level == "means":
            records[part] = workload.write_video_level(f"{folder}/{part}", taken, num_files)
        else:
            records[part] = workload.write_frame_level(f"{folder}/{part}", taken, num_files)
        if args.level == "frames-gz":
            records[part] = workload.compress_files(records[part])
    if args.model:
        model = FrozenModel.load(args.model)
    else:
        x = np.stack([video.x for video in videos])
        model = workload.random_model([int(size) for size in args.hidden.split(",")], x)
    model.save(f"{folder}/model.safetensors")
    workload.save_stock_model(model, folder)
    sizes = [model.spec.input_size, *(kernel.shape[1] for kernel, _ in model.hidden)]
    weights = f"weights of {os.path.basename(args.model)}" if args.model else "random weights"
    what = source if args.level == "means" else f"AR(1) noise around the means of {source}"
    return (
        f"{what}; {weights}",
        "-".join(map(str, sizes)),
        records["all"].num_videos,
        records["all"].num_bytes,
    )


def run(side: str, folder: str, part: str, output: str, args: argparse.Namespace) -> Run:
    """Encode the records of a part with one of the alternatives."""
    pattern = glob_of(f"{folder}/{part}", args.level)
    os.makedirs(output)
    stock = {
        "file_pattern": pattern,
        "frame_level": args.level != "means",
        "model": f"{folder}/stock.keras",
        "tables": f"{folder}/stock-tables.npz",
        "output": f"{output}/codes",
    }
    if side == "tf.data":
        import tfdata_script

        return measure(lambda: tfdata_script.encode(**stock | {"output": f"{output}/codes.parquet"}))
    if side == "stock Beam":
        import stock_pipeline

        return measure(lambda: run_pipeline(lambda pipeline: stock_pipeline.build_pipeline(pipeline, **stock), args))
    from vidpress.model.frozen.frozen_model import FrozenModel
    from vidpress.model.shards.shard_header import ShardHeader
    from vidpress.pipeline.encode import build_pipeline

    def build(pipeline: Any) -> None:
        model = FrozenModel.load(f"{folder}/model.safetensors")
        build_pipeline(
            pipeline,
            file_patterns=[pattern],
            model=f"{folder}/model.safetensors",
            header=ShardHeader(model.model_id, model.spec, model.tables),
            output=output,
            threads=len(os.sched_getaffinity(0)) if args.workers == 1 else 0,
        )

    return measure(lambda: run_pipeline(build, args))


def glob_of(folder: str, level: str) -> str:
    """Return the pattern of the records that `prepare` wrote."""
    return f"{folder}/{'videos' if level == 'means' else 'frames'}-*.tfrecord{'.gz' if level == 'frames-gz' else ''}"


def run_pipeline(build: Callable[[Any], None], args: argparse.Namespace) -> None:
    """Build and run a Beam pipeline."""
    import apache_beam as beam
    from apache_beam.options.pipeline_options import PipelineOptions

    flags = ["--runner=FnApiRunner", f"--direct_num_workers={args.workers}"]
    if args.workers > 1:
        flags.append("--direct_running_mode=multi_processing")
        # Worker processes are to find the stock pipeline's module.
        paths = [os.path.dirname(os.path.abspath(__file__)), os.environ.get("PYTHONPATH", "")]
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    with beam.Pipeline(options=PipelineOptions(flags)) as pipeline:
        build(pipeline)


def add_rows(report: Report, turns: dict[str, list[tuple[Run, Run]]], num_videos: int, num_bytes: int) -> None:
    """Add what the turns took."""

    def steady(attribute: str, name: str) -> list[float]:
        """Return the seconds that each further video takes; start-up varies, so that its median is taken off."""
        start_up = statistics.median(getattr(one, attribute) for one, _ in turns[name])
        taken = [(getattr(whole, attribute) - start_up) / (num_videos - 1) for _, whole in turns[name]]
        return [seconds if seconds > 0 else math.nan for seconds in taken]  # too few records to tell

    def of_all(value: Callable[[Run], float]) -> dict[str, list[float]]:
        return {name: [value(whole) for _, whole in turns[name]] for name in turns}

    report.row("videos/s, steady state", {name: [1 / s for s in steady("seconds", name)] for name in turns})
    report.row("videos/s, start-up included", of_all(lambda run: num_videos / run.seconds))
    report.row("videos/s, whole process", of_all(lambda run: num_videos / run.process_seconds))
    report.row("MB/s, start-up included", of_all(lambda run: num_bytes / 1e6 / run.seconds))
    report.row("CPU us a video, steady state", {name: [1e6 * s for s in steady("cpu_seconds", name)] for name in turns})
    report.row("one record, s", {name: [one.seconds for one, _ in turns[name]] for name in turns}, ".2f")
    report.row(
        "one record, whole process, s", {name: [one.process_seconds for one, _ in turns[name]] for name in turns}, ".2f"
    )
    report.row("peak memory, MiB", of_all(lambda run: run.peak_bytes / 2**20))


def _median(report: Report, label: str, column: str) -> float:
    return statistics.median(dict(report.rows)[label][column].values)


def compare(folder: str, outputs: dict[str, str]) -> list[str]:
    """Decode all outputs with the model's tables and compare them with vidpress', video by video."""
    import numpy as np
    import pyarrow.parquet as pq

    from vidpress.model.coding import range_coder
    from vidpress.model.frozen.frozen_model import FrozenModel

    model = FrozenModel.load(f"{folder}/model.safetensors")
    tables = {name: pq.read_table(sorted(glob.glob(f"{output}/*.parquet"))) for name, output in outputs.items()}
    tables = {name: table.sort_by("id") for name, table in tables.items()}
    ours = tables.pop("vidpress")
    z_hat = model.decompress(ours["code"].to_pylist(), ours["bank"].to_numpy())
    size = {"vidpress": sum(map(len, ours["code"].to_pylist())) / len(ours)}
    notes = []
    for name, table in tables.items():
        for column in ("id", "labels"):
            if table[column].to_pylist() != ours[column].to_pylist():
                raise SystemExit(f"The column {column!r} of {name} differs.")
        codes = table["code"].to_pylist()
        different = range_coder.decompress(model.tables.shared, codes) != z_hat
        size[name] = sum(map(len, codes)) / len(table)
        why = "where float32 sums round another way" + (", and by rate-aware rounding" if model.rounding_lmbda else "")
        notes.append(
            f"{name} wrote the same ids and labels; of {different.size:,} symbols {np.count_nonzero(different):,} "
            f"differ ({why})."
        )
    sizes = ", ".join(f"{value:.2f} by {name}" for name, value in size.items())
    return [*notes, f"Bytes a code: {sizes}."]


if __name__ == "__main__":
    main()
