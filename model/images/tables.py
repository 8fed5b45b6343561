"""Tables of labelled images: encoded images with their classes in Parquet files or TFRecords.

These are the forms in which Hugging Face and TensorFlow Datasets publish small images. All of them are decoded at once.
"""

from __future__ import annotations

import contextlib
import io
import os
import pathlib
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from vidpress.model.images import files as image_files
from vidpress.model.images.files import CIFAR_SHAPE, ImageDataError, LabelledImages
from vidpress.model.records import examples
from vidpress.model.records.tfrecord import Damage, read_tfrecords

TRAINING, TEST = "train", "test"

# Names of columns and of features, those of Hugging Face, of TensorFlow Datasets and of TF-Slim. CIFAR-100's coarse
# classes have other names.
_IMAGE_NAMES = ("image", "img", "image/encoded")
_LABEL_NAMES = ("label", "fine_label", "image/class/label")
_SPLIT_NAME = "split"

# A split in a file's name: train-00000-of-00001.parquet, cifar10-test.tfrecord-00000-of-00001.
_SPLIT_IN_NAME = re.compile(rf"(?<![a-z])({TRAINING}|{TEST})(?![a-z])", re.IGNORECASE)

# Of each image: the split, the encoded image, the class.
_Row = tuple[str, bytes, int]


def load_cifar10(source: str | os.PathLike[str]) -> tuple[LabelledImages, LabelledImages]:
    """Read CIFAR-10's training and test images, from tables (`load_tables`) or else binary batches.

    Raises:
      ImageDataError: If files are missing, or are not what they should be.
    """
    paths = _table_paths(source)
    return load_tables(paths, CIFAR_SHAPE, 10) if paths else image_files.load_cifar10(source)


def load_cifar100(source: str | os.PathLike[str]) -> tuple[LabelledImages, LabelledImages]:
    """Read CIFAR-100's training and test images with their fine labels, as `load_cifar10` does."""
    paths = _table_paths(source)
    return load_tables(paths, CIFAR_SHAPE, 100) if paths else image_files.load_cifar100(source)


def load_tables(
    paths: Sequence[str], shape: tuple[int, int, int], num_classes: int
) -> tuple[LabelledImages, LabelledImages]:
    """Read training and test images from Parquet files or TFRecords.

    A Parquet file has a column `image` or `img`, of encoded images or of structs with a field `bytes`, and a column of
    integers `label` or `fine_label`. A record has the feature `image` or `image/encoded`, and `label` or
    `image/class/label`. Classes count from 0. The column `split`, or else the file's name, says `train` or `test`.

    Args:
      paths: The files, in the order of their images.
      shape: Height, width and channels, 3 of them, that every image must have.
      num_classes: How many classes there are.

    Raises:
      ImageDataError: If there is no such column, or an image cannot be decoded, has another size or an unknown class.
    """
    images: dict[str, list[np.ndarray]] = {TRAINING: [], TEST: []}
    labels: dict[str, list[int]] = {TRAINING: [], TEST: []}
    for path in paths:
        read = _parquet_rows if path.endswith(".parquet") else _record_rows
        for index, (split, encoded, label) in enumerate(read(path)):
            place = f"{path}, image {index}"
            if split not in images:
                raise ImageDataError(f"{place}: its split is {split!r}: it must be {TRAINING!r} or {TEST!r}.")
            if not 0 <= label < num_classes:
                raise ImageDataError(
                    f"{place}: its label is {label}, but there are {num_classes} classes (0 to {num_classes - 1}): is "
                    "this another data set?"
                )
            images[split].append(_decode(encoded, shape, place))
            labels[split].append(label)
    for split, found in images.items():
        if not found:
            raise ImageDataError(
                f"{' to '.join(dict.fromkeys((paths[0], paths[-1])))}: no image is of the split {split!r}: name a "
                "folder or a file that has both splits."
            )
    training, test = (
        image_files.labelled(np.stack(images[split]), np.array(labels[split], np.int32), _of_split(paths, split))
        for split in (TRAINING, TEST)
    )
    return training, test


def _table_paths(source: str | os.PathLike[str]) -> list[str]:
    """Return the files of tables in a folder, or the file itself; none, if the folder has no tables."""
    folder = pathlib.Path(source)
    if folder.is_file():
        return [str(folder)]
    parquet = sorted(map(str, folder.glob("*.parquet")))
    records = sorted(str(path) for path in folder.glob("*tfrecord*") if _SPLIT_IN_NAME.search(path.name))
    if parquet and records:
        raise ImageDataError(
            f"{folder} has both Parquet files and TFRecords of images: keep only one of the two there."
        )
    return parquet or records


def _of_split(paths: Sequence[str], split: str) -> list[str]:
    """Return the files that may hold images of a split, by their names."""
    return [path for path in paths if _split_in_name(path) in (None, split)]


