"""Read a data set that a year of daily appends has made, before and after it is compacted.

Each generation has some videos, which are rows of real ones under other ids, in one shard. The same rows in a single
generation are what compaction is compared with.
"""

from __future__ import annotations

import contextlib
import io
import pathlib
import tempfile
import time
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import workload
from results import Report, parser

from vidpress.model.data_set.manifest import Counts, FileEntry, Generation, Manifest
from vidpress.model.frozen.frozen_model import FrozenModel
from vidpress.model.reading.video_dataset import VideoDataset
from vidpress.model.shards.shard import footer_crc32
from vidpress.model.shards.shard_header import ShardHeader
from vidpress.model.shards.shard_rows import SCHEMA
from vidpress.model.shards.shard_writer import write_shard
from vidpress.model.shards.shared_tables import TablesFile
from vidpress.pipeline import compact
from vidpress.pipeline.launching import machine
from vidpress.transforms.generations.generation_files import create_manifest, write_part

BANKS = 16
LOOKUPS = 20
TIMES = 1.5


def write_generations(folder: pathlib.Path, model: FrozenModel, rows: pa.Table, num_generations: int) -> None:
    """Write rows as so many generations of one shard each."""
    folder.mkdir()
    packed = model.tables.to_bytes()
    file = TablesFile.of(packed)
    (folder / file.name).write_bytes(packed)
    tables = FileEntry(file.name, 0, len(packed), file.sha256)
    header = ShardHeader(model.model_id, model.spec, model.tables, tables_file=file)
    generations: list[Generation] = []
    for number, places in enumerate(np.array_split(np.arange(rows.num_rows), num_generations), start=1):
        added = rows.take(places).sort_by("id")
        buffer = io.BytesIO()
        sizes = write_shard(buffer, added, header)
        data = buffer.getvalue()
        shard = write_part(str(folder), "shard", number, (0, 1), added.num_rows, data, sizes, footer_crc32(data))
        code_bytes = pa.compute.sum(pa.compute.binary_length(added["code"])).as_py()
        counts = Counts(added.num_rows, added.num_rows, 0, 0, 0, code_bytes)
        generations.append(Generation(1, (shard,), (), None, counts))
        create_manifest(str(folder), Manifest(model.model_id, model.num_dims, tuple(generations), tables=tables))


def seconds_of_an_epoch(folder: pathlib.Path, num_videos: int) -> float:
    """Open a data set and read all of it, shuffled; return how long that takes."""
    start = time.perf_counter()
    if sum(len(batch.ids) for batch in VideoDataset(folder, shuffle=True)) != num_videos:
        raise SystemExit(f"{folder} does not hold {num_videos:,} videos.")
    return time.perf_counter() - start


def ms_of_a_lookup(folder: pathlib.Path, ids: Sequence[bytes]) -> float:
    """Return how long it takes to find a video by its id, on average, in a data set that was opened before."""
    dataset = VideoDataset(folder)
    start = time.perf_counter()
    for video_id in ids:
        dataset.get([video_id])
    return 1000 * (time.perf_counter() - start) / len(ids)


def main(argv: Sequence[str] | None = None) -> None:
    """Write the data sets, compact one, and read them."""
    command_line = parser(__doc__, repeats=5)
    command_line.add_argument("--generations", type=int, default=365, help="(default: %(default)s)")
    command_line.add_argument("--videos_a_generation", type=int, default=200, help="(default: %(default)s)")
    workload.add_options(command_line)
    args = command_line.parse_args(argv)
    print(machine.describe(), flush=True)
    encoding = workload.encoding(args, 4096, BANKS)
    model = encoding.model
    num_videos = args.generations * args.videos_a_generation
    encoded = encoding.rows()
    ids = workload.made_up_ids(num_videos)
    rows = encoded.take(np.arange(num_videos) % encoded.num_rows)
    rows = rows.set_column(0, SCHEMA.field("id"), pa.array(ids, pa.binary()))
    report = Report("A year of daily appends")
    report.note(
        f"{args.generations:,} generations of {args.videos_a_generation:,} rows, from {len(encoding.videos):,} "
        f"{encoding.source}, with {model.num_dims} activations by {encoding.model_name} and "
        f"{model.tables.num_banks} banks; a shuffled epoch, {args.repeats} turns."
    )
    with tempfile.TemporaryDirectory(prefix="vidpress-benchmark-") as name:
        before, after, once = (pathlib.Path(name, each) for each in ("before", "after", "once"))
        write_generations(before, model, rows, args.generations)
        write_generations(after, model, rows, args.generations)
        write_generations(once, model, rows, 1)
        start = time.perf_counter()
        with contextlib.redirect_stdout(io.StringIO()):
            compact.main([str(after)])
        report.note(f"Compaction took {time.perf_counter() - start:.1f} s.")
        folders = {"appended": before, "compacted": after, "one generation": once}
        seconds_of_an_epoch(once, num_videos)  # compiles
        epochs: dict[str, list[float]] = {column: [] for column in folders}
        lookups: dict[str, list[float]] = {column: [] for column in folders}
        rng = np.random.default_rng(0)
        for _ in range(args.repeats):
            some = [ids[index] for index in rng.integers(0, num_videos, LOOKUPS)]
            for column, folder in folders.items():
                epochs[column].append(seconds_of_an_epoch(folder, num_videos))
                lookups[column].append(ms_of_a_lookup(folder, some))
        stored = {
            column: sum(entry.bytes for entry in Manifest.load(folder).shards) / num_videos
            for column, folder in folders.items()
        }
    report.row("seconds an epoch", epochs, ",.2f")
    report.row("ms a video by id", lookups, ",.2f")
    report.row("bytes of shards a video", stored, ",.1f")
    medians = {column: float(np.median(seconds)) for column, seconds in epochs.items()}
    report.target(
        f"an epoch after compaction, times as fast as {TIMES} epochs of one generation",
        1,
        TIMES * medians["one generation"] / medians["compacted"],
    )
    report.target("an epoch after compaction against before", 1, medians["appended"] / medians["compacted"])
    report.finish(args)


if __name__ == "__main__":
    main()
