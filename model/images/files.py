"""Labelled images, in the formats that CIFAR, ImageNet, MNIST and Fashion-MNIST are published in.

Data sets of small images of one size are read as a whole. ImageNet's images stay in their files, as JPEGs, and are
found by their offsets.
"""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import os
import pathlib
import re
import struct
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from vidpress.model.errors import VidpressError
from vidpress.model.files.record_framing import FOOTER, HEADER, begins_with_a_record, footer_of
from vidpress.model.records import examples

IMAGENET_CLASSES = 1000

CIFAR_SHAPE = (32, 32, 3)

# IDX: two zero bytes, the type (8: unsigned bytes), the number of axes; then each axis' length, big endian
# (yann.lecun.com/exdb/mnist).
_IDX_UNSIGNED_BYTES = 8


_JPEG_KEY, _LABEL_KEY = "image/encoded", "image/class/label"


class ImageDataError(VidpressError, ValueError):
    """Images that cannot be read or trained on: the message names the file and the reason."""


@dataclasses.dataclass(frozen=True, eq=False)
class LabelledImages:
    """Images of one size, each with one class.

    Attributes:
      images: uint8[num_images, height, width, channels].
      labels: int32[num_images], classes.
      fingerprint: JSON values that tell which data these are: files, bytes, records, and a SHA-256 over the files'
        names and sizes and all pixels and labels.
    """

    images: np.ndarray
    labels: np.ndarray
    fingerprint: dict[str, Any]

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return `(images uint8[n, height, width, channels], labels int32[n])` of some rows."""
        return self.images[rows], self.labels[rows]

    def subset(self, rows: np.ndarray) -> LabelledImages:
        """Return some of the images; the fingerprint stays that of all."""
        return dataclasses.replace(self, images=self.images[rows], labels=self.labels[rows])


@dataclasses.dataclass(frozen=True, eq=False)
class ImageNetRecords:
    """The offsets of the records in ImageNet's TFRecord files; the records are read when they are asked for.

    Attributes:
      files: Their paths.
      file: int32[num_images], index of each record's file.
      offset: int64[num_images], where each record begins in its file.
      fingerprint: JSON values that tell which data these are: files, bytes, records, and a SHA-256 over the files'
        names and sizes and the records' offsets.
    """

    files: tuple[str, ...]
    file: np.ndarray
    offset: np.ndarray
    fingerprint: dict[str, Any]

    def __len__(self) -> int:
        return len(self.offset)

    def read(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return `(JPEGs object[n], labels int32[n], from 0)` of some rows.

        Raises:
          ImageDataError: If a record is damaged, or is not a labelled image.
        """
        found = [self._read_row(int(row)) for row in rows]
        jpegs = np.empty(len(found), object)
        jpegs[:] = [jpeg for jpeg, _ in found]
        return jpegs, np.array([label for _, label in found], np.int32)

    def place(self, row: int) -> str:
        """Return what messages call a row's record."""
        return f"{self.files[self.file[row]]}, byte {self.offset[row]}"

    def subset(self, rows: np.ndarray) -> ImageNetRecords:
        """Return some of the images; the fingerprint stays that of all."""
        return dataclasses.replace(self, file=self.file[rows], offset=self.offset[rows])

    def _read_row(self, row: int) -> tuple[bytes, int]:
        with open(self.files[self.file[row]], "rb") as file:
            file.seek(int(self.offset[row]))
            length, _ = HEADER.unpack(file.read(HEADER.size))
            payload = file.read(length)
            if file.read(FOOTER.size) != footer_of(payload):
                raise ImageDataError(f"{self.place(row)}: the record's {length} bytes fail their checksum.")
        try:
            return _parse_imagenet(payload)
        except (ImageDataError, examples.RecordError) as error:
            raise ImageDataError(f"{self.place(row)}: {error}") from error


def load_mnist(folder: str | os.PathLike[str]) -> tuple[LabelledImages, LabelledImages]:
    """Read the training and the test images of MNIST, Fashion-MNIST or another set with their files' names.

    Args:
      folder: Holds `train-images-idx3-ubyte`, `train-labels-idx1-ubyte` and the same of `t10k`, each as it is or with
        `.gz`.

    Returns:
      Training and test images, of one channel and ten classes.

    Raises:
      ImageDataError: If a file is missing or damaged, or if images and labels do not fit each other.
    """
    return _load_idx(folder, "train"), _load_idx(folder, "t10k")


