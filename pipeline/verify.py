"""Check a data set against its manifest."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from vidpress.model.verification import verify
from vidpress.pipeline import launch


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command's options."""
    parser = argparse.ArgumentParser(
        prog="vidpress verify",
        description="Check a data set against its newest manifest: sizes, checksums and rows of every file, every page "
        "and row group, that no id occurs twice, that the counts add up, and a sample of the codes. Prints a line for "
        "each finding, and exits with 1 if there is any.",
    )
    parser.add_argument("path", help="the data set's folder, a local path or URI")
    parser.add_argument(
        "--sample",
        type=launch.positive_int,
        default=1024,
        metavar="N",
        help="how many codes of each shard to decode (default: %(default)s)",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Check what a path holds."""
    args = parser().parse_args(argv)
    with launch.explained_errors("vidpress verify"):
        report = verify(args.path, sample=args.sample)
    manifest = report.manifest
    for finding in report.findings:
        print(finding)
    if report.unlisted:
        print(
            f"Note: {len(report.unlisted)} files in {args.path} are not of the data set: of an unfinished run, or one "
            f"at work ({report.unlisted[0]}, ...)."
        )
    if report.findings:
        print(f"vidpress verify: error: {args.path} has {len(report.findings)} findings.", file=sys.stderr)
        raise SystemExit(1)
    files = sum(len(generation.files) for generation in manifest.generations)
    print(
        f"{args.path} is whole: {manifest.counts.videos:,} videos of model {manifest.model_id} in "
        f"{len(manifest.shards):,} shards, generation {manifest.generation}. {files:,} files fit the manifest, every "
        f"row group fits its checksum, {report.num_sampled:,} sampled codes decode."
    )


if __name__ == "__main__":
    main()
