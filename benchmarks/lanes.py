"""Time the range coder's two kinds of loops, row by row and in lanes, where they are used: on one core, at three rates.

`VideoDataset` reads a shard, and frame-level records are encoded as a worker does it; what the coder itself takes of
that stands beside it. Loops are compiled for each level of x86-64 that this processor has, each in a process of its
own; NumPy's products are this processor's on all of them. Both kinds take turns, must give the same, and their times
are CPU times. By this table `model/coding/coder_loops.py` chooses.
"""

from __future__ import annotations

import argparse
import glob
import itertools
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple
from unittest import mock

import llvmlite.binding
import numpy as np
import workload
from measuring import in_fresh_process
from reading import BATCH_SIZE, write_data_set
from results import Report, parser

from vidpress.model.coding import coder_loops, range_coder
from vidpress.model.data_set.rows import encode_videos
from vidpress.model.frozen.frozen_model import FrozenModel
from vidpress.model.reading.video_dataset import VideoDataset
from vidpress.model.records.tfrecord import read_tfrecords
from vidpress.model.records.videos import parse_video, pool_frames
from vidpress.model.warm_up import numba_variables
from vidpress.pipeline.launching import machine


class Level(NamedTuple):
    """A level of x86-64: its name in the table, LLVM's name of it, and a feature that it has before those below."""

    name: str
    kind: str
    feature: str


LEVELS = (
    Level("AVX-512", "x86-64-v4", "avx512vl"),
    Level("AVX2", "x86-64-v3", "avx2"),
    Level("plain x86-64", "x86-64", "sse2"),
)
LOOPS = {"row by row": coder_loops.ROW_BY_ROW, "lanes": coder_loops.LANES}
# Of values that are not 0, with random weights: some 30, 55 and 75 bytes a video of 2000.
SHARES_NOT_ZERO = (0.0135, 0.029, 0.043)
ENCODE_BATCH = 1024

# What is timed, of loops of some kind: CPU seconds a video, of each turn.
Times = dict[str, dict[str, list[float]]]


def encode(model: FrozenModel, path: str) -> Iterator[list[bytes]]:
    """Encode the records of a file, and yield the codes of each batch."""
    with open(path, "rb") as file:
        payloads = (payload for _, payload in read_tfrecords(file) if isinstance(payload, bytes))
        while batch := list(itertools.islice(payloads, ENCODE_BATCH)):
            videos = [pool_frames(parse_video(payload, model.spec), model.spec) for payload in batch]
            yield encode_videos(model, videos).rows["code"].to_pylist()


def measure(folder: str, rate: int, repeats: int) -> Times:
    """Time both kinds of loops with one model, and see that they give the same."""
    model = FrozenModel.load(f"{folder}/model-{rate}.safetensors")
    shard = f"{folder}/shard-{rate}.parquet"
    (records,) = glob.glob(f"{folder}/frames-*.tfrecord")
    z_hat = np.concatenate([np.asarray(batch.features) for batch in VideoDataset(shard, BATCH_SIZE)]).astype(np.int32)
    coded = range_coder.encode_cheapest(model.tables, z_hat)
    runs: dict[str, Callable[[], list]] = {
        "VideoDataset": lambda: [batch.features for batch in VideoDataset(shard, BATCH_SIZE)],
        "encode": lambda: list(itertools.chain.from_iterable(encode(model, records))),
        "coder alone, decode": lambda: [range_coder.decode(model.tables, *coded[:2], bank=coded.bank)],
        "coder alone, encode": lambda: range_coder.encode_cheapest(model.tables, z_hat).strings(),
    }
    times: Times = {name: {kind: [] for kind in LOOPS} for name in runs}
    results: dict[str, bytes] = {}
    for turn in range(repeats + 1):
        for name, run in runs.items():
            for kind, loops in list(LOOPS.items())[:: 1 if turn % 2 else -1]:  # what comes first may find colder caches
                with mock.patch.object(coder_loops, "chosen", lambda loops=loops: loops):
                    start = time.process_time()
                    result = run()
                    taken = time.process_time() - start
                if turn:
                    num_videos = len(result) if name == "encode" else len(z_hat)
                    times[name][kind].append(taken / num_videos)
                elif results.setdefault(name, content := b"".join(map(bytes, result))) != content:
                    raise SystemExit(f"{kind} gives something else: {name}.")
    return times


def prepare(folder: str, args: argparse.Namespace) -> tuple[str, list[float]]:
    """Write records, and a model and a shard for each rate; return what the videos are, and the bytes of a code."""
    source, videos = workload.real_videos(args.input, args.num_videos)
    workload.write_frame_level(folder, videos[: args.records], 1)
    x = np.stack([video.x for video in videos])
    if args.model:
        models = [FrozenModel.load(path) for path in args.model]
    else:
        models = [workload.random_model([2000], x, share_not_zero=share) for share in SHARES_NOT_ZERO]
    num_bytes = []
    for rate, model in enumerate(models):
        model.save(f"{folder}/model-{rate}.safetensors")
        write_data_set(f"{folder}/shard-{rate}.parquet", model, videos)
        codes, _ = model.compress(x[:1000])
        num_bytes.append(statistics.mean(map(len, codes)))
    return source, num_bytes


def add_rows(report: Report, level: str, num_bytes: float, times: Times) -> None:
    """Add a level's and a rate's part of the table."""
    for name, of_kind in times.items():
        label = f"{level}, {num_bytes:.0f} bytes: {name}"
        ratios = [row / lane for row, lane in zip(*of_kind.values(), strict=True)]
        micros = {kind: [1e6 * seconds for seconds in taken] for kind, taken in of_kind.items()}
        report.row(f"{label}, us a video", {**micros, "lanes, times as fast": ratios}, ".2f")
        if not name.startswith("coder"):
            rates = {kind: [1 / seconds for seconds in taken] for kind, taken in of_kind.items()}
            report.row(f"{label}, videos/s", rates)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure at each level and each rate."""
    command_line = parser(__doc__, repeats=7)
    command_line.add_argument("--num_videos", type=int, default=8192, help="in the shard (default: %(default)s)")
    command_line.add_argument("--records", type=int, default=2048, help="to encode (default: %(default)s)")
    command_line.add_argument(
        "--model", nargs="+", default=[], help="frozen models, one a rate (default: random weights)"
    )
    command_line.add_argument("--input", help="video-level TFRecords, a pattern (default: YouTube-8M's)")
    args = command_line.parse_args(argv)
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    print(machine.describe(), flush=True)
    host = llvmlite.binding.get_host_cpu_features()
    report = Report("The range coder's loops, row by row and in lanes, on one core")
    with tempfile.TemporaryDirectory(prefix="vidpress-benchmark-") as folder:
        source, rates = prepare(folder, args)
        report.note(
            f"{args.num_videos:,} videos in a shard, batches of {BATCH_SIZE}, and {args.records:,} frame-level records "
            f"of {source}; {'frozen models' if args.model else 'RANDOM WEIGHTS'}; {args.repeats} turns after one to "
            "warm up; CPU time."
        )
        for level in LEVELS:
            if not host.get(level.feature):
                report.note(f"This processor has no {level.name}.")
                continue
            variables = {**numba_variables(level.kind), "NUMBA_CACHE_DIR": f"{folder}/machine-code"}
            for rate, num_bytes in enumerate(rates):
                with mock.patch.dict(os.environ, variables):
                    times = in_fresh_process(measure, folder, rate, args.repeats)
                add_rows(report, level.name, num_bytes, times)
    report.finish(args)


if __name__ == "__main__":
    main()
