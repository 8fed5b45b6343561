"""The compact job: the videos of a data set of many generations, written as one generation of full shards."""

from __future__ import annotations

from collections.abc import Sequence

import apache_beam as beam

from vidpress.model.data_set.compaction import compacted, find_expired, is_compact, remove_expired
from vidpress.model.data_set.manifest import MAX_SHARDS, Manifest
from vidpress.pipeline.launching import launch
from vidpress.pipeline.running import beam_jobs
from vidpress.transforms.compaction.compact_shards import CompactShards

# Codes of this size become a shard of some 280 MB, between what `encode` makes of frame-level and of video-level input.
# Opening it and its tables cost next to nothing then. A worker takes 1.6 GB to sort it.
CODE_BYTES_PER_SHARD = 256 * 2**20

# Nor does a shard get more than this of all columns together, the kept ones included, or more videos.
BYTES_PER_SHARD = 512 * 2**20
VIDEOS_PER_SHARD = 20_000_000


def build_pipeline(
    pipeline: beam.Pipeline, *, data_set: str, previous: int, num_shards: int
) -> beam.PCollection[Manifest]:
    """Add the compact job to a pipeline.

    Args:
      pipeline: The pipeline.
      data_set: The data set's folder.
      previous: Its newest generation.
      num_shards: How many shards the videos are divided among.

    Returns:
      The data set's manifest, one element.
    """
    return pipeline | "CompactShards" >> CompactShards(data_set, previous=previous, num_shards=num_shards)


def parser() -> launch.Parser:
    """Return the parser of the job's own options."""
    parser = launch.Parser(
        prog="vidpress compact",
        description="Write the videos of a data set of many generations as one generation of full shards, which are "
        "faster to read. Codes are copied as they are. Nothing that is there changes, and readers of earlier "
        "generations go on. Later, --expire removes what is not needed any more.",
        epilog="All other options go to Beam: --runner, --project, --temp_location, --direct_num_workers, ...",
        examples=["vidpress compact compact", "vidpress compact compact --expire 30"],
    )
    parser.add_argument("data_set", metavar="DATASET", type=launch.absolute, help="the data set's folder")
    parser.add_argument(
        "--num_shards",
        type=launch.shards,
        help="how many shards (default: one for each 256 MiB of codes, 512 MiB of all columns, or 20 million videos, "
        "whatever makes more)",
    )
    parser.add_argument(
        "--expire",
        type=launch.not_negative,
        metavar="DAYS",
        help="write nothing; remove the generations before the newest compaction that is at least DAYS old: their "
        "manifests, and the shards that no other generation has. Who still reads these generations loses them",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Run the job with command-line options."""
    args, options = beam_jobs.parse_args(parser(), argv)
    with launch.explained_errors("vidpress compact"):
        if args.expire is not None:
            if args.num_shards is not None:
                raise launch.JobError("--expire writes no shards: leave out --num_shards, or compact first.")
            print(expire(args.data_set, args.expire))
            return
        before = Manifest.load(args.data_set)
        # A template is written all the same. The job that it launches finds out for itself, and writes nothing.
        if is_compact(before) and not beam_jobs.graph_location(options):
            print(
                f"Nothing to compact: {args.data_set} has {launch.count(before.counts.videos, 'video')} in "
                f"{launch.count(len(before.shards), 'shard')} of one generation."
            )
            return
        launch.check_data_set_writable(args.data_set, option="")
        num_shards = args.num_shards or default_num_shards(before)
        launch.check_num_shards(compacted(before, num_shards, ()), num_shards, args.data_set)

        def build(pipeline: beam.Pipeline) -> None:
            build_pipeline(pipeline, data_set=args.data_set, previous=before.generation, num_shards=num_shards)

        seconds = beam_jobs.run(options, build, total=before.counts.videos, unit="videos")
        if graph := beam_jobs.graph_location(options):
            print(f"Wrote the job's graph to {graph}; nothing is compacted yet.")
            return
        print(summary(before, Manifest.load(args.data_set, before.generation + 1), args.data_set, seconds))


def default_num_shards(before: Manifest) -> int:
    """Return among how many shards the videos of a data set are divided."""
    counts = before.counts
    stored = sum(entry.bytes for entry in before.shards)
    shares = (
        (counts.code_bytes, CODE_BYTES_PER_SHARD),
        (stored, BYTES_PER_SHARD),
        (counts.videos, VIDEOS_PER_SHARD),
    )
    return min(max(1, *(-(-amount // most) for amount, most in shares)), MAX_SHARDS)


def summary(before: Manifest, after: Manifest, data_set: str, seconds: float) -> str:
    """Return a summary of a finished job."""
    lines = [f"Compacted {launch.count(after.counts.videos, 'video')} in {seconds:.1f} s."]
    for when, manifest in (("before", before), ("now", after)):
        stored = sum(entry.bytes for entry in manifest.shards)
        lines.append(f"  {when:<8} {stored:>15,} bytes in {launch.count(len(manifest.shards), 'shard')}")
    lines.append(
        f"Generation {after.generation} of {data_set} holds all videos now. Earlier ones can be read until --expire "
        "removes them."
    )
    return "\n".join(lines)


def expire(data_set: str, min_days: float) -> str:
    """Remove what a compaction made superfluous that is old enough, and return what there is to say."""
    expired = find_expired(data_set, min_days)
    remove_expired(data_set, expired)
    what = []
    if expired.manifests:
        first, last = min(expired.manifests), max(expired.manifests)
        what.append(
            f"the manifest{'s' if first < last else ''} of generation{f's {first} to' if first < last else ''} {last}"
        )
    if expired.shards:
        num_bytes = sum(file.bytes for file in expired.shards)
        what.append(f"{launch.count(len(expired.shards), 'shard')} of {num_bytes:,} bytes")
    if what:
        return f"Removed from {data_set}: {' and '.join(what)}. Generation {expired.compaction} holds their videos."
    if expired.compaction:
        return f"Nothing to expire: {data_set} has nothing left that its generation {expired.compaction} replaced."
    if Manifest.load(data_set).newest_compaction:
        return f"Nothing to expire: the compaction of {data_set} is less than {min_days:g} days old."
    return f"Nothing to expire: {data_set} was never compacted."


if __name__ == "__main__":
    main()
