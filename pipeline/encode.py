"""The encode job: YouTube-8M TFRecords in, a compact data set out."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import apache_beam as beam

from vidpress.model.data_set.input_lists import InputFile, is_new
from vidpress.model.data_set.listed_shards import listed_tables
from vidpress.model.data_set.manifest import MAX_SHARDS, Manifest, manifest_numbers
from vidpress.model.features import FeatureSpec
from vidpress.model.files.file_names import join
from vidpress.model.files.input_files import MatchedFile, older_than
from vidpress.model.frozen.frozen_model import FrozenModel
from vidpress.model.kept_columns import KeptColumn, check_columns, listed
from vidpress.model.shards.shard_header import ShardHeader
from vidpress.model.shards.shared_tables import TablesFile
from vidpress.pipeline.launching import launch, record_options
from vidpress.pipeline.running import beam_jobs
from vidpress.transforms.encode_videos import EncodeVideos
from vidpress.transforms.generations.known_videos import ReadInputFiles, input_lists, read_input_files
from vidpress.transforms.pool_frames import PoolFrames
from vidpress.transforms.read_videos import ReadVideos
from vidpress.transforms.write_shards import WriteShards

# Frame-level input of this size becomes a shard of about 10 MB, video-level input one of about 500 MB.
INPUT_BYTES_PER_SHARD = 16 * 2**30


def build_pipeline(
    pipeline: beam.Pipeline,
    *,
    file_patterns: Sequence[str],
    model: str,
    header: ShardHeader,
    output: str,
    record_spec: FeatureSpec | None = None,
    named_keys: Sequence[str] = (),
    min_age: float = 0,
    previous: int = 0,
    num_shards: int = 1,
    max_bad_fraction: float = 0.01,
    num_files: int | None = None,
    tables: bytes | None = None,
    threads: int = 0,
) -> beam.PCollection[Manifest]:
    """Add the encode job to a pipeline.

    Args:
      pipeline: The pipeline.
      file_patterns: TFRecord files, frame level or video level.
      model: Path or URI of the frozen model, for the workers.
      header: The same model's `ShardHeader`, with the columns to keep.
      output: The data set's folder.
      record_spec: The model's features with the keys that the records use, if these differ from the model's.
      named_keys: Keys of labels or kept columns that some records must have.
      min_age: In seconds. Files that were written to more recently are left out.
      previous: The newest generation of the data set, which the new one follows; 0 if there is none yet.
      num_shards: How many shards the videos are divided among.
      max_bad_fraction: The share of dead letters, and of bytes that could not be read, above which the job fails.
      num_files: How many files there are to read, if that is known: the job fails if it read fewer.
      tables: What goes into the file that `header.tables_file` names, if the data set does not have it yet.
      threads: How many batches a worker encodes while it continues to read.

    Returns:
      The data set's manifest, one element; none if there is neither a data set nor input.
    """
    known_files = pipeline | "ReadInputFiles" >> ReadInputFiles(output, generation=previous) if previous else None
    spec = header.spec if record_spec is None else record_spec
    reading = ReadVideos(
        file_patterns,
        spec=spec,
        columns=header.columns,
        named_keys=named_keys,
        known_files=known_files,
        min_age=min_age,
    )
    videos, unread, inputs = pipeline | "ReadVideos" >> reading
    pooled, unpooled = videos | "PoolFrames" >> PoolFrames(spec=spec)
    rows, uncoded = pooled | "EncodeVideos" >> EncodeVideos(
        model, model_id=header.model_id, threads=threads, columns=header.columns
    )
    dead_letters = (unread, unpooled, uncoded) | "Set aside" >> beam.Flatten()
    return rows | "WriteShards" >> WriteShards(
        output,
        header=header,
        dead_letters=dead_letters,
        inputs=inputs,
        model=model,
        tables=tables,
        previous=previous,
        num_shards=num_shards,
        max_bad_fraction=max_bad_fraction,
        num_files=num_files,
    )


def parser() -> launch.Parser:
    """Return the parser of the job's own options."""
    parser = launch.Parser(
        prog="vidpress encode",
        description="Encode YouTube-8M TFRecords, frame level or video level, to a data set of Parquet shards.",
        epilog="All other options go to Beam: --runner, --project, --temp_location, --direct_num_workers, ...",
        examples=[
            "vidpress encode --input 'yt8m/*.tfrecord' --model model.safetensors --output compact --num_shards 4",
            "vidpress encode --append --input 'yt8m/*.tfrecord' --model model.safetensors --output compact",
            "vidpress encode --keep title:string tags:string --input 'a/*' --model model.safetensors --output compact",
        ],
    )
    # Some launchers repeat an option for each of its values.
    parser.add_argument(
        "--input",
        required=True,
        nargs="+",
        action="extend",
        metavar="GLOB",
        type=launch.absolute,
        help="TFRecord files; .gz is unpacked",
    )
    parser.add_argument(
        "--model", required=True, type=launch.absolute, help="the frozen model, a local path or gs:// URI"
    )
    parser.add_argument("--output", required=True, metavar="FOLDER", type=launch.absolute, help="the data set's folder")
    record_options.add_key_options(parser)
    record_options.add_keep_option(parser)
    parser.add_argument(
        "--append",
        type=launch.boolean,
        nargs="?",
        const=True,
        default=False,
        metavar="true|false",
        help="if the folder holds a data set, add the videos of input files that are new to it; "
        "without --append, such a folder is refused",
    )
    parser.add_argument(
        "--min_age",
        type=launch.not_negative,
        default=0,
        metavar="MINUTES",
        help="leave out files that were written to in the last MINUTES, because they may still be uploaded; "
        "the next run with --append takes them (default: %(default)s)",
    )
    parser.add_argument(
        "--num_shards",
        type=launch.shards,
        help="how many shards (default: one for each 16 GiB of input, at least 1)",
    )
    parser.add_argument(
        "--carry_tables",
        type=launch.boolean,
        nargs="?",
        const=True,
        default=False,
        metavar="true|false",
        help="let each shard carry its coding tables, so that its file can be read by itself; without it, shards whose "
        "tables would take more than 1 %% of their codes share a file of the data set",
    )
    parser.add_argument(
        "--max_bad_fraction",
        type=launch.fraction,
        default=0.01,
        help="share of bad records, or of input bytes that cannot be read, above which the job fails (default: "
        "%(default)s)",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Run the job with command-line options."""
    args, options = beam_jobs.parse_args(parser(), argv)
    with launch.explained_errors("vidpress encode"):
        matched = launch.match_input(args.input)
        files = older_than(60 * args.min_age, matched)
        if len(files) < len(matched):
            young = f"{len(matched) - len(files):,} of {len(matched):,} files are younger than {args.min_age:g} minutes"
            print(f"{young}: they are left for the next run.", file=sys.stderr)
        model = FrozenModel.load(args.model)
        before = _data_set_before(args.output, args.append, model)
        try:
            record_spec = record_options.with_keys(model.spec, args)
            kept = check_columns([column for part in args.keep or [] for column in part], record_spec)
        except ValueError as error:
            raise launch.JobError(str(error)) from error
        columns = _columns(args.output, before, kept)
        listed_files = [] if before is None else _listed_files(args.output, before)
        new_files = _new_files(listed_files, files)
        # A template is written all the same. The job that it launches finds out for itself, and adds nothing.
        if not new_files and not beam_jobs.graph_location(options):
            if before is None:
                print("Nothing to encode yet.")
            else:
                print(f"Nothing new: {args.output} was encoded from all {len(files):,} files of --input already.")
            return
        input_bytes = sum(file.bytes for file in new_files)
        num_shards = args.num_shards
        if num_shards is None:
            num_shards = min(-(-max(input_bytes, 1) // INPUT_BYTES_PER_SHARD), MAX_SHARDS)
        launch.check_num_shards(before, num_shards, args.output)
        tables_file, tables = _shared_tables(before, model, carry=args.carry_tables)
        header = ShardHeader(model.model_id, model.spec, model.tables, columns, tables_file)
        named_keys = {column.key for column in kept} | ({args.labels_key} - {None})
        if before is not None:
            named_keys -= _known_keys(before, listed_files, model.spec)

        def build(pipeline: beam.Pipeline) -> None:
            build_pipeline(
                pipeline,
                file_patterns=args.input,
                model=args.model,
                header=header,
                output=args.output,
                record_spec=record_spec,
                named_keys=sorted(named_keys),
                min_age=60 * args.min_age,
                previous=0 if before is None else before.generation,
                num_shards=num_shards,
                max_bad_fraction=args.max_bad_fraction,
                # A template is a graph for later jobs, which find the files that exist then.
                num_files=None if beam_jobs.graph_location(options) else len(new_files),
                tables=tables,
                threads=beam_jobs.threads_per_worker(options),
            )

        seconds = beam_jobs.run(options, build, total=input_bytes, unit="B")
        if graph := beam_jobs.graph_location(options):
            print(f"Wrote the job's graph to {graph}; nothing is encoded yet.")
            return
        print(summary(Manifest.load(args.output), args.output, seconds))


def _data_set_before(output: str, append: bool, model: FrozenModel) -> Manifest | None:
    """Return the manifest of the data set to add to, or None for a new one; refuse what cannot be written to."""
    if not (append and manifest_numbers(output)):
        launch.check_output(output, fix="add what is new to it with --append, name another folder, or remove it first")
        return None
    manifest = Manifest.load(output)
    if manifest.model_id != model.model_id:
        raise launch.JobError(
            f"--model is {model.model_id}, but --output {output} was encoded by {manifest.model_id}, and features of "
            "two models cannot be mixed: name that model, or another folder."
        )
    launch.check_data_set_writable(output)
    return manifest


def _shared_tables(
    before: Manifest | None, model: FrozenModel, *, carry: bool
) -> tuple[TablesFile | None, bytes | None]:
    """Return the file of tables that small shards share, and its content if the data set does not have it yet."""
    if carry:
        return None, None
    if before is not None and before.tables is not None:
        return listed_tables(before), None
    tables = model.tables.to_bytes()
    return TablesFile.of(tables), tables


def _columns(output: str, before: Manifest | None, kept: tuple[KeptColumn, ...]) -> tuple[KeptColumn, ...]:
    """Return the columns of a data set that is new or added to; refuse others than it has."""
    if before is None:
        return kept
    if kept and set(kept) != set(before.columns):
        raise launch.JobError(
            f"--keep is {listed(kept)}, but --output {output} keeps {listed(before.columns)}, and all of it has "
            "the same columns: leave --keep out to go on with these, or name another folder."
        )
    return before.columns


def _listed_files(output: str, manifest: Manifest) -> list[InputFile]:
    """Return the files that a data set was encoded from."""
    return [file for entry in input_lists(manifest) for file in read_input_files(output, entry)]


def _known_keys(before: Manifest, listed_files: Sequence[InputFile], spec: FeatureSpec) -> set[str]:
    """Return the keys that a data set shows not to be misspelt, so that no new record needs to have them.

    A day's videos may happen to have no labels or no titles. But its columns were looked for in its first videos, and
    its lists name the keys under which labels were found.
    """
    columns = {column.key for column in before.columns if before.counts.videos}
    return columns | {file.labels_key for file in listed_files if file.labels_key is not None} | {spec.labels_key}


def _new_files(listed_files: Sequence[InputFile], files: Sequence[MatchedFile]) -> list[MatchedFile]:
    """Return the files that a data set was not encoded from yet."""
    known: dict[str, list[tuple[int, int | None]]] = {}
    for listed_file in listed_files:
        known.setdefault(listed_file.file, []).append((listed_file.bytes, listed_file.damaged_crc32))
    new_files = []
    for file in files:
        if is_new(file.path, file.bytes, known.get(file.path, ())):
            new_files.append(file)
            if file.path in known:
                before = max(num_bytes for num_bytes, _ in known[file.path])
                change = f"has grown from {before:,} to {file.bytes:,} bytes"
                if file.bytes == before:
                    change = "was damaged, and has changed"
                print(
                    f"{file.path} {change} since it was encoded: it is read again, and its new videos are added.",
                    file=sys.stderr,
                )
    return new_files


def summary(manifest: Manifest, output: str, seconds: float) -> str:
    """Return a summary of a finished job: what it added, and to which data set."""
    added = manifest.generations[-1]
    counts = added.counts
    videos = max(counts.videos, 1)
    stored = sum(entry.bytes for entry in added.shards)
    ratio = counts.input_bytes / max(stored, 1)
    lines = [
        f"Encoded {launch.count(counts.videos, 'video')} in {seconds:.1f} s ({counts.videos / seconds:,.0f} videos/s).",
        f"  input         {counts.input_bytes:>15,} bytes  {counts.input_bytes / videos:>10,.1f} a video",
        f"  shards        {stored:>15,} bytes  {stored / videos:>10,.1f} a video, 1/{ratio:,.0f}",
        f"  codes         {counts.code_bytes:>15,} bytes  {counts.code_bytes / videos:>10,.1f} a video",
        f"  duplicates    {counts.duplicates:>15,}",
        f"  dead letters  {counts.dead_letters:>15,}",
        *([f"  not read      {counts.lost_bytes:>15,} bytes of damaged files"] if counts.lost_bytes else []),
        f"{launch.count(len(added.shards), 'shard')} by model {manifest.model_id} in {output}",
    ]
    if manifest.generation > 1:
        lines.append(
            f"Generation {manifest.generation} of a data set that holds {manifest.counts.videos:,} videos in "
            f"{launch.count(len(manifest.shards), 'shard')} now."
        )
    if counts.dead_letters:
        lines.append(f"Why records were set aside: {join(output, added.dead_letters[0].name)}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
