"""The decode job: a data set in, features or the input's own schema out, as TFRecords or Parquet."""

from __future__ import annotations

import argparse
from collections.abc import Collection, Sequence

import apache_beam as beam

from vidpress.model.data_set.input_decoding import load_decoder, restored_schema
from vidpress.model.data_set.manifest import Manifest
from vidpress.model.features import DECODED, FeatureSpec
from vidpress.model.files import storage
from vidpress.model.files.file_names import join
from vidpress.pipeline.launching import launch, record_options
from vidpress.pipeline.running import beam_jobs
from vidpress.transforms.write_features import (
    FORMATS,
    MARKER,
    PREFIXES,
    WriteFeatures,
    feature_file_name,
    is_feature_file_name,
)


def build_pipeline(
    pipeline: beam.Pipeline,
    *,
    data_set: str,
    manifest: Manifest,
    output: str,
    output_format: str,
    features: str = "z_hat",
    spec: FeatureSpec | None = None,
) -> None:
    """Add the decode job to a pipeline.

    Args:
      pipeline: The pipeline.
      data_set: The folder that `vidpress encode` wrote.
      manifest: Its manifest; the job fails if it decodes another number of videos.
      output: Folder for the features.
      output_format: 'tfrecord' or 'parquet'.
      features: 'z_hat' or 'input' (`WriteFeatures`).
      spec: For 'input': the keys of the records.
    """
    write = WriteFeatures(
        data_set, manifest=manifest, output=output, output_format=output_format, features=features, spec=spec
    )
    _ = pipeline | "WriteFeatures" >> write


def parser() -> launch.Parser:
    """Return the parser of the job's own options."""
    parser = launch.Parser(
        prog="vidpress decode",
        description="Decode a data set to features, for training jobs that do not read its shards themselves. With "
        "--as input, the features are those that were encoded, approximately, in records of the same schema.",
        epilog="All other options go to Beam: --runner, --project, --temp_location, --direct_num_workers, ...",
        examples=[
            "vidpress decode --input compact --output features --format tfrecord",
            "vidpress decode --input compact --output videos --as input",
        ],
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
    parser.add_argument(
        "--as",
        choices=DECODED,
        default="z_hat",
        help="what to write of each video: the integers that are stored (z_hat), or the features that were encoded, "
        "such as mean_rgb and mean_audio, approximately (input) (default: %(default)s)",
    )
    record_options.add_key_options(parser.add_argument_group("records of --as input"))
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Run the job with command-line options."""
    args, options = beam_jobs.parse_args(parser(), argv)
    with launch.explained_errors("vidpress decode"):
        manifest = Manifest.load(args.input)
        features = vars(args)["as"]
        spec = _record_spec(args, manifest)
        names = {feature_file_name(entry, args.format, features) for entry in manifest.shards}
        _check_output(args.output, names)

        def build(pipeline: beam.Pipeline) -> None:
            build_pipeline(
                pipeline,
                data_set=args.input,
                manifest=manifest,
                output=args.output,
                output_format=args.format,
                features=features,
                spec=spec,
            )

        seconds = beam_jobs.run(options, build, total=manifest.counts.videos, unit="videos")
        if graph := beam_jobs.graph_location(options):
            print(f"Wrote the job's graph to {graph}; nothing is decoded yet.")
            return
        prefix = PREFIXES[features]
        written = [file for file in storage.list_files(args.output, f"{prefix}-") if file.name in names]
        videos = manifest.counts.videos
        print(
            f"Decoded {launch.count(videos, 'video')} in {seconds:.1f} s ({videos / seconds:,.0f} videos/s): "
            f"{sum(file.bytes for file in written):,} bytes in {launch.count(len(written), f'{args.format} file')} in "
            f"{args.output}"
        )


def _record_spec(args: argparse.Namespace, manifest: Manifest) -> FeatureSpec | None:
    """Return what records of the input are made of, or None if integers are written.

    Raises:
      DecoderError: If the data set has no usable decoder of its input.
      JobError: If a key is given that cannot be used, or that a kept column has.
    """
    if vars(args)["as"] != "input":
        if args.id_key is not None or args.labels_key is not None:
            raise launch.JobError("--id_key and --labels_key are for --as input: add it, or leave them out.")
        return None
    decoder = load_decoder(args.input, manifest)
    try:
        spec = record_options.with_keys(decoder.spec, args)
        restored_schema(spec, manifest.columns)
    except ValueError as error:
        raise launch.JobError(str(error)) from error
    return spec


def _check_output(output: str, names: Collection[str]) -> None:
    """Check that a folder can be written, and contains no features except what the same job left when it died.

    Args:
      output: The folder.
      names: The names of the files that the job writes.

    Raises:
      JobError: If not.
    """
    launch.check_output(output)
    launch.check_no_folder(output, is_feature_file_name)
    fix = "name another folder, or remove them first"
    if storage.exists(join(output, MARKER)):
        raise launch.JobError(f"--output {output} holds features already, complete with {MARKER}: {fix}.")
    for file in storage.list_files(output):
        if is_feature_file_name(file.name) and file.name not in names:
            raise launch.JobError(f"--output {output} holds other features already ({file.name}): {fix}.")


if __name__ == "__main__":
    main()