def _split_in_name(path: str) -> str | None:
    match = _SPLIT_IN_NAME.search(os.path.basename(path))
    return match[1].lower() if match else None


def _needed_split(path: str) -> str:
    split = _split_in_name(path)
    if split is None:
        raise ImageDataError(
            f"{path}: neither a column {_SPLIT_NAME!r} nor the file's name says whether its images are to train or to "
            f"test: call it {TRAINING}-... or {TEST}-..."
        )
    return split


def _parquet_rows(path: str) -> Iterator[_Row]:
    try:
        file = pq.ParquetFile(path)
        names = file.schema_arrow.names
        image, label = (_first_of(names, wanted, path, "column") for wanted in (_IMAGE_NAMES, _LABEL_NAMES))
        has_split = _SPLIT_NAME in names
        split = "" if has_split else _needed_split(path)
        for batch in file.iter_batches(columns=[image, label, *([_SPLIT_NAME] if has_split else [])]):
            splits = batch[_SPLIT_NAME].cast(pa.string()).to_pylist() if has_split else [split] * len(batch)
            yield from zip(splits, _encoded(batch, image, path), _classes(batch, label, path), strict=True)
    except (pa.ArrowException, OSError) as error:
        raise ImageDataError(f"{path} cannot be read as Parquet: {' '.join(str(error).split())}") from error


def _first_of(names: Sequence[str], wanted: Sequence[str], path: str, kind: str) -> str:
    found = next((name for name in wanted if name in names), None)
    if found is None:
        raise ImageDataError(
            f"{path} has no {kind} {' or '.join(wanted)}, only {', '.join(sorted(names)) or 'none'}: rename it so."
        )
    return found


def _encoded(batch: pa.RecordBatch, name: str, path: str) -> list[bytes]:
    column = batch[name]
    if pa.types.is_struct(column.type) and column.type.get_field_index("bytes") >= 0:
        column = pc.struct_field(column, "bytes")
    if not (pa.types.is_binary(column.type) or pa.types.is_large_binary(column.type)):
        raise ImageDataError(
            f"{path}: the column {name} is of {batch[name].type}: it must be binary, or a struct with a binary field "
            "bytes."
        )
    if column.null_count:
        raise ImageDataError(f"{path}: {column.null_count} rows of the column {name} have no bytes of an image.")
    return column.to_pylist()


def _classes(batch: pa.RecordBatch, name: str, path: str) -> list[int]:
    column = batch[name]
    if not pa.types.is_integer(column.type):
        raise ImageDataError(f"{path}: the column {name} is of {column.type}: it must be of integers, classes from 0.")
    if column.null_count:
        raise ImageDataError(f"{path}: {column.null_count} rows of the column {name} have no class.")
    return column.to_pylist()


def _record_rows(path: str) -> Iterator[_Row]:
    split = _needed_split(path)
    with open(path, "rb") as file:
        for offset, payload in read_tfrecords(file, os.path.getsize(path), name=path):
            place = f"{path}, byte {offset}"
            if isinstance(payload, Damage):
                raise ImageDataError(f"{place}: {payload.reason}: fetch the file again.")
            try:
                features, _ = examples.parse_record(payload)
                encoded = _only_value(features, _IMAGE_NAMES, examples.bytes_values, place)
                label = _only_value(features, _LABEL_NAMES, examples.int64_values, place)
            except examples.RecordError as error:
                raise ImageDataError(f"{place}: {error}: it is not an Example with an image.") from error
            yield split, encoded, int(label)


def _only_value(features: Any, names: Sequence[str], values_of: Callable[[Any], Any], place: str) -> Any:
    name = _first_of(list(features), names, place, "feature")
    values = values_of(features[name])
    if len(values) != 1:
        raise ImageDataError(f"{place}: the feature {name} has {len(values)} values: it must have one.")
    return values[0]


@contextlib.contextmanager
def explained_decoding(encoded: bytes, place: str) -> Iterator[None]:
    """Explain what Pillow says of an encoded image that it cannot decode.

    Raises:
      ImageDataError: In place of Pillow's errors.
    """
    from PIL import Image

    try:
        yield
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ImageDataError(
            f"{place}: its {len(encoded)} bytes are no image that Pillow can decode: {error}: fetch the file again."
        ) from error


def _decode(encoded: bytes, shape: tuple[int, int, int], place: str) -> np.ndarray:
    """Return uint8[height, width, 3] of an encoded image."""
    # Of the extra train: the names of the experiments, which are in the command's help, must not need it.
    from PIL import Image

    height, width, _ = shape
    with explained_decoding(encoded, place), Image.open(io.BytesIO(encoded)) as image:
        size = image.size
        # The size is in the image's header: one that is too large is not decoded.
        pixels = np.asarray(image.convert("RGB")) if size == (width, height) else None
    if pixels is None:
        raise ImageDataError(
            f"{place}: it has {size[0]} x {size[1]} pixels: it must have {width} x {height}, as those of this data set."
        )
    return pixels