def _load_idx(folder: str | os.PathLike[str], prefix: str) -> LabelledImages:
    images_path, labels_path = (
        _existing(folder, [name, f"{name}.gz"])
        for name in (f"{prefix}-images-idx3-ubyte", f"{prefix}-labels-idx1-ubyte")
    )
    images, labels = read_idx(images_path, 3), read_idx(labels_path, 1)
    if len(images) != len(labels):
        raise ImageDataError(f"{images_path} has {len(images)} images, but {labels_path} {len(labels)} labels.")
    _check_labels(labels_path, labels, 10)
    if images.shape[1:] != (28, 28):
        height, width = images.shape[1:]
        raise ImageDataError(f"{images_path} has images of {height} x {width} pixels: MNIST's have 28 x 28.")
    return labelled(images[..., None], labels.astype(np.int32), [images_path, labels_path])


def read_idx(path: str | os.PathLike[str], num_axes: int) -> np.ndarray:
    """Read an IDX file of unsigned bytes, gzipped or not.

    Args:
      path: The file; `.gz` is unpacked.
      num_axes: How many axes it must have: 3 for images, 1 for labels.

    Returns:
      uint8, with `num_axes` axes.

    Raises:
      ImageDataError: If it is another kind of file, or cut short, or too long.
    """
    data = pathlib.Path(path).read_bytes()
    if os.fspath(path).endswith(".gz"):
        try:
            data = gzip.decompress(data)
        except (OSError, EOFError, zlib.error) as error:
            raise ImageDataError(f"{path} cannot be unpacked: {error}") from error
    magic = bytes([0, 0, _IDX_UNSIGNED_BYTES, num_axes])
    header_size = 4 + 4 * num_axes
    if len(data) < header_size or data[:4] != magic:
        raise ImageDataError(
            f"{path} begins with {data[:4].hex()}, not {magic.hex()}: it is not an IDX file of bytes with {num_axes} "
            "axes."
        )
    shape = struct.unpack(f">{num_axes}I", data[4:header_size])
    size = int(np.prod(shape, dtype=object))
    if len(data) - header_size != size:
        raise ImageDataError(
            f"{path} holds {len(data) - header_size} bytes where its header says {'x'.join(map(str, shape))} = {size}."
        )
    return np.frombuffer(data, np.uint8, offset=header_size).reshape(shape)


def load_cifar10(folder: str | os.PathLike[str]) -> tuple[LabelledImages, LabelledImages]:
    """Read CIFAR-10's training and test images: `data_batch_1.bin` to `data_batch_5.bin`, and `test_batch.bin`.

    Raises:
      ImageDataError: If a file is missing or is not such a file.
    """
    training = [_existing(folder, [f"data_batch_{index}.bin"]) for index in range(1, 6)]
    return _load_cifar(training, 1, 10), _load_cifar([_existing(folder, ["test_batch.bin"])], 1, 10)


def load_cifar100(folder: str | os.PathLike[str]) -> tuple[LabelledImages, LabelledImages]:
    """Read CIFAR-100's training and test images with their fine labels: `train.bin` and `test.bin`.

    Raises:
      ImageDataError: If a file is missing or is not such a file.
    """
    # A coarse label, one of 20, comes before the fine one.
    training, test = ([_existing(folder, [name])] for name in ("train.bin", "test.bin"))
    return _load_cifar(training, 2, 100), _load_cifar(test, 2, 100)


def _load_cifar(paths: Sequence[str], num_label_bytes: int, num_classes: int) -> LabelledImages:
    """Read records of label bytes, the last of which counts, and the red, green and blue planes, row by row."""
    height, width, channels = CIFAR_SHAPE
    record_size = num_label_bytes + height * width * channels
    parts = []
    for path in paths:
        data = np.fromfile(path, np.uint8)
        if not len(data) or len(data) % record_size:
            raise ImageDataError(
                f"{path} has {len(data)} bytes, not a multiple of {record_size}: it is not a binary batch of "
                f"CIFAR-{num_classes}, or is cut short."
            )
        records = data.reshape(-1, record_size)
        _check_labels(path, records[:, num_label_bytes - 1], num_classes)
        parts.append(records)
    records = np.concatenate(parts)
    planes = records[:, num_label_bytes:].reshape(-1, channels, height, width)
    images = np.ascontiguousarray(planes.transpose(0, 2, 3, 1))
    return labelled(images, records[:, num_label_bytes - 1].astype(np.int32), paths)


def load_imagenet(folder: str | os.PathLike[str]) -> tuple[ImageNetRecords, ImageNetRecords]:
    """Find ImageNet's training and validation images in their TFRecords: `train-*-of-*` and `validation-*-of-*`.

    Each record is an `Example` with `image/encoded`, a JPEG, and `image/class/label`, from 1 to 1000.

    Args:
      folder: On a local disk: records are read one by one, in any order.

    Raises:
      ImageDataError: If files are missing, or the framing of one is damaged.
    """
    return _index_records(folder, "train"), _index_records(folder, "validation")


