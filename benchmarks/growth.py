"""How the encode job's time and memory grow with the records and the shards, and what crosses its GroupByKey.

Each size runs in a fresh process; time a video and memory should stay as they are from 1x to 16x.
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
import tempfile
from collections.abc import Sequence

import encode
from measuring import Run, in_fresh_process, measure, timed_in_fresh_process
from results import Report, parser

from vidpress.pipeline.launching import machine

GROWTH = (1, 4, 16)


def prepare(folder: str, num_records: int) -> str:
    """Write frame-level records in a folder for each size, and a model; return what they are made of."""
    import numpy as np
    import workload

    source, videos = workload.real_videos(None, num_records * GROWTH[-1])
    for factor in GROWTH:
        os.makedirs(f"{folder}/{factor}")
        workload.write_frame_level(f"{folder}/{factor}", videos[: factor * num_records], factor)
    x = np.stack([video.x for video in videos[:4096]])
    workload.random_model([2000], x).save(f"{folder}/model.safetensors")
    return source


def run(folder: str, factor: int, output: str) -> Run:
    """Encode the records of a size to as many shards."""
    from vidpress.model.frozen.frozen_model import FrozenModel
    from vidpress.model.shards.shard_header import ShardHeader
    from vidpress.pipeline.encode import build_pipeline

    model = FrozenModel.load(f"{folder}/model.safetensors")
    options = argparse.Namespace(workers=1)
    return measure(
        lambda: encode.run_pipeline(
            lambda pipeline: build_pipeline(
                pipeline,
                file_patterns=[encode.glob_of(f"{folder}/{factor}", "frames")],
                model=f"{folder}/model.safetensors",
                header=ShardHeader(model.model_id, model.spec, model.tables),
                output=output,
                num_shards=factor,
            ),
            options,
        )
    )


def shuffled_bytes(folder: str, factor: int) -> int:
    """Return the bytes of all elements that the job hands to its GroupByKey, each file's videos in one bundle."""
    import glob

    from vidpress.model.data_set.rows import encode_videos
    from vidpress.model.frozen.frozen_model import FrozenModel
    from vidpress.model.records.videos import Video, pool_frames
    from vidpress.transforms.read_videos import read_videos
    from vidpress.transforms.write_shards import _DealFn

    model = FrozenModel.load(f"{folder}/model.safetensors")
    deal = _DealFn(factor)
    total = 0
    for path in sorted(glob.glob(encode.glob_of(f"{folder}/{factor}", "frames"))):
        pooled = [
            pool_frames(video, model.spec) for _, video in read_videos(path, model.spec) if isinstance(video, Video)
        ]
        deal.start_bundle()
        elements = [*deal.process(encode_videos(model, pooled).rows), *(out.value for out in deal.finish_bundle())]
        total += sum(len(data) for _, data in elements)
    return total


def main(argv: Sequence[str] | None = None) -> None:
    """Run all sizes in turns."""
    command_line = parser(__doc__, repeats=3)
    command_line.add_argument("--records", type=int, default=500, help="of the least size (default: %(default)s)")
    command_line.add_argument("--scratch", help="where the records go (default: the temporary folder)")
    args = command_line.parse_args(argv)
    print(machine.describe(), flush=True)
    report = Report("Growth: the encode job over 1x, 4x and 16x records, files and shards")
    with tempfile.TemporaryDirectory(prefix="vidpress-benchmark-", dir=args.scratch) as folder:
        source = in_fresh_process(prepare, folder, args.records)
        report.note(
            f"1x is {args.records:,} frame-level records around the means of {source}; random weights, 1152-2000; "
            f"FnApiRunner, one process, one thread; {args.repeats} turns after one to warm up."
        )
        runs: dict[int, list[Run]] = {factor: [] for factor in GROWTH}
        for turn in range(args.repeats + 1):
            for factor in GROWTH:
                taken = timed_in_fresh_process(run, folder, factor, f"{folder}/out-{factor}-{turn}")
                if turn:
                    runs[factor].append(taken)
        shuffled = {factor: in_fresh_process(shuffled_bytes, folder, factor) for factor in GROWTH}
    videos = {factor: factor * args.records for factor in GROWTH}
    report.row("videos", {f"{factor}x": float(videos[factor]) for factor in GROWTH})
    report.row("seconds", {f"{factor}x": [run.seconds for run in runs[factor]] for factor in GROWTH}, ".2f")
    report.row("CPU seconds", {f"{factor}x": [run.cpu_seconds for run in runs[factor]] for factor in GROWTH}, ".2f")
    report.row(
        "peak memory, MiB", {f"{factor}x": [run.peak_bytes / 2**20 for run in runs[factor]] for factor in GROWTH}
    )
    report.row(
        "bytes a video into the GroupByKey", {f"{factor}x": shuffled[factor] / videos[factor] for factor in GROWTH}
    )
    medians = {factor: statistics.median(run.cpu_seconds for run in runs[factor]) for factor in GROWTH}
    steps = [
        (medians[large] - medians[small]) / (videos[large] - videos[small]) * 1e6
        for small, large in itertools.pairwise(GROWTH)
    ]
    report.note(
        f"CPU us for each further video: {steps[0]:.0f} from 1x to 4x, {steps[1]:.0f} from 4x to 16x: a straight line "
        "has these equal."
    )
    report.finish(args)


if __name__ == "__main__":
    main()
