"""Print videos of a data set, by their ids, or write them to a Parquet file."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from vidpress.model.features import DECODED
from vidpress.model.files import storage
from vidpress.model.reading.video_dataset import VideoDataset
from vidpress.pipeline.launching.options import Parser, absolute
from vidpress.pipeline.launching.reporting import explained_errors


def parser() -> Parser:
    """Return the parser of the options."""
    result = Parser(
        prog="vidpress get",
        description=__doc__,
        examples=["vidpress get compact 02aa 03ab", "vidpress get compact --ids_from ids.txt --output videos.parquet"],
    )
    result.add_argument("data_set", metavar="DATASET", type=absolute, help="the folder of a data set, or a shard")
    result.add_argument("ids", metavar="ID", nargs="*", help="ids of videos")
    result.add_argument("--ids_from", metavar="FILE", type=absolute, help="a file with an id in each line")
    result.add_argument(
        "--output",
        metavar="FILE.parquet",
        type=absolute,
        help="write the columns id, labels, num_frames, features and what else is kept, instead of a line of JSON for "
        "each video, in which kept bytes are base64",
    )
    result.add_argument(
        "--as",
        dest="features",
        choices=DECODED,
        default="z_hat",
        help="features: the integers that are stored, or the input vectors as they are restored (default: %(default)s)",
    )
    result.add_argument(
        "--missing",
        choices=("raise", "skip"),
        default="raise",
        help="whether an id that is not in the data set is an error, or is left out (default: %(default)s)",
    )
    result.add_argument("--generation", type=int, help="read the data set as it was then (default: the newest)")
    return result


def main(argv: Sequence[str] | None = None) -> None:
    """Print or write videos."""
    with explained_errors("vidpress get"):
        command_line = parser()
        args = command_line.parse_args(argv)
        ids = [os.fsencode(video_id) for video_id in args.ids]
        if args.ids_from:
            ids += storage.read_bytes(args.ids_from).splitlines()
        if not ids:
            command_line.error("Name at least one id, or a file of ids with --ids_from.")
        dataset = VideoDataset(args.data_set, generation=args.generation, features=args.features)
        try:
            rows = dataset.get_arrow(ids, missing=args.missing)
        except KeyError as error:
            command_line.error(f"{error.args[0]} Leave such ids out with --missing skip.")
        if args.output:
            with storage.open_output(args.output) as file:
                pq.write_table(pa.Table.from_batches([rows]), file, compression="zstd")
            print(f"Wrote {rows.num_rows:,} videos to {args.output}.")
            return
        for row in rows.to_pylist():
            print(json.dumps({**row, "id": row["id"].decode(errors="backslashreplace")}, default=_base64))


def _base64(value: bytes) -> str:
    return base64.b64encode(value).decode()


if __name__ == "__main__":
    main()