def _index_records(folder: str | os.PathLike[str], prefix: str) -> ImageNetRecords:
    found = {}
    for path in pathlib.Path(folder).glob(f"{prefix}-*-of-*"):
        match = re.fullmatch(rf"{prefix}-(\d+)-of-(\d+)", path.name)
        if match:
            found[int(match[1])] = (str(path), int(match[2]))
    expected = max((count for _, count in found.values()), default=0)
    if not found or sorted(found) != list(range(expected)):
        missing = next((index for index in range(expected) if index not in found), 0)
        raise ImageDataError(
            f"{folder} has {len(found)} of the {expected or 'many'} files {prefix}-NNNNN-of-NNNNN of ImageNet's "
            f"TFRecords: number {missing} is missing."
        )
    files = [found[index][0] for index in range(expected)]
    offsets = [_record_offsets(path) for path in files]
    counts = [len(part) for part in offsets]
    digest = _name_digest(files)
    digest.update(np.concatenate(offsets).tobytes())
    return ImageNetRecords(
        files=tuple(files),
        file=np.repeat(np.arange(len(files), dtype=np.int32), counts),
        offset=np.concatenate(offsets),
        fingerprint=_fingerprint(files, sum(counts), digest.hexdigest()),
    )


def _record_offsets(path: str) -> np.ndarray:
    """Return where each record of a TFRecord file begins, int64[n], by the records' lengths alone."""
    size = os.path.getsize(path)
    offsets, offset = [], 0
    with open(path, "rb") as file:
        while offset < size:
            file.seek(offset)
            header = file.read(HEADER.size)
            length = HEADER.unpack(header)[0] if begins_with_a_record(header) else size
            end = offset + HEADER.size + length + FOOTER.size
            if end > size:
                raise ImageDataError(f"{path}, byte {offset}: no whole TFRecord begins here; is the file cut short?")
            offsets.append(offset)
            offset = end
    if not offsets:
        raise ImageDataError(f"{path} holds no records.")
    return np.array(offsets, np.int64)


def _parse_imagenet(payload: bytes) -> tuple[bytes, int]:
    features, _ = examples.parse_record(payload)
    for key in (_JPEG_KEY, _LABEL_KEY):
        if key not in features:
            raise ImageDataError(f"the record has no feature {key!r}, as ImageNet's have.")
    jpegs, labels = examples.bytes_values(features[_JPEG_KEY]), examples.int64_values(features[_LABEL_KEY])
    if len(jpegs) != 1 or len(labels) != 1:
        raise ImageDataError(f"the record has {len(jpegs)} images and {len(labels)} labels instead of one of each.")
    if not 1 <= labels[0] <= IMAGENET_CLASSES:
        raise ImageDataError(f"image/class/label is {labels[0]}: it must lie in 1 to {IMAGENET_CLASSES}.")
    return bytes(jpegs[0]), labels[0] - 1


def even_rows(num_rows: int, max_rows: int) -> np.ndarray:
    """Return the numbers of at most `max_rows` rows, int64, evenly spaced."""
    if num_rows <= max_rows:
        return np.arange(num_rows)
    return np.linspace(0, num_rows - 1, max_rows).astype(np.int64)


def _existing(folder: str | os.PathLike[str], names: Sequence[str]) -> str:
    paths = [os.path.join(folder, name) for name in names]
    found = next((path for path in paths if os.path.isfile(path)), None)
    if found is None:
        raise ImageDataError(f"{folder} has no file {' or '.join(names)}: name the folder of the published files.")
    return found


def _check_labels(path: str, labels: np.ndarray, num_classes: int) -> None:
    bad = np.flatnonzero(labels >= num_classes)
    if len(bad):
        raise ImageDataError(
            f"{path}: the label of image {bad[0]} is {labels[bad[0]]}, but there are {num_classes} classes (0 to "
            f"{num_classes - 1})."
        )


def labelled(images: np.ndarray, labels: np.ndarray, paths: Sequence[str]) -> LabelledImages:
    """Return images and their labels with the fingerprint that says from which files they are."""
    if not len(labels):
        raise ImageDataError(f"{paths[0]} holds no images.")
    digest = _name_digest(paths)
    digest.update(np.ascontiguousarray(images).data)
    digest.update(labels.data)
    return LabelledImages(images, labels, _fingerprint(paths, len(labels), digest.hexdigest()))


def _name_digest(paths: Sequence[str]) -> Any:
    digest = hashlib.sha256()
    for path in paths:
        digest.update(f"{os.path.basename(path)} {os.path.getsize(path)}\n".encode())
    return digest


def _fingerprint(paths: Sequence[str], num_images: int, sha256: str) -> dict[str, Any]:
    return {
        "files": len(paths),
        "bytes": sum(map(os.path.getsize, paths)),
        "first_file": os.path.basename(paths[0]),
        "last_file": os.path.basename(paths[-1]),
        "labelled_images": num_images,
        "sha256": sha256,
    }
