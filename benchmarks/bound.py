"""What this machine allows the encode job at most, stage by stage, and what share of it the job reaches.

Each stage is the least work that does the same: records are read from page cache and checked by CRC-32C, the frames are
summed in place, the matrix products run in NumPy on all weights, `z_hat` is coded. All are measured without Beam,
without parsing and without Python objects, with one thread on each core; their sum is the floor. Where the processor
has matrix units, which NumPy leaves idle and vidpress does not, there is a lower floor with those.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import glob
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import encode
import numpy as np
import threadpoolctl
import workload
from measuring import timed_in_fresh_process
from results import Report, parser

from vidpress.model.coding import range_coder
from vidpress.model.compiled import jit
from vidpress.model.files.record_framing import masked_crc32c
from vidpress.model.frozen.dense_layers import SplitDense, has_matrix_units
from vidpress.model.frozen.frozen_model import FrozenModel
from vidpress.model.records.videos import sum_frames
from vidpress.pipeline.launching import machine

CORES = len(os.sched_getaffinity(0))
BATCH_SIZE = 1024
TARGET = 0.7
NUMPY = "matrix products in NumPy"
MATRIX_UNITS = "matrix products in matrix units"


class Stage(NamedTuple):
    """A stage's least work.

    Attributes:
      name: What it is.
      run: Does it for one chunk of videos.
      videos: How many that are.
    """

    name: str
    run: Callable[[], object]
    videos: int


@jit
def _touch(frames: np.ndarray) -> int:
    """Sum frames, and return a number of the sum, so that nothing is left out."""
    return sum_frames(frames)[0]


def seconds_a_video(stage: Stage, executor: concurrent.futures.Executor) -> float:
    """Return the time of a stage with one thread on each core, a video."""
    start = time.perf_counter()
    concurrent.futures.wait([executor.submit(stage.run) for _ in range(CORES)])
    return (time.perf_counter() - start) / (CORES * stage.videos)


def stages(records: workload.Records, model: FrozenModel, videos: Sequence[workload.PooledVideo]) -> list[Stage]:
    """Return the stages of the encode job for frame-level records."""
    path = sorted(glob.glob(records.pattern))[0]
    size = records.num_bytes // records.num_videos
    num_chunks = os.path.getsize(path) // size

    def read_and_check() -> None:
        with open(path, "rb", buffering=0) as file:
            for _ in range(num_chunks):
                masked_crc32c(file.read(size))

    frames = np.random.default_rng(0).integers(0, 256, (size // workload.SPEC.input_size, 1152), np.uint8)
    x = np.stack([video.x for video in videos])
    batch = np.ascontiguousarray(x[:BATCH_SIZE])

    def multiply() -> None:
        activations = batch
        for kernel, _ in model.hidden:
            activations = activations @ kernel

    split_layers = [SplitDense(*layer) for layer in model.hidden] if has_matrix_units() else []

    def multiply_in_matrix_units() -> None:
        activations = batch
        for layer in split_layers:
            activations = layer(activations)

    z_hat = model.quantize(batch)

    def code() -> None:
        range_coder.encode_cheapest(model.tables, z_hat)

    found = [
        Stage("read and checksum", read_and_check, num_chunks),
        Stage("sum the frames", lambda: [_touch(frames) for _ in range(200)], 200),
        Stage("code", code, len(batch)),
        Stage(NUMPY, multiply, len(batch)),
    ]
    if split_layers:
        found.append(Stage(MATRIX_UNITS, multiply_in_matrix_units, len(batch)))
    return found


def main(argv: Sequence[str] | None = None) -> None:
    """Measure the stages and the job in turns."""
    command_line = parser(__doc__, repeats=5)
    command_line.add_argument("--records", type=int, default=24000, help="how many (default: %(default)s)")
    command_line.add_argument(
        "--hidden", default="6000,2000", help="layer sizes of random weights (default: %(default)s)"
    )
    command_line.add_argument("--model", help="a frozen model, instead of random weights")
    command_line.add_argument("--scratch", help="where the records go (default: the temporary folder)")
    args = command_line.parse_args(argv)
    print(machine.describe(), flush=True)
    job = argparse.Namespace(**vars(args) | {"level": "frames", "input": None, "files": 8, "workers": 1, "json": None})
    with (
        tempfile.TemporaryDirectory(prefix="vidpress-benchmark-", dir=args.scratch) as folder,
        concurrent.futures.ThreadPoolExecutor(CORES) as executor,
    ):
        source, description, num_videos, _ = encode.prepare(folder, job)
        report = Report(f"The machine's bound for encoding, frame level, {description}")
        report.note(f"{num_videos:,} records of {source}; {CORES} threads; {args.repeats} turns.")
        records = workload.Records(
            encode.glob_of(f"{folder}/all", "frames"),
            num_videos,
            sum(map(os.path.getsize, glob.glob(f"{folder}/all/*"))),
        )
        _, videos = workload.real_videos(None, max(BATCH_SIZE, 2))
        todo = stages(records, FrozenModel.load(f"{folder}/model.safetensors"), videos)
        times: dict[str, list[float]] = {stage.name: [] for stage in todo}
        steady = []
        for turn in range(args.repeats + 1):
            with threadpoolctl.threadpool_limits(1, "blas"):
                for stage in todo:
                    taken = seconds_a_video(stage, executor)
                    if turn:
                        times[stage.name].append(taken)
            one, whole = (
                timed_in_fresh_process(encode.run, "vidpress", folder, part, f"{folder}/out-{turn}-{part}", job)
                for part in ("one", "all")
            )
            if turn:
                steady.append((whole.seconds - one.seconds) / (num_videos - 1))
    for name, taken in times.items():
        report.row(name, {"us a video": [1e6 * seconds for seconds in taken]}, ".1f")
    products = {name: times.pop(name) for name in (NUMPY, MATRIX_UNITS) if name in times}
    shares = {}
    for name, taken in products.items():
        floors = [sum(turn) for turn in zip(taken, *times.values(), strict=True)]
        report.row(f"the floor, with {name}", {"us a video": [1e6 * seconds for seconds in floors]}, ".1f")
        shares[name] = statistics.median(floors) / statistics.median(steady)
    report.row("the encode job, steady state", {"us a video": [1e6 * seconds for seconds in steady]}, ".1f")
    what = f"encode frame level, {description}, as a share of the machine's bound"
    report.target(what, TARGET, shares[NUMPY])
    if MATRIX_UNITS in shares:
        report.note(f"Of the lower floor, with {MATRIX_UNITS}, the job reaches a share of {shares[MATRIX_UNITS]:.2f}.")
    report.finish(args)


if __name__ == "__main__":
    main()
