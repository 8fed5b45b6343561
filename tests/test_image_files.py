"""The published formats of image data sets, on small files of the same form."""

import gzip
import struct

import numpy as np
import pytest

from vidpress.model.images import files
from vidpress.model.images.files import ImageDataError
from vidpress.model.records.examples import serialize_record
from vidpress.model.records.tfrecord import write_tfrecords


def idx(array):
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def write_mnist(folder, num_train=120, num_test=40, size=28, seed=0, compress=True):
    """Images whose class is which of ten rows of blocks is bright: enough to learn something in a few steps."""
    rng = np.random.default_rng(seed)
    for prefix, number in (("train", num_train), ("t10k", num_test)):
        labels = (np.arange(number) % 10).astype(np.uint8)
        pixels = rng.integers(0, 60, (number, size, size), np.uint8)
        for pixel, label in zip(pixels, labels, strict=True):
            row, column = divmod(int(label), 5)
            pixel[12 * row + 2 : 12 * row + 12, 5 * column + 2 : 5 * column + 7] = 255
        for name, array in (("images-idx3", pixels), ("labels-idx1", labels)):
            data = idx(array)
            path = folder / f"{prefix}-{name}-ubyte{'.gz' if compress else ''}"
            path.write_bytes(gzip.compress(data) if compress else data)
    return folder


def cifar_records(rng, number, label_bytes):
    planes = rng.integers(0, 256, (number, 3, 32, 32), np.uint8)
    labels = rng.integers(0, 10, (number, label_bytes), np.uint8)
    return planes, labels, np.concatenate([labels, planes.reshape(number, -1)], axis=1).tobytes()


def write_imagenet(folder, jpegs, labels, prefix="train", shards=2):
    records = [
        serialize_record({"image/encoded": jpeg, "image/class/label": [label], "image/filename": b"n.JPEG"})
        for jpeg, label in zip(jpegs, labels, strict=True)
    ]
    for shard in range(shards):
        with (folder / f"{prefix}-{shard:05d}-of-{shards:05d}").open("wb") as file:
            write_tfrecords(file, records[shard::shards])


@pytest.mark.parametrize("compress", [True, False])
def test_idx(tmp_path, compress):
    write_mnist(tmp_path, compress=compress)
    training, test = files.load_mnist(tmp_path)
    assert (training.images.shape, training.images.dtype) == ((120, 28, 28, 1), np.uint8)
    assert test.images.shape == (40, 28, 28, 1)
    np.testing.assert_array_equal(test.labels, np.arange(40) % 10)
    assert (test.images[7, 14:24, 12:17, 0] == 255).all()
    assert training.fingerprint["first_file"].startswith("train-images-idx3-ubyte")
    assert (training.fingerprint["labelled_images"], training.fingerprint["files"]) == (120, 2)
    assert training.fingerprint["sha256"] != test.fingerprint["sha256"]
    few = training.subset(files.even_rows(len(training), 4))
    np.testing.assert_array_equal(few.images, training.images[[0, 39, 79, 119]])


def test_damaged_idx_files_are_named(tmp_path):
    with pytest.raises(ImageDataError, match=r"has no file train-images-idx3-ubyte or train-images-idx3-ubyte.gz"):
        files.load_mnist(tmp_path)
    write_mnist(tmp_path, compress=False)
    labels = tmp_path / "train-labels-idx1-ubyte"
    good = labels.read_bytes()
    for bad, message in [
        (good[:-1], "holds 119 bytes where its header says 120 = 120"),
        (good + b"\0", "holds 121 bytes"),
        (b"\0\0\x08\x03" + good[4:], "begins with 00000803, not 00000801"),
        (b"", "begins with , not"),
        (good[:-1] + b"\x0a", "label of image 119 is 10, but there are 10 classes"),
        (idx(np.zeros(7, np.uint8)), "has 120 images, but .* 7 labels"),
    ]:
        labels.write_bytes(bad)
        with pytest.raises(ImageDataError, match=message) as info:
            files.load_mnist(tmp_path)
        assert str(labels) in str(info.value)
    labels.write_bytes(good)
    images = tmp_path / "train-images-idx3-ubyte"
    of_28 = images.read_bytes()
    images.write_bytes(idx(np.zeros((120, 32, 30), np.uint8)))
    with pytest.raises(ImageDataError, match=r"train-images-idx3-ubyte has images of 32 x 30 pixels: MNIST's have 28"):
        files.load_mnist(tmp_path)
    images.write_bytes(of_28)
    labels.unlink()
    labels.with_suffix(".gz").write_bytes(gzip.compress(good)[:-9])
    with pytest.raises(ImageDataError, match=r"ubyte.gz cannot be unpacked"):
        files.load_mnist(tmp_path)


