"""Look up videos by their ids in a data set of a million, one by one and a thousand at once.

The rows are those of some real videos, repeated under other ids, in shards of 50,000. A lookup is cold if its shard's
footer has not been read by this process, warm if it has, but mostly not the row group, and kept if that was read, too,
and is still in memory. The files are in the page cache. For comparison, the same videos' features are in a Parquet file
of float32 with zstd, with sorted ids and row groups as large, that Arrow's dataset scans with a filter.
"""

from __future__ import annotations

import hashlib
import pathlib
import tempfile
import time
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import workload
from results import Report, parser

from vidpress.model.data_set.id_hash import shard_of
from vidpress.model.data_set.manifest import Counts, FileEntry, Generation, Manifest
from vidpress.model.files.file_names import file_name
from vidpress.model.frozen.frozen_model import FrozenModel
from vidpress.model.reading.video_dataset import VideoDataset
from vidpress.model.shards.shard import footer_crc32
from vidpress.model.shards.shard_header import ShardHeader
from vidpress.model.shards.shard_rows import ROW_GROUP_SIZE, SCHEMA
from vidpress.model.shards.shard_writer import write_shard
from vidpress.pipeline.launching import machine

VIDEOS_A_SHARD = 50_000
AT_ONCE = 1000
FEW = 20  # single lookups that find few of their row groups in memory, where none was read before
WARM_MS, COLD_MS, TIMES = 10, 50, 20


def num_shards_of(num_videos: int) -> int:
    """Return into how many shards so many videos go."""
    return max(1, num_videos // VIDEOS_A_SHARD)


def write_data_set(folder: pathlib.Path, model: FrozenModel, rows: pa.Table, num_videos: int) -> list[bytes]:
    """Write a data set of repeated rows, and return its ids."""
    num_shards = num_shards_of(num_videos)
    ids = workload.made_up_ids(num_videos)
    shards = np.array([shard_of(video_id, num_shards) for video_id in ids])
    entries = []
    for index in range(num_shards):
        of_shard = sorted(ids[place] for place in np.flatnonzero(shards == index))
        repeated = rows.take(np.arange(len(of_shard)) % rows.num_rows).set_column(
            0, SCHEMA.field("id"), pa.array(of_shard, pa.binary())
        )
        path = folder / "shard"
        with path.open("wb") as file:
            sizes = write_shard(file, repeated, ShardHeader(model.model_id, model.spec, model.tables))
        data = path.read_bytes()
        sha256 = hashlib.sha256(data).hexdigest()
        name = file_name("shard", 1, (index, num_shards), sha256)
        path.rename(folder / name)
        entries.append(FileEntry(name, len(of_shard), len(data), sha256, sizes, footer_crc32(data)))
    generation = Generation(num_shards, tuple(entries), (), None, Counts(num_videos, num_videos, 0, 0, 0, 0))
    (folder / "manifest.json").write_text(Manifest(model.model_id, model.num_dims, (generation,)).to_json())
    return ids


def milliseconds(look_up: object, arguments: Sequence[object]) -> np.ndarray:
    """Return how long each of several calls takes."""
    taken = []
    for argument in arguments:
        start = time.perf_counter()
        look_up(argument)  # type: ignore[operator]
        taken.append(1000 * (time.perf_counter() - start))
    return np.array(taken)


def main(argv: Sequence[str] | None = None) -> None:
    """Write the data set, and look up videos."""
    command_line = parser(__doc__, repeats=3)
    command_line.add_argument("--num_videos", type=int, default=1_000_000, help="(default: %(default)s)")
    command_line.add_argument("--lookups", type=int, default=1000, help="in each turn (default: %(default)s)")
    workload.add_options(command_line)
    args = command_line.parse_args(argv)
    print(machine.describe(), flush=True)
    encoding = workload.encoding(args, 4096)
    videos, model = encoding.videos, encoding.model
    report = Report("Videos by id")
    report.note(
        f"{args.num_videos:,} rows, repeated from {len(videos):,} {encoding.source}, with {model.num_dims} activations "
        f"by {encoding.model_name}; {args.lookups:,} random ids a turn, {args.repeats} turns."
    )
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory(prefix="vidpress-benchmark-") as name:
        folder = pathlib.Path(name)
        ids = write_data_set(folder, model, encoding.rows(), args.num_videos)
        parquet = folder / "float32"
        features = pa.FixedSizeListArray.from_arrays(
            pa.array(model.quantize(encoding.x).astype(np.float32).reshape(-1)), model.num_dims
        )
        pq.write_table(
            pa.table({"id": sorted(ids)[: len(videos)], "features": features}),
            parquet,
            compression="zstd",
            row_group_size=ROW_GROUP_SIZE,
        )
        few = sorted(ids)[: len(videos)]
        scanned = ds.dataset(parquet)

        def chosen(count: int, among: list[bytes] = ids) -> list[list[bytes]]:
            return [[among[index]] for index in rng.integers(0, len(among), count)]

        one_of_each_shard = list(
            {shard_of(video_id, num_shards_of(args.num_videos)): video_id for video_id in ids}.values()
        )

        def with_footers() -> VideoDataset:
            dataset = VideoDataset(folder)
            dataset.get(one_of_each_shard)
            return dataset

        kept_set = with_footers()
        for start in range(0, len(ids), len(ids) // 10):
            kept_set.get(ids[start : start + AT_ONCE])  # compiles, and reads all row groups
        singles: dict[str, list[np.ndarray]] = {"cold": [], "warm": [], "kept": []}
        once: dict[str, list[float]] = {"warm": [], "kept": []}
        scans = []
        for _ in range(args.repeats):
            singles["cold"].append(
                np.concatenate([milliseconds(VideoDataset(folder).get, chosen(1)) for _ in range(args.lookups // 5)])
            )
            singles["warm"].append(
                np.concatenate(
                    [milliseconds(with_footers().get, chosen(FEW)) for _ in range(max(1, args.lookups // (5 * FEW)))]
                )
            )
            singles["kept"].append(milliseconds(kept_set.get, chosen(args.lookups)))
            for key, dataset in (("warm", with_footers()), ("kept", kept_set)):
                many = [ids[index] for index in rng.integers(0, len(ids), AT_ONCE)]
                once[key].append(float(milliseconds(dataset.get, [many])[0]) / AT_ONCE)
            scan = milliseconds(
                lambda key: scanned.to_table(filter=ds.field("id") == key[0]), chosen(args.lookups // 20, few)
            )
            scans.append(float(np.median(scan)))
    medians = {key: [float(np.median(taken)) for taken in turns] for key, turns in singles.items()}
    slowest = {key: [float(np.quantile(taken, 0.99)) for taken in turns] for key, turns in singles.items()}
    report.row("ms a video, median", {**medians, f"float32 Parquet of {len(few):,}": scans}, ",.2f")
    report.row("ms a video, 99th percentile", slowest, ",.2f")
    report.row(f"ms a video, {AT_ONCE:,} at once", once, ",.3f")
    report.target(f"a warm lookup's 99th percentile, times as fast as {WARM_MS} ms", 1, WARM_MS / max(slowest["warm"]))
    report.target(f"a cold lookup's 99th percentile, times as fast as {COLD_MS} ms", 1, COLD_MS / max(slowest["cold"]))
    for key, taken in once.items():
        report.target(
            f"{AT_ONCE:,} {key} videos at once against one by one",
            TIMES,
            float(np.median(medians[key]) / np.median(taken)),
        )
    report.finish(args)


if __name__ == "__main__":
    main()
