"""The decode job: a data set in, features out, as TFRecords or Parquet."""

from __future__ import annotations

from collections.abc import Sequence

import apache_beam as beam

from vidpress.model.data_set.manifest import Manifest
from vidpress.model.files import storage
from vidpress.model.files.file_names import join
from vidpress.pipeline.launching import launch
from vidpress.pipeline.running import beam_jobs
from vidpress.transforms.write_features import (
    FORMATS,
    MARKER,
    WriteFeatures,
    feature_file_name,
    is_feature_file_name,
)


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
    write = WriteFeatures(data_set, manifest=manifest, output=output, output_format=output_format)
    _ = pipeline | "WriteFeatures" >> write


def parser() -> launch.Parser:
    """Return the parser of the job's own options."""
    parser = launch.Parser(
        prog="vidpress decode",
        description="Decode a data set to features, for training jobs that do not read its shards themselves.",
        epilog="All other options go to Beam: --runner, --project, --temp_location, --direct_num_workers, ...",
        examples=["vidpress decode --input compact --output features --format tfrecord"],
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
        help="folder for the features; it must contain none yet, except those of the same job if that died: it is then "
        "completed",
    )
    parser.add_argument(
        "--format", choices=FORMATS, default="tfrecord", help="format of the features (default: %(default)s)"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Run the job with command-line options."""
    args, options = beam_jobs.parse_args(parser(), argv)
    with launch.explained_errors("vidpress decode"):
        manifest = Manifest.load(args.input)
        _check_output(args.output, manifest, args.format)

        def build(pipeline: beam.Pipeline) -> None:
            build_pipeline(
                pipeline, data_set=args.input, manifest=manifest, output=args.output, output_format=args.format
            )

        seconds = beam_jobs.run(options, build, total=manifest.counts.videos, unit="videos")
        if graph := beam_jobs.graph_location(options):
            print(f"Wrote the job's graph to {graph}; nothing is decoded yet.")
            return
        names = {feature_file_name(entry, args.format) for entry in manifest.shards}
        written = [file for file in storage.list_files(args.output, "features-") if file.name in names]
        videos = manifest.counts.videos
        print(
            f"Decoded {launch.count(videos, 'video')} in {seconds:.1f} s ({videos / seconds:,.0f} videos/s): "
            f"{sum(file.bytes for file in written):,} bytes in {launch.count(len(written), f'{args.format} file')} in "
            f"{args.output}"
        )


def _check_output(output: str, manifest: Manifest, output_format: str) -> None:
    """Check that a folder can be written, and contains no features except what the same job left when it died.

    Raises:
      JobError: If not.
    """
    launch.check_output(output)
    launch.check_no_folder(output, is_feature_file_name)
    fix = "name another folder, or remove them first"
    if storage.exists(join(output, MARKER)):
        raise launch.JobError(f"--output {output} holds features already, complete with {MARKER}: {fix}.")
    ours = {feature_file_name(entry, output_format) for entry in manifest.shards}
    for file in storage.list_files(output, "features-"):
        if is_feature_file_name(file.name) and file.name not in ours:
            raise launch.JobError(f"--output {output} holds other features already ({file.name}): {fix}.")


if __name__ == "__main__":
    main()