def test_cifar_10(tmp_path):
    rng = np.random.default_rng(0)
    planes, labels, data = cifar_records(rng, 12, 1)
    for index in range(5):
        (tmp_path / f"data_batch_{index + 1}.bin").write_bytes(data[index * 2 * 3073 :][: 2 * 3073])
    (tmp_path / "test_batch.bin").write_bytes(data[10 * 3073 :])
    training, test = files.load_cifar10(tmp_path)
    assert (len(training), len(test)) == (10, 2)
    np.testing.assert_array_equal(training.labels, labels[:10, 0])
    np.testing.assert_array_equal(training.images[3, 5, 7], planes[3, :, 5, 7])
    np.testing.assert_array_equal(test.images[1, 31, 0], planes[11, :, 31, 0])
    (tmp_path / "data_batch_3.bin").write_bytes(data[:3072])
    with pytest.raises(ImageDataError, match=r"data_batch_3.bin has 3072 bytes, not a multiple of 3073"):
        files.load_cifar10(tmp_path)
    (tmp_path / "data_batch_3.bin").write_bytes(b"\x0a" + data[1:3073])
    with pytest.raises(ImageDataError, match=r"data_batch_3.bin: the label of image 0 is 10"):
        files.load_cifar10(tmp_path)
    (tmp_path / "data_batch_3.bin").unlink()
    with pytest.raises(ImageDataError, match=r"has no file data_batch_3.bin"):
        files.load_cifar10(tmp_path)


def test_cifar_100_has_the_fine_labels(tmp_path):
    planes, labels, data = cifar_records(np.random.default_rng(0), 6, 2)
    (tmp_path / "train.bin").write_bytes(data)
    (tmp_path / "test.bin").write_bytes(data[:3074])
    training, test = files.load_cifar100(tmp_path)
    np.testing.assert_array_equal(training.labels, labels[:, 1])
    np.testing.assert_array_equal(training.images[5, 1, 2], planes[5, :, 1, 2])
    assert len(test) == 1
    (tmp_path / "test.bin").write_bytes(b"")
    with pytest.raises(ImageDataError, match=r"test.bin has 0 bytes"):
        files.load_cifar100(tmp_path)


def test_imagenet(tmp_path):
    jpegs = [b"jpeg %d" % index for index in range(7)]
    write_imagenet(tmp_path, jpegs, [1, 1000, 3, 4, 5, 6, 7])
    write_imagenet(tmp_path, jpegs[:2], [8, 9], "validation", shards=1)
    training, validation = files.load_imagenet(tmp_path)
    assert (len(training), len(validation)) == (7, 2)
    found, labels = training.read(np.array([4, 0]))
    assert (found.tolist(), labels.tolist()) == ([jpegs[1], jpegs[0]], [999, 0])
    found, labels = training.subset(np.array([6])).read(np.array([0]))
    assert (found.tolist(), labels.tolist()) == ([jpegs[5]], [5])
    assert training.fingerprint["labelled_images"] == 7
    assert training.fingerprint["last_file"] == "train-00001-of-00002"


def test_damaged_imagenet_files_are_named(tmp_path):
    with pytest.raises(ImageDataError, match="has 0 of the many files train-NNNNN-of-NNNNN"):
        files.load_imagenet(tmp_path)
    write_imagenet(tmp_path, [b"a", b"b", b"c"], [1, 0, 1001])
    write_imagenet(tmp_path, [b"a"], [1], "validation", shards=1)
    training, _ = files.load_imagenet(tmp_path)
    for row, message in [(2, "train-00001-of-00002, byte 0: image/class/label is 0"), (1, "label is 1001")]:
        with pytest.raises(ImageDataError, match=message):
            training.read(np.array([row]))
    first, second = (tmp_path / f"train-0000{index}-of-00002" for index in (0, 1))
    data = first.read_bytes()
    first.write_bytes(data[:14] + b"\xff" + data[15:])
    with pytest.raises(
        ImageDataError, match=r"train-00000-of-00002, byte 0: the record's .* bytes fail their checksum"
    ):
        files.load_imagenet(tmp_path)[0].read(np.array([0]))
    first.write_bytes(data[:-1])
    with pytest.raises(ImageDataError, match=r"train-00000-of-00002, byte .*: no whole TFRecord begins here"):
        files.load_imagenet(tmp_path)
    first.write_bytes(data)
    second.write_bytes(b"")
    with pytest.raises(ImageDataError, match=r"train-00001-of-00002 holds no records"):
        files.load_imagenet(tmp_path)
    with second.open("wb") as file:
        write_tfrecords(file, [serialize_record({"image/encoded": b"a"})])
    with pytest.raises(ImageDataError, match=r"no feature 'image/class/label'"):
        files.load_imagenet(tmp_path)[0].read(np.array([2]))
    second.unlink()
    with pytest.raises(ImageDataError, match=r"has 1 of the 2 files train.*: number 1 is missing"):
        files.load_imagenet(tmp_path)
