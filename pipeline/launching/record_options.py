"""Options that say what input records look like: shared by the jobs that read them."""

from __future__ import annotations

import argparse
import dataclasses

from vidpress.model.features import FeatureSpec
from vidpress.model.kept_columns import KeptColumn


def add_key_options(
    parser: argparse.ArgumentParser | argparse._ArgumentGroup,
    *,
    default_id: str = "id, or video_id",
    default_labels: str = "labels",
) -> None:
    """Add the options that name keys of records, with what is said of their defaults."""
    id_help = f"key of a video's id in the records (default: {default_id})"
    labels_help = f"key of a video's class indices in the records (default: {default_labels})"
    parser.add_argument("--id_key", metavar="NAME", help=id_help)
    parser.add_argument("--labels_key", metavar="NAME", help=labels_help)


def add_keep_option(parser: argparse.ArgumentParser) -> None:
    """Add the option that says what else of the records to keep."""
    parser.add_argument(
        "--keep",
        nargs="+",
        action="extend",
        metavar="KEY:KIND",
        type=kept_columns,
        help="context features of the records to keep as columns, such as title:string; a kind is string, bytes, int64 "
        "or float",
    )


def add_record_options(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """Add the options that say which features the records have, and the keys of id and labels."""
    parser.add_argument(
        "--features",
        type=features,
        default="rgb:1024,audio:128",
        help="names and sizes of the input features; NAME:SIZE:float if their frames are floats instead of bytes, as "
        "MediaPipe's are, NAME:SIZE:float:SCALE to multiply these by a number",
    )
    add_key_options(parser)


def features(text: str) -> FeatureSpec:
    """Parse an option such as rgb:1024,audio:128."""
    try:
        return FeatureSpec.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def kept_columns(text: str) -> list[KeptColumn]:
    """Parse a value of --keep such as title:string, or several with commas between."""
    try:
        return [KeptColumn.parse(part) for part in text.strip(", ").split(",")]
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def with_keys(spec: FeatureSpec, args: argparse.Namespace) -> FeatureSpec:
    """Return a spec with the keys that the options of `add_key_options` name.

    Raises:
      ValueError: If one of them cannot be a key.
    """
    id_keys = spec.id_keys if args.id_key is None else (args.id_key,)
    labels_key = spec.labels_key if args.labels_key is None else args.labels_key
    return dataclasses.replace(spec, id_keys=id_keys, labels_key=labels_key)
