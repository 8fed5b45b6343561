"""Check a data set against its manifest."""

from __future__ import annotations

from collections.abc import Sequence

from vidpress.model.data_set.verification import Report, verify
from vidpress.model.errors import VidpressError
from vidpress.pipeline.launching.options import Parser, absolute, positive_int
from vidpress.pipeline.launching.reporting import count, explained_errors, printable


def parser() -> Parser:
    """Return the parser of the command's options."""
    parser = Parser(
        prog="vidpress verify",
        description="Check a data set against its newest manifest: sizes, checksums and rows of every file, every page "
        "and row group, that no id occurs twice, that the counts add up, and a sample of the codes. Prints a line for "
        "each finding, and exits with 1 if there is any.",
        examples=["vidpress verify compact"],
    )
    parser.add_argument("path", type=absolute, help="the data set's folder, a local path or gs:// URI")
    parser.add_argument(
        "--sample",
        type=positive_int,
        default=1024,
        metavar="N",
        help="how many codes of each shard to decode (default: %(default)s)",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Check the data set at a path."""
    args = parser().parse_args(argv)
    with explained_errors("vidpress verify"):
        report = verify(args.path, sample=args.sample)
        for finding in report.findings:
            print(printable(finding))
        if report.unlisted:
            print(
                f"Note: {args.path} has {count(len(report.unlisted), 'file')} of a run that is still running or died: "
                f"{report.unlisted[0]}{', ...' if len(report.unlisted) > 1 else ''}"
            )
        if report.findings:
            raise DamagedDataSetError(f"{args.path} has {count(len(report.findings), 'finding')}.")
        print(printable(summary(report, args.path)))


class DamagedDataSetError(VidpressError):
    """A damaged data set."""


def summary(report: Report, path: str) -> str:
    """Return what was found to be right."""
    manifest = report.manifest
    num_files = len(manifest.files)
    return (
        f"{path} is whole: {count(manifest.counts.videos, 'video')} of model {manifest.model_id} in "
        f"{count(len(manifest.shards), 'shard')}, generation {manifest.generation}. {count(num_files, 'file')} as the "
        f"manifest lists them, every row group fits its checksum, {count(report.num_sampled, 'sampled code')} decoded."
    )


if __name__ == "__main__":
    main()
