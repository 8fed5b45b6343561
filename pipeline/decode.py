"""The decode job: a data set in, features out, as TFRecords or Parquet."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import apache_beam as beam
import pyarrow as pa
from apache_beam.io.filesystems import FileSystems

from vidpress.model import examples
from vidpress.model.manifest import Manifest
from vidpress.model.shard import decoded_schema, labels_list
from vidpress.pipeline import launch
from vidpress.transforms.decode_videos import DecodeVideos
from vidpress.transforms.read_shards import ReadShards, load_manifest

FORMATS = ("tfrecord", "parquet")


def build_pipeline(
    pipeline: beam.Pipeline, *, data_set: str, manifest: Manifest, output: str, output_format: str
) -> None:
    """Add the decode job to a pipeline.

    Args:
      pipeline: The pipeline.
      data_set: The folder that `vidpress encode` wrote.
      manifest: Its manifest; the job fails if it decodes another number of videos.
      output: Folder for the features.
      output_format: 'tfrecord' or 'parquet'.
    """
    rows = pipeline | "ReadShards" >> ReadShards(data_set, generation=manifest.generation)
    decoded = rows | "DecodeVideos" >> DecodeVideos()
    prefix = FileSystems.join(output, "features")
    if output_format == "tfrecord":
        _ = (
            decoded
            | "To examples" >> beam.FlatMap(to_examples)
            | "Write TFRecords" >> beam.io.WriteToTFRecord(prefix, file_name_suffix=".tfrecord")
        )
    else:
        _ = (
            decoded
            | "To tables" >> beam.Map(lambda batch: pa.Table.from_batches([batch]))
            | "Write Parquet"
            >> beam.io.WriteToParquetBatched(prefix, decoded_schema(manifest.num_dims), file_name_suffix=".parquet")
        )
    _ = (
        decoded
        | "Rows" >> beam.Map(lambda batch: batch.num_rows)
        | "Count videos" >> beam.CombineGlobally(sum)
        | "Check the count" >> beam.Map(_check_count, manifest.counts.videos)
    )


def to_examples(batch: pa.RecordBatch) -> Iterator[bytes]:
    """Turn decoded rows into serialized `tf.train.Example`s: `id`, `labels` and `z_hat`, float[num_dims]."""
    z_hat = batch["z_hat"].flatten().to_numpy().reshape(batch.num_rows, -1)
    labels = labels_list(batch["labels"])
    for index, video_id in enumerate(batch["id"].to_pylist()):
        yield examples.serialize_record({"id": video_id, "labels": labels[index], "z_hat": z_hat[index]})


def _check_count(found: int, expected: int) -> None:
    if found != expected:
        raise RuntimeError(f"{found} videos were decoded, the manifest counts {expected}: run the job again.")


def parser() -> launch.Parser:
    """Return the parser of the job's own options."""
    parser = launch.Parser(
        prog="vidpress decode",
        description="Decode a data set to features, for training jobs that do not read its shards themselves.",
        epilog="All other options go to Beam: --runner, --project, --temp_location, --direct_num_workers, ...",
    )
    parser.add_argument(
        "--input",
        required=True,
        metavar="FOLDER",
        type=launch.absolute,
        help="the data set that `vidpress encode` wrote",
    )
    parser.add_argument(
        "--output",
        required=True,
        metavar="FOLDER",
        type=launch.absolute,
        help="where the features go; must not hold any",
    )
    parser.add_argument(
        "--format", choices=FORMATS, default="tfrecord", help="format of the features (default: %(default)s)"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Run the job with command-line options."""
    args, options = launch.parse_args(parser(), argv)
    with launch.explained_errors("vidpress decode"):
        manifest = load_manifest(args.input)
        launch.check_output(args.output)
        existing = FileSystems.match([FileSystems.join(args.output, "features-*")])[0].metadata_list
        if existing:
            raise launch.JobError(
                f"--output {args.output} holds features already ({existing[0].path}): name another folder, or remove "
                "them first."
            )

        def build(pipeline: beam.Pipeline) -> None:
            build_pipeline(
                pipeline, data_set=args.input, manifest=manifest, output=args.output, output_format=args.format
            )

        seconds = launch.run(options, build, total=manifest.counts.videos, unit="videos")
        if graph := launch.graph_location(options):
            print(f"Wrote the job's graph to {graph}; nothing is decoded yet.")
            return
        written = FileSystems.match([FileSystems.join(args.output, "features-*")])[0].metadata_list
        num_bytes = sum(metadata.size_in_bytes for metadata in written)
        videos = manifest.counts.videos
        print(
            f"Decoded {videos:,} videos in {seconds:.1f} s ({videos / seconds:,.0f} videos/s): {num_bytes:,} bytes in "
            f"{len(written)} {args.format} files in {args.output}"
        )


if __name__ == "__main__":
    main()
